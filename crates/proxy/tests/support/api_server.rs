//! A Kubernetes API server as far as a proxy and `kubectl` need one: discovery, `/readyz`, EndpointSlices and Endpoints
//! with list and watch, and a pod in which `cat` can be run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// What all API servers of a cluster know: the objects, and who may ask for them.
pub struct Cluster {
    state: Mutex<State>,
    changed: Condvar,
    pub folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    tls: Arc<ServerConfig>,
}

#[derive(Default)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    endpoints: Vec<SocketAddr>,
    /// Version, type, whether it is of slices, object.
    events: Vec<(u64, &'static str, bool, Value)>,
    /// Watches from before this version are gone.
    compacted: u64,
    has_no_slices: bool,
    watches: usize,
}

/// One API server of a cluster, on loopback; it ends when it is dropped.
pub struct ApiServer {
    pub address: SocketAddr,
    cluster: Arc<Cluster>,
    asked: Arc<Mutex<Vec<String>>>,
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What `kubectl` and the proxy show.
pub const TOKEN: &str = "a-token-of-the-test";

impl Cluster {
    pub fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, folder.path().display().to_string());
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        let (certificate, key) = issue(&issuer, &["127.0.0.1", "::1", "localhost"]);
        let (client, client_key) = issue(&issuer, &["node.test"]);
        fs::write(folder.path().join("client.crt"), client).unwrap();
        fs::write(folder.path().join("client.key"), client_key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let state = State { version: 100, ..State::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            folder,
            issuer,
            tls: Arc::new(tls),
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Says which API servers are there, each with whether it is ready.
    pub fn set(&self, servers: &[(SocketAddr, bool)]) {
        self.change(|state| {
            state.version += 1;
            let version = state.version;
            let mut slices: BTreeMap<String, Value> = BTreeMap::new();
            // A slice has one port, so that servers on loopback need one each.
            for (address, is_ready) in servers {
                let name = format!("kubernetes-{}", address.port());
                let slice = json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                    "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string(),
                        "creationTimestamp": "2026-01-01T00:00:00Z",
                        "labels": {"kubernetes.io/service-name": "kubernetes"}},
                    "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
                    "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": is_ready}}],
                });
                slices.insert(name, slice);
            }
            let strip = |slice: &Value| {
                let mut slice = slice.clone();
                slice["metadata"]["resourceVersion"] = Value::Null;
                slice
            };
            for (name, slice) in &slices {
                match state.slices.get(name) {
                    None => state.events.push((version, "ADDED", true, slice.clone())),
                    Some(old) if strip(old) != strip(slice) => {
                        state.events.push((version, "MODIFIED", true, slice.clone()));
                    }
                    Some(_) => {}
                }
            }
            for (name, old) in &state.slices {
                if !slices.contains_key(name) {
                    let mut gone = old.clone();
                    gone["metadata"]["resourceVersion"] = version.to_string().into();
                    state.events.push((version, "DELETED", true, gone));
                }
            }
            state.slices = slices;
            state.endpoints =
                servers.iter().filter(|(_, ready)| *ready).map(|(address, _)| *address).collect();
            let endpoints = state.endpoints();
            state.events.push((version, "MODIFIED", false, endpoints));
        });
    }

    /// Serves Endpoints only, as before Kubernetes 1.17.
    pub fn forget_slices(&self) {
        self.change(|state| state.has_no_slices = true);
    }

    /// Forgets what happened until now: who watches from before is told that it is gone.
    pub fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.compacted = state.version;
            state.events.clear();
        });
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.state.lock().unwrap().watches
    }

    /// Writes a kubeconfig file that shows a client certificate or a token, and names `server`.
    pub fn kubeconfig(&self, name: &str, server: &str, has_certificate: bool) -> PathBuf {
        let user = if has_certificate {
            json!({"client-certificate": "client.crt", "client-key": "client.key"})
        } else {
            json!({ "token": TOKEN })
        };
        self.kubeconfig_of(name, server, &user)
    }

    /// Writes a kubeconfig file with this user.
    pub fn kubeconfig_of(&self, name: &str, server: &str, user: &Value) -> PathBuf {
        let path = self.folder.path().join(name);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": "ca.crt"}}],
            "users": [{"name": "node", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "node"}}],
        });
        // JSON is YAML too.
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Issues a certificate for these names, and returns its files.
    pub fn certificate(&self, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let (certificate, key) = issue(&self.issuer, names);
        let at = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        fs::write(at("crt"), certificate).unwrap();
        fs::write(at("key"), key).unwrap();
        (at("crt"), at("key"))
    }
}

fn issue(issuer: &CertifiedIssuer<'static, KeyPair>, names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

impl State {
    fn endpoints(&self) -> Value {
        let subsets: Vec<Value> = self
            .endpoints
            .iter()
            .map(|address| {
                json!({"addresses": [{"ip": address.ip()}],
                    "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}]})
            })
            .collect();
        json!({"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets,
            "metadata": {"name": "kubernetes", "namespace": "default", "resourceVersion": self.version.to_string()}})
    }
}

impl ApiServer {
    /// Starts one; not in the list of the cluster until it is put there.
    pub fn start(cluster: &Arc<Cluster>) -> Self {
        Self::start_at(cluster, (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts one at an address that another had.
    pub fn start_at(cluster: &Arc<Cluster>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (asked, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicBool::new(false)));
        let ready = Arc::new(AtomicBool::new(true));
        let thread = {
            let (cluster, asked, stop) = (Arc::clone(cluster), Arc::clone(&asked), Arc::clone(&stop));
            let ready = Arc::clone(&ready);
            thread::spawn(move || {
                let mut clients = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    let (cluster, asked, stop) =
                        (Arc::clone(&cluster), Arc::clone(&asked), Arc::clone(&stop));
                    let ready = Arc::clone(&ready);
                    clients.push(thread::spawn(move || {
                        // A client that goes away is no failure of the server.
                        let _ = Session::serve(&cluster, &asked, &ready, &stop, stream);
                    }));
                }
                drop(listener);
                clients.into_iter().for_each(|client| drop(client.join()));
            })
        };
        Self { address, cluster: Arc::clone(cluster), asked, ready, stop, thread: Some(thread) }
    }

    /// What was asked for: `GET /path?query as cert`, `as token` or `as nobody`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// How often something was asked for that has this in it.
    pub fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|line| line.contains(part)).count()
    }

    /// Sets what `/readyz` says.
    pub fn set_ready(&self, is_ready: bool) {
        self.ready.store(is_ready, Ordering::Relaxed);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.cluster.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

struct Session<'a> {
    cluster: &'a Cluster,
    asked: &'a Mutex<Vec<String>>,
    ready: &'a AtomicBool,
    stop: &'a AtomicBool,
    stream: Tls,
}

impl Session<'_> {
    fn serve(
        cluster: &Cluster,
        asked: &Mutex<Vec<String>>,
        ready: &AtomicBool,
        stop: &AtomicBool,
        stream: TcpStream,
    ) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let connection = ServerConnection::new(Arc::clone(&cluster.tls)).unwrap();
        let mut session =
            Session { cluster, asked, ready, stop, stream: StreamOwned::new(connection, stream) };
        let mut buffer = Vec::new();
        while let Some(head) = session.head(&mut buffer)? {
            let mut lines = head.lines();
            let line = lines.next().unwrap_or_default().to_owned();
            let headers: BTreeMap<String, String> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let mut words = line.split(' ');
            let (method, target) =
                (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
            let who = if session.stream.conn.peer_certificates().is_some() {
                "cert"
            } else if headers.get("authorization").is_some_and(|value| *value == format!("Bearer {TOKEN}")) {
                "token"
            } else {
                "nobody"
            };
            asked.lock().unwrap().push(format!("{method} {target} as {who}"));
            if !session.answer(&target, &headers, who)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads until there is a head. `None` at the end.
    fn head(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
                buffer.drain(..end + 4);
                return Ok(Some(head));
            }
            let Some(bytes) = self.read()? else { return Ok(None) };
            buffer.extend_from_slice(&bytes);
        }
    }

    fn read(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; 16 << 10];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(n) => return Ok(Some(bytes[..n].to_vec())),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers one request. Returns whether another may follow.
    fn answer(
        &mut self,
        target: &str,
        headers: &BTreeMap<String, String>,
        who: &str,
    ) -> std::io::Result<bool> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
        if path == "/readyz" {
            let is_ready = self.ready.load(Ordering::Relaxed);
            let (status, text) =
                if is_ready { (200, "ok") } else { (500, "[-]etcd failed: reason withheld") };
            return self.text(status, "text/plain", text).map(|()| true);
        }
        if who == "nobody" {
            return self.status(401, "Unauthorized").map(|()| true);
        }
        let has_no_slices = self.cluster.state.lock().unwrap().has_no_slices;
        match path {
            "/api" => self.json(&json!({"kind": "APIVersions", "versions": ["v1"]})),
            "/apis" => {
                let version = json!({"groupVersion": "discovery.k8s.io/v1", "version": "v1"});
                let groups = json!([{"name": "discovery.k8s.io", "versions": [version], "preferredVersion": version}]);
                self.json(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
            }
            "/api/v1" => self.json(&json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                {"name": "endpoints", "singularName": "endpoints", "namespaced": true, "kind": "Endpoints",
                    "verbs": ["get", "list", "watch"]},
                {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"]},
                {"name": "pods/exec", "singularName": "", "namespaced": true, "kind": "PodExecOptions",
                    "verbs": ["create", "get"]},
            ]})),
            "/apis/discovery.k8s.io/v1" if !has_no_slices => {
                self.json(&json!({"kind": "APIResourceList", "groupVersion": "discovery.k8s.io/v1", "resources": [
                    {"name": "endpointslices", "singularName": "endpointslice", "namespaced": true,
                        "kind": "EndpointSlice", "verbs": ["get", "list", "watch"]}]}))
            }
            SLICES | ENDPOINTS if has_no_slices && path == SLICES => self.status(404, "the server could not find it"),
            SLICES | ENDPOINTS if query.contains_key("watch") => {
                self.cluster.state.lock().unwrap().watches += 1;
                let ended = self.watch(path == SLICES, &query);
                self.cluster.state.lock().unwrap().watches -= 1;
                ended?;
                return Ok(false);
            }
            SLICES => {
                let list = {
                    let state = self.cluster.state.lock().unwrap();
                    json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
                        "metadata": {"resourceVersion": state.version.to_string()},
                        "items": state.slices.values().collect::<Vec<_>>()})
                };
                self.json(&list)
            }
            ENDPOINTS => {
                let list = {
                    let state = self.cluster.state.lock().unwrap();
                    json!({"kind": "EndpointsList", "apiVersion": "v1",
                        "metadata": {"resourceVersion": state.version.to_string()}, "items": [state.endpoints()]})
                };
                self.json(&list)
            }
            "/api/v1/namespaces/default/pods/cat" => self.json(&json!({"kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "cat", "namespace": "default"},
                "spec": {"containers": [{"name": "cat", "image": "cat"}]}, "status": {"phase": "Running"}})),
            "/api/v1/namespaces/default/pods/cat/exec" => {
                self.exec(headers)?;
                return Ok(false);
            }
            _ => self.status(404, "the server could not find the requested resource"),
        }
        .map(|()| true)
    }

    fn text(&mut self, status: u16, kind: &str, text: &str) -> std::io::Result<()> {
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", text.len());
        self.stream.write_all(format!("{head}{text}").as_bytes())?;
        self.stream.flush()
    }

    fn json(&mut self, value: &Value) -> std::io::Result<()> {
        self.text(200, "application/json", &value.to_string())
    }

    fn status(&mut self, code: u16, message: &str) -> std::io::Result<()> {
        self.text(code, "application/json", &failure(code, message).to_string())
    }

    /// Sends events until the time is up, with a bookmark now and then.
    fn watch(&mut self, slices: bool, query: &BTreeMap<&str, &str>) -> std::io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        self.stream.write_all(head.as_bytes())?;
        self.stream.flush()?;
        let seconds = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut seen: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut bookmark = Instant::now();
        while Instant::now() < end && !self.stop.load(Ordering::Relaxed) {
            let (events, is_gone, version) = {
                let state = self.cluster.state.lock().unwrap();
                let (state, _) = self.cluster.changed.wait_timeout(state, Duration::from_millis(20)).unwrap();
                let new = state.events.iter().filter(|event| event.0 > seen && event.2 == slices);
                let new: Vec<_> = new.map(|event| json!({"type": event.1, "object": event.3})).collect();
                (new, seen < state.compacted, state.version)
            };
            if is_gone {
                let gone = failure(410, "too old resource version");
                self.event(&json!({"type": "ERROR", "object": gone}))?;
                break;
            }
            seen = version;
            for event in &events {
                self.event(event)?;
            }
            if bookmark.elapsed() > Duration::from_millis(200) {
                bookmark = Instant::now();
                let (kind, api) =
                    if slices { ("EndpointSlice", "discovery.k8s.io/v1") } else { ("Endpoints", "v1") };
                self.event(&json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api,
                    "metadata": {"resourceVersion": seen.to_string()}}}))?;
            }
        }
        self.stream.write_all(b"0\r\n\r\n")?;
        self.stream.flush()
    }

    fn event(&mut self, event: &Value) -> std::io::Result<()> {
        let line = format!("{event}\n");
        self.stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())?;
        self.stream.flush()
    }

    /// Runs `cat`, over a WebSocket with the channels of Kubernetes (v5.channel.k8s.io): 0 in, 1 out, 3 how it ended,
    /// 255 which one has ended.
    fn exec(&mut self, headers: &BTreeMap<String, String>) -> std::io::Result<()> {
        if headers.get("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("SPDY/3.1")) {
            return self.exec_of_old();
        }
        let Some(key) = headers.get("sec-websocket-key") else {
            return self.status(400, "a WebSocket or SPDY/3.1 is wanted");
        };
        let accept = accept(key);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {accept}\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        self.stream.flush()?;
        let mut buffer = Vec::new();
        loop {
            while let Some((opcode, payload)) = frame(&mut buffer) {
                match (opcode, payload.first()) {
                    (8, _) => return Ok(()),
                    (9, _) => self.send(10, &payload)?,
                    (_, Some(0)) if payload.len() > 1 => {
                        let mut echo = payload;
                        echo[0] = 1;
                        self.send(2, &echo)?;
                    }
                    // The input has ended.
                    (_, Some(255)) => {
                        let status = json!({"metadata": {}, "status": "Success"}).to_string();
                        let mut ended = vec![3];
                        ended.extend_from_slice(status.as_bytes());
                        self.send(2, &ended)?;
                        self.send(8, &1000u16.to_be_bytes())?;
                    }
                    _ => {}
                }
            }
            let Some(bytes) = self.read()? else { return Ok(()) };
            buffer.extend_from_slice(&bytes);
        }
    }

    /// Switches to SPDY/3.1, as API servers did for clients of old, and sends back what comes. It speaks none: a frame of
    /// it is noted, and ends the connection.
    fn exec_of_old(&mut self) -> std::io::Result<()> {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
        self.stream.write_all(head.as_bytes())?;
        self.stream.flush()?;
        while let Some(bytes) = self.read()? {
            if bytes.starts_with(&[0x80, 3]) {
                self.asked.lock().unwrap().push("a frame of SPDY".to_owned());
                return Ok(());
            }
            self.stream.write_all(&bytes)?;
            self.stream.flush()?;
        }
        Ok(())
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ ..126 => frame.push(length as u8),
            length => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)?;
        self.stream.flush()
    }
}

fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        404 => "NotFound",
        410 => "Expired",
        _ => "BadRequest",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
}

/// Takes a whole frame of a WebSocket out of the buffer.
fn frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (opcode, length) = (*buffer.first()? & 15, *buffer.get(1)? & 127);
    let (length, at) = match length {
        126 => (usize::from(u16::from_be_bytes(*buffer.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*buffer.get(2..)?.first_chunk()?) as usize, 10),
        length => (usize::from(length), 2),
    };
    let mask: [u8; 4] = *buffer.get(at..)?.first_chunk()?;
    let masked = buffer.get(at + 4..at + 4 + length)?;
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    buffer.drain(..at + 4 + length);
    Some((opcode, payload))
}

/// The answer to a WebSocket's key (RFC 6455 §4.2.2).
fn accept(key: &str) -> String {
    base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for n in 0..4 {
            let place = bits >> (18 - 6 * n) & 63;
            text.push(if n <= three.len() { ALPHABET[place as usize] as char } else { '=' });
        }
    }
    text
}

fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64) - 8 + if padded.len() % 64 > 56 { 64 } else { 0 }, 0);
    padded.extend_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, four) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes(*four.first_chunk().unwrap());
        }
        for n in 16..80 {
            words[n] = (words[n - 3] ^ words[n - 8] ^ words[n - 14] ^ words[n - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (n, word) in words.iter().enumerate() {
            let (f, k) = match n / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (old, new) in state.iter_mut().zip([a, b, c, d, e]) {
            *old = old.wrapping_add(new);
        }
    }
    let mut hash = [0; 20];
    hash.chunks_exact_mut(4).zip(state).for_each(|(four, word)| four.copy_from_slice(&word.to_be_bytes()));
    hash
}

/// Whether a program is there. Says why a test is skipped if not; in CI that is a failure.
pub fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !found {
        assert!(
            std::env::var_os("FOREBAY_REQUIRE_PEERS").is_none_or(|value| value != "1"),
            "{program} is not there, and FOREBAY_REQUIRE_PEERS=1"
        );
        eprintln!("skipped: {program} is not there");
    }
    found
}

/// Writes a list of endpoints, as careful programs do.
pub fn list(path: &Path, endpoints: &[SocketAddr]) {
    let all: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{{\"endpoints\":[{}]}}", all.join(","))).unwrap();
    fs::rename(beside, path).unwrap();
}
