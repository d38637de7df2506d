//! Certificates of an authority of a test's own.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{peers, process};

/// Makes `NAME.key` and `NAME.crt` in `dir` for `subject`, signed by `ca` there unless it has no extension of its own: then by
/// itself.
pub fn make(dir: &Path, name: &str, subject: &str, extension: Option<&str>) -> Result<()> {
    let mut command = Command::new(peers::system("openssl")?);
    command.current_dir(dir).args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", subject, "-keyout"]);
    command.arg(format!("{name}.key")).arg("-out").arg(format!("{name}.crt"));
    if let Some(extension) = extension {
        command.args(["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", extension]);
    }
    process::run(&mut command).map(drop)
}
