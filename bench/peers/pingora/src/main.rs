//! The smallest Pingora proxy: one thread, one backend, kept connections. `pingora-peer LISTEN BACKEND`

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;

struct OneBackend(String);

#[async_trait]
impl ProxyHttp for OneBackend {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0.as_str(), false, String::new())))
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (listen, backend) = args.next().zip(args.next()).expect("pingora-peer LISTEN BACKEND");
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 256, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, OneBackend(backend));
    proxy.add_tcp(&listen);
    server.add_service(proxy);
    server.run_forever();
}
