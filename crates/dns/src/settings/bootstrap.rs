//! `bootstrap`: who is asked for the addresses of upstreams that are given by name.

use std::net::{IpAddr, SocketAddr};

use super::address::is_same_socket;
use super::{ListenAddress, Settings, SettingsError, UpstreamAddress, parse_address};

/// Reads the list; without one, the machine's own resolvers are asked, but never this server.
pub(super) fn servers(
    settings: &Settings,
    system: &[IpAddr],
    listen: &[ListenAddress],
    upstreams: &[UpstreamAddress],
) -> Result<Vec<SocketAddr>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "bootstrap".to_owned(), problem };
    let is_own = |address: SocketAddr| {
        listen.iter().any(|own| own.scheme.has_udp() && is_same_socket(own.address, address))
    };
    let mut servers = Vec::new();
    for text in &settings.bootstrap {
        let bare = text.strip_prefix("udp://").unwrap_or(text);
        let address = parse_address(bare, 53).filter(|address| address.port() != 0);
        let Some(address) = address.filter(|address| !address.ip().is_unspecified()) else {
            return Err(wrong(format!(
                "`{text}` is not the address of a plain DNS server, like 192.0.2.53 or [2001:db8::53]:53"
            )));
        };
        if is_own(address) {
            return Err(wrong(format!("`{text}` is this server itself: it would wait for itself")));
        }
        servers.push(address);
    }
    if settings.bootstrap.is_empty() {
        let own = system.iter().map(|ip| SocketAddr::new(*ip, 53));
        servers.extend(own.filter(|address| !is_own(*address)));
    }
    match upstreams.iter().find(|upstream| upstream.addresses().next().is_none()) {
        Some(upstream) if servers.is_empty() => Err(wrong(format!(
            "is empty, and this machine's resolv.conf names no other server: nobody can be asked where `{upstream}` is; \
             name a server, like bootstrap = [\"192.0.2.53\"], or an address: {upstream}?bootstrap=192.0.2.1"
        ))),
        _ => Ok(servers),
    }
}

#[cfg(test)]
mod tests {
    use super::super::DnsConfig;
    use super::*;

    fn read(bootstrap: &[&str], upstream: &str, system: &[&str]) -> Result<Vec<String>, String> {
        let settings = Settings {
            bootstrap: bootstrap.iter().map(|text| (*text).to_owned()).collect(),
            upstreams: vec![upstream.to_owned()],
            listen: vec!["127.0.0.1:53".to_owned()],
            ..Settings::default()
        };
        let system: Vec<IpAddr> = system.iter().map(|text| text.parse().unwrap()).collect();
        match DnsConfig::new(&settings, &system, 1) {
            Ok(config) => Ok(config.bootstrap.iter().map(ToString::to_string).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn servers_are_those_named_or_the_machines_own_but_never_this_one() {
        let named = read(&["192.0.2.1", "[::1]:5353", "udp://192.0.2.2:54"], "192.0.2.9", &["192.0.2.3"]);
        assert_eq!(named.unwrap(), ["192.0.2.1:53", "[::1]:5353", "192.0.2.2:54"]);
        let own = read(&[], "192.0.2.9", &["127.0.0.1", "192.0.2.3"]);
        assert_eq!(own.unwrap(), ["192.0.2.3:53"]);
        assert!(read(&["127.0.0.1"], "192.0.2.9", &[]).unwrap_err().contains("itself"));
        for text in ["dns.example", "0.0.0.0", "192.0.2.1:0", ""] {
            assert!(read(&[text], "192.0.2.9", &[]).unwrap_err().starts_with("bootstrap: "), "{text}");
        }
    }

    #[test]
    fn a_name_needs_somebody_who_knows_it() {
        let upstream = "https://dns.example/dns-query";
        let error = read(&[], upstream, &["127.0.0.1"]).unwrap_err();
        assert!(error.contains("dns.example") && error.contains("?bootstrap=192.0.2.1"), "{error}");
        assert!(read(&["192.0.2.1"], upstream, &[]).is_ok());
        assert!(read(&[], upstream, &["192.0.2.1"]).is_ok());
        assert!(read(&[], "https://dns.example/dns-query?bootstrap=192.0.2.1", &[]).is_ok());
    }
}
