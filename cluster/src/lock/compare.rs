//! What changed between two locks.

use std::fmt;

use registry::Digest;

use super::{Lock, Locked};

/// A difference between two locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing asks for this image any more.
    Removed {
        /// Its name.
        image: String,
    },
    /// This image is asked for now.
    Added {
        /// Its name.
        image: String,
        /// Who asks for it.
        asked_by: Vec<String>,
    },
    /// The name leads to something else.
    Moved {
        /// Its name.
        image: String,
        /// The digest that is locked.
        locked: Digest,
        /// The digest that there is now.
        found: Digest,
    },
    /// The same image is locked for other platforms, is asked for by other files, or lies elsewhere.
    Other {
        /// Its name.
        image: String,
        /// What is not the same.
        what: &'static str,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { image } => write!(f, "{image}: locked, but nothing asks for it"),
            Self::Added { image, asked_by } => {
                write!(f, "{image}: not locked, but asked for by {}", asked_by.join(", "))
            }
            Self::Moved { image, locked, found } => write!(f, "{image}: locked as {locked}, but is {found}"),
            Self::Other { image, what } => write!(f, "{image}: {what} changed"),
        }
    }
}

/// What has to change in `locked` to become `found`.
pub fn changes(locked: &Lock, found: &Lock) -> Vec<Change> {
    let name = |image: &Locked| image.reference.to_string();
    let mut changes = Vec::new();
    for image in &locked.images {
        match found.get(&image.reference) {
            Some(now) => changes.extend(change(image, now)),
            None => changes.push(Change::Removed { image: name(image) }),
        }
    }
    for image in found.images.iter().filter(|image| locked.get(&image.reference).is_none()) {
        changes.push(Change::Added { image: name(image), asked_by: image.asked_by.clone() });
    }
    changes
}

fn change(locked: &Locked, found: &Locked) -> Option<Change> {
    let image = locked.reference.to_string();
    if locked.digest != found.digest {
        let (locked, found) = (locked.digest.clone(), found.digest.clone());
        return Some(Change::Moved { image, locked, found });
    }
    let same = [
        ("its platforms", locked.platforms == found.platforms && locked.nydus == found.nydus),
        ("its archive", locked.archive == found.archive),
        ("who asks for it", locked.asked_by == found.asked_by),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(what, _)| Change::Other { image, what })
}
