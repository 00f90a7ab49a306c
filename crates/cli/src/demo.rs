//! The demo: two embedded upstreams, a forwarder in front of them, two web servers, a proxy in front of them, and light
//! load, all in this process.
//!
//! On a terminal it is a screen, elsewhere a line a second. Nothing leaves this machine.

mod certificate;
pub(crate) mod figures;
mod load;
mod screen;
mod web;

use std::io::{self, IsTerminal};
use std::net::UdpSocket;
use std::pin::pin;
use std::time::Duration;

use forebay::sys;
use forebay_bench::responder::{Responder, Script};
use forebay_dns::{DnsConfig, Scheme, Server, Settings, StrategyName};
use tokio::runtime;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::certificate::Certificate;
use self::figures::{Figures, Sample, Summary};
use self::load::Load;
use self::screen::Screen;
use self::web::{Web, WebLoad, WebSample};
use crate::admin::Admin;
use crate::admin::Source;
use crate::args::{DemoArgs, ServeArgs};
use crate::config::{AdminConfig, LogLevel, TOKEN_VARIABLE};
use crate::failure::{Failure, say};
use crate::logs;
use crate::serve::{Ends, bind_admin, end_at_once, start_admin, start_failure};

/// Where the forwarder listens, if nobody else does.
const LISTEN: &str = "127.0.0.1:5300";
/// Where it listens for DNS over TLS, if nobody else does.
const LISTEN_TLS: &str = "127.0.0.1:5853";
/// Where it listens for DNS over HTTPS, if nobody else does.
const LISTEN_HTTPS: &str = "127.0.0.1:5443";
/// How long an upstream takes to answer, and up to how much longer: one that is near.
const DELAY: Duration = Duration::from_millis(2);
const JITTER: Duration = Duration::from_millis(2);
/// Lifetime of answers in seconds: short enough that hot names are asked for again while somebody looks.
const TTL: u32 = 20;
/// How long queries in flight are waited for at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Requests of HTTP for each query: it is light load.
const REQUESTS_PER_QUERY: f64 = 0.05;
/// How often figures are taken; keys are looked for as often.
const SAMPLED_EVERY: Duration = Duration::from_millis(100);
/// How many samples lie between two lines: what is shown is of the last second.
const SAMPLES_SHOWN: usize = 10;

/// Runs the demo until its time is over, or a key or signal ends it.
pub(crate) fn run(args: &DemoArgs, serve: &ServeArgs) -> Result<(), Failure> {
    let token = std::env::var(TOKEN_VARIABLE).ok();
    let (admin, mut log) = serve.resolve(token.as_deref())?;
    let on_screen = io::stdout().is_terminal() && io::stdin().is_terminal();
    if serve.log.is_none() {
        // A line of the log in the middle of a screen helps nobody.
        log.level = if on_screen && io::stderr().is_terminal() { LogLevel::Error } else { LogLevel::Warn };
    }
    logs::init(log);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let stage = Stage::set(admin)?;
        stage.perform(args, on_screen).await
    })
}

/// Everything that takes part.
struct Stage {
    upstreams: [Responder; 2],
    server: Server,
    web: Web,
    admin: Option<Admin>,
    /// Looked at as long as the server runs.
    _certificate: Certificate,
}

impl Stage {
    fn set(mut admin: AdminConfig) -> Result<Self, Failure> {
        let upstream = || {
            let script = Script { delay: DELAY, jitter: JITTER, ttl: TTL, ..Script::default() };
            Responder::builder()
                .script(script)
                .spawn()
                .map_err(|error| Failure::failed(format!("cannot start an embedded upstream: {error}")))
        };
        let upstreams = [upstream()?, upstream()?];
        let certificate = Certificate::make()
            .map_err(|error| Failure::failed(format!("cannot make a certificate for the demo: {error}")))?;
        let settings = Settings {
            listen: vec![
                free_address(LISTEN),
                format!("tls://{}", free_address(LISTEN_TLS)),
                format!("https://{}", free_address(LISTEN_HTTPS)),
            ],
            tls: certificate.settings(),
            upstreams: upstreams.iter().map(|upstream| upstream.addr().to_string()).collect(),
            strategy: StrategyName::RoundRobin,
            workers: 1,
            ..Settings::default()
        };
        let config = DnsConfig::new(&settings, &[], 1).map_err(|error| Failure::failed(error.to_string()))?;
        if !admin.is_explicit && std::net::TcpListener::bind(AdminConfig::DEFAULT).is_err() {
            admin.listen = Some(([127, 0, 0, 1], 0).into());
        }
        let listener = bind_admin(&admin)?;
        let server = forebay_dns::start(config).map_err(start_failure)?;
        let web = Web::set()?;
        let source = Source { dns: Some(server.handle()), proxies: vec![web.server.handle()], grpc: None };
        let admin = start_admin(&admin, listener, source)?;
        Ok(Self { upstreams, server, web, admin, _certificate: certificate })
    }

    async fn perform(self, args: &DemoArgs, on_screen: bool) -> Result<(), Failure> {
        let mut ends = Ends::new()?;
        let poster = self.poster();
        let target = self.server.local_addrs()[0].address;
        let mut load = Load::start(target, args.rate)?;
        let mut web_load = WebLoad::start(self.web.address(), f64::from(args.rate) * REQUESTS_PER_QUERY)?;
        let mut view = View::open(on_screen, &poster)?;
        let (handle, web) = (self.server.handle(), self.web.server.handle());
        let mut tick = interval(SAMPLED_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let over = sleep(args.duration.map_or(FOREVER, |duration| duration.0));
        tokio::pin!(over);
        let mut samples: Vec<Sample> = Vec::new();
        while !view.wants_end()? && load.runs() {
            tokio::select! {
                _ = tick.tick() => {}
                () = &mut over => break,
                _ = ends.next() => break,
            }
            samples.push(Sample {
                at: sys::now(),
                stats: handle.stats().await,
                load: load.progress(),
                web: WebSample::take(&web),
            });
            if samples.len() > SAMPLES_SHOWN {
                view.show(&Figures::between(&samples[0], &samples[SAMPLES_SHOWN]))?;
                samples.remove(0);
            }
        }
        view.close();
        let finish = async { Ok::<_, Failure>((load.finish().await?, web_load.finish().await?)) };
        let (reports, web_report) = tokio::select! {
            reports = finish => reports?,
            signal = ends.next() => end_at_once(signal),
        };
        let stats = handle.stats().await;
        let asked =
            self.upstreams.iter().map(|upstream| upstream.stats()).map(|s| s.udp_queries + s.tcp_queries);
        let summary = Summary::new(&stats, &reports, asked.sum(), (web_report, &WebSample::take(&web)));
        let drain = pin!(async {
            tokio::join!(self.server.drain(DRAIN_MAX), self.web.server.drain(DRAIN_MAX));
        });
        tokio::select! {
            () = drain => {}
            signal = ends.next() => end_at_once(signal),
        }
        say(&summary.to_string());
        if summary.wrong > 0 {
            return Err(Failure::failed(format!("{} answers were wrong, which is a bug", summary.wrong)));
        }
        Ok(())
    }

    /// How to ask over TLS and over HTTPS.
    fn encrypted(&self) -> Option<String> {
        let port = |scheme| {
            let mut all = self.server.local_addrs().iter();
            all.find(|one| one.scheme == scheme).map(|one| one.address.port())
        };
        let (tls, https) = (port(Scheme::Tls)?, port(Scheme::Https)?);
        Some(format!("kdig @127.0.0.1 -p {tls} +tls anything.example  (or -p {https} +https)"))
    }

    /// What somebody in front of it should know.
    fn poster(&self) -> Poster {
        let listen = self.server.local_addrs()[0].address;
        let upstreams: Vec<_> = self.upstreams.iter().map(|upstream| upstream.addr().to_string()).collect();
        Poster {
            what: format!(
                "dns on {listen}, http on {}; upstreams {}, web servers {}",
                self.web.address(),
                upstreams.join(" and "),
                self.web.backends().collect::<Vec<_>>().join(" and ")
            ),
            dig: format!("dig @{} -p {} anything.example", listen.ip(), listen.port()),
            kdig: self.encrypted(),
            curl: self.web.curl(),
            admin: self.admin.as_ref().map(|admin| format!("{0}/pools  {0}/metrics", admin.url())),
        }
    }
}

/// Longer than anybody looks at a demo.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What somebody in front of the demo should know.
#[derive(Clone, Debug)]
struct Poster {
    what: String,
    dig: String,
    /// The same over TLS.
    kdig: Option<String>,
    /// What to ask the proxy.
    curl: String,
    admin: Option<String>,
}

/// Where figures are shown.
enum View {
    Screen(Box<Screen>),
    Lines { shown: u64 },
}

impl View {
    fn open(on_screen: bool, poster: &Poster) -> Result<Self, Failure> {
        if on_screen {
            return Screen::open(poster.clone())
                .map(|screen| Self::Screen(Box::new(screen)))
                .map_err(trouble);
        }
        say(&format!("forebay demo: {}", poster.what));
        say(&format!("try:   {}", poster.dig));
        if let Some(kdig) = &poster.kdig {
            say(&format!("  or   {kdig}"));
        }
        say(&format!("  or   {}", poster.curl));
        if let Some(admin) = &poster.admin {
            say(&format!("admin: {admin}"));
        }
        Ok(Self::Lines { shown: 0 })
    }

    fn wants_end(&mut self) -> Result<bool, Failure> {
        match self {
            Self::Screen(screen) => screen.wants_end().map_err(trouble),
            Self::Lines { .. } => Ok(false),
        }
    }

    fn show(&mut self, figures: &Figures) -> Result<(), Failure> {
        match self {
            Self::Screen(screen) => screen.show(figures).map_err(trouble)?,
            Self::Lines { shown } => {
                if shown.is_multiple_of(SAMPLES_SHOWN as u64) {
                    say(&figures.line());
                }
                *shown += 1;
            }
        }
        Ok(())
    }

    /// Gives the terminal back.
    fn close(self) {
        drop(self);
    }
}

fn trouble(error: io::Error) -> Failure {
    Failure::failed(format!("cannot use the terminal: {error}"))
}

/// The usual address if it is free, and any other if not.
fn free_address(usual: &str) -> String {
    let is_free = UdpSocket::bind(usual).is_ok() && std::net::TcpListener::bind(usual).is_ok();
    if is_free { usual.to_owned() } else { "127.0.0.1:0".to_owned() }
}
