//! `forebay apiserver-proxy`: the flags and defaults of k8s-apiserver-proxy, for a proxy of ours.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use forebay::settings::parse_address;
use forebay::units::Span;
use forebay_proxy::{CheckKind, DiscoverySettings, HealthSettings, ProxyConfig, Settings};

use crate::args::ServeArgs;
use crate::config::{Config, Machine};
use crate::failure::Failure;

/// The options of `apiserver-proxy`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ApiserverProxyArgs {
    /// Address to listen on; without a host, all addresses of this machine.
    #[arg(long, value_name = "ADDR", default_value = ":6443")]
    pub listen: String,
    /// File with the API servers, {"endpoints": ["192.0.2.1:6443"]}; followed when it changes, and written when Kubernetes
    /// says others.
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/k8s-apiserver-proxy.json")]
    pub endpoints: PathBuf,
    /// Kubeconfig file whose credentials are used to ask for API servers.
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/kubelet.conf")]
    pub kubeconfig: PathBuf,
    /// How often Kubernetes is asked for its API servers, at least 15s; 0 is never.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub refresh_interval: Interval,
    /// Worker threads; 0 is one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub workers: usize,
}

/// A time, or a bare 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self(Duration::ZERO)),
            text => text.parse().map(|span: Span| Self(span.0)).map_err(|error| error.to_string()),
        }
    }
}

/// Asked more often, many nodes would be a load on their API servers.
const REFRESH_MIN: Duration = Duration::from_secs(15);

impl ApiserverProxyArgs {
    /// Makes a configuration of the options.
    pub(crate) fn config(&self, serve: &ServeArgs, machine: &Machine) -> Result<Config, Failure> {
        let proxy = ProxyConfig::on_machine(&self.settings()?, machine.cores, &machine.resolvers);
        let proxy = proxy.map_err(|error| {
            let flag = match error.key.as_str() {
                "listen" | "workers" => format!("--{}", error.key),
                "discovery.kubeconfig" => "--kubeconfig".to_owned(),
                key => key.to_owned(),
            };
            Failure::wrong(format!("{flag}: {}", error.problem))
        })?;
        let (admin, log) = serve.resolve(machine.token.as_deref())?;
        Ok(Config { dns: None, proxies: vec![proxy], admin, log })
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let asks = self.refresh_interval.0 > Duration::ZERO;
        Ok(Settings {
            name: Some("apiserver-proxy".to_owned()),
            listen: self.listen()?,
            workers: self.workers,
            health: HealthSettings {
                check: CheckKind::Https,
                path: "/readyz".to_owned(),
                // A server that lets nobody ask without a name, and says so, is well.
                expect: ["200-299", "401", "403"].map(str::to_owned).to_vec(),
                ..HealthSettings::default()
            },
            discovery: DiscoverySettings {
                file: self.endpoints.clone(),
                kubeconfig: if asks { self.kubeconfig.clone() } else { PathBuf::new() },
                refresh_interval: Span(self.refresh_interval.0.max(REFRESH_MIN)),
                ..DiscoverySettings::default()
            },
            ..Settings::default()
        })
    }

    /// Returns what of the options is not done as it was written, for the log.
    pub(crate) fn warning(&self) -> Option<String> {
        let asked = self.refresh_interval.0;
        (asked > Duration::ZERO && asked < REFRESH_MIN).then(|| {
            format!(
                "--refresh-interval {} is less than the minimum: {} instead",
                Span(asked),
                Span(REFRESH_MIN)
            )
        })
    }

    /// A bare port is all addresses of both families, of those that this machine has.
    fn listen(&self) -> Result<Vec<String>, Failure> {
        let Some(port) = self.listen.strip_prefix(':') else { return Ok(vec![self.listen.clone()]) };
        if parse_address(&self.listen, 0).is_none() {
            return Err(Failure::wrong(format!(
                "--listen: `{}` is not an address like :6443 or 127.0.0.1:6443",
                self.listen
            )));
        }
        let mut all = vec![format!("0.0.0.0:{port}")];
        if TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_ok() {
            all.push(format!("[::]:{port}"));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn parse(line: &str) -> (ApiserverProxyArgs, ServeArgs) {
        let args = Args::try_parse_from(line.split_ascii_whitespace()).unwrap();
        let Some(Command::ApiserverProxy(proxy)) = args.command else { panic!("it was asked for") };
        (proxy, args.serve)
    }

    #[test]
    fn the_defaults_are_those_of_the_program_that_it_replaces() {
        let (args, _) = parse("forebay apiserver-proxy");
        let settings = args.settings().unwrap();
        assert_eq!(settings.listen[0], "0.0.0.0:6443");
        let discovery = &settings.discovery;
        assert_eq!(discovery.file.to_str().unwrap(), "/etc/kubernetes/k8s-apiserver-proxy.json");
        assert_eq!(discovery.kubeconfig.to_str().unwrap(), "/etc/kubernetes/kubelet.conf");
        assert_eq!(discovery.refresh_interval.0, Duration::from_secs(30));
        assert_eq!(args.warning(), None);
    }

    #[test]
    fn every_option_of_apiserver_proxy_reaches_its_setting() {
        let line = "forebay apiserver-proxy --listen 127.0.0.1:1 --endpoints /e --kubeconfig /k --refresh-interval 1m30s \
                    --workers 3 --admin none";
        let (args, serve) = parse(line);
        let settings = args.settings().unwrap();
        let discovery = &settings.discovery;
        assert_eq!((discovery.file.to_str(), discovery.kubeconfig.to_str()), (Some("/e"), Some("/k")));
        assert_eq!((discovery.refresh_interval.0.as_secs(), settings.workers), (90, 3));
        assert_eq!(settings.listen, ["127.0.0.1:1"]);
        let machine = Machine { cores: 2, ..Machine::default() };
        let config = args.config(&serve, &machine).unwrap();
        assert_eq!((config.proxies[0].workers(), config.proxies[0].name()), (3, "apiserver-proxy"));
    }

    #[test]
    fn kubernetes_is_never_asked_with_0_and_at_most_every_15_seconds() {
        for zero in ["0", "0s"] {
            let (args, _) = parse(&format!("forebay apiserver-proxy --refresh-interval {zero}"));
            assert_eq!(args.settings().unwrap().discovery.kubeconfig, PathBuf::new());
        }
        let (args, _) = parse("forebay apiserver-proxy --refresh-interval 5s");
        assert_eq!(args.settings().unwrap().discovery.refresh_interval.0, Duration::from_secs(15));
        let warning = args.warning().unwrap();
        assert!(warning.contains("5s") && warning.contains("15s instead"), "{warning}");
        let wrong = Args::try_parse_from(["forebay", "apiserver-proxy", "--refresh-interval", "often"]);
        assert!(wrong.unwrap_err().to_string().contains("`often` is not a time"));
        let (args, _) = parse("forebay apiserver-proxy --listen :nothing");
        assert!(args.settings().unwrap_err().to_string().contains("--listen: `:nothing`"));
    }
}
