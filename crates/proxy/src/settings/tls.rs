//! `[proxy.tls]`: the certificate that clients see.

use std::path::PathBuf;
use std::sync::Arc;

use forebay::tls::{ALPN_HTTP, Certificates, server_config};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use super::{ListenAddress, SettingsError};

/// The `[proxy.tls]` table: the certificate that clients of `https://` listeners see.
///
/// The files are looked at every second; when they have changed and fit each other, new connections get the new
/// certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The PEM file with the certificate, followed by those between it and its root. Default: none; `https://` listeners
    /// need one.
    pub certificate: PathBuf,
    /// The PEM file with the key of the certificate. Default: none.
    pub key: PathBuf,
}

impl TlsSettings {
    /// Reads the files, if they are named.
    pub(super) fn load(&self, listen: &[ListenAddress]) -> Result<Option<ServerTls>, SettingsError> {
        let needed = listen.iter().find(|listen| listen.scheme.is_encrypted());
        let certificates = Certificates::of_settings(&self.certificate, &self.key, needed)?;
        certificates.map(ServerTls::new).transpose()
    }
}

/// What `https://` listeners answer handshakes with. Shared by all workers, so that a session begun on one is resumed on
/// another.
#[derive(Clone, Debug)]
pub(crate) struct ServerTls {
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) config: Arc<ServerConfig>,
}

impl ServerTls {
    fn new(certificates: Arc<Certificates>) -> Result<Self, SettingsError> {
        let config = server_config(&certificates, &ALPN_HTTP)
            .map_err(|error| SettingsError { key: "tls.key".to_owned(), problem: error.to_string() })?;
        Ok(Self { certificates, config })
    }
}
