//! What a configuration takes from the machine: its resolvers, its cores, its environment.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use forebay::sys::process;

use crate::config::{Machine, TOKEN_VARIABLE};

/// Reads what this machine has. `resolv_conf` may be missing: that matters only to who names no upstream.
pub(crate) fn read(resolv_conf: &Path) -> Machine {
    let (resolvers, trouble) = match fs::read_to_string(resolv_conf) {
        Ok(text) => (nameservers(&text), format!("{} names none", resolv_conf.display())),
        Err(error) => (Vec::new(), format!("{} cannot be read ({error})", resolv_conf.display())),
    };
    Machine {
        resolvers,
        resolvers_trouble: trouble,
        cores: process::allowed_cores().map_or(1, |cores| cores.len()),
        token: env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()),
    }
}

/// Takes the addresses out of the text of a `resolv.conf(5)`. Those with a zone (`fe80::1%eth0`) have no place in a
/// configuration of addresses and are passed over.
fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() == Some("nameserver")
            && let Some(Ok(address)) = words.next().map(str::parse)
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_as_the_resolver_reads_them() {
        let text = "# nameserver 192.0.2.1\n;nameserver 192.0.2.2\nsearch example\n\
                    nameserver 192.0.2.3 # near\nnameserver\t2001:db8::1\nnameserver fe80::1%eth0\n\
                    nameserver 192.0.2.3\nnameserver\noptions edns0";
        let expected: Vec<IpAddr> = vec!["192.0.2.3".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn a_missing_resolv_conf_is_told() {
        let machine = read(Path::new("/nowhere/resolv.conf"));
        assert!(machine.resolvers.is_empty());
        assert!(machine.resolvers_trouble.starts_with("/nowhere/resolv.conf cannot be read"));
    }
}
