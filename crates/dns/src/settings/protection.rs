//! `[dns.protection]`: who may ask, how often, and what is never asked of an upstream.

use forebay_dns_core::forwarder::AnyPolicy;
use forebay_dns_core::guard::{Prefix, PrefixSet, RateConfig, RebindConfig};
use forebay_dns_core::wire::parse_name;
use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.protection]` table: who may ask, how often, and what is never asked of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtectionSettings {
    /// Networks whose clients are served: others are answered REFUSED, and their connections are closed at once. Default: loopback, private, shared (100.64.0.0/10), link-local and unique local addresses.
    pub allow: Vec<String>,
    /// Queries per second that the clients of one network may ask for long; 0 is no limit. Default 0.
    pub rate_limit: u32,
    /// Queries that they may ask at once; 0 is as many as `rate_limit`. Default 0.
    pub rate_burst: u32,
    /// How many bits of an IPv4 address make such a network, 0 to 32. Default 32.
    pub rate_v4_prefix: u8,
    /// How many bits of an IPv6 address make such a network, 0 to 128. Default 56.
    pub rate_v6_prefix: u8,
    /// One in so many UDP queries over the limit is answered truncated, by chance, so that a client which is no forgery
    /// comes back over TCP; the others are dropped. 0 answers none, 1 all; over streams all are REFUSED. Default 2.
    pub rate_slip: u32,
    /// Questions for ANY: `minimal` answers one HINFO record (RFC 8482), `forward` asks an upstream. Default `minimal`.
    pub any: AnyName,
    /// Whether special names are answered here: `localhost` and below as this machine; `local`, `invalid`, `onion`,
    /// `home.arpa`, `service.arpa` and private addresses backwards as names that do not exist; `resolver.arpa` without
    /// data. `test` is forwarded. A route or local data for such a name wins. Default `true`.
    pub special_names: bool,
    /// Whether answers of the default upstreams that give a name a private address are kept back: NXDOMAIN with the
    /// extended error 15. Names with a route of their own are not looked at. Default `false`.
    pub rebind: bool,
    /// Names under which private addresses are fine with `rebind`, themselves included. Default `[]`.
    pub rebind_allow: Vec<String>,
}

/// How `any` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnyName {
    /// One HINFO record.
    #[default]
    Minimal,
    /// What an upstream says.
    Forward,
}

impl Default for ProtectionSettings {
    fn default() -> Self {
        const HOME: [&str; 9] = [
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "169.254.0.0/16",
            "::1",
            "fc00::/7",
            "fe80::/10",
        ];
        Self {
            allow: HOME.iter().map(|text| (*text).to_owned()).collect(),
            rate_limit: 0,
            rate_burst: 0,
            rate_v4_prefix: 32,
            rate_v6_prefix: 56,
            rate_slip: 2,
            any: AnyName::default(),
            special_names: true,
            rebind: false,
            rebind_allow: Vec::new(),
        }
    }
}

/// What is made of the table.
#[derive(Clone, Debug)]
pub(crate) struct Protection {
    pub(crate) allow: PrefixSet,
    pub(crate) rate: Option<RateConfig>,
    pub(crate) rate_slip: u32,
    pub(crate) any: AnyPolicy,
    pub(crate) special_names: bool,
    pub(crate) rebind: Option<RebindConfig>,
}

/// More than any client can ask, in queries per second.
const RATE_MAX: u32 = 1_000_000;

impl ProtectionSettings {
    pub(super) fn valid(&self) -> Result<Protection, SettingsError> {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("protection.{key}"), problem };
        let mut allow = Vec::new();
        for text in &self.allow {
            let prefix: Prefix =
                text.parse().map_err(|error| wrong("allow", format!("`{text}`: {error}")))?;
            allow.push(prefix);
        }
        if allow.is_empty() {
            let problem =
                "is empty, so that nobody could ask: name networks; \"0.0.0.0/0\" and \"::/0\" are all";
            return Err(wrong("allow", problem.to_owned()));
        }
        for (key, value) in [("rate_limit", self.rate_limit), ("rate_burst", self.rate_burst)] {
            if value > RATE_MAX {
                return Err(wrong(key, format!("is {value}; it must be 0 to {RATE_MAX}")));
            }
        }
        for (key, value, most) in
            [("rate_v4_prefix", self.rate_v4_prefix, 32), ("rate_v6_prefix", self.rate_v6_prefix, 128)]
        {
            if value > most {
                return Err(wrong(key, format!("is {value}; it must be 0 to {most}")));
            }
        }
        let rate = (self.rate_limit > 0).then_some(RateConfig {
            per_second: self.rate_limit,
            burst: if self.rate_burst == 0 { self.rate_limit } else { self.rate_burst },
            v4_len: self.rate_v4_prefix,
            v6_len: self.rate_v6_prefix,
        });
        if !self.rebind && !self.rebind_allow.is_empty() {
            let problem = "has no effect without rebind = true: set that, or leave this out";
            return Err(wrong("rebind_allow", problem.to_owned()));
        }
        let names = self.rebind_allow.iter();
        let names = names.map(|text| {
            parse_name(text).map_err(|error| wrong("rebind_allow", format!("`{text}`: {error}")))
        });
        let names = names.collect::<Result<Vec<_>, _>>()?;
        Ok(Protection {
            allow: PrefixSet::new(&allow),
            rate,
            rate_slip: self.rate_slip,
            any: match self.any {
                AnyName::Minimal => AnyPolicy::Minimal,
                AnyName::Forward => AnyPolicy::Forward,
            },
            special_names: self.special_names,
            rebind: self.rebind.then_some(RebindConfig { allow: names }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_has_the_burst_and_the_networks_that_were_set() {
        let rate = |settings: ProtectionSettings| settings.valid().unwrap().rate;
        assert_eq!(rate(ProtectionSettings::default()), None);
        let usual = RateConfig { per_second: 20, burst: 20, v4_len: 32, v6_len: 56 };
        let limited = ProtectionSettings { rate_limit: 20, ..ProtectionSettings::default() };
        assert_eq!(rate(limited.clone()), Some(usual));
        assert_eq!(
            rate(ProtectionSettings { rate_burst: 90, rate_v4_prefix: 24, rate_v6_prefix: 64, ..limited }),
            Some(RateConfig { burst: 90, v4_len: 24, v6_len: 64, ..usual })
        );
    }

    #[test]
    fn by_default_those_at_home_are_served_and_nobody_else() {
        let allow = ProtectionSettings::default().valid().unwrap().allow;
        for home in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(allow.contains(home.parse().unwrap()), "{home}");
        }
        for away in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!allow.contains(away.parse().unwrap()), "{away}");
        }
    }

    #[test]
    fn networks_that_are_none_are_refused_with_the_remedy() {
        let wrong = |allow: &[&str]| {
            let allow = allow.iter().map(|text| (*text).to_owned()).collect();
            ProtectionSettings { allow, ..ProtectionSettings::default() }.valid().unwrap_err().to_string()
        };
        assert!(wrong(&[]).contains("nobody could ask"));
        assert!(
            wrong(&["10.1.0.0/8"]).contains("protection.allow: `10.1.0.0/8`: ")
                && wrong(&["10.1.0.0/8"]).contains("10.0.0.0/8")
        );
    }
}
