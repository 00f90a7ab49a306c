//! What both kinds of objects say of a service's backends.

use std::net::{IpAddr, SocketAddr};

pub(super) use k8s_openapi::api::core::v1::Endpoints;
pub(super) use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::settings::BackendAddress;

/// An object that lists backends of a service.
pub(super) trait Service {
    /// Returns the selectors of labels and of fields that leave those of one service.
    fn selectors(service: &str) -> (Option<String>, Option<String>);

    /// Lists the backends that are ready, at the port of this name.
    fn backends(&self, port: &str) -> Vec<BackendAddress>;
}

impl Service for EndpointSlice {
    fn selectors(service: &str) -> (Option<String>, Option<String>) {
        (Some(format!("kubernetes.io/service-name={service}")), None)
    }

    fn backends(&self, port: &str) -> Vec<BackendAddress> {
        let ports = self.ports.iter().flatten();
        let ports = ports.filter(|one| is_tcp(one.protocol.as_deref()));
        let Some(port) = choose(ports.filter_map(|one| Some((one.name.as_deref(), one.port?))), port) else {
            return Vec::new();
        };
        // A condition that is not there means that it is met.
        let ready = self.endpoints.iter().filter(|endpoint| {
            endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
        });
        // All addresses of an endpoint lead to the same place, and those that are names (FQDN) are not for connecting.
        ready.filter_map(|endpoint| backend(endpoint.addresses.first()?, port)).collect()
    }
}

impl Service for Endpoints {
    fn selectors(service: &str) -> (Option<String>, Option<String>) {
        (None, Some(format!("metadata.name={service}")))
    }

    fn backends(&self, port: &str) -> Vec<BackendAddress> {
        let mut found = Vec::new();
        for subset in self.subsets.iter().flatten() {
            let ports = subset.ports.iter().flatten().filter(|one| is_tcp(one.protocol.as_deref()));
            if let Some(port) = choose(ports.map(|one| (one.name.as_deref(), one.port)), port) {
                let ready = subset.addresses.iter().flatten();
                found.extend(ready.filter_map(|address| backend(&address.ip, port)));
            }
        }
        found
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// Chooses the port of this name, or the only one.
fn choose<'a>(ports: impl Iterator<Item = (Option<&'a str>, i32)>, name: &str) -> Option<u16> {
    let ports: Vec<_> = ports.collect();
    let named = ports.iter().find(|(one, _)| *one == Some(name));
    let chosen = named.or(if let [only] = &ports[..] { Some(only) } else { None });
    chosen.and_then(|(_, port)| u16::try_from(*port).ok()).filter(|port| *port > 0)
}

fn backend(address: &str, port: u16) -> Option<BackendAddress> {
    let ip: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(text: &str) -> Vec<String> {
        let slice: EndpointSlice = serde_json::from_str(text).unwrap();
        slice.backends("https").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_ready_endpoints_of_a_slice_are_backends() {
        let text = r#"{"addressType": "IPv4", "metadata": {},
            "ports": [{"name": "metrics", "port": 1}, {"name": "https", "port": 6443, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["192.0.2.3"], "conditions": {}},
                {"addresses": ["192.0.2.4"]}]}"#;
        assert_eq!(slice(text), ["192.0.2.1:6443", "192.0.2.3:6443", "192.0.2.4:6443"]);
    }

    #[test]
    fn slices_of_both_families_are_read_and_those_of_names_are_not() {
        let text = |family: &str, address: &str| {
            format!(
                r#"{{"addressType": "{family}", "metadata": {{}}, "ports": [{{"name": "", "port": 443}}],
                "endpoints": [{{"addresses": ["{address}"]}}]}}"#
            )
        };
        assert_eq!(slice(&text("IPv6", "2001:db8::1")), ["[2001:db8::1]:443"], "the only port needs no name");
        assert!(slice(&text("FQDN", "api.example")).is_empty());
    }

    #[test]
    fn a_slice_without_its_port_has_no_backend() {
        for ports in [
            r#"[{"name": "a", "port": 1}, {"name": "b", "port": 2}]"#,
            r#"[{"name": "https", "port": 1, "protocol": "UDP"}]"#,
            r#"[{"name": "https", "port": 70000}]"#,
            r#"[{"name": "https"}]"#,
            "[]",
            "null",
        ] {
            let text = format!(
                r#"{{"addressType": "IPv4", "metadata": {{}}, "ports": {ports}, "endpoints": [{{"addresses": ["192.0.2.1"]}}]}}"#
            );
            assert!(slice(&text).is_empty(), "{ports}");
        }
    }

    #[test]
    fn addresses_that_are_not_ready_are_no_backends_of_endpoints_either() {
        let text = r#"{"metadata": {}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
             "ports": [{"name": "https", "port": 6443}]},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"name": "https", "port": 16443}]}]}"#;
        let endpoints: Endpoints = serde_json::from_str(text).unwrap();
        let found: Vec<_> = endpoints.backends("https").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:6443", "192.0.2.3:16443"]);
    }
}
