use super::*;

fn settings(text: &str) -> Settings {
    let settings = Settings { backends: vec!["192.0.2.1:8443".to_owned()], ..Settings::default() };
    let mut table = toml::Table::try_from(&settings).unwrap();
    for (key, value) in toml::from_str::<toml::Table>(text).unwrap() {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
            (_, value) => drop(table.insert(key, value)),
        }
    }
    table.try_into().unwrap()
}

#[test]
fn backends_are_all_it_takes() {
    let config = ProxyConfig::new(&settings(""), 4).unwrap();
    assert_eq!((config.workers(), config.mode(), config.name()), (4, Mode::Opaque, "127.0.0.1:8080"));
    assert_eq!(config.backends()[0].to_string(), "192.0.2.1:8443");
    assert!(config.spares.is_some());
}

#[test]
fn a_value_that_cannot_be_names_its_key_and_the_remedy() {
    for (text, key, word) in [
        (
            "mode = 'http'\nworkers = 4\nconnections = { connections_max = 3 }",
            "connections.connections_max",
            "at least workers, 4",
        ),
        ("mode = 'http'\nhttp = { backend_age_max = '1ms' }", "http.backend_age_max", "at least"),
        ("backends = []", "backends", "none named"),
        ("backends = ['x']", "backends", "address with a port"),
        ("backends = ['ftp://192.0.2.1:1']", "backends", "unknown scheme"),
        ("backends = ['192.0.2.1:0']", "backends", "port 0"),
        ("backends = ['192.0.2.1:1', 'tcp://192.0.2.1:1']", "backends", "twice"),
        ("backends = ['127.0.0.1:8080']", "backends", "itself"),
        ("backends = ['127.0.0.1:80']\nlisten = [':80']", "backends", "itself"),
        ("listen = []", "listen", "is empty"),
        ("listen = ['x']", "listen", "not an address"),
        ("listen = ['quic://127.0.0.1:1']", "listen", "unknown scheme"),
        ("listen = ['127.0.0.1:1', '127.0.0.1:1']", "listen", "twice"),
        ("backends = ['https://192.0.2.1:1']", "backends", "mode = \"http\""),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?ca=/nowhere']", "backends", "no file /nowhere"),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?cert=/nowhere']", "backends", "give both"),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?cert=/a&key=/b']", "backends", "/a"),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?x=1']", "backends", "unknown parameter `x`"),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?name=a b']", "backends", "no name of a server"),
        ("mode = 'http'\nbackends = ['https://192.0.2.1:1?protocol=9']", "backends", "http1 or http2"),
        ("mode = 'http'\nbackends = ['http://192.0.2.1:1?name=a']", "backends", "https:// only"),
        ("listen = ['https://127.0.0.1:1']", "listen", "mode = \"http\""),
        ("mode = 'http'\nlisten = ['https://127.0.0.1:1']", "listen", "needs a certificate"),
        ("tls.key = '/nowhere'", "tls.certificate", "is missing"),
        ("tls.certificate = '/nowhere'\ntls.key = '/nowhere'", "tls.certificate", "no such file"),
        ("name = ''", "name", "no name"),
        ("workers = 1000", "workers", "too many"),
        ("connections.connections_max = 0", "connections.connections_max", "at least 1"),
        ("connections.waiters_max = 0", "connections.waiters_max", "at least 1"),
        ("connections.connect_timeout = '0s'", "connections.connect_timeout", "more than zero"),
        ("connections.connect_budget = '1s'", "connections.connect_budget", "at least connect_timeout"),
        ("connections.user_timeout = '1ms'", "connections.user_timeout", "100ms"),
        ("connections.keepalive = '1s'", "connections.keepalive", "3s"),
        ("clients.connections_max = 0", "clients.connections_max", "at least 1"),
        ("clients.connections_per_client = 0", "clients.connections_per_client", "at least 1"),
        ("clients.idle_timeout = '1ms'", "clients.idle_timeout", "at least 100ms"),
        ("clients.user_timeout = '1ms'", "clients.user_timeout", "100ms"),
        ("clients.keepalive = '1d'", "clients.keepalive", "3s"),
        ("proxy_protocol.trusted = ['x']", "proxy_protocol.trusted", "192.0.2.0/24"),
        ("[proxy_protocol]\naccept = true\ntrusted = []", "proxy_protocol.trusted", "refused"),
        ("proxy_protocol.timeout = '0s'", "proxy_protocol.timeout", "more than zero"),
        ("mode = 'http'\nproxy_protocol.send = 'v1'", "proxy_protocol.send", "off"),
        ("health.path = 'x'", "health.path", "/readyz"),
        ("health.path = '/a b'", "health.path", "/readyz"),
        ("health.host = ''", "health.host", "a name"),
        ("health.host = 'a..b'", "health.host", "TLS"),
        ("health.ca = '/nowhere'", "health.ca", "tls or https"),
        ("health.name = 'a'", "health.name", "tls or https"),
        ("[health]\ncheck = 'tls'\nca = '/nowhere'", "health.ca", "PEM"),
        ("[health]\ncheck = 'https'\nname = 'a..b'", "health.name", "name of a server"),
        ("health.expect = []", "health.expect", "at least one"),
        ("health.expect = ['600']", "health.expect", "599"),
        ("health.expect = ['300-200']", "health.expect", "range"),
        ("health.interval = '1ms'", "health.interval", "10ms"),
        ("health.timeout = '0s'", "health.timeout", "more than zero"),
        ("health.fall = 0", "health.fall", "at least 1"),
        ("health.rise = 0", "health.rise", "at least 1"),
        ("health.ejection = '0s'", "health.ejection", "more than zero"),
        ("health.ejection_max = '1s'", "health.ejection_max", "at least"),
        ("health.max_ejection_percent = 101", "health.max_ejection_percent", "100"),
        ("spares.age_max = '1ms'", "spares.age_max", "at least 100ms"),
        ("spares.linger = '0s'", "spares.linger", "at least 100ms"),
    ] {
        let error = ProxyConfig::new(&settings(text), 1).unwrap_err();
        assert_eq!(error.key, key, "{text}: {error}");
        assert!(error.problem.contains(word), "{text}: {error}");
    }
}

#[test]
fn spares_are_for_opaque_bytes_and_a_pool() {
    for (text, has) in [
        ("", true),
        ("mode = 'passthrough'", false),
        ("mode = 'http'", false),
        ("pool = 'off'", false),
        ("spares.max = 0", false),
    ] {
        let config = ProxyConfig::new(&settings(text), 1).unwrap();
        assert_eq!(config.spares.is_some(), has, "{text}");
    }
}

#[test]
fn backends_are_the_same_only_if_all_is_the_same_that_shapes_a_connection() {
    use rcgen::{CertificateParams, KeyPair};
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let pair = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (write(&format!("{name}.pem"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
    };
    let ((a, a_key), (b, b_key)) = (pair("a"), pair("b"));
    let at = |rest: &str| format!("https://192.0.2.1:443{rest}").parse::<BackendAddress>().unwrap();
    let all = [
        "192.0.2.1:443".parse().unwrap(),
        "h2c://192.0.2.1:443".parse().unwrap(),
        at(&format!("?ca={a}")),
        at(&format!("?ca={b}")),
        at(&format!("?ca={a}&name=x")),
        at(&format!("?ca={a}&protocol=http1")),
        at(&format!("?ca={a}&protocol=http2")),
        at(&format!("?ca={a}&cert={a}&key={a_key}")),
        at(&format!("?ca={a}&cert={b}&key={b_key}")),
    ];
    for (n, one) in all.iter().enumerate() {
        for (m, other) in all.iter().enumerate() {
            assert_eq!(one == other, n == m, "{one} {other}");
        }
        assert_eq!(one.to_string().parse::<BackendAddress>().as_ref(), Ok(one), "written as it is read");
    }
    // Files of the same names that have other certificates in them now.
    std::fs::copy(&b, &a).unwrap();
    std::fs::copy(&b_key, &a_key).unwrap();
    assert_ne!(at(&format!("?ca={a}&cert={a}&key={a_key}")), all[7]);
    // At another address, the certificate has to be for that.
    let moved = all[2].at("192.0.2.2:443".parse().unwrap());
    assert_eq!(format!("{:?}", moved.tls.unwrap().name), "IpAddress(V4(Ipv4Addr([192, 0, 2, 2])))");
}
