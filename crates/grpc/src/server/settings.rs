//! Settings of a server, and the two profiles of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use forebay::settings::SettingsError;
use forebay::sys::{Keepalive, TcpOptions};
use forebay::units::Span;

/// Settings that go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// 256 calls in flight on each connection, windows of 1 MiB, 1000 streams.
    #[default]
    Main,
    /// For a server that is being looked at under high load: 512 calls, windows of 2 MiB, 2000 streams.
    Pprof,
}

impl Profile {
    /// Every profile, as it is written.
    pub const NAMES: &[&str] = &["main", "pprof"];

    /// Returns how it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Pprof => "pprof",
        }
    }

    /// Returns its settings.
    pub fn settings(self) -> ServerSettings {
        let main = ServerSettings::default();
        match self {
            Self::Main => main,
            Self::Pprof => ServerSettings {
                calls_per_connection: 512,
                stream_window: 2 << 20,
                connection_window: 8 << 20,
                streams_max: 2000,
                ..main
            },
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Profile {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text {
            "main" => Ok(Self::Main),
            "pprof" => Ok(Self::Pprof),
            _ => Err(SettingsError {
                key: "profile".to_owned(),
                problem: format!("`{text}` is not one of: {}", Self::NAMES.join(", ")),
            }),
        }
    }
}

/// Settings of a server. The default is [`Profile::Main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// Worker threads, each with its own listener; 0 is one for each core. Default 0.
    pub workers: usize,
    /// A client that is silent is asked by TCP after so long whether it is still there, then three times, a tenth of
    /// this time apart. At least 10 s; `None`: never. Default 600 s.
    pub tcp_keepalive: Option<Duration>,
    /// Sends small writes at once (`TCP_NODELAY`). Default true.
    pub tcp_nodelay: bool,
    /// How long a call may take until its response begins; a client that says less in `grpc-timeout` gets less, and then
    /// for the whole call. What takes longer ends with DEADLINE_EXCEEDED. `None`: as long as the client says. Default
    /// 30 s.
    pub call_timeout: Option<Duration>,
    /// Calls in flight on one connection; one more ends at once with RESOURCE_EXHAUSTED. Default 256.
    pub calls_per_connection: u32,
    /// What a client may send on one stream before the service has taken it, in bytes. Default 1 MiB.
    pub stream_window: u32,
    /// The same for all streams of a connection together, in bytes. Default 4 MiB.
    pub connection_window: u32,
    /// Streams that a client may have open at once; one more is refused by HTTP/2 (REFUSED_STREAM), unseen by any
    /// service. More than `calls_per_connection`, so that who has too many calls is told so. Default 1000.
    pub streams_max: u32,
    /// The longest frame that is taken, in bytes; 16 KiB to 16 MiB less one. Default 16 KiB.
    pub frame_bytes_max: u32,
    /// The longest list of headers that is taken, in bytes as HTTP/2 counts them: 32 more for each field. Default 16 KiB.
    pub header_list_bytes_max: u32,
    /// The longest message of a request, in bytes; a longer one ends its call with RESOURCE_EXHAUSTED before there is
    /// room made for it. A service's own limit may be lower. Default 4 MiB.
    pub request_message_bytes_max: u32,
    /// The longest message of a response, in bytes; a longer one ends its call with RESOURCE_EXHAUSTED. Default 64 MiB.
    pub response_message_bytes_max: u32,
    /// Bytes that wait to be written to one stream. Default 256 KiB.
    pub send_buffer_bytes: u32,
    /// Connections at most, all workers together; then no more are accepted until one ends, and those that have waited
    /// for a second are refused. Default 8192.
    pub connections_max: u32,
    /// Connections of one client address (of one /64 network, for IPv6) at most; one more is refused at once. Default
    /// 8192.
    pub connections_per_client: u32,
    /// How long TLS and the beginning of HTTP/2 may take. Default 10 s.
    pub handshake_timeout: Duration,
    /// A connection on which no call was in flight for so long is told goodbye (GOAWAY) and closed. `None`: never.
    /// Default 30 min.
    pub idle_timeout: Option<Duration>,
    /// A connection that is so old, give or take a tenth, is told goodbye (GOAWAY): its client makes a new one, maybe to
    /// another server behind the same address. `None`: never. Default `None`, since calls that outlive `age_grace` fail.
    pub age_max: Option<Duration>,
    /// How long calls on a connection that is too old may go on before it is closed. Default 5 min.
    pub age_grace: Duration,
    /// A client of which nothing was heard for so long is asked by HTTP/2 (PING) whether it is still there. `None`:
    /// never. Default 2 min.
    pub keepalive_interval: Option<Duration>,
    /// How long it may take for that answer before the connection is closed. Default 20 s.
    pub keepalive_timeout: Duration,
    /// A connection whose client takes nothing of what waits for it for so long is closed. So is a stream. Default 60 s.
    pub stall_timeout: Duration,
    /// How often a client may send pings while it gets no answers; one that does it more often, three times in a row, is
    /// told goodbye with ENHANCE_YOUR_CALM. `None`: as often as it likes. Default 10 s.
    pub ping_interval_min: Option<Duration>,
    /// Calls that a client may break off beyond those that it lets be answered; more, and it is told goodbye with
    /// ENHANCE_YOUR_CALM. Default 10,000.
    pub resets_max: u32,
    /// Streams that a client may reset in the moment in which it opens them (CVE-2023-44487); more, and it is told
    /// goodbye with ENHANCE_YOUR_CALM. Default 100.
    pub resets_unseen_max: usize,
    /// Streams that were broken off from this side and are remembered for a while, so that what its client still sends
    /// on them is no error. Default 100.
    pub resets_kept_max: usize,
    /// Errors on single streams of one connection, refused ones among them; more, and its client is told goodbye with
    /// ENHANCE_YOUR_CALM. Default 10,000.
    pub stream_errors_max: usize,
    /// Whether services find [`Peer`](super::Peer) among the extensions of a request; it costs two allocations a call.
    /// Default false.
    pub peer_info: bool,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            workers: 0,
            tcp_keepalive: Some(Duration::from_secs(600)),
            tcp_nodelay: true,
            call_timeout: Some(Duration::from_secs(30)),
            calls_per_connection: 256,
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            streams_max: 1000,
            frame_bytes_max: FRAME_BYTES_LOW,
            header_list_bytes_max: 16 << 10,
            request_message_bytes_max: 4 << 20,
            response_message_bytes_max: 64 << 20,
            send_buffer_bytes: 256 << 10,
            connections_max: 8192,
            connections_per_client: 8192,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(30 * 60)),
            age_max: None,
            age_grace: Duration::from_secs(5 * 60),
            keepalive_interval: Some(Duration::from_secs(120)),
            keepalive_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(60),
            ping_interval_min: Some(Duration::from_secs(10)),
            resets_max: 10_000,
            resets_unseen_max: 100,
            resets_kept_max: 100,
            stream_errors_max: 10_000,
            peer_info: false,
        }
    }
}

/// The least and the most that a frame may be limited to (RFC 9113 §6.5.2).
const FRAME_BYTES_LOW: u32 = 16 << 10;
const FRAME_BYTES_HIGH: u32 = (1 << 24) - 1;

/// The least window that is sensible, HTTP/2's own, and the most that there can be (RFC 9113 §6.9.1, §6.9.2).
const WINDOW_LOW: u32 = 65_535;
const WINDOW_HIGH: u32 = (1 << 31) - 1;

/// The kernel counts seconds up to here.
const TCP_KEEPALIVE_HIGH: Duration = Duration::from_secs(32_767);

/// More workers than any machine has cores.
const WORKERS_MAX: usize = 1024;

impl ServerSettings {
    /// Checks every value.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let second = Duration::from_secs(1);
        check_count("workers", self.workers as u64, 0, WORKERS_MAX as u64)?;
        for (key, value, low, high) in [
            ("calls_per_connection", self.calls_per_connection, 1, u32::MAX),
            ("stream_window", self.stream_window, WINDOW_LOW, WINDOW_HIGH),
            ("connection_window", self.connection_window, WINDOW_LOW, WINDOW_HIGH),
            ("streams_max", self.streams_max, 1, u32::MAX),
            ("frame_bytes_max", self.frame_bytes_max, FRAME_BYTES_LOW, FRAME_BYTES_HIGH),
            ("header_list_bytes_max", self.header_list_bytes_max, 1 << 10, 1 << 20),
            ("request_message_bytes_max", self.request_message_bytes_max, 1, u32::MAX),
            ("response_message_bytes_max", self.response_message_bytes_max, 1, u32::MAX),
            ("send_buffer_bytes", self.send_buffer_bytes, 1 << 10, 1 << 30),
            ("connections_max", self.connections_max, 1, u32::MAX),
            ("connections_per_client", self.connections_per_client, 1, u32::MAX),
        ] {
            check_count(key, value.into(), low.into(), high.into())?;
        }
        if let Some(keepalive) = self.tcp_keepalive {
            check_span("tcp_keepalive", keepalive, 10 * second, Some(TCP_KEEPALIVE_HIGH))?;
        }
        let (short, shortest) = (Duration::from_millis(100), Duration::from_millis(1));
        for (key, value, low) in [
            ("call_timeout", self.call_timeout, shortest),
            ("handshake_timeout", Some(self.handshake_timeout), short),
            ("idle_timeout", self.idle_timeout, short),
            ("age_max", self.age_max, short),
            ("age_grace", Some(self.age_grace), Duration::ZERO),
            ("keepalive_interval", self.keepalive_interval, short),
            ("keepalive_timeout", Some(self.keepalive_timeout), short),
            ("stall_timeout", Some(self.stall_timeout), short),
            ("ping_interval_min", self.ping_interval_min, shortest),
        ] {
            if let Some(value) = value {
                check_span(key, value, low, None)?;
            }
        }
        Ok(())
    }

    /// Returns the options of clients' sockets.
    pub(super) fn tcp(&self) -> TcpOptions {
        TcpOptions {
            nodelay: self.tcp_nodelay,
            keepalive: self.tcp_keepalive.map(|time| Keepalive { time, interval: time / 10, probes: 3 }),
            // Who takes nothing is found by `stall_timeout`.
            user_timeout: None,
        }
    }
}

fn check_count(key: &str, value: u64, low: u64, high: u64) -> Result<(), SettingsError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(SettingsError { key: key.to_owned(), problem: format!("`{value}` is not {low} to {high}") })
}

fn check_span(
    key: &str,
    value: Duration,
    low: Duration,
    high: Option<Duration>,
) -> Result<(), SettingsError> {
    if value >= low && high.is_none_or(|high| value <= high) {
        return Ok(());
    }
    let allowed = match high {
        Some(high) => format!("{} to {}", Span(low), Span(high)),
        None => format!("at least {}", Span(low)),
    };
    Err(SettingsError { key: key.to_owned(), problem: format!("`{}` is not {allowed}", Span(value)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_what_they_say() {
        let (main, pprof) = (Profile::Main.settings(), Profile::Pprof.settings());
        for settings in [&main, &pprof] {
            settings.check().unwrap();
            assert_eq!(settings.tcp_keepalive, Some(Duration::from_secs(600)));
            assert_eq!(settings.call_timeout, Some(Duration::from_secs(30)));
            assert!(settings.tcp().nodelay);
        }
        assert_eq!((main.calls_per_connection, pprof.calls_per_connection), (256, 512));
        assert_eq!((main.stream_window, pprof.stream_window), (1 << 20, 2 << 20));
        assert_eq!((main.streams_max, pprof.streams_max), (1000, 2000));
        for name in Profile::NAMES {
            assert_eq!(name.parse::<Profile>().unwrap().as_str(), *name);
        }
        assert!("fast".parse::<Profile>().unwrap_err().to_string().contains("main, pprof"));
    }

    #[test]
    fn what_cannot_be_is_named_with_its_value_and_what_may_be() {
        let wrong = [
            ServerSettings { workers: 5000, ..ServerSettings::default() },
            ServerSettings { calls_per_connection: 0, ..ServerSettings::default() },
            ServerSettings { stream_window: 1000, ..ServerSettings::default() },
            ServerSettings { connection_window: 1 << 31, ..ServerSettings::default() },
            ServerSettings { streams_max: 0, ..ServerSettings::default() },
            ServerSettings { frame_bytes_max: 1 << 24, ..ServerSettings::default() },
            ServerSettings { header_list_bytes_max: 1, ..ServerSettings::default() },
            ServerSettings { request_message_bytes_max: 0, ..ServerSettings::default() },
            ServerSettings { send_buffer_bytes: 0, ..ServerSettings::default() },
            ServerSettings { connections_max: 0, ..ServerSettings::default() },
            ServerSettings { tcp_keepalive: Some(Duration::from_secs(1)), ..ServerSettings::default() },
            ServerSettings { call_timeout: Some(Duration::ZERO), ..ServerSettings::default() },
            ServerSettings { handshake_timeout: Duration::ZERO, ..ServerSettings::default() },
            ServerSettings { ping_interval_min: Some(Duration::ZERO), ..ServerSettings::default() },
        ];
        let texts: Vec<_> = wrong.iter().map(|settings| settings.check().unwrap_err().to_string()).collect();
        assert_eq!(texts[2], "stream_window: `1000` is not 65535 to 2147483647");
        assert_eq!(texts[10], "tcp_keepalive: `1s` is not 10s to 9h 6m 7s");
        assert_eq!(texts[12], "handshake_timeout: `0s` is not at least 100ms");
    }
}
