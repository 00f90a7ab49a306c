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
        let wrong = |key: &str, problem: String| SettingsError { key: format!("tls.{key}"), problem };
        let needed = listen.iter().find(|listen| listen.scheme.is_encrypted());
        match (self.certificate.as_os_str().is_empty(), self.key.as_os_str().is_empty()) {
            (true, true) => match needed {
                Some(listen) => Err(SettingsError {
                    key: "listen".to_owned(),
                    problem: format!(
                        "{listen} needs a certificate: set tls.certificate and tls.key to PEM files"
                    ),
                }),
                None => Ok(None),
            },
            (true, false) => Err(wrong("certificate", "is missing, and tls.key is there".to_owned())),
            (false, true) => Err(wrong("key", "is missing, and tls.certificate is there".to_owned())),
            (false, false) => Certificates::load(&self.certificate, &self.key)
                .map(|certificates| Some(Arc::new(certificates)))
                .map_err(|fault| wrong(fault.key, fault.problem)),
        }
    }
}
