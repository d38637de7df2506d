//! Certificates of a test's own, made with `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Who signed a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SignedBy {
    /// Its own key.
    Itself,
    /// The key of `ca.crt` in the same folder.
    Authority,
}

/// Makes a key `NAME.key` and its certificate `NAME.crt` in the folder `dir`, and returns the certificate's path.
///
/// `subject` is like `/CN=server`, `extension` like `subjectAltName=IP:127.0.0.1`.
pub fn make_certificate(dir: &Path, name: &str, subject: &str, extension: &str, by: SignedBy) -> PathBuf {
    let certificate = format!("{name}.crt");
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", subject, "-addext", extension]);
    command.arg("-keyout").arg(format!("{name}.key")).args(["-out", &certificate]);
    if by == SignedBy::Authority {
        command.args(["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir.join(certificate)
}
