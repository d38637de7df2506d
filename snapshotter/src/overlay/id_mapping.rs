//! Whether the kernel can map the ids of an image's files for a container in a user namespace.

use super::attributes::is_mapped;
use crate::error::Error;
use crate::state::Labels;

/// Since then FUSE allows mounts whose ids are mapped.
const NEEDED: (&str, u32, u32) = ("6.12", 6, 12);

/// Fails if a snapshot with these labels on a nydus image cannot be mounted. Without this containerd says that an argument of
/// a mount is invalid.
pub(crate) fn check_kernel(key: &str, labels: &Labels) -> Result<(), Error> {
    if !is_mapped(labels) {
        return Ok(());
    }
    let release = nix::sys::utsname::uname()
        .map_err(|errno| Error::Internal(format!("cannot tell the kernel's version: {errno}")))?;
    check(key, &release.release().to_string_lossy())
}

fn check(key: &str, release: &str) -> Result<(), Error> {
    let (needed, major, minor) = NEEDED;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(found)), Some(Ok(below))) if (found, below) < (major, minor) => {
            Err(Error::IdMappingUnsupported { key: key.to_owned(), needed, found: release.to_owned() })
        }
        // A version of another form is the kernel's to refuse.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_cannot_map_ids_are_named() {
        for release in ["6.11.9-generic", "5.15.0-1-amd64", "6.1.0"] {
            let error = check("c", release).unwrap_err().to_string();
            assert!(
                error.contains(release) && error.contains("6.12") && error.contains("remap-ids"),
                "{error}"
            );
        }
        for release in ["6.12.0", "6.18.44-fc", "7.0.0", "10.1", "odd"] {
            check("c", release).unwrap();
        }
    }
}
