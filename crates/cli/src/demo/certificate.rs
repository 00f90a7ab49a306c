//! A certificate of the demo's own: made when it starts, in a folder that goes when it ends.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use forebay_dns::TlsSettings;

/// The files. Removed when dropped.
pub(super) struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    /// Makes a key, and a certificate for this machine's own name and addresses that nobody has signed.
    pub(super) fn make() -> io::Result<Self> {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        let folder = std::env::temp_dir().join(format!("forebay-demo-{}", std::process::id()));
        // Nobody else reads the key; and a folder that is there already is not ours.
        DirBuilder::new().mode(0o700).create(&folder)?;
        let this = Self { folder };
        fs::write(this.settings().certificate, made.cert.pem())?;
        fs::write(this.settings().key, made.signing_key.serialize_pem())?;
        Ok(this)
    }

    /// Where the files are.
    pub(super) fn settings(&self) -> TlsSettings {
        TlsSettings { certificate: self.folder.join("certificate.pem"), key: self.folder.join("key.pem") }
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // What cannot be removed now goes with the machine's temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
