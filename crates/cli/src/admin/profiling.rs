//! `/debug/pprof/…`: where this process spends its CPU time, and who holds its memory.
//!
//! One profile is taken at a time, by a thread of its own that ends when whoever asked has left.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use super::Shared;
use crate::profile::{Order, Profile, ProfileError, heap};

/// How long samples may be taken, in seconds.
const SECONDS: RangeInclusive<u32> = 1..=SECONDS_MAX;
/// The most of them; connections of the admin endpoint live longer.
pub(super) const SECONDS_MAX: u32 = 60;
const SECONDS_DEFAULT: u32 = 10;

/// How often samples may be taken, of each thread per second of its CPU time.
const HZ: RangeInclusive<u32> = 1..=999;
/// No divisor of what else happens a hundred times a second.
const HZ_DEFAULT: u32 = 99;

const HOW: &str = "/debug/pprof/profile?seconds=10&hz=99 is for `go tool pprof`, /debug/pprof/flamegraph?seconds=10&hz=99 for \
                   a browser; 1 to 60 seconds, 1 to 999 samples of each thread per second of its CPU time\n";

/// `GET /debug/pprof/profile`.
pub(super) async fn profile(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let order = match read(query.as_deref().unwrap_or_default()) {
        Ok(order) => order,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n{HOW}")).into_response(),
    };
    match alone(&shared, move |is_wanted| Ok(Profile::take(order, is_wanted)?.pprof())).await {
        Ok(bytes) => file("forebay-cpu.pb.gz", bytes),
        Err(response) => response,
    }
}

/// `GET /debug/pprof/flamegraph`.
pub(super) async fn flame_graph(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let order = match read(query.as_deref().unwrap_or_default()) {
        Ok(order) => order,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n{HOW}")).into_response(),
    };
    match alone(&shared, move |is_wanted| Ok(Profile::take(order, is_wanted)?.flame_graph())).await {
        Ok(svg) => ([(CONTENT_TYPE, "image/svg+xml")], svg).into_response(),
        Err(response) => response,
    }
}

/// `GET /debug/pprof/heap`.
pub(super) async fn heap(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        let problem = format!("`{query}`: a profile of the heap is of now, and takes no options\n");
        return (StatusCode::BAD_REQUEST, problem).into_response();
    }
    if !heap::can_profile() {
        return cannot_profile();
    }
    match heap::is_profiled() {
        Ok(true) => {}
        Ok(false) => {
            let remedy = "memory is not being noted: POST /debug/pprof/heap?active=true, wait until the memory in question \
                          has been asked for, and ask again; ?active=false ends it\n";
            return (StatusCode::FORBIDDEN, remedy).into_response();
        }
        Err(error) => return failed(&error),
    }
    match alone(&shared, |_| heap::pprof().map_err(ProfileError::Code)).await {
        Ok(bytes) => file("forebay-heap.pb.gz", bytes),
        Err(response) => response,
    }
}

/// `POST /debug/pprof/heap?active=true`.
pub(super) async fn note_heap(RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    // Browsers say from which page a POST comes, and no page has any business here.
    if headers.contains_key(ORIGIN) {
        return (StatusCode::FORBIDDEN, "not for web pages\n").into_response();
    }
    let is_active = match query.as_deref() {
        Some("active=true") => true,
        Some("active=false") => false,
        other => {
            let query = other.unwrap_or_default();
            let problem = format!("`{query}` is neither active=true nor active=false\n");
            return (StatusCode::BAD_REQUEST, problem).into_response();
        }
    };
    if !heap::can_profile() {
        return cannot_profile();
    }
    match heap::set_profiled(is_active) {
        Ok(()) if is_active => {
            "memory is noted from now on: GET /debug/pprof/heap shows who holds it\n".into_response()
        }
        Ok(()) => "memory is noted no more\n".into_response(),
        Err(error) => failed(&error),
    }
}

fn cannot_profile() -> Response {
    let remedy = "the allocator of this process was started without profiles: start it with \
                  _RJEM_MALLOC_CONF=prof:true,prof_active:false in its environment\n";
    (StatusCode::FORBIDDEN, remedy).into_response()
}

fn failed(error: &dyn ToString) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", error.to_string())).into_response()
}

fn file(name: &str, bytes: Vec<u8>) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    (headers, bytes).into_response()
}

/// Does `work` on a thread of its own unless another such thread is at work. `work` is told how to find out whether
/// anybody still waits for it.
async fn alone<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, ProfileError> + Send + 'static,
) -> Result<T, Response> {
    let Some(turn) = Turn::take(&shared.is_profiling) else { return Err(busy()) };
    let (answer, answered) = oneshot::channel();
    let spawned = thread::Builder::new().name("profiler".to_owned()).spawn(move || {
        let result = work(&|| !answer.is_closed());
        // Before the answer: who has it may ask again at once.
        drop(turn);
        let _ = answer.send(result);
    });
    if let Err(error) = spawned {
        return Err(failed(&format!("no thread can be started: {error}")));
    }
    match answered.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(ProfileError::Sample(error))) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            Err(busy())
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&"the profile was not finished")),
    }
}

fn busy() -> Response {
    (StatusCode::CONFLICT, "a profile is being taken: ask again when it is done\n").into_response()
}

/// The turn of the one profile that may be taken at a time.
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(is_taken: &Arc<AtomicBool>) -> Option<Self> {
        (!is_taken.swap(true, Ordering::SeqCst)).then(|| Self(Arc::clone(is_taken)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

fn read(query: &str) -> Result<Order, String> {
    let (mut seconds, mut hz) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (place, range) = match key {
            "seconds" => (&mut seconds, SECONDS),
            "hz" => (&mut hz, HZ),
            _ => return Err(format!("`{key}` is not known: use seconds and hz")),
        };
        let number = value.parse().ok().filter(|number| range.contains(number));
        let number = number.ok_or_else(|| {
            format!("{key}: `{value}` is not a whole number from {} to {}", range.start(), range.end())
        })?;
        if place.replace(number).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    let seconds = seconds.unwrap_or(SECONDS_DEFAULT);
    Ok(Order { duration: Duration::from_secs(seconds.into()), hz: hz.unwrap_or(HZ_DEFAULT) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_how_long_and_how_often() {
        let order = |seconds, hz| Ok(Order { duration: Duration::from_secs(seconds), hz });
        assert_eq!(read(""), order(10, 99));
        assert_eq!(read("hz=999&seconds=60"), order(60, 999));
        assert_eq!(read("seconds=1"), order(1, 99));
    }

    #[test]
    fn what_is_wrong_with_an_order_is_named() {
        for (query, problem) in [
            ("seconds=0", "seconds: `0` is not a whole number from 1 to 60"),
            ("seconds=61", "seconds: `61`"),
            ("seconds=1.5", "seconds: `1.5`"),
            ("seconds=", "seconds: ``"),
            ("hz=0", "hz: `0` is not a whole number from 1 to 999"),
            ("hz=1000", "hz: `1000`"),
            ("hz=-1", "hz: `-1`"),
            ("hz=1&hz=2", "hz is given twice"),
            ("frequency=99", "`frequency` is not known"),
        ] {
            let error = read(query).unwrap_err();
            assert!(error.contains(problem), "{query}: {error}");
        }
    }

    #[test]
    fn one_turn_is_given_at_a_time() {
        let is_taken = Arc::new(AtomicBool::new(false));
        let turn = Turn::take(&is_taken).unwrap();
        assert!(Turn::take(&is_taken).is_none());
        drop(turn);
        assert!(Turn::take(&is_taken).is_some());
    }
}
