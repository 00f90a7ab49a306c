//! `[proxy.http]`: requests, and what they share.

use std::time::Duration;

use forebay::units::{Size, Span};
use forebay_proxy_core::http1::{ForwardedPolicy, Limits, Trust};
use forebay_proxy_core::rules::Reuse;
use serde::{Deserialize, Serialize};

use super::{SettingsError, wrong};

/// The `[proxy.http]` table: requests in mode `http`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Which requests go on connections that have carried others. `never`: a connection serves the client that it was made
    /// for; `safe`: the first request of a client's connection only if it may be sent again, later ones always;
    /// `aggressive`: the first one, too, if the connection has been reused before; `always`: every one. Default `safe`.
    pub reuse: ReuseName,
    /// Whether a request that may be asked twice is sent again when the used connection it went on turns out to be dead,
    /// within a budget of one in five requests and three a second. What a backend of HTTP/2 says that it has not looked at
    /// is sent again all the same, within that budget. Default true.
    pub retries: bool,
    /// How long a client may take for the head of a request, from its first byte; then it gets 408. Default `10s`.
    pub head_timeout: Span,
    /// How long a body may stand still on the client's side, either way: of a request that is not answered yet, then the
    /// client gets 408; of a response that it does not take, then it is closed. Default `30s`.
    pub body_timeout: Span,
    /// How long a backend may take to answer, after the whole request was sent; then the client gets 504. Default `1m`.
    pub response_timeout: Span,
    /// How long a client's connection is kept for its next request. Default `1m`.
    pub idle_timeout: Span,
    /// How long a connection to a backend is kept for the next request; less than backends keep theirs, of which most
    /// close after 60 s or more, some after 5 s. Default `4s`.
    pub backend_idle_timeout: Span,
    /// How old a connection to a backend gets before another takes its place, with jitter; what is in progress on it is
    /// finished. So backends that came later get their share of long-lived connections. Default `1h`.
    pub backend_age_max: Span,
    /// The longest head, in bytes. Beyond it a client gets 431, a backend's client 502. Default `32KiB`.
    pub head_size_max: Size,
    /// The most fields of a head. Default 100.
    pub fields_max: usize,
    /// Requests in progress on one connection of a client that speaks HTTP/2, at most. Default 100.
    pub streams_max: u32,
    /// Requests in progress on one connection to a backend that speaks HTTP/2, at most; fewer if the backend says so. More
    /// than these get another connection. Default 100.
    pub backend_streams_max: u32,
    /// What may come of one body by HTTP/2 before it was passed on, in bytes. A connection to a backend has room for this
    /// from all its streams, so that a client that takes nothing never stands in the way of others. Default `128KiB`.
    pub stream_window: Size,
    /// A backend's HTTP/2 connection that has said nothing for so long while requests are in progress is asked for a sign
    /// of life; without one for as long again it is given up. Default `10s`.
    pub ping_interval: Span,
    /// Whether backends are told of the client in `X-Forwarded-For`, `-Proto` and `-Host`. Default true.
    pub x_forwarded: bool,
    /// Whether backends are told of the client in `Forwarded` (RFC 7239). Default false.
    pub forwarded: bool,
    /// Whether what clients say of themselves in these fields is passed on; else it is thrown away, for anybody could say
    /// it. True only where all clients are proxies of yours. Default false.
    pub trust_forwarded: bool,
    /// Whether each request gets an `X-Request-ID`. Default false.
    pub request_id: bool,
    /// What this proxy calls itself in `Via`, both ways; without a name there is no `Via`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
}

/// Which requests go on connections that have carried others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReuseName {
    /// None but those of the client that it was made for.
    Never,
    /// First ones only if they may be sent again.
    #[default]
    Safe,
    /// First ones if the connection has been reused before.
    Aggressive,
    /// All.
    Always,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            reuse: ReuseName::default(),
            retries: true,
            head_timeout: Span(Duration::from_secs(10)),
            body_timeout: Span(Duration::from_secs(30)),
            response_timeout: Span(Duration::from_secs(60)),
            idle_timeout: Span(Duration::from_secs(60)),
            backend_idle_timeout: Span(Duration::from_secs(4)),
            backend_age_max: Span(Duration::from_secs(3600)),
            head_size_max: Size { bytes: 32 << 10 },
            fields_max: 100,
            streams_max: 100,
            backend_streams_max: 100,
            stream_window: Size { bytes: 128 << 10 },
            ping_interval: Span(Duration::from_secs(10)),
            x_forwarded: true,
            forwarded: false,
            trust_forwarded: false,
            request_id: false,
            via: None,
        }
    }
}

/// What mode `http` goes by.
#[derive(Clone, Debug)]
pub(crate) struct HttpConfig {
    pub(crate) reuse: Reuse,
    pub(crate) retries: bool,
    pub(crate) head_timeout: Duration,
    pub(crate) body_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) limits: Limits,
    pub(crate) streams_max: u32,
    pub(crate) backend_streams_max: u32,
    pub(crate) stream_window: u32,
    pub(crate) ping_interval: Duration,
    pub(crate) forwarded: ForwardedPolicy,
}

impl HttpSettings {
    pub(super) fn valid(&self) -> Result<HttpConfig, SettingsError> {
        for (key, value) in [
            ("http.head_timeout", self.head_timeout),
            ("http.body_timeout", self.body_timeout),
            ("http.response_timeout", self.response_timeout),
            ("http.idle_timeout", self.idle_timeout),
            ("http.backend_idle_timeout", self.backend_idle_timeout),
            ("http.backend_age_max", self.backend_age_max),
            ("http.ping_interval", self.ping_interval),
        ] {
            if value.0 < Duration::from_millis(10) {
                return Err(wrong(key, value, "at least 10ms"));
            }
        }
        let head_bytes_max = usize::try_from(self.head_size_max.bytes).unwrap_or(usize::MAX);
        if !(1024..=1 << 20).contains(&head_bytes_max) {
            return Err(wrong("http.head_size_max", self.head_size_max, "1KiB to 1MiB"));
        }
        for (key, value) in
            [("http.streams_max", self.streams_max), ("http.backend_streams_max", self.backend_streams_max)]
        {
            if !(1..=10_000).contains(&value) {
                return Err(wrong(key, value, "1 to 10000"));
            }
        }
        let stream_window = u32::try_from(self.stream_window.bytes).unwrap_or(u32::MAX);
        if !(16 << 10..=16 << 20).contains(&stream_window) {
            return Err(wrong("http.stream_window", self.stream_window, "16KiB to 16MiB"));
        }
        if !(8..=10_000).contains(&self.fields_max) {
            return Err(wrong("http.fields_max", self.fields_max, "8 to 10000"));
        }
        if let Some(via) = self.via.as_ref().filter(|via| !ForwardedPolicy::is_via_name(via)) {
            return Err(wrong("http.via", format_args!("`{via}`"), "a name like proxy1, or host:port"));
        }
        let limits = Limits::default();
        Ok(HttpConfig {
            reuse: match self.reuse {
                ReuseName::Never => Reuse::Never,
                ReuseName::Safe => Reuse::Safe,
                ReuseName::Aggressive => Reuse::Aggressive,
                ReuseName::Always => Reuse::Always,
            },
            retries: self.retries,
            head_timeout: self.head_timeout.0,
            body_timeout: self.body_timeout.0,
            response_timeout: self.response_timeout.0,
            idle_timeout: self.idle_timeout.0,
            streams_max: self.streams_max,
            backend_streams_max: self.backend_streams_max,
            stream_window,
            ping_interval: self.ping_interval.0,
            limits: Limits {
                line_bytes_max: limits.line_bytes_max.min(head_bytes_max),
                head_bytes_max,
                fields_max: self.fields_max,
            },
            forwarded: ForwardedPolicy {
                x_forwarded: self.x_forwarded,
                forwarded: self.forwarded,
                trust: if self.trust_forwarded { Trust::Append } else { Trust::Replace },
                request_id: self.request_id,
                via: self.via.clone(),
            },
        })
    }
}
