//! `[proxy.discovery]`: where backends come from, besides those that are named.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::settings::parse_address;
use forebay::units::Span;
use serde::{Deserialize, Serialize};

use super::{SettingsError, wrong};

/// The `[proxy.discovery]` table: where backends come from, besides those that are named.
///
/// A list that was found takes the place of the one before, whole. One that cannot be had, is broken or empty changes
/// nothing: the last good one stays.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiscoverySettings {
    /// A file with the list, read again when it changes: `{"endpoints": ["192.0.2.1:6443"]}`, or one backend a line.
    /// With `kubeconfig` too, what Kubernetes says is written to it. Default: none.
    pub file: PathBuf,
    /// A name with a port, like `api.example:6443`, whose addresses (A and AAAA) are the backends. Complete, as search
    /// domains are not tried. Default: none.
    pub dns: String,
    /// The name of a service, like `_https._tcp.api.example`, whose SRV records (RFC 2782) name the backends with their
    /// ports. Those with the lowest number for priority are used, all of them with `balance = "first_healthy"`, in order
    /// of priority. Default: none.
    pub srv: String,
    /// DNS servers that are asked, the next if one does not answer: `address` or `address:port`. Default: this machine's
    /// own resolvers.
    pub servers: Vec<String>,
    /// A file of names that DNS is not asked for, each line an address and the names that have it (hosts(5)); looked at
    /// again as often as `ttl_min` says. Empty is none. Default `/etc/hosts`.
    pub hosts: PathBuf,
    /// DNS is asked again after so long at the earliest, however soon its answer ends; at least a second. Default `1s`.
    pub ttl_min: Span,
    /// DNS is asked again after so long at the latest. Default `5m`.
    pub ttl_max: Span,
    /// A kubeconfig file: the backends are those of a Kubernetes service, as its EndpointSlices say (its Endpoints, where
    /// there are none). They are asked for from each known backend directly, with the certificate or token and the
    /// certificate authority of this file; its `server` only if no backend is known. Default: none.
    pub kubeconfig: PathBuf,
    /// The Kubernetes service, with its namespace; `default/kubernetes` is the API servers themselves. Default
    /// `default/kubernetes`.
    pub service: String,
    /// The name of the service's port. One that is the only one is taken whatever its name. Default `https`.
    pub port: String,
    /// How often Kubernetes is asked for the whole list; changes in between are followed as they happen. At least `1s`.
    /// Default `30s`.
    pub refresh_interval: Span,
    /// A file to which each list from DNS or Kubernetes is written, readable by its owner only, and from which a start
    /// takes them beside the named ones, so that neither a stale list nor a wrong name alone keeps the proxy from its
    /// backends. Default: none.
    pub save: PathBuf,
    /// Whether an empty list is believed: no backend is left then, and every client is refused. Default false.
    pub allow_empty: bool,
}

impl Default for DiscoverySettings {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            dns: String::new(),
            srv: String::new(),
            servers: Vec::new(),
            hosts: PathBuf::from("/etc/hosts"),
            ttl_min: Span(Duration::from_secs(1)),
            ttl_max: Span(Duration::from_secs(300)),
            kubeconfig: PathBuf::new(),
            service: "default/kubernetes".to_owned(),
            port: "https".to_owned(),
            refresh_interval: Span(Duration::from_secs(30)),
            save: PathBuf::new(),
            allow_empty: false,
        }
    }
}

/// Where backends come from: valid, and with at least one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiscoveryConfig {
    pub(crate) file: Option<PathBuf>,
    pub(crate) dns: Option<DnsConfig>,
    pub(crate) kube: Option<KubeConfig>,
    /// Where lists of DNS and Kubernetes are written. The same as `file`, if there is one.
    pub(crate) save: Option<PathBuf>,
    pub(crate) allow_empty: bool,
}

/// What DNS is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsConfig {
    pub(crate) question: DnsQuestion,
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) hosts: Option<PathBuf>,
    pub(crate) ttl_min: Duration,
    pub(crate) ttl_max: Duration,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DnsQuestion {
    /// Addresses of a name; the port is known.
    Addresses { name: String, port: u16 },
    /// Targets of a service.
    Services { name: String },
}

/// What Kubernetes is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubeConfig {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) port: String,
    pub(crate) refresh_interval: Duration,
}

impl DiscoverySettings {
    /// Whether there is anything to discover.
    pub(crate) fn is_on(&self) -> bool {
        is_set(&self.file) || !self.dns.is_empty() || !self.srv.is_empty() || is_set(&self.kubeconfig)
    }

    /// Makes a configuration; none if there is no source. `resolvers` are this machine's.
    pub(crate) fn valid(&self, resolvers: &[IpAddr]) -> Result<Option<DiscoveryConfig>, SettingsError> {
        if !self.is_on() {
            if is_set(&self.save) {
                return Err(problem(
                    "save",
                    "has nothing to save: set dns, srv or kubeconfig, or leave it out",
                ));
            }
            return Ok(None);
        }
        let others = [("dns", !self.dns.is_empty()), ("srv", !self.srv.is_empty())];
        let others = others.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| *key);
        let mut sources: Vec<&str> = others.collect();
        match (is_set(&self.file), is_set(&self.kubeconfig)) {
            (true, false) => sources.push("file"),
            (_, true) => sources.push("kubeconfig"),
            (false, false) => {}
        }
        if let [first, second, ..] = sources[..] {
            let text = format!("`{first}` and `{second}` each give a whole list: keep one of them");
            return Err(problem(second, text));
        }
        if is_set(&self.file) && is_set(&self.save) {
            let text = if is_set(&self.kubeconfig) {
                "is not needed: what Kubernetes says is written to `file`"
            } else {
                "would copy a file: leave it out"
            };
            return Err(problem("save", text));
        }
        let dns = self.dns_config(resolvers)?;
        Ok(Some(DiscoveryConfig {
            file: given(&self.file),
            dns,
            kube: self.kube_config()?,
            save: given(&self.save).or_else(|| given(&self.file).filter(|_| is_set(&self.kubeconfig))),
            allow_empty: self.allow_empty,
        }))
    }

    fn dns_config(&self, resolvers: &[IpAddr]) -> Result<Option<DnsConfig>, SettingsError> {
        let question = match (self.dns.as_str(), self.srv.as_str()) {
            ("", "") => return Ok(None),
            ("", name) if is_name(name) => DnsQuestion::Services { name: name.to_owned() },
            ("", text) => {
                let text = format!("`{text}` is not the name of a service, like _https._tcp.api.example");
                return Err(problem("srv", text));
            }
            (text, _) => {
                let place = text.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
                let Some((name, port @ 1..)) = place.filter(|(name, _)| is_name(name)) else {
                    let text = format!("`{text}` is not a name with a port, like api.example:6443");
                    return Err(problem("dns", text));
                };
                DnsQuestion::Addresses { name: name.to_owned(), port }
            }
        };
        let read = |text: &String| {
            parse_address(text, DNS_PORT).filter(|address| !address.ip().is_unspecified()).ok_or_else(|| {
                problem(
                    "servers",
                    format!("`{text}` is not an address, like 192.0.2.53 or [2001:db8::53]:53"),
                )
            })
        };
        let mut servers: Vec<SocketAddr> = self.servers.iter().map(read).collect::<Result<_, _>>()?;
        if servers.is_empty() {
            servers = resolvers.iter().map(|ip| SocketAddr::new(*ip, DNS_PORT)).collect();
        }
        if servers.is_empty() {
            return Err(problem(
                "servers",
                "none named, and this machine has none: give one, like 192.0.2.53",
            ));
        }
        let second = Duration::from_secs(1);
        if self.ttl_min.0 < second {
            return Err(wrong("discovery.ttl_min", self.ttl_min, "at least 1s"));
        }
        if self.ttl_max < self.ttl_min {
            let allowed = format!("at least ttl_min, {}", self.ttl_min);
            return Err(wrong("discovery.ttl_max", self.ttl_max, &allowed));
        }
        let hosts = given(&self.hosts);
        Ok(Some(DnsConfig { question, servers, hosts, ttl_min: self.ttl_min.0, ttl_max: self.ttl_max.0 }))
    }

    fn kube_config(&self) -> Result<Option<KubeConfig>, SettingsError> {
        let Some(kubeconfig) = given(&self.kubeconfig) else { return Ok(None) };
        if cfg!(not(feature = "kubernetes")) {
            return Err(problem(
                "kubeconfig",
                "cannot be used: this build is without the feature `kubernetes`",
            ));
        }
        let Some((namespace, service)) =
            self.service.split_once('/').filter(|(n, s)| is_label(n) && is_label(s))
        else {
            let text =
                format!("`{}` is not a namespace and a service, like default/kubernetes", self.service);
            return Err(problem("service", text));
        };
        if self.refresh_interval.0 < Duration::from_secs(1) {
            return Err(wrong("discovery.refresh_interval", self.refresh_interval, "at least 1s"));
        }
        Ok(Some(KubeConfig {
            kubeconfig,
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port: self.port.clone(),
            refresh_interval: self.refresh_interval.0,
        }))
    }
}

const DNS_PORT: u16 = 53;

/// Returns a path, unless it is empty.
fn given(path: &Path) -> Option<PathBuf> {
    is_set(path).then(|| path.to_owned())
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

fn problem(key: &str, text: impl Into<String>) -> SettingsError {
    SettingsError { key: format!("discovery.{key}"), problem: text.into() }
}

/// Whether this can be asked for in DNS: labels of 1 to 63 bytes, 253 in all (RFC 1035 §2.3.4).
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.len() <= 253 && text.split('.').all(is_part) && text.parse::<IpAddr>().is_err()
}

/// Whether this is a name of something in Kubernetes (RFC 1123 labels).
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(text: &str) -> Result<Option<DiscoveryConfig>, SettingsError> {
        toml::from_str::<DiscoverySettings>(text).unwrap().valid(&["192.0.2.53".parse().unwrap()])
    }

    #[test]
    fn nothing_is_discovered_unless_asked_for() {
        assert_eq!(valid(""), Ok(None));
    }

    #[test]
    fn each_source_is_read() {
        let dns = valid("dns = 'api.example:6443'").unwrap().unwrap().dns.unwrap();
        assert_eq!(dns.question, DnsQuestion::Addresses { name: "api.example".to_owned(), port: 6443 });
        assert_eq!(dns.servers, ["192.0.2.53:53".parse().unwrap()]);
        let dns = valid("srv = '_https._tcp.api.example.'\nservers = ['[::1]:5353']\nttl_max = '1m'");
        let dns = dns.unwrap().unwrap().dns.unwrap();
        assert_eq!(dns.question, DnsQuestion::Services { name: "_https._tcp.api.example.".to_owned() });
        assert_eq!((dns.servers, dns.ttl_max.as_secs()), (vec!["[::1]:5353".parse().unwrap()], 60));
        let config = valid("file = '/a'").unwrap().unwrap();
        assert_eq!((config.file, config.save), (Some("/a".into()), None));
    }

    #[cfg(feature = "kubernetes")]
    #[test]
    fn what_kubernetes_says_is_written_to_the_file_that_is_read() {
        let config = valid("file = '/a'\nkubeconfig = '/k'\nservice = 'n-s/svc'").unwrap().unwrap();
        assert_eq!((config.file, config.save), (Some("/a".into()), Some("/a".into())));
        let kube = config.kube.unwrap();
        assert_eq!((kube.namespace.as_str(), kube.service.as_str()), ("n-s", "svc"));
        assert_eq!((kube.port.as_str(), kube.refresh_interval.as_secs()), ("https", 30));
    }

    #[test]
    fn a_value_that_cannot_be_names_its_key_and_the_remedy() {
        for (text, key, word) in [
            ("save = '/a'", "save", "nothing to save"),
            ("file = '/a'\nsave = '/b'", "save", "leave it out"),
            ("file = '/a'\nkubeconfig = '/k'\nsave = '/b'", "save", "not needed"),
            ("file = '/a'\ndns = 'a:1'", "file", "keep one"),
            ("dns = 'a:1'\nsrv = 'b'", "srv", "keep one"),
            ("srv = 'b'\nkubeconfig = '/k'", "kubeconfig", "keep one"),
            ("dns = 'api.example'", "dns", "with a port"),
            ("dns = 'api.example:0'", "dns", "with a port"),
            ("dns = '192.0.2.1:80'", "dns", "with a port"),
            ("dns = 'a..b:80'", "dns", "with a port"),
            ("srv = 'a b'", "srv", "name of a service"),
            ("dns = 'a:1'\nservers = ['x']", "servers", "not an address"),
            ("dns = 'a:1'\nttl_min = '10ms'", "ttl_min", "at least 1s"),
            ("dns = 'a:1'\nttl_min = '10m'", "ttl_max", "at least ttl_min"),
            ("kubeconfig = '/k'\nservice = 'kubernetes'", "service", "default/kubernetes"),
            ("kubeconfig = '/k'\nservice = 'Default/x'", "service", "default/kubernetes"),
            ("kubeconfig = '/k'\nrefresh_interval = '0s'", "refresh_interval", "at least 1s"),
        ] {
            if cfg!(not(feature = "kubernetes")) && text.contains("kubeconfig") {
                continue;
            }
            let error = valid(text).unwrap_err();
            assert_eq!(error.key, format!("discovery.{key}"), "{text}: {error}");
            assert!(error.problem.contains(word), "{text}: {error}");
        }
        let no_resolver = DiscoverySettings { dns: "a:1".to_owned(), ..DiscoverySettings::default() };
        assert_eq!(no_resolver.valid(&[]).unwrap_err().key, "discovery.servers");
    }
}
