use forebay::units::Size;

use super::*;

fn settings() -> Settings {
    Settings { upstreams: vec!["127.0.0.1:5301".to_owned()], workers: 1, ..Settings::default() }
}

fn error(settings: &Settings) -> SettingsError {
    DnsConfig::new(settings, &[], 2).unwrap_err()
}

#[test]
fn addresses_without_a_scheme_mean_udp_and_port_53() {
    let read = |text: &str| text.parse::<UpstreamAddress>().map(|upstream| upstream.to_string());
    assert_eq!(read("192.0.2.1").unwrap(), "udp://192.0.2.1:53");
    assert_eq!(read("tcp://192.0.2.1:5353").unwrap(), "tcp://192.0.2.1:5353");
    assert_eq!(read("2001:db8::1").unwrap(), "udp://[2001:db8::1]:53");
    assert_eq!(read("udp://[2001:db8::1]:54").unwrap(), "udp://[2001:db8::1]:54");
    assert!(read("quic://192.0.2.1").unwrap_err().contains("quic"));
    assert!(read("resolver.example").unwrap_err().contains("resolver.example"));
    assert!(read("127.0.0.1:0").unwrap_err().contains("port 0"));
}

#[test]
fn the_machines_own_resolvers_serve_when_none_is_named() {
    let none = Settings { upstreams: Vec::new(), ..settings() };
    let config = DnsConfig::new(&none, &["192.0.2.53".parse().unwrap()], 2).unwrap();
    assert_eq!(config.upstreams()[0].to_string(), "udp://192.0.2.53:53");
    assert_eq!(error(&none).key, "upstreams");
}

#[test]
fn a_server_that_would_ask_itself_is_refused() {
    let with = |listen: &str, upstream: &str| Settings {
        listen: vec![listen.to_owned()],
        upstreams: vec![upstream.to_owned()],
        ..settings()
    };
    for (listen, upstream) in [("127.0.0.1:5300", "127.0.0.1:5300"), (":5300", "udp://127.0.0.1:5300")] {
        assert_eq!(error(&with(listen, upstream)).key, "upstreams", "{listen} {upstream}");
    }
    assert!(DnsConfig::new(&with(":5300", "192.0.2.1:5300"), &[], 1).is_ok());
    let own: IpAddr = "127.0.0.1".parse().unwrap();
    let system = Settings { listen: vec!["127.0.0.1:53".to_owned()], upstreams: Vec::new(), ..settings() };
    assert!(DnsConfig::new(&system, &[own], 1).is_err(), "resolv.conf pointing here is no upstream");
}

#[test]
fn workers_are_cores_unless_said() {
    assert_eq!(DnsConfig::new(&Settings { workers: 0, ..settings() }, &[], 3).unwrap().workers(), 3);
    assert_eq!(DnsConfig::new(&Settings { workers: 7, ..settings() }, &[], 3).unwrap().workers(), 7);
}

#[test]
fn each_impossible_value_is_named() {
    let zero = Span(Duration::ZERO);
    let (health, h) = (|health| Settings { health, ..settings() }, HealthSettings::default());
    let (strategies, r) = (|strategies| Settings { strategies, ..settings() }, StrategySettings::default());
    let udp = |udp: UdpSettings| Settings { udp, ..settings() };
    let stream = |stream: StreamSettings| Settings { stream, ..settings() };
    let clients = |clients: ClientSettings| Settings { clients, ..settings() };
    let cache = |cache: CacheSettings| Settings { cache, ..settings() };
    let k = CacheSettings::default();
    let secs = |n| Span(Duration::from_secs(n));
    let (u, s, c) = (UdpSettings::default(), StreamSettings::default(), ClientSettings::default());
    let cases = [
        ("listen", Settings { listen: vec!["nowhere".to_owned()], ..settings() }),
        ("listen", Settings { listen: Vec::new(), ..settings() }),
        ("listen", Settings { listen: vec!["127.0.0.1:5300".to_owned(); 2], ..settings() }),
        ("upstreams", Settings { upstreams: vec!["nowhere".to_owned()], ..settings() }),
        ("workers", Settings { workers: 1000, ..settings() }),
        (
            "cache.size",
            Settings {
                cache: CacheSettings { size: Size { bytes: 100 }, ..CacheSettings::default() },
                ..settings()
            },
        ),
        ("strategies.parallel_max", strategies(StrategySettings { parallel_max: 0, ..r })),
        ("strategies.head_start_min", strategies(StrategySettings { head_start_min: zero, ..r })),
        ("strategies.head_start_max", strategies(StrategySettings { head_start_max: zero, ..r })),
        ("strategies.probing_percent", strategies(StrategySettings { probing_percent: 101, ..r })),
        ("cache.ttl_max", cache(CacheSettings { ttl_max: secs(700_000), ..k.clone() })),
        ("cache.stale_max", cache(CacheSettings { stale_max: zero, ..k.clone() })),
        ("cache.stale_max", cache(CacheSettings { stale_max: secs(700_000), ..k.clone() })),
        ("cache.stale_ttl", cache(CacheSettings { stale_ttl: zero, ..k.clone() })),
        ("cache.stale_answer_after", cache(CacheSettings { stale_answer_after: secs(9), ..k.clone() })),
        ("cache.stale_recheck", cache(CacheSettings { stale_recheck: secs(700_000), ..k.clone() })),
        ("cache.prefetch_hits", cache(CacheSettings { prefetch_hits: 16, ..k.clone() })),
        ("cache.prefetch_below", cache(CacheSettings { prefetch_below: 0, ..k.clone() })),
        ("cache.prefetch_max", cache(CacheSettings { prefetch_max: 0, ..k.clone() })),
        ("failure_ttl", Settings { failure_ttl: Span(Duration::from_millis(10)), ..settings() }),
        ("failure_ttl_max", Settings { failure_ttl_max: Span(Duration::from_secs(301)), ..settings() }),
        ("failure_ttl_max", Settings { failure_ttl_max: Span(Duration::from_secs(4)), ..settings() }),
        ("health.question", health(HealthSettings { question: "NS .".to_owned(), ..h.clone() })),
        ("health.interval", health(HealthSettings { interval: zero, ..h.clone() })),
        ("health.timeout", health(HealthSettings { timeout: Span(Duration::from_secs(60)), ..h.clone() })),
        ("health.rise", health(HealthSettings { rise: 0, ..h.clone() })),
        ("health.fall", health(HealthSettings { fall: 0, ..h.clone() })),
        ("attempt_timeout", Settings { attempt_timeout: zero, ..settings() }),
        ("query_timeout", Settings { query_timeout: Span(Duration::from_millis(20)), ..settings() }),
        ("attempts_max", Settings { attempts_max: 0, ..settings() }),
        ("waiting_max", Settings { waiting_max: 0, ..settings() }),
        ("udp_size", Settings { udp_size: 100, ..settings() }),
        ("udp.connections_max", udp(UdpSettings { connections_min: 0, connections_max: 0, ..u })),
        ("udp.connections_min", udp(UdpSettings { connections_max: 1, ..u })),
        ("udp.capacity", udp(UdpSettings { capacity: 0, ..u })),
        ("capacity", udp(UdpSettings { capacity: 60_000, ..u })),
        ("udp.age_max", udp(UdpSettings { age_max: zero, ..u })),
        ("udp.uses_max", udp(UdpSettings { uses_max: 0, ..u })),
        ("udp.idle_timeout", udp(UdpSettings { idle_timeout: zero, ..u })),
        ("stream.connections_max", stream(StreamSettings { connections_max: 0, ..s })),
        ("stream.capacity", stream(StreamSettings { capacity: 0, ..s })),
        ("stream.idle_timeout", stream(StreamSettings { idle_timeout: zero, ..s })),
        ("stream.dial_timeout", stream(StreamSettings { dial_timeout: zero, ..s })),
        (
            "safety.cookie_secret",
            Settings {
                safety: SafetySettings {
                    server_cookies: true,
                    cookie_secret: "0123".to_owned(),
                    ..SafetySettings::default()
                },
                ..settings()
            },
        ),
        (
            "safety.cookie_secret",
            Settings {
                safety: SafetySettings { cookie_secret: "0".repeat(32), ..SafetySettings::default() },
                ..settings()
            },
        ),
        ("clients.connections_max", clients(ClientSettings { connections_max: 0, ..c })),
        ("clients.queries_max", clients(ClientSettings { queries_max: 0, ..c })),
        ("clients.connections_per_client", clients(ClientSettings { connections_per_client: 0, ..c })),
        ("clients.handshakes_max", clients(ClientSettings { handshakes_max: 0, ..c })),
        ("clients.handshake_timeout", clients(ClientSettings { handshake_timeout: zero, ..c })),
        (
            "tls.key",
            Settings {
                tls: TlsSettings { certificate: "/nowhere.pem".into(), ..TlsSettings::default() },
                ..settings()
            },
        ),
        (
            "upstreams",
            Settings { upstreams: vec!["tls://192.0.2.1?ca=/nowhere.pem".to_owned()], ..settings() },
        ),
        ("listen", Settings { listen: vec!["tls://127.0.0.1:0".to_owned()], ..settings() }),
        ("clients.idle_timeout", clients(ClientSettings { idle_timeout: zero, ..c })),
    ];
    for (key, settings) in cases {
        let error = error(&settings);
        assert_eq!(error.key, key, "{error}");
    }
}
