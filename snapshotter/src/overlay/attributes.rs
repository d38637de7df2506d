//! Attributes of a new snapshot's root directory.
//!
//! overlayfs shows the upper directory's own attributes as those of the root of the merged tree. So a new upper directory
//! has to look like what it is laid over.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::error::Error;
use crate::state::Labels;

/// Label with the users of an id-mapped snapshot.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// Label with the groups of an id-mapped snapshot.
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// What the root directory of a new snapshot gets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RootAttributes {
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    modified: Option<(i64, i64)>,
}

impl RootAttributes {
    /// The owner alone, as containerd's overlayfs snapshotter takes it from a parent's directory.
    pub(crate) fn owner_of(parent: &Path) -> Result<Self, Error> {
        let metadata = fs::symlink_metadata(parent).map_err(Error::io("read attributes of", parent))?;
        Ok(Self { owner: Some((metadata.uid(), metadata.gid())), ..Self::default() })
    }

    /// Everything, from the root of a mounted image.
    pub(crate) fn all_of(image: &Path) -> Result<Self, Error> {
        let metadata = fs::symlink_metadata(image).map_err(Error::io("read attributes of", image))?;
        Ok(Self {
            owner: Some((metadata.uid(), metadata.gid())),
            mode: Some(metadata.mode() & 0o7777),
            modified: Some((metadata.mtime(), metadata.mtime_nsec())),
        })
    }

    /// The same, owned by the host's ids of an id-mapped container's root if labels say so.
    pub(crate) fn mapped(mut self, labels: &Labels) -> Result<Self, Error> {
        let uid = labels.get(UID_MAPPING).map(|map| host_root(UID_MAPPING, map)).transpose()?;
        let gid = labels.get(GID_MAPPING).map(|map| host_root(GID_MAPPING, map)).transpose()?;
        if uid.is_some() || gid.is_some() {
            self.owner = Some((uid.unwrap_or(0), gid.unwrap_or(0)));
        }
        Ok(self)
    }

    /// Gives a directory these attributes.
    pub(crate) fn apply(&self, path: &Path) -> Result<(), Error> {
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid))
                .map_err(Error::io("change owner of", path))?;
        }
        if let Some(mode) = self.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(Error::io("change mode of", path))?;
        }
        if let Some((seconds, nanoseconds)) = self.modified {
            let time = TimeSpec::new(seconds, nanoseconds);
            utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)
                .map_err(|errno| Error::io("change times of", path)(errno.into()))?;
        }
        Ok(())
    }
}

/// Whether a snapshot's ids are to be mapped.
pub(super) fn is_mapped(labels: &Labels) -> bool {
    [UID_MAPPING, GID_MAPPING].iter().any(|label| labels.contains_key(*label))
}

/// Options of a mount whose ids are to be mapped.
pub(super) fn mapping_options(labels: &Labels) -> Vec<String> {
    let option = |name: &str, label| labels.get(label).map(|map| format!("{name}={map}"));
    option("uidmap", UID_MAPPING).into_iter().chain(option("gidmap", GID_MAPPING)).collect()
}

/// The host's id for id 0 of a mapping `container:host:length[,container:host:length…]`.
fn host_root(label: &str, mapping: &str) -> Result<u32, Error> {
    let invalid = |problem: &str| Error::Invalid {
        what: format!("label {label}={mapping}"),
        problem: format!("{problem}, expected container:host:length with id 0 among the container's"),
    };
    for range in mapping.split(',') {
        let numbers: Result<Vec<u32>, _> = range.split(':').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([0, host, length]) if *length > 0 => return Ok(*host),
            Ok([_, _, _]) => {}
            _ => return Err(invalid("a range is malformed")),
        }
    }
    Err(invalid("id 0 is not mapped"))
}
