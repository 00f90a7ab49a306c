use forebay_dns::{PoolMode, StrategyName};
use toml::Value;

use super::*;

fn machine() -> Machine {
    Machine { resolvers: vec!["192.0.2.53".parse().unwrap()], cores: 2, ..Machine::default() }
}

fn wrong(text: &str) -> String {
    Config::parse("f.toml", text, &machine()).expect_err("something is wrong").to_string()
}

fn first_line(text: &str) -> String {
    wrong(text).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn an_empty_dns_table_is_a_whole_configuration() {
    let config = Config::parse("f.toml", "[dns]\n", &machine()).unwrap();
    assert_eq!(config.dns.as_ref().unwrap().upstreams()[0].to_string(), "udp://192.0.2.53:53");
    assert_eq!(config.dns.as_ref().unwrap().workers(), 2);
    assert_eq!(
        config.admin,
        AdminConfig { listen: Some(AdminConfig::DEFAULT), is_explicit: false, token: None }
    );
    assert_eq!(config.log, LogSettings::default());
}

#[test]
fn a_file_without_a_server_says_what_to_write() {
    assert!(first_line("").contains("add a line [dns]"), "{}", wrong(""));
    assert!(first_line("[log]\nlevel = \"warn\"").contains("add a line [dns]"));
}

#[test]
fn each_mistake_is_one_line_with_its_place_and_what_may_be() {
    let cases = [
        (
            "[dns]\nworkers = -1",
            "f.toml:2: dns.workers: -1 is out of range; it must be 0 to 9223372036854775807",
        ),
        ("[dns]\nudp_size = 70000", "f.toml:2: dns.udp_size: 70000 is out of range; it must be 0 to 65535"),
        (
            "[dns.udp]\ncapacity = \"8\"",
            "f.toml:2: dns.udp.capacity: is a text; write the number without quotes: 8",
        ),
        (
            "[dns.udp]\ncapacity = 1.5",
            "f.toml:2: dns.udp.capacity: is a number with a fraction; it must be a whole number",
        ),
        ("[dns]\nlisten = \":53\"", "f.toml:2: dns.listen: is a text; it must be an array, like [\":53\"]"),
        ("[dns]\nlisten = [\n  3]", "f.toml:2: dns.listen: each element must be a text in quotes"),
        (
            "[dns]\nstrategy = \"sequentail\"",
            "f.toml:2: dns.strategy: `sequentail` is not one of sequential, parallel, racing, round_robin, random, fastest, least_inflight; \
             did you mean `sequential`?",
        ),
        (
            "[dns]\nstrategy = 1",
            "f.toml:2: dns.strategy: is a number; it must be one of sequential, parallel, racing, round_robin, random, fastest, least_inflight",
        ),
        ("[dns]\npool = false", "f.toml:2: dns.pool: is true or false; it must be one of on, off"),
        (
            "[dns]\nquery_timeout = 30",
            "f.toml:2: dns.query_timeout: `30` has no unit: write a time like \"30s\"",
        ),
        (
            "[dns]\nquery_timeout = \"30\"",
            "f.toml:2: dns.query_timeout: `30` is not a time like 30s, 250ms, 5m or 1h",
        ),
        (
            "[dns.cache]\nsize = \"64MB\"",
            "f.toml:2: dns.cache.size: `64MB` is not a size like 64MiB, 512KiB, 1GiB or 0",
        ),
        (
            "[admin]\nlisten = \"x\"",
            "f.toml:2: admin.listen: `x` is not an address with a port, like 127.0.0.1:9053 or [::1]:9053, nor `none`",
        ),
        (
            "[log]\nlevel = \"inf\"",
            "f.toml:2: log.level: `inf` is not one of error, warn, info, debug, trace; \
          did you mean `info`?",
        ),
        ("[dnss]", "f.toml:1: dnss: unknown key; did you mean `dns`?"),
        ("[dns.udp]\ncapcity = 3", "f.toml:2: dns.udp.capcity: unknown key; did you mean `capacity`?"),
        (
            "[dns]\ndial_timeout = \"3s\"",
            "f.toml:2: dns.dial_timeout: unknown key here; it belongs to [dns.stream]",
        ),
        (
            "[dns]\ncapacity = 4",
            "f.toml:2: dns.capacity: unknown key here; it belongs to [dns.stream] or [dns.udp]",
        ),
        (
            "[dns]\ncapcity = 4",
            "f.toml:2: dns.capcity: unknown key; did you mean `capacity` of [dns.stream] or [dns.udp]?",
        ),
        ("[log]\nfoo = 4", "f.toml:2: log.foo: unknown key; [log] may have format, level"),
        ("dns = 3", "f.toml:1: dns: is a number; it must be a table, like [dns]"),
        ("[[dns]]", "f.toml:1: dns: is an array; it must be a table, like [dns]"),
        ("[dns.workers]", "f.toml:1: dns.workers: is a table; it must be a value"),
        ("[dns]\nworkers = 1\nworkers = 2", "f.toml:3: duplicate key"),
        ("[dns]\nworkers", "f.toml:2: key with no value, expected `=`"),
        ("[dns.udp]\ncapacity = 0", "f.toml:2: dns.udp.capacity: is 0; it must be at least 1"),
        (
            "[dns]\nstream.connections_max = 0",
            "f.toml:2: dns.stream.connections_max: is 0; it must be at least 1",
        ),
        (
            "[dns.cache]\nsize = \"1KiB\"",
            "f.toml:2: dns.cache.size: 1KiB is too small for 2 workers: 16KiB for each, or 0 for no cache",
        ),
        (
            "[dns]\nlisten = [\"a\"]",
            "f.toml:2: dns.listen: `a` is not an address like 127.0.0.1:5300, [::1]:5300 or :53",
        ),
        (
            "[dns]\nupstreams = [\"http://192.0.2.1\"]",
            "f.toml:2: dns.upstreams: `http://192.0.2.1`: unknown scheme `http://`: use udp://, tcp://, tls:// or \
             https://",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(first_line(text), expected, "{text}");
    }
}

#[test]
fn the_line_itself_is_shown() {
    assert!(wrong("[dns]\n\nworkers = -1 # one").ends_with("\n    3 | workers = -1 # one"));
    assert!(wrong("[dns]\nwor\u{1b}[31m = 1").lines().all(|line| !line.contains('\u{1b}')));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "[dns]\nworkers = -1\nfoo = 2\n[dns.udp]\ncapacity = \"x\"\n[log]\nlevel = 3\n";
    let problems = Config::parse("f.toml", text, &machine()).unwrap_err();
    let lines: Vec<_> = problems.list().iter().map(|problem| problem.line.unwrap()).collect();
    assert_eq!(lines, [2, 3, 5, 7]);
    let problems =
        Config::parse("f.toml", "[dns]\nlisten = []\n[admin]\ntoken = \"short\"", &machine()).unwrap_err();
    let lines: Vec<_> = problems.list().iter().map(|problem| problem.line.unwrap()).collect();
    assert_eq!(lines, [2, 4]);
}

#[test]
fn a_default_that_does_not_fit_points_at_the_table_around_it() {
    // 8 sockets for each of 1000 workers cannot be; `connections_min` itself is not written.
    let text = "[dns]\nworkers = 200\n[dns.udp]\nconnections_max = 100";
    let line = first_line(text);
    assert!(line.starts_with("f.toml:3: dns.udp.connections_min:"), "{line}");
}

#[test]
fn admin_beyond_loopback_needs_a_token() {
    let text = "[dns]\n[admin]\nlisten = \"0.0.0.0:9053\"\n";
    let line = first_line(text);
    assert!(line.starts_with("f.toml:3: admin.listen:") && line.contains("admin.token"), "{line}");
    let with_token = format!("{text}token = \"0123456789abcdef\"");
    let admin = Config::parse("f.toml", &with_token, &machine()).unwrap().admin;
    assert_eq!(admin.token.as_deref(), Some("0123456789abcdef"));
    let machine = Machine { token: Some("fedcba9876543210".to_owned()), ..machine() };
    let admin = Config::parse("f.toml", text, &machine).unwrap().admin;
    assert_eq!(admin.token.as_deref(), Some("fedcba9876543210"));
    let admin = Config::parse("f.toml", &with_token, &machine).unwrap().admin;
    assert_eq!(admin.token.as_deref(), Some("0123456789abcdef"), "the file's token goes first");
    assert!(first_line("[dns]\n[admin]\ntoken = \"0123456789abcde\"").contains("too short"));
    assert!(first_line("[dns]\n[admin]\ntoken = \"0123456789 abcdef\"").contains("visible ASCII"));
}

#[test]
fn admin_can_be_nowhere() {
    let config = Config::parse("f.toml", "[dns]\n[admin]\nlisten = \"none\"", &machine()).unwrap();
    assert_eq!(config.admin.listen, None);
}

/// Every key, set to a value that differs from the default.
const OTHER: &str = r#"
[dns]
listen = ["127.0.0.1:5301", "[::1]:5301"]
upstreams = ["tcp://192.0.2.1", "192.0.2.2:5353"]
bootstrap = ["192.0.2.53"]
strategy = "least_inflight"
workers = 3
attempt_timeout = "500ms"
query_timeout = "3s"
failure_ttl = "6s"
failure_ttl_max = "50s"
attempts_max = 4
waiting_max = 100
udp_size = 1400
pool = "off"

[dns.cache]
size = "1GiB"
ttl_min = "1s"
ttl_max = "2h"
negative_ttl_max = "1m"
rrsets = false
serve_stale = false
stale_max = "2days"
stale_ttl = "20s"
stale_answer_after = "1s"
stale_recheck = "10s"
prefetch = false
prefetch_hits = 3
prefetch_below = 20
prefetch_max = 32
path = "/var/cache/forebay/dns"

[dns.strategies]
parallel_max = 2
head_start_min = "20ms"
head_start_max = "200ms"
probing_percent = 6

[dns.health]
enabled = true
question = "example.org A"
interval = "7s"
timeout = "2s"
rise = 3
fall = 4

[dns.udp]
connections_min = 2
connections_max = 99
capacity = 7
age_max = "1m"
uses_max = 300
idle_timeout = "5s"
overflow = "temporary"
temporary_max = 5

[dns.stream]
connections_min = 1
connections_max = 9
capacity = 6
idle_timeout = "3s"
dial_timeout = "1s"

[dns.clients]
connections_max = 12
queries_max = 13
idle_timeout = "14s"
connections_per_client = 11
handshakes_max = 15
handshake_timeout = "4s"

[dns.safety]
near_misses_max = 5
randomize_case = true
cookies = true
server_cookies = true
cookie_secret = "000102030405060708090a0b0c0d0e0f"

[dns.tls]
certificate = "certificate.pem"
key = "key.pem"

[dns.protection]
allow = ["127.0.0.1", "::1"]
rate_limit = 20
rate_burst = 100
rate_v4_prefix = 24
rate_v6_prefix = 64
rate_slip = 3
any = "forward"
special_names = false
rebind = true
rebind_allow = ["plex.direct"]

[[dns.routes]]
suffix = "corp.example"
upstreams = ["10.0.0.53"]
strategy = "random"

[dns.local]
hosts = "/etc/hosts"
records = ["tv.home A 192.168.1.7"]
ttl = "30s"
reload_interval = "10s"

[dns.block]
lists = ["/etc/blocked"]
allow = ["fine.example"]
answer = "zero"
ttl = "10s"
reload_interval = "1h"

[dns.query_log]
path = "/var/log/queries"
sample = 10

[[proxy]]
name = "web"
listen = ["127.0.0.1:8081", "[::1]:8081"]
mode = "passthrough"
backends = ["192.0.2.1:8443"]
balance = "p2c"
workers = 3
pool = "off"
drain_timeout = "30s"

[proxy.connections]
connections_max = 99
waiters_max = 98
connect_timeout = "1s"
connect_budget = "5s"
user_timeout = "20s"
keepalive = "30s"

[proxy.spares]
max = 7
age_max = "10s"
linger = "5s"

[proxy.clients]
connections_max = 97
connections_per_client = 96
idle_timeout = "2h"
user_timeout = "20s"
keepalive = "30s"

[proxy.http]
reuse = "always"
retries = false
head_timeout = "11s"
body_timeout = "31s"
response_timeout = "61s"
idle_timeout = "62s"
backend_idle_timeout = "5s"
backend_age_max = "2h"
head_size_max = "16KiB"
fields_max = 50
streams_max = 50
backend_streams_max = 51
stream_window = "256KiB"
ping_interval = "12s"
x_forwarded = false
forwarded = true
trust_forwarded = true
request_id = true
via = "forebay"

[proxy.tls]
certificate = "certificate.pem"
key = "key.pem"

[proxy.discovery]
file = "endpoints.json"
dns = "api.example:6443"
srv = "_https._tcp.api.example"
servers = ["192.0.2.53"]
hosts = "/etc/hosts.backends"
ttl_min = "2s"
ttl_max = "10m"
kubeconfig = "kubelet.conf"
service = "web/shop"
port = "http"
refresh_interval = "40s"
save = "saved.json"
allow_empty = true

[proxy.health]
check = "https"
path = "/readyz"
host = "api.example"
ca = "ca.pem"
name = "health.example"
expect = ["200"]
interval = "7s"
timeout = "6s"
fall = 3
rise = 4
on_unhealthy = "keep"
on_removed = "drain"
failures = 6
ejection = "20s"
ejection_max = "10m"
max_ejection_percent = 40
slow_start = "8s"

[proxy.proxy_protocol]
accept = true
trusted = ["192.0.2.0/24"]
timeout = "3s"
send = "v2"

[proxy.access_log]
path = "/var/log/accesses"
format = "text"

[admin]
listen = "127.0.0.1:1"
token = "0123456789abcdef"

[log]
level = "debug"
format = "json"
"#;

#[test]
fn every_key_can_be_set_and_written_back() {
    let file = File::parse("f.toml", OTHER).unwrap();
    let again = File::parse("again", &toml::to_string(&file).unwrap()).unwrap();
    assert_eq!(file, again);
    let dns = file.dns.as_ref().unwrap();
    assert_eq!((dns.strategy, dns.pool), (StrategyName::LeastInflight, PoolMode::Off));
    differs(&Value::try_from(&file).unwrap(), &Value::try_from(File::model()).unwrap(), "");
    // Certificates are read at once, and these are none.
    let without = OTHER.replace("certificate = \"certificate.pem\"\nkey = \"key.pem\"\n", "");
    let without = without.replace("ca = \"ca.pem\"\n", "");
    // Of sources, one or another; of what names one, that is enough.
    let (before, rest) = without.split_once("[proxy.discovery]").unwrap();
    let without = format!("{before}[proxy.health]{}", rest.split_once("[proxy.health]").unwrap().1);
    Config::parse("f.toml", &without, &machine()).unwrap();
}

/// Checks that every key of the model is there with another value: a new key must come into `OTHER` too.
fn differs(value: &Value, model: &Value, path: &str) {
    match (value, model) {
        (Value::Table(value), Value::Table(model)) => {
            for (key, model) in model {
                let path = format!("{path}.{key}");
                differs(value.get(key).unwrap_or_else(|| panic!("{path} is not set")), model, &path);
            }
        }
        // Of an array of tables, the model has one.
        (Value::Array(value), Value::Array(model)) if model.first().is_some_and(Value::is_table) => {
            differs(&value[0], &model[0], path);
        }
        _ => assert_ne!(value, model, "{path} is at its default"),
    }
}

#[test]
fn nothing_a_file_may_hold_makes_the_reader_panic() {
    let pieces = [
        "[dns]", "[[dns]]", "\n", "=", "listen", "[", "]", "\"", "'''", "{", "}", ".", "1", "\u{0}", "é",
        "dns", "#",
    ];
    let mut rng = forebay_core::Rng::new(7);
    for _ in 0..20_000 {
        let length = rng.below(12) as usize;
        let text: String = (0..length).map(|_| pieces[rng.below(17) as usize]).collect();
        if let Err(problems) = Config::parse("f.toml", &text, &machine()) {
            assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn tables_in_arrays_are_checked_like_others() {
    let text = "[dns]\nupstreams = [\"192.0.2.53\"]\n\n[[dns.routes]]\nsuffix = \"a.test\"\nupstreams = [\"192.0.2.54\"]\n";
    let machine = Machine { cores: 1, ..Machine::default() };
    assert!(Config::parse("file", text, &machine).is_ok());
    let problems =
        |more: &str| Config::parse("file", &format!("{text}{more}"), &machine).unwrap_err().to_string();
    let unknown = problems("\n[[dns.routes]]\nsufix = \"b.test\"\n");
    assert!(
        unknown.contains("file:9: dns.routes[1].sufix: unknown key; did you mean `suffix`?"),
        "{unknown}"
    );
    let kind = problems("strategy = \"any\"\n");
    assert!(kind.contains("file:7: dns.routes[0].strategy: `any` is not one of"), "{kind}");
    let missing = problems("\n[[dns.routes]]\nsuffix = \"b.test\"\n");
    assert!(missing.contains("file:8: dns.routes[1].upstreams: is missing"), "{missing}");
    let elsewhere = problems("\n[dns.local]\nsuffix = \"b.test\"\n");
    assert!(elsewhere.contains("it belongs to [[dns.routes]]"), "{elsewhere}");
    let none = Config::parse("file", "[dns]\nroutes = 3\n", &machine).unwrap_err().to_string();
    assert!(none.contains("file:2: dns.routes: is a number; it must be tables"), "{none}");
    let inner = "[[proxy]]\nbackends = [\"192.0.2.1:1\"]\n[proxy.clients]\nidle_timeout = 3\n";
    let inner = Config::parse("file", inner, &machine).unwrap_err().to_string();
    assert!(inner.contains("file:4: proxy[0].clients.idle_timeout: `3` has no unit"), "{inner}");
    let mixed = Config::parse("file", "[dns]\nroutes = [3]\n", &machine).unwrap_err().to_string();
    assert!(mixed.contains("has a number"), "{mixed}");
}

#[test]
fn every_example_of_the_proxys_page_is_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["web.example".to_owned()]).unwrap();
    for (name, text) in [
        ("web.pem", made.cert.pem()),
        ("ca.pem", made.cert.pem()),
        ("web.key", made.signing_key.serialize_pem()),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let page = include_str!("../../../../docs/proxy.md");
    let page = page.replace("/etc/forebay", &folder.path().display().to_string());
    let examples: Vec<_> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        if cfg!(not(feature = "kubernetes")) && example.contains("kubeconfig") {
            continue;
        }
        let config = Config::parse("proxy.md", example, &machine());
        assert!(config.is_ok(), "{}\n{example}", config.unwrap_err());
    }
}
