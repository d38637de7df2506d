//! Proof that two images hold the same.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};
use rafs::blob::source::{BlobDirectory, load_chunk_info};
use rafs::bootstrap::Bootstrap;
use rafs::check::{self, Options};
use rafs::tree::{Image, Kind, Metadata, NodeId, Tree};
use sha2::{Digest as _, Sha256};

/// Checks every chunk of an image against its digest, in bootstrap and blobs.
pub(super) fn verify(bootstrap: &Path, blobs: &Path) -> Result<()> {
    let mut opened = Bootstrap::open(bootstrap)?;
    let mut report = check::structure(&opened);
    report.merge(check::blobs(&mut opened, &BlobDirectory::new(blobs), Options::default()));
    match report.findings.first() {
        None => Ok(()),
        Some(first) => bail!("{}: {first} (and {} more)", bootstrap.display(), report.findings.len() - 1),
    }
}

/// A digest of all that an image shows: of every path type, mode, owner, time, extended attributes, size, digests of its
/// chunks, link target, device, and which other paths are the same file. Blobs and their order do not count, nor does
/// the root itself, whose time nydus-image does not keep.
pub(super) fn fingerprint(bootstrap: &Path, blobs: &Path) -> Result<String> {
    let mut opened = Bootstrap::open(bootstrap)?;
    if opened.blobs().iter().any(|blob| blob.features & rafs::layout::flags::blob::BATCH != 0) {
        load_chunk_info(&mut opened, &BlobDirectory::new(blobs))?;
    }
    let image = opened.to_image()?;
    let mut walk = Walk { image: &image, hash: Sha256::new(), numbers: HashMap::new() };
    walk.directory(Tree::ROOT);
    Ok(format!("{}, {} files", hex::encode(walk.hash.finalize()), walk.numbers.len()))
}

struct Walk<'a> {
    image: &'a Image,
    hash: Sha256,
    /// The number of each node in order of its first path.
    numbers: HashMap<NodeId, usize>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: NodeId) {
        let image = self.image;
        for (name, &id) in image.tree.entries(directory).into_iter().flatten() {
            let next = self.numbers.len();
            let number = *self.numbers.entry(id).or_insert(next);
            self.put(name);
            self.put(&(number as u64).to_le_bytes());
            if number == next {
                self.node(id);
            }
        }
        self.put(b"end of directory");
    }

    fn node(&mut self, id: NodeId) {
        let image = self.image;
        let node = image.tree.node(id);
        let Metadata { permissions, uid, gid, mtime, xattrs } = &node.metadata;
        let text = format!("{permissions:o} {uid}:{gid} {}.{}", mtime.seconds, mtime.nanoseconds);
        self.put(text.as_bytes());
        for (name, value) in xattrs {
            self.put(name);
            self.put(value);
        }
        match &node.kind {
            Kind::Directory(_) => {
                self.put(b"directory");
                self.directory(id);
            }
            Kind::Regular { size, chunks } => {
                self.put(format!("regular, {size} bytes").as_bytes());
                for at in chunks {
                    let blob = &image.blobs[usize::from(at.blob.0)];
                    self.put(&blob.chunks[at.chunk.0 as usize].digest.0);
                }
            }
            Kind::Symlink(target) => {
                self.put(b"symbolic link");
                self.put(target);
            }
            other => self.put(format!("{other:?}").as_bytes()),
        }
    }

    /// One field; its length with it, so that fields cannot run into one another.
    fn put(&mut self, field: &[u8]) {
        self.hash.update((field.len() as u64).to_le_bytes());
        self.hash.update(field);
    }
}
