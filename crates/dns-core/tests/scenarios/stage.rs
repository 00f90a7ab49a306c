//! A forwarder with one upstream that answers as a scenario says.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_core::{Config, IdleOrder, Instant, Permits, SlotId};
use forebay_dns_core::forwarder::{
    AnyPolicy, Client, Endpoint, Forwarder, ForwarderConfig, Link, LinkAction, Outbox, Strategy, StreamKind,
    Upstream,
};
use forebay_dns_core::wire::HashSeed;

use crate::rpl::{Act, Entry, Scenario, options, sections};

/// The id of every client's query.
const ID: u16 = 0x4242;

#[derive(Default)]
struct Mailbox {
    replies: VecDeque<Vec<u8>>,
    sent: VecDeque<(SlotId, Vec<u8>)>,
}

impl Outbox for Mailbox {
    fn reply(&mut self, _: &Client, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.replies.push_back(bytes);
    }

    fn transmit(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.sent.push_back((slot, bytes));
    }
}

struct Stage<'a> {
    scenario: &'a Scenario,
    forwarder: Forwarder,
    mail: Mailbox,
    now: Instant,
    step: u32,
    upstreams_answer: bool,
    /// The idle time-out of clients' streams, in units of 100 ms.
    idle: u16,
    /// Queries that no entry answers, for who looks why a scenario failed.
    unanswered: Vec<String>,
}

/// Runs a scenario. `Err` says at which step what was wrong.
pub(crate) fn run(scenario: &Scenario) -> Result<(), String> {
    let now = Instant::from_nanos(1_000_000_000);
    let mut stage = Stage {
        scenario,
        forwarder: Forwarder::new(now, config(&scenario.config)?).map_err(|error| error.to_string())?,
        mail: Mailbox::default(),
        now,
        step: 0,
        upstreams_answer: true,
        idle: idle(&scenario.config),
        unanswered: Vec::new(),
    };
    stage.settle()?;
    for step in &scenario.steps {
        if matches!(&step.act, Act::Check(entry) if entry.matches.iter().any(|word| word == "CONNECTION_CLOSED"))
        {
            // Closing what stands idle is done by who has the socket, and tested there.
            break;
        }
        stage.step = step.number;
        stage.act(&step.act).map_err(|problem| {
            let unanswered = stage.unanswered.join(", ");
            format!("step {}: {problem} (queries nobody answers: {unanswered})", step.number)
        })?;
    }
    Ok(())
}

fn idle(config: &[String]) -> u16 {
    let told = config.iter().find_map(|line| line.strip_prefix("edns-tcp-keepalive-timeout:"));
    told.and_then(|millis| millis.trim().parse::<u16>().ok()).map_or(100, |millis| millis / 100)
}

fn config(lines: &[String]) -> Result<ForwarderConfig, String> {
    let link = |order| Link {
        config: Config { capacity: 16, order, ..Config::default() },
        permits: Permits::alone(64, 0),
    };
    let endpoint = Endpoint {
        name: "udp://192.0.2.53:53".to_owned(),
        datagram: Some(link(IdleOrder::Random)),
        stream: link(IdleOrder::Lifo),
        is_encrypted: false,
    };
    let upstream =
        Upstream { name: "default".to_owned(), endpoints: vec![endpoint], strategy: Strategy::Sequential };
    let mut config = ForwarderConfig::new(vec![upstream], HashSeed::from_bytes([7; 16]), [7; 32]);
    config.cache_bytes = 1 << 20;
    // As long as the scenarios expect.
    config.cache_policy.ttl_max = Duration::from_secs(7 * 86_400);
    for line in lines.iter().filter_map(|line| line.strip_prefix("forebay:")) {
        let (key, value) = line.split_once('=').ok_or(format!("`{line}` is no setting"))?;
        match (key.trim(), value.trim()) {
            ("stale", "off") => config.stale = None,
            ("special_names", "on") => config.front.special_names = true,
            ("any", "minimal") => config.front.any = AnyPolicy::Minimal,
            (key, value) => return Err(format!("`{key} = {value}` is not understood")),
        }
    }
    Ok(config)
}

impl Stage<'_> {
    fn act(&mut self, act: &Act) -> Result<(), String> {
        match act {
            Act::Query(entry, from) => {
                let address = from.as_deref().unwrap_or("127.0.0.1").parse().map_err(|_| "no address")?;
                let client = if entry.compares("UDP") {
                    Client::Udp { listener: 0, peer: (address, 4242).into(), local: None }
                } else {
                    Client::Stream { connection: 1, peer: address, kind: StreamKind::Tcp, idle: self.idle }
                };
                let message = entry.message(ID, None)?;
                self.forwarder.handle_query(self.now, client, &message, &mut self.mail);
                self.settle()
            }
            Act::Check(entry) => self.check(entry),
            Act::Pass(seconds) => self.pass(Duration::from_secs(*seconds)),
            Act::Silence(millis) => {
                self.pass(Duration::from_millis(*millis))?;
                if self.mail.replies.is_empty() { Ok(()) } else { Err("a reply, too early".to_owned()) }
            }
            Act::Upstreams(answer) => {
                self.upstreams_answer = *answer;
                Ok(())
            }
        }
    }

    /// Makes connections and answers queries until nothing more is asked for.
    fn settle(&mut self) -> Result<(), String> {
        loop {
            if let Some(action) = self.forwarder.poll_link() {
                match action {
                    LinkAction::Dial { slot, .. } => {
                        self.forwarder.handle_dialed(self.now, slot, Ok(u32::MAX), &mut self.mail);
                    }
                    LinkAction::Close { slot } => {
                        self.forwarder.handle_closed(self.now, slot, None, &mut self.mail);
                    }
                }
            } else if let Some((slot, query)) = self.mail.sent.pop_front() {
                if let Some(answer) = self.answer(&query)? {
                    self.forwarder.handle_answer(self.now, slot, &answer, &mut self.mail);
                }
            } else {
                return Ok(());
            }
        }
    }

    /// What the upstream says to a query: the last entry that matches.
    fn answer(&mut self, query: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let ranges = self.scenario.ranges.iter();
        let current = ranges.filter(|range| (range.first..=range.last).contains(&self.step));
        let mut found = None;
        for entry in current.flat_map(|range| &range.entries) {
            if fits(entry, query)? {
                found = Some(entry);
            }
        }
        if !self.upstreams_answer {
            return Ok(None);
        }
        let Some(entry) = found else {
            if let Some(answer) = self.scenario.local_data(query)? {
                return Ok(Some(answer));
            }
            self.unanswered.push(format!("{query:02x?}"));
            return Ok(None);
        };
        let id = u16::from_be_bytes([query[0], query[1]]);
        entry.message(id, Some(query)).map(Some)
    }

    fn pass(&mut self, span: Duration) -> Result<(), String> {
        let end = self.now + span;
        while let Some(due) = self.forwarder.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.forwarder.handle_timeout(self.now, &mut self.mail);
            self.settle()?;
        }
        self.now = end;
        Ok(())
    }

    fn check(&mut self, expected: &Entry) -> Result<(), String> {
        // Who has not been answered is answered by time: an upstream's silence, too, ends.
        let patience = if expected.compares("at_once") { 0 } else { 100 };
        for _ in 0..patience {
            if !self.mail.replies.is_empty() {
                break;
            }
            self.pass(Duration::from_millis(100))?;
        }
        let reply = self.mail.replies.pop_front().ok_or("no reply")?;
        if !self.mail.replies.is_empty() {
            return Err("more than one reply".to_owned());
        }
        let wanted = expected.message(ID, None)?;
        if reply[..2] != wanted[..2] {
            return Err("another id".to_owned());
        }
        let rcode = rcode(&reply);
        if expected.compares("rcode") && rcode != expected.rcode() {
            return Err(format!("response code {rcode} instead of {}", expected.rcode()));
        }
        // QR, opcode, TC, RD; AD, CD.
        let flags = |message: &[u8]| (message[2] & 0xfb, message[3] & 0x30);
        if expected.compares("flags") && flags(&reply) != flags(&wanted) {
            return Err(format!("flags {:02x?} instead of {:02x?}", flags(&reply), flags(&wanted)));
        }
        if expected.compares("ednsdata") && options(&reply)? != expected.options {
            return Err(format!("options {:02x?} instead of {:02x?}", options(&reply)?, expected.options));
        }
        let ttl = expected.compares("ttl");
        let (have, want) = (sections(&reply, ttl)?, sections(&wanted, ttl)?);
        for (at, section) in ["answer", "authority", "additional"].into_iter().enumerate() {
            if expected.compares(section) && have[at] != want[at] {
                return Err(format!("in section {section} {:#?} instead of {:#?}", have[at], want[at]));
            }
        }
        Ok(())
    }
}

fn rcode(message: &[u8]) -> u16 {
    let parsed = domain::base::Message::from_octets(message).ok();
    let extended = parsed.and_then(|message| message.opt().map(|opt| opt.rcode(message.header()).to_int()));
    extended.unwrap_or(u16::from(message[3] & 15))
}

/// Whether an entry is for this query.
fn fits(entry: &Entry, query: &[u8]) -> Result<bool, String> {
    let message = domain::base::Message::from_octets(query).map_err(|error| error.to_string())?;
    let Some(question) = message.first_question() else { return Ok(false) };
    let (name, kind, class) = entry.question()?;
    let header = message.header();
    let dnssec_ok = message.opt().is_some_and(|opt| opt.dnssec_ok());
    Ok((!entry.compares("qname") || *question.qname() == name)
        && (!entry.compares("qtype") || question.qtype() == kind && question.qclass() == class)
        && (!entry.compares("opcode") || header.opcode().to_int() == entry.opcode())
        && (!entry.compares("RD") || header.rd())
        && (!entry.compares("AD") || header.ad())
        && (!entry.compares("CD") || header.cd())
        && (!entry.compares("DO") || dnssec_ok))
}
