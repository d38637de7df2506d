//! GNU tar, told to keep all that it can of files: owners by number, modes, extended attributes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::{peers, process};

/// Extracts a tar over what is in `target`, which is made if missing.
pub fn extract(tar: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    let mut command = Command::new(peers::system("tar")?);
    command.args(["--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    // Entries of a directory need not follow it.
    command.arg("--delay-directory-restore");
    process::run(command.arg("--directory").arg(target).arg("--file").arg(tar))?;
    Ok(())
}

/// Packs what is in `dir` to a new tar.
pub fn pack(dir: &Path, tar: &Path) -> Result<()> {
    let mut command = Command::new(peers::system("tar")?);
    command.args(["--create", "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*"]);
    process::run(command.arg("--directory").arg(dir).arg("--file").arg(tar).arg("."))?;
    Ok(())
}
