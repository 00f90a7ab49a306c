//! A certificate and its key, out of two files that may be replaced while the server runs.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::validity::Validity;
use crate::settings::SettingsError;

/// How often the files are looked at. They are read when they have changed and then stood still for as long: whoever
/// replaces them writes one after the other.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long before its end a certificate is warned about: time enough for a person, and shorter than the rest of any
/// that is renewed by a program.
const WARN_BEFORE_SECS: i64 = 7 * DAY_SECS;

/// How often a warning is repeated.
const WARN_EVERY_SECS: i64 = DAY_SECS;

const DAY_SECS: i64 = 86_400;

/// A certificate and its key, and where they come from. [`watch`] keeps it as new as its files.
#[derive(Debug)]
pub struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Pair>,
}

/// What is wrong with the files.
#[derive(Debug)]
pub struct Fault {
    /// `certificate` or `key`.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// What the files had in them.
#[derive(Clone, Debug)]
struct Pair {
    certified: Arc<CertifiedKey>,
    validity: Option<Validity>,
    stamps: Stamps,
}

/// How both files looked: enough to see that they have been replaced or written to.
type Stamps = [Option<(u64, u64, i64, i64)>; 2];

impl Certificates {
    /// Reads both files, in PEM: the certificate followed by those between it and its root, and its key.
    ///
    /// # Errors
    ///
    /// What is wrong with which of them, and what to do.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, Fault> {
        let pair = Pair::read(certificate, key)?;
        Ok(Self { certificate: certificate.into(), key: key.into(), current: RwLock::new(pair) })
    }

    /// Reads the files that the settings `tls.certificate` and `tls.key` name; none if they are empty. `needed` is what
    /// cannot do without them.
    ///
    /// # Errors
    ///
    /// Which setting is wrong, and how.
    pub fn of_settings(
        certificate: &Path,
        key: &Path,
        needed: Option<impl fmt::Display>,
    ) -> Result<Option<Arc<Self>>, SettingsError> {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("tls.{key}"), problem };
        match (certificate.as_os_str().is_empty(), key.as_os_str().is_empty()) {
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
            (false, false) => Self::load(certificate, key)
                .map(|certificates| Some(Arc::new(certificates)))
                .map_err(|fault| wrong(fault.key, fault.problem)),
        }
    }

    /// Returns when the certificate ends, in seconds since 1970, if it says so.
    pub fn not_after(&self) -> Option<i64> {
        self.pair().validity.map(|validity| validity.not_after)
    }

    fn pair(&self) -> Pair {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again. What is in them counts only if it is no worse than what is had.
    fn reload(&self, now: i64) -> Result<(), Fault> {
        let fresh = Pair::read(&self.certificate, &self.key)?;
        let ended = |pair: &Pair| pair.validity.is_some_and(|validity| validity.not_after < now);
        if ended(&fresh) && !ended(&self.pair()) {
            let place = self.certificate.display();
            let problem = format!("{place}: the certificate has expired: put one there that is valid");
            return Err(Fault { key: "certificate", problem });
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Says in the log what a person should know of the certificate's time.
    fn warn(&self, now: i64) {
        let Some(Validity { not_before, not_after }) = self.pair().validity else { return };
        let file = self.certificate.display();
        if not_after < now {
            let days = (now - not_after) / DAY_SECS;
            tracing::error!(%file, days, "the certificate has expired: clients that check it refuse it");
        } else if now < not_before {
            tracing::error!(%file, "the certificate is not valid yet: clients that check it refuse it");
        } else if not_after - now < WARN_BEFORE_SECS {
            let days = (not_after - now) / DAY_SECS;
            tracing::warn!(%file, days, "the certificate expires soon: renew it");
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).certified))
    }
}

impl Pair {
    fn read(certificate: &Path, key: &Path) -> Result<Self, Fault> {
        let stamps = stamps(certificate, key);
        let wrong = |which: &'static str, path: &Path, problem: String| Fault {
            key: which,
            problem: format!("{}: {problem}", path.display()),
        };
        let text =
            |which, path: &Path| fs::read(path).map_err(|error| wrong(which, path, unreadable(&error)));
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&text("certificate", certificate)?)
                .collect::<Result<_, _>>()
                .map_err(|error| wrong("certificate", certificate, format!("is no PEM file: {error}")))?;
        let Some(first) = chain.first() else {
            let problem = "has no certificate in it: it must begin with -----BEGIN CERTIFICATE-----";
            return Err(wrong("certificate", certificate, problem.to_owned()));
        };
        let validity = Validity::of(first);
        let secret = PrivateKeyDer::from_pem_slice(&text("key", key)?).map_err(|error| {
            wrong("key", key, match error {
                pem::Error::NoItemsFound => {
                    "has no key in it: it must have a -----BEGIN PRIVATE KEY-----, RSA or EC ones included"
                        .to_owned()
                }
                error => format!("is no PEM file: {error}"),
            })
        })?;
        let certified =
            CertifiedKey::from_der(chain, secret, &default_provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => wrong(
                    "key",
                    key,
                    format!(
                        "is not the key of {}: give the one that the certificate was made with",
                        certificate.display()
                    ),
                ),
                rustls::Error::InvalidCertificate(error) => wrong(
                    "certificate",
                    certificate,
                    format!("has a certificate that cannot be read: {error:?}"),
                ),
                error => wrong("key", key, format!("has a key that cannot be used: {error}")),
            })?;
        Ok(Self { certified: Arc::new(certified), validity, stamps })
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file: give the path of a PEM file".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "this user may not read it: change its owner or its mode".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    }
}

fn stamps(certificate: &Path, key: &Path) -> Stamps {
    [certificate, key].map(|path| {
        let data = fs::metadata(path).ok()?;
        Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
    })
}

/// Looks after the files until the server ends, which drops the other end of `end`. Reads files and sleeps: it wants a
/// thread of its own. Files that cannot be used are told in the log, and the old certificate stays; so is a certificate
/// that ends within seven days, once a day.
pub fn watch(certificates: &Certificates, end: &Receiver<()>) {
    let mut seen = certificates.pair().stamps;
    let mut done = seen;
    let mut warned = now();
    certificates.warn(warned);
    while end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        let stamps = stamps(&certificates.certificate, &certificates.key);
        let settled = std::mem::replace(&mut seen, stamps) == stamps;
        let now = now();
        if settled && stamps != done {
            done = stamps;
            match certificates.reload(now) {
                Ok(()) => {
                    warned = now;
                    tracing::info!(file = %certificates.certificate.display(), "certificate reloaded");
                    certificates.warn(now);
                }
                Err(Fault { problem, .. }) => {
                    tracing::error!(problem, "the new certificate cannot be used; the old one stays");
                }
            }
        } else if now - warned >= WARN_EVERY_SECS {
            warned = now;
            certificates.warn(now);
        }
    }
}

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
