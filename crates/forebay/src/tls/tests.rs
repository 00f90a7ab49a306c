use std::fs;
use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair};

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forebay-tls-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only the folder of this test.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["dns.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn each_fault_of_the_files_is_named_with_its_file() {
    let folder = Folder::new("faults");
    let ((certificate, key), (_, other)) = (pair(), pair());
    let good = folder.write("good.pem", &certificate);
    let good_key = folder.write("good.key", &key);
    assert!(Certificates::load(&good, &good_key).is_ok());
    let both = folder.write("both.pem", format!("{certificate}{key}"));
    assert!(Certificates::load(&both, &both).is_ok(), "one file may hold both");
    let missing = folder.0.join("missing.pem");
    let broken = folder.write("broken.pem", "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n");
    let no_certificate = certificate.replace("CERTIFICATE", "PKCS7");
    let no_certificate = folder.write("other.pem", no_certificate);
    let nonsense =
        folder.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let other = folder.write("other.key", other);
    for (certificate, key, which, part) in [
        (&missing, &good_key, "certificate", "no such file"),
        (&good, &missing, "key", "no such file"),
        (&broken, &good_key, "certificate", "no PEM file"),
        (&no_certificate, &good_key, "certificate", "no certificate in it"),
        (&good_key, &good_key, "certificate", "no certificate in it"),
        (&good, &good, "key", "no key in it"),
        (&good, &other, "key", "is not the key of"),
        (&nonsense, &good_key, "certificate", "cannot be read"),
    ] {
        let fault = Certificates::load(certificate, key).unwrap_err();
        assert_eq!(fault.key, which, "{}", fault.problem);
        let named = if which == "key" { key } else { certificate };
        assert!(fault.problem.contains(&named.display().to_string()), "{}", fault.problem);
        assert!(fault.problem.contains(part), "{}", fault.problem);
    }
}

#[test]
fn every_failed_handshake_has_a_remedy_of_its_own() {
    use rustls::CertificateError::{Expired, NotValidForName, NotValidYet, UnknownIssuer};
    let mut seen: Vec<_> = [Expired, NotValidForName, NotValidYet, UnknownIssuer]
        .map(|error| remedy(&rustls::Error::InvalidCertificate(error)))
        .to_vec();
    seen.push(remedy(&rustls::Error::NoApplicationProtocol));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 5);
}
