//! `[dns.tls]`: the certificate of the encrypted listeners.

use std::path::PathBuf;
use std::sync::Arc;

use forebay::tls::Certificates;
use serde::{Deserialize, Serialize};

use super::{ListenAddress, SettingsError};

/// The `[dns.tls]` table: the certificate that clients of `tls://` and `https://` listeners see.
///
/// The files are looked at every second; when they have changed and fit each other, new connections get the new
/// certificate. An expired one is served all the same, with an error in the log: clients that do not check it
/// (RFC 7858 §4.1) are still better off than without encryption.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// The PEM file with the certificate, followed by those between it and its root. Default: none; `tls://` and
    /// `https://` listeners need one.
    pub certificate: PathBuf,
    /// The PEM file with the key of the certificate. Default: none.
    pub key: PathBuf,
}

impl TlsSettings {
    /// Reads the files, if they are named.
    pub(super) fn load(&self, listen: &[ListenAddress]) -> Result<Option<Arc<Certificates>>, SettingsError> {
        let needed = listen.iter().find(|listen| listen.scheme.is_encrypted());
        Certificates::of_settings(&self.certificate, &self.key, needed)
    }
}
