//! Other people's servers of DNS over TLS, on free ports, with a small zone.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use forebay_bench::responder::expected_a;

use super::tls::{Folder, Pair};
use super::{PATIENCE, Peer, has, path};

/// Names in the zone `peer.test`, each with the address that its name says.
pub const NAMES: u32 = 1000;

/// A server that ends with the test.
pub struct TlsServer {
    _process: Peer,
    _folder: Folder,
    pub address: SocketAddr,
}

fn free_port() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, super::free_port()).into()
}

fn begin(program: &str, arguments: &[&str], folder: Folder, address: SocketAddr) -> TlsServer {
    let mut process = Command::new(program)
        .args(arguments)
        .env("PATH", path())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path("errors")).expect("a file"))
        .spawn()
        .expect("it starts");
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        let errors = || fs::read_to_string(folder.path("errors")).unwrap_or_default();
        assert!(process.try_wait().expect("a child").is_none(), "{program} has ended: {}", errors());
        assert!(Instant::now() < end, "{program} does not listen: {}", errors());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    TlsServer { _process: Peer(process), _folder: folder, address }
}

/// NSD with `tls-service-key`.
pub fn nsd(pair: &Pair) -> Option<TlsServer> {
    if !has("nsd") {
        return None;
    }
    let (address, folder) = (free_port(), Folder::new());
    let (place, port) = (folder.0.display(), address.port());
    let config = format!(
        "server:\n ip-address: 127.0.0.1@{port}\n tls-port: {port}\n tls-service-key: \"{}\"\n \
         tls-service-pem: \"{}\"\n username: \"\"\n chroot: \"\"\n zonesdir: \"{place}\"\n database: \"\"\n \
         pidfile: \"{place}/pid\"\n xfrdfile: \"{place}/xfrd\"\n zonelistfile: \"{place}/list\"\n server-count: 1\n \
         rrl-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: peer.test\n zonefile: zone\n",
        pair.key.display(),
        pair.certificate.display()
    );
    let mut zone = String::from(
        "$ORIGIN peer.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n",
    );
    for n in 0..NAMES {
        writeln!(zone, "n{n} A {}", expected_a(&format!("n{n}.peer.test"))).expect("memory");
    }
    folder.write("zone", zone);
    let config = folder.write("conf", config).display().to_string();
    Some(begin("nsd", &["-d", "-c", &config], folder, address))
}

/// Unbound with `tls-port`, which knows the zone by itself and asks nobody.
pub fn unbound(pair: &Pair) -> Option<TlsServer> {
    if !has("unbound") {
        return None;
    }
    let (address, folder) = (free_port(), Folder::new());
    let (place, port) = (folder.0.display(), address.port());
    let mut config = format!(
        "server:\n interface: 127.0.0.1@{port}\n tls-port: {port}\n tls-service-key: \"{}\"\n tls-service-pem: \"{}\"\n \
         username: \"\"\n chroot: \"\"\n directory: \"{place}\"\n pidfile: \"{place}/pid\"\n do-daemonize: no\n \
         use-syslog: no\n num-threads: 1\n edns-tcp-keepalive: yes\n local-zone: \"peer.test.\" static\n",
        pair.key.display(),
        pair.certificate.display()
    );
    for n in 0..NAMES {
        let name = format!("n{n}.peer.test");
        writeln!(config, " local-data: \"{name}. 3600 IN A {}\"", expected_a(&name)).expect("memory");
    }
    config.push_str("remote-control:\n control-enable: no\n");
    let config = folder.write("conf", config).display().to_string();
    Some(begin("unbound", &["-d", "-c", &config], folder, address))
}
