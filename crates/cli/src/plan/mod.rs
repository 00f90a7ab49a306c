//! `forebay plan`: how many connections a load needs, how long requests then wait for one, what that takes of this machine,
//! and what is used up first.
//!
//! | module | what |
//! |---|---|
//! | `theory` | lines as queueing theory has them |
//! | `world` | the same lived through, by the engine's own core in virtual time |
//! | `question` | what is asked, checked; the arithmetic of the answer |
//! | `report` | the answer, as text and as JSON |
//! | `from` | rate and time of service of a running forebay |
//! | `draw`, `units` | random times; how times and rates are written |
//!
//! All of it is plain arithmetic but this page, which reads the arguments, the machine and a running forebay.

mod draw;
mod from;
mod question;
mod report;
mod theory;
pub mod units;
mod world;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use forebay::sys::process;
use forebay::units::{Size, Span};

pub(crate) use self::draw::Service;
pub(crate) use self::from::{Counts, Times};
use self::from::{Look, Pools, Taken};
pub use self::question::Transport;
use self::question::{Question, Room};
use self::report::Plan;
use self::units::{Rate, Spread, Time};
pub(crate) use self::world::{Arrivals, World};
use crate::args::refused_options;
use crate::doctor::parse;
use crate::failure::{Failure, say};
use crate::remote::{self, Remote};

/// The options of `plan`.
#[derive(Clone, Debug, clap::Args)]
#[command(args = refused_options())]
#[command(group = clap::ArgGroup::new("load").required(true).args(["callers", "rate", "from"]))]
pub struct PlanArgs {
    /// Callers who ask one thing at a time, again and again.
    #[arg(long, value_name = "N")]
    pub callers: Option<u32>,
    /// Requests that come on their own, like 5000, 5000/s or 300/min.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
    /// Take rate and time of service from the admin endpoint of a running forebay.
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// With --from: how long to look.
    #[arg(long = "for", value_name = "TIME", default_value = "3s", conflicts_with_all = ["callers", "rate"])]
    pub look: Span,
    /// With --from: the upstream that is meant [default: the busiest].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["callers", "rate"])]
    pub upstream: Option<String>,
    /// How long the upstream takes for a request on average, like 0.78ms.
    #[arg(long, value_name = "TIME")]
    pub service: Option<Time>,
    /// How far these times spread: deviation by mean (0 always the same, 1 exponential), or percentiles like
    /// p50=0.5ms,p99=8ms, which say the mean too [default: 1].
    #[arg(long, value_name = "SPREAD")]
    pub spread: Option<Spread>,
    /// With --callers: the mean pause of each before it asks again.
    #[arg(long, value_name = "TIME", default_value = "0", conflicts_with_all = ["rate", "from"])]
    pub think: Time,
    /// With --rate or --from: how many requests come at the same moment.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "callers")]
    pub burst: u32,
    /// With --rate: the part that a cache answers (0 to 1), which never comes to the pool.
    #[arg(long, value_name = "PART", default_value_t = 0.0, conflicts_with_all = ["callers", "from"])]
    pub hits: f64,
    /// How long requests may wait for a connection [default: a tenth of the service].
    #[arg(long, value_name = "TIME")]
    pub target_wait: Option<Time>,
    /// Percent of requests that wait no longer than that.
    #[arg(long, value_name = "PERCENT", default_value_t = 99.0)]
    pub percentile: f64,
    /// Requests on one connection at once; 1 is exclusive [default: 1, or that of --from].
    #[arg(long, value_name = "N")]
    pub capacity: Option<u32>,
    /// Endpoints that share the load evenly [default: 1, or those of --from].
    #[arg(long, value_name = "N")]
    pub endpoints: Option<u32>,
    /// Say what becomes of so many connections to each endpoint, too.
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// What connections are: it decides on TIME_WAIT and memory [default: tcp, or that of --from].
    #[arg(long, value_enum, value_name = "udp|tcp|tls")]
    pub transport: Option<Transport>,
    /// How long a dial takes.
    #[arg(long, value_name = "TIME", default_value = "1ms")]
    pub dial: Time,
    /// connections_max of the pool [default: 1024, or that of --from].
    #[arg(long, value_name = "N")]
    pub connections_max: Option<u32>,
    /// Local ports for one destination [default: those of this machine].
    #[arg(long, value_name = "N")]
    pub ports: Option<u32>,
    /// Descriptors of the process [default: the hard limit here, to which servers raise theirs].
    #[arg(long, value_name = "N")]
    pub descriptors: Option<u64>,
    /// Descriptors that clients hold beside.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub client_sockets: u32,
    /// Memory for connections [default: what is available here].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Memory of one connection [default: 4KiB for udp, 8KiB for tcp, 48KiB for tls].
    #[arg(long, value_name = "SIZE")]
    pub connection_memory: Option<Size>,
    /// Requests that each simulation lives through.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub requests: u32,
    /// What chance is made of in simulations: one seed is one result.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The help that stands after the options.
pub(crate) const EXAMPLES: &str = "\
Examples:
  forebay plan --callers 256 --service 0.78ms --connections 10
  forebay plan --rate 5000/s --service 20ms --spread 2 --target-wait 5ms
  forebay plan --rate 100000 --hits 0.96 --spread p50=0.5ms,p99=8ms --capacity 128 --transport udp
  forebay plan --rate 2000 --service 5ms --burst 50 --ports 200
  forebay plan --from http://127.0.0.1:9053 --for 10s --json

Times between requests are random (exponential). Where theory is exact (M/M/c, and callers who come back), it says how many
connections are needed; elsewhere simulations with the engine's own core do.";

/// What a server keeps for other things than connections to upstreams.
const DESCRIPTORS_TAKEN: u64 = 64;
/// Where neither an option nor this machine says how many ports there are: the kernel's default range.
const PORTS: u32 = 28_232;
/// How often a running forebay is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Answers the question that the options ask.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let (taken, mut notes) = match &args.from {
        Some(url) => {
            let taken = take(url, args.look.0, args.upstream.as_deref(), args.service.is_some())?;
            let notes = taken.notes.clone();
            (Some(taken), notes)
        }
        None => (None, Vec::new()),
    };
    let machine = Here::read(&mut notes);
    let question =
        args.question(taken.as_ref(), &machine).and_then(Question::check).map_err(Failure::wrong)?;
    let plan = Plan::new(&question, notes).map_err(Failure::wrong)?;
    if args.json {
        say(&serde_json::to_string_pretty(&plan).expect("a plan has nothing that JSON has not"));
    } else {
        say(&plan.to_string());
    }
    Ok(())
}

/// What this machine has.
#[derive(Clone, Copy, Debug)]
struct Here {
    ports: u32,
    descriptors: u64,
    memory_bytes: Option<u64>,
}

impl Here {
    /// Reads it, and notes what cannot be read.
    fn read(notes: &mut Vec<String>) -> Self {
        let ports = process::local_port_range().map_or_else(
            |error| {
                notes.push(format!("local ports cannot be read ({error}); {PORTS} are assumed"));
                PORTS
            },
            |range| range.usable(),
        );
        let descriptors = process::descriptor_limit().map_or(1024, |limit| limit.hard);
        let meminfo = fs::read_to_string("/proc/meminfo").ok();
        let memory_bytes =
            meminfo.and_then(|text| parse::meminfo(&text)).map(|memory| memory.available_bytes);
        Self { ports, descriptors, memory_bytes }
    }
}

impl PlanArgs {
    fn question(&self, taken: Option<&Taken>, here: &Here) -> Result<Question, String> {
        let arrivals = match (self.callers, self.rate, taken) {
            (Some(callers), ..) => Arrivals::Closed { callers, think: self.think.0 },
            (None, Some(Rate(rate)), _) => {
                if !(0.0..1.0).contains(&self.hits) {
                    return Err(format!("--hits: is {}; it must be 0 to less than 1", self.hits));
                }
                Arrivals::Open { rate: rate * (1.0 - self.hits), burst: self.burst }
            }
            (None, None, Some(taken)) => Arrivals::Open { rate: taken.rate, burst: self.burst },
            (None, None, None) => return Err("say --callers, --rate or --from".to_owned()),
        };
        let service = self.service(taken)?;
        let target = self.target_wait.map_or(service.mean / 10.0, |Time(seconds)| seconds);
        let transport = self.transport.unwrap_or_else(|| match taken.map(|taken| taken.transport.as_str()) {
            Some("udp") => Transport::Udp,
            Some("tls" | "https") => Transport::Tls,
            _ => Transport::Tcp,
        });
        let connections_max =
            self.connections_max.or(taken.map(|taken| taken.connections_max)).unwrap_or(1024);
        let at_least_one = |option: &str, value: u64| {
            if value == 0 { Err(format!("{option}: is 0; it must be at least 1")) } else { Ok(value) }
        };
        let room = Room {
            connections_max: at_least_one("--connections-max", connections_max.into())?,
            ports: at_least_one("--ports", self.ports.unwrap_or(here.ports).into())?,
            descriptors: self.descriptors.unwrap_or(here.descriptors),
            descriptors_taken: DESCRIPTORS_TAKEN + u64::from(self.client_sockets),
            memory_bytes: self.memory.map(|size| size.bytes).or(here.memory_bytes),
            connection_bytes: at_least_one(
                "--connection-memory",
                self.connection_memory.map_or_else(|| transport.memory_bytes(), |size| size.bytes),
            )?,
        };
        Ok(Question {
            arrivals,
            service,
            capacity: self.capacity.or(taken.map(|taken| taken.capacity)).unwrap_or(1),
            endpoints: self.endpoints.or(taken.map(|taken| taken.endpoints)).unwrap_or(1),
            target,
            part: self.percentile / 100.0,
            connections: self.connections,
            dial: self.dial.0,
            transport,
            room,
            requests: self.requests,
            seed: self.seed,
        })
    }

    fn service(&self, taken: Option<&Taken>) -> Result<Service, String> {
        let mean = self.service.map(|Time(seconds)| seconds).or(taken.map(|taken| taken.service));
        match (self.spread, mean) {
            (Some(Spread::Percentiles { .. }), Some(_)) if self.service.is_some() => {
                Err("--spread: percentiles say the mean too: leave out --service, or write a number"
                    .to_owned())
            }
            (Some(Spread::Percentiles { p50, p99 }), _) => {
                if p50 <= 0.0 || p99 < p50 {
                    return Err(format!(
                        "--spread: p50 is {p50}s and p99 {p99}s; they must be more than 0, and p99 no less than p50"
                    ));
                }
                Ok(Service::of_percentiles(p50, p99))
            }
            (Some(Spread::Variation(spread)), Some(mean)) => Ok(Service { mean, spread }),
            (None, Some(mean)) => {
                let known = taken.filter(|_| self.service.is_none()).and_then(|taken| taken.spread);
                Ok(Service { mean, spread: known.unwrap_or(1.0).min(10.0) })
            }
            (_, None) => {
                Err("--service: say how long the upstream takes for a request, like 0.78ms".to_owned())
            }
        }
    }
}

/// Looks at a running forebay for a while.
fn take(url: &str, time: Duration, upstream: Option<&str>, has_service: bool) -> Result<Taken, Failure> {
    let remote: Remote = url.parse().map_err(|error| Failure::wrong(format!("--from: {error}")))?;
    let failed = |error: String| Failure::failed(format!("--from: {error}"));
    if time.is_zero() || time > Duration::from_secs(3600) {
        return Err(Failure::wrong(format!(
            "--for: is {time:?}; it must be more than nothing and at most 1h"
        )));
    }
    let token = remote::token(None)?;
    let get = |path| remote.get(path, token.as_deref()).map_err(|trouble| format!("{remote} {trouble}"));
    let read = || get("/pools").and_then(|text| Pools::read(&text).map_err(|why| format!("{remote}: {why}")));
    let began = Instant::now();
    let mut looks = vec![Look { at: 0.0, pools: read().map_err(failed)? }];
    let before = Times::read(&get("/metrics").map_err(failed)?);
    let mut cut = None;
    while began.elapsed() < time && cut.is_none() {
        thread::sleep(LOOK_INTERVAL.min(time));
        let at = began.elapsed().as_secs_f64();
        match read() {
            Ok(pools) => looks.push(Look { at, pools }),
            Err(error) if looks.len() > 1 => cut = Some(error),
            Err(error) => return Err(failed(error)),
        }
    }
    let after = match cut {
        None => Times::read(&get("/metrics").map_err(failed)?),
        Some(_) => None,
    };
    let times = before.as_ref().zip(after.as_ref());
    let mut taken = from::estimate(&looks, times, upstream).map_err(|why| failed(format!("{remote}: {why}")));
    if let (Ok(taken), Some(error)) = (&mut taken, cut) {
        let seconds = looks.last().map_or(0.0, |look| look.at);
        taken.notes.push(format!("cut short: it could be looked at for {seconds:.1} s only; then {error}"));
    }
    if let Ok(taken) = &mut taken
        && has_service
    {
        taken.notes.push("the time of service is that of --service, not what was seen".to_owned());
    }
    taken
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    const HERE: Here = Here { ports: 28_232, descriptors: 20_000, memory_bytes: None };

    fn args(line: &str) -> PlanArgs {
        let line = format!("forebay plan {line}");
        match Args::try_parse_from(line.split_ascii_whitespace()).unwrap().command {
            Some(Command::Plan(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn question(line: &str) -> Result<Question, String> {
        args(line).question(None, &HERE)?.check()
    }

    #[test]
    fn every_option_reaches_the_question() {
        let asked = question(
            "--rate 5000 --hits 0.5 --service 0.78ms --spread 2 --burst 3 --target-wait 5ms --percentile 95 --capacity 8 \
             --endpoints 4 --connections 7 --transport tls --dial 3ms --connections-max 99 --ports 200 --descriptors 500 \
             --client-sockets 10 --memory 1MiB --connection-memory 1KiB --requests 2000 --seed 9",
        )
        .unwrap();
        assert_eq!(asked.arrivals, Arrivals::Open { rate: 2500.0, burst: 3 });
        assert_eq!(asked.service, Service { mean: 0.00078, spread: 2.0 });
        assert_eq!((asked.target, asked.part), (0.005, 0.95));
        assert_eq!((asked.capacity, asked.endpoints, asked.connections), (8, 4, Some(7)));
        assert_eq!((asked.transport, asked.dial), (Transport::Tls, 0.003));
        let room = Room {
            connections_max: 99,
            ports: 200,
            descriptors: 500,
            descriptors_taken: 74,
            memory_bytes: Some(1 << 20),
            connection_bytes: 1 << 10,
        };
        assert_eq!((asked.room, asked.requests, asked.seed), (room, 2000, 9));
        let asked = question("--callers 256 --service 1ms --think 2ms").unwrap();
        assert_eq!(asked.arrivals, Arrivals::Closed { callers: 256, think: 0.002 });
        assert_eq!((asked.target, asked.part, asked.service.spread), (0.0001, 0.99, 1.0));
        assert_eq!(
            (asked.room.ports, asked.room.descriptors, asked.room.memory_bytes),
            (28_232, 20_000, None)
        );
    }

    #[test]
    fn what_was_taken_is_used_where_no_option_says_otherwise() {
        let taken = Taken {
            rate: 100.0,
            service: 0.02,
            spread: Some(0.5),
            endpoints: 3,
            capacity: 64,
            connections_max: 77,
            transport: "https".to_owned(),
            notes: Vec::new(),
        };
        let asked = args("--from x").question(Some(&taken), &HERE).unwrap();
        assert_eq!(asked.arrivals, Arrivals::Open { rate: 100.0, burst: 1 });
        assert_eq!(asked.service, Service { mean: 0.02, spread: 0.5 });
        assert_eq!((asked.endpoints, asked.capacity, asked.room.connections_max), (3, 64, 77));
        assert_eq!(asked.transport, Transport::Tls);
        let asked =
            args("--from x --service 1ms --capacity 1 --endpoints 2").question(Some(&taken), &HERE).unwrap();
        assert_eq!(asked.service, Service { mean: 0.001, spread: 1.0 });
        assert_eq!((asked.endpoints, asked.capacity), (2, 1));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for line in [
            "",
            "--rate 1 --callers 1 --service 1ms",
            "--rate 1 --from x",
            "--callers 1 --burst 2 --service 1ms",
            "--callers 1 --hits 0.5 --service 1ms",
            "--rate 1 --think 1ms --service 1ms",
            "--rate 1 --for 1s --service 1ms",
            "--rate -1 --service 1ms",
            "--rate 1 --service 1",
            "--rate 1 --service 1ms --transport sctp",
        ] {
            let line = format!("forebay plan {line}");
            assert!(Args::try_parse_from(line.split_ascii_whitespace()).is_err(), "{line}");
        }
        for (line, error) in [
            ("--rate 1", "--service: say how long"),
            ("--rate 1 --spread 2", "--service: say how long"),
            ("--rate 1 --service 1ms --spread p50=1ms,p99=2ms", "--spread: percentiles say the mean too"),
            ("--rate 1 --spread p50=2ms,p99=1ms", "--spread: p50 is"),
            ("--rate 1 --service 1ms --hits 1", "--hits: is 1"),
            ("--rate 1 --service 1ms --ports 0", "--ports: is 0"),
            ("--rate 1 --service 1ms --percentile NaN", "--percentile: is NaN"),
            ("--rate 1 --service 0", "--service: is 0s"),
        ] {
            let message = question(line).unwrap_err();
            assert!(message.starts_with(error), "{line}: {message}");
        }
    }
}
