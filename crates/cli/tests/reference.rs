//! The pages of reference are made of what they describe: the table of metrics, and the settings with their comments.
//!
//! `FOREBAY_WRITE_DOCS=1 cargo test -p forebay-cli --test reference` writes them; without it, a stale page fails.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_cli::admin::metrics::descriptions;
use forebay_cli::config::File;
use toml::{Table, Value};

const HOW: &str = "<!-- Made by `FOREBAY_WRITE_DOCS=1 cargo test -p forebay-cli --test reference`. -->\n\n";

/// The tables of a configuration file: name, source, and the struct whose fields are its keys.
const TABLES: &[(&str, &str, &str)] = &[
    ("dns", "../dns/src/settings/mod.rs", "Settings"),
    ("dns.cache", "../dns/src/settings/cache.rs", "CacheSettings"),
    ("dns.strategies", "../dns/src/settings/strategies.rs", "StrategySettings"),
    ("dns.health", "../dns/src/settings/health.rs", "HealthSettings"),
    ("dns.udp", "../dns/src/settings/pools.rs", "UdpSettings"),
    ("dns.stream", "../dns/src/settings/pools.rs", "StreamSettings"),
    ("dns.clients", "../dns/src/settings/clients.rs", "ClientSettings"),
    ("dns.tls", "../dns/src/settings/tls.rs", "TlsSettings"),
    ("dns.safety", "../dns/src/settings/safety.rs", "SafetySettings"),
    ("dns.protection", "../dns/src/settings/protection.rs", "ProtectionSettings"),
    ("dns.routes", "../dns/src/settings/routes.rs", "RouteSettings"),
    ("dns.local", "../dns/src/settings/local.rs", "LocalSettings"),
    ("dns.block", "../dns/src/settings/block.rs", "BlockSettings"),
    ("dns.query_log", "../dns/src/settings/query_log.rs", "QueryLogSettings"),
    ("proxy", "../proxy/src/settings/mod.rs", "Settings"),
    ("proxy.connections", "../proxy/src/settings/connections.rs", "ConnectionSettings"),
    ("proxy.spares", "../proxy/src/settings/spares.rs", "SpareSettings"),
    ("proxy.discovery", "../proxy/src/settings/discovery.rs", "DiscoverySettings"),
    ("proxy.clients", "../proxy/src/settings/clients.rs", "ClientSettings"),
    ("proxy.http", "../proxy/src/settings/http.rs", "HttpSettings"),
    ("proxy.tls", "../proxy/src/settings/tls.rs", "TlsSettings"),
    ("proxy.health", "../proxy/src/settings/health.rs", "HealthSettings"),
    ("proxy.proxy_protocol", "../proxy/src/settings/proxy_protocol.rs", "ProxyProtocolSettings"),
    ("proxy.access_log", "../proxy/src/settings/access_log.rs", "AccessLogSettings"),
    ("admin", "src/config.rs", "AdminSettings"),
    ("log", "src/config.rs", "LogSettings"),
];

#[test]
fn the_page_of_metrics_is_current() {
    let mut page = format!(
        "# Metrics\n\n{HOW}`GET /metrics` on the admin endpoint, in the text format of Prometheus. `upstream` is a \
         named group of endpoints (`default`, a route's suffix, or a proxy),\n`endpoint` an address with its transport, `blame` whose fault a failure was: \
         `local` (this machine), `upstream` or\n`client`.\n\n| metric | kind | labels | what it says |\n|---|---|---|---|\n"
    );
    for metric in descriptions() {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = metric.kind.as_str();
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help).unwrap();
    }
    check("metrics.md", &page);
}

#[test]
fn the_page_of_settings_is_current_and_tells_the_true_defaults() {
    let Ok(Value::Table(model)) = Value::try_from(File::model()) else { panic!("a file is a table") };
    let mut page = format!(
        "# Configuration\n\n{HOW}`forebay run -c FILE` takes a TOML file, and `forebay check -c FILE` says what is \
         wrong with one. Every table and every key\nis optional, but a proxy's `backends`; a server runs if its table is there. Unknown keys are \
         refused. Times and sizes have units: `\"30s\"`,\n`\"250ms\"`, `\"64MiB\"`.\n"
    );
    for (table, source, name) in TABLES {
        let source = fs::read_to_string(folder().join(source)).unwrap();
        let fields = fields(&source, name);
        let defaults = lookup(&model, table);
        let head = match *table {
            "dns.routes" | "proxy" => format!("[[{table}]]"),
            _ => format!("[{table}]"),
        };
        writeln!(page, "\n## `{head}`\n\n| key | default | what it is |\n|---|---|---|").unwrap();
        let mut told = 0;
        for (key, comment) in &fields {
            let comment = &comment.replace('|', "\\|");
            let Some(value) = defaults.get(key) else { panic!("{table}.{key} is not in the model") };
            told += 1;
            let tables = value.as_array().and_then(|array| array.first()).is_some_and(Value::is_table);
            if tables {
                writeln!(
                    page,
                    "| `{key}` | see `[[{table}.{key}]]` | {} |",
                    comment.replace(" Default `[]`.", "")
                )
                .unwrap();
                continue;
            }
            if value.is_table() {
                writeln!(page, "| `{key}` | see `[{table}.{key}]` | {comment} |").unwrap();
                continue;
            }
            let (what, default) = match comment.rsplit_once("Default ") {
                Some((what, default)) => (what.trim_end(), written(default)),
                None => (comment.as_str(), None),
            };
            match default {
                Some(default) => {
                    assert_eq!(default, plain(value), "{table}.{key}: the comment tells another default");
                    writeln!(page, "| `{key}` | `{}` | {what} |", shown(value)).unwrap();
                }
                None => writeln!(page, "| `{key}` | | {comment} |").unwrap(),
            }
        }
        assert_eq!(told, defaults.len(), "[{table}] has keys without a comment: {defaults:?}");
    }
    check("configuration.md", &page);
}

/// The default in ``Default `64MiB`.`` or `Default 8.`, if it is no more than that.
fn written(default: &str) -> Option<&str> {
    let default = default.strip_suffix('.')?;
    let bare = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).unwrap_or(default);
    (!bare.contains([';', ':']) || bare.starts_with('[') || bare.starts_with("127")).then_some(bare)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shown(value: &Value) -> String {
    value.to_string()
}

fn lookup<'a>(model: &'a Table, path: &str) -> &'a Table {
    path.split('.').fold(model, |table, key| match &table[key] {
        // Of an array of tables, the model has one.
        Value::Array(array) => array[0].as_table().unwrap(),
        value => value.as_table().unwrap(),
    })
}

/// Returns name and comment of each field of a struct, in the order of the source.
fn fields(source: &str, name: &str) -> Vec<(String, String)> {
    let head = format!("pub struct {name} {{\n");
    let body = source.split_once(&head).unwrap_or_else(|| panic!("no struct {name}")).1;
    let (mut found, mut comment) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            found.push((field.to_owned(), comment.join(" ")));
            comment.clear();
        }
    }
    assert!(!found.is_empty(), "{name} has no fields");
    found
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn check(name: &str, page: &str) {
    let path = folder().join("../../docs").join(name);
    if std::env::var_os("FOREBAY_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).unwrap();
        fs::write(&path, page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == page,
        "docs/{name} is stale: FOREBAY_WRITE_DOCS=1 cargo test -p forebay-cli --test reference"
    );
}
