use std::time::Duration;

use forebay_core::Instant;

use super::*;
use crate::http1::{Body, Limits, Method, RequestHead, ResponseHead, response_body};

fn response(text: &str) -> ResponseHead {
    let mut head = ResponseHead::default();
    head.parse(text.as_bytes(), &Limits::default()).unwrap().unwrap();
    head
}

fn request(text: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.parse(text.as_bytes(), &Limits::default()).unwrap().unwrap();
    head
}

/// The verdict after an exchange that went well, but for what is changed.
fn after(text: &str, change: impl FnOnce(&mut Ended<'_>)) -> Result<(), Spoilt> {
    let response = response(text);
    let body = response_body(Method::Get, &response);
    let mut ended = Ended {
        response: &response,
        body,
        response_ended: true,
        request_sent: true,
        bytes_left: 0,
        asked_connect: false,
    };
    change(&mut ended);
    verdict(&ended)
}

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";

#[test]
fn a_connection_is_kept_after_a_response_that_ended_by_its_framing() {
    assert_eq!(after(FINE, |_| {}), Ok(()));
    assert_eq!(after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", |_| {}), Ok(()));
    assert_eq!(after("HTTP/1.1 304 OK\r\n\r\n", |_| {}), Ok(()));
    assert_eq!(
        after("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n", |_| {}),
        Ok(())
    );
}

#[test]
fn no_connection_is_kept_whose_next_bytes_are_uncertain() {
    assert_eq!(after(FINE, |ended| ended.response_ended = false), Err(Spoilt::ResponseUnfinished));
    assert_eq!(after(FINE, |ended| ended.request_sent = false), Err(Spoilt::RequestUnfinished));
    assert_eq!(after(FINE, |ended| ended.bytes_left = 1), Err(Spoilt::BytesLeft));
    assert_eq!(
        after("HTTP/1.1 200 OK\r\n\r\n", |ended| assert_eq!(ended.body, Body::UntilClose)),
        Err(Spoilt::CloseDelimited)
    );
}

#[test]
fn no_connection_is_kept_that_its_backend_closes() {
    let closes = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    assert_eq!(after(closes, |_| {}), Err(Spoilt::BackendCloses));
    assert_eq!(after("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", |_| {}), Err(Spoilt::Http10));
}

#[test]
fn no_connection_is_kept_that_became_a_tunnel() {
    assert_eq!(after("HTTP/1.1 101 OK\r\n\r\n", |_| {}), Err(Spoilt::Switched));
    assert_eq!(after(FINE, |ended| ended.asked_connect = true), Err(Spoilt::Tunnel));
    let refused = "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        after(refused, |ended| ended.asked_connect = true),
        Ok(()),
        "a tunnel that was refused is none"
    );
}

#[test]
fn first_requests_go_on_used_connections_as_the_policy_says() {
    // Columns: new; used once, first and not replayable; used often, the same; first and replayable; later.
    for (policy, admitted) in [
        (Reuse::Never, [true, false, false, false, false]),
        (Reuse::Safe, [true, false, false, true, true]),
        (Reuse::Aggressive, [true, false, true, true, true]),
        (Reuse::Always, [true, true, true, true, true]),
    ] {
        let asked =
            [(true, false, 0), (true, false, 1), (true, false, 2), (true, true, 1), (false, false, 1)];
        let found = asked.map(|(is_first, is_replayable, uses)| policy.admits(is_first, is_replayable, uses));
        assert_eq!(found, admitted, "{policy:?}");
    }
    assert_eq!(Reuse::default(), Reuse::Safe);
}

const SENT: Sent = Sent { any: true, is_idempotent: true, is_kept: true, on_reused: true, answered: false };

#[test]
fn a_request_is_replayed_only_on_a_reused_connection_without_an_answer() {
    assert_eq!(SENT.replay(Failure::Closed), Replay::Fresh);
    assert_eq!(Sent { on_reused: false, ..SENT }.replay(Failure::Closed), Replay::No(Stays::NotReused));
    for failure in [Failure::Dial, Failure::Closed, Failure::Refused, Failure::TimedOut, Failure::Malformed] {
        assert_eq!(Sent { answered: true, ..SENT }.replay(failure), Replay::No(Stays::Answered));
    }
}

#[test]
fn a_request_that_does_something_is_not_done_twice() {
    let post = Sent { is_idempotent: false, ..SENT };
    assert_eq!(post.replay(Failure::Closed), Replay::No(Stays::NotIdempotent));
    assert_eq!(
        Sent { any: false, ..post }.replay(Failure::Closed),
        Replay::Fresh,
        "nothing of it was written"
    );
    assert_eq!(post.replay(Failure::Refused), Replay::Next, "the backend says that it did not look at it");
}

#[test]
fn a_request_whose_body_has_gone_is_not_replayed() {
    let gone = Sent { is_kept: false, ..SENT };
    for failure in [Failure::Closed, Failure::Refused] {
        assert_eq!(gone.replay(failure), Replay::No(Stays::BodyGone));
    }
}

#[test]
fn a_backend_that_may_be_at_work_is_not_asked_again() {
    assert_eq!(SENT.replay(Failure::TimedOut), Replay::No(Stays::TimedOut));
    assert_eq!(SENT.replay(Failure::Malformed), Replay::No(Stays::Malformed));
}

#[test]
fn a_dial_that_failed_leaves_the_request_to_the_next_backend() {
    let unsent = Sent { any: false, is_idempotent: false, is_kept: false, on_reused: false, answered: false };
    assert_eq!(unsent.replay(Failure::Dial), Replay::Next);
}

#[test]
fn one_request_in_five_may_be_replayed_and_three_a_second() {
    let mut budget = RetryBudget::default();
    let mut now = Instant::ZERO;
    let taken = |budget: &mut RetryBudget, now| {
        std::iter::repeat_with(|| budget.take(now)).take_while(|had| *had).count()
    };
    assert_eq!(taken(&mut budget, now), 30, "what quiet seconds saved");
    (0..100).for_each(|_| budget.handle_request());
    assert_eq!(taken(&mut budget, now), 20);
    now = now + Duration::from_secs(2);
    assert_eq!(taken(&mut budget, now), 6);
    now = now + Duration::from_secs(1_000_000_000);
    assert_eq!(taken(&mut budget, now), 256, "saving has an end");
    assert!(!budget.take(Instant::ZERO), "time that goes back adds nothing");
}

fn wants(fields: &str) -> bool {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    wants_upgrade(&request(&text), text.as_bytes())
}

#[test]
fn an_upgrade_with_a_body_or_without_its_option_is_not_passed_on() {
    assert!(wants("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    assert!(wants("Connection: keep-alive, upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"));
    assert!(!wants("Upgrade: websocket\r\n"));
    assert!(!wants("Connection: upgrade\r\n"));
    assert!(!wants("Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"));
    assert!(!wants("Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: other\r\n"));
    assert!(!wants("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n"));
    assert!(!wants("Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n"));
    let old = "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!wants_upgrade(&request(old), old.as_bytes()));
}

#[test]
fn a_tunnel_opens_only_after_the_backend_says_so() {
    let switch = |method, asked: Option<&str>, text: &str| {
        switches(method, asked.map(str::as_bytes), &response(text), text.as_bytes())
    };
    let yes = "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n";
    assert_eq!(switch(Method::Get, Some("websocket"), yes), Ok(Switch::Upgraded));
    assert_eq!(switch(Method::Get, None, yes), Err(TunnelError::NotAsked));
    assert_eq!(switch(Method::Get, Some("other"), yes), Err(TunnelError::WrongProtocol));
    assert_eq!(switch(Method::Get, Some("other"), "HTTP/1.1 101 X\r\n\r\n"), Err(TunnelError::WrongProtocol));
    assert_eq!(
        switch(Method::Get, Some("websocket"), FINE),
        Ok(Switch::Stays),
        "200 to an upgrade stays HTTP"
    );
    assert_eq!(switch(Method::Connect, None, FINE), Ok(Switch::Connected));
    assert_eq!(switch(Method::Connect, None, "HTTP/1.1 407 X\r\n\r\n"), Ok(Switch::Stays));
}

#[test]
fn a_connection_that_is_authenticated_belongs_to_its_client() {
    let private = |text: &str| is_private(&response(text), text.as_bytes());
    assert!(private("HTTP/1.1 401 X\r\nWWW-Authenticate: NTLM\r\n\r\n"));
    assert!(private("HTTP/1.1 401 X\r\nWWW-Authenticate: Basic realm=\"a\", negotiate abc\r\n\r\n"));
    assert!(private("HTTP/1.1 407 X\r\nProxy-Authenticate: Negotiate\r\n\r\n"));
    assert!(!private("HTTP/1.1 401 X\r\nWWW-Authenticate: Bearer\r\n\r\n"));
    assert!(!private("HTTP/1.1 407 X\r\nWWW-Authenticate: NTLM\r\n\r\n"));
    assert!(!private("HTTP/1.1 200 X\r\nWWW-Authenticate: NTLM\r\n\r\n"));
}
