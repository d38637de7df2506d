//! Turning an image back into files: a tar archive or a directory.

mod directory;
mod error;
mod staging;
mod tar;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

pub use error::UnpackError;

use crate::blob::source::BlobSource;
use crate::bootstrap::{Bootstrap, Found, Nid, ReadError, Visitor, walk};
use crate::layout::v6::FileType;
use crate::limits::Limits;
use crate::tree::Xattrs;
use crate::xattr;

/// Is told of every so many bytes of content that are written (0 between files), and may end the work.
pub type Watch<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

/// An image to be unpacked.
pub struct Unpack<'a, S> {
    bootstrap: &'a Bootstrap,
    source: &'a S,
    watch: Watch<'a>,
    limits: Limits,
}

impl<'a, S: BlobSource> Unpack<'a, S> {
    /// The image of `bootstrap`, whose blobs are in `source`.
    pub fn new(bootstrap: &'a Bootstrap, source: &'a S) -> Self {
        Self { bootstrap, source, watch: &|_| ControlFlow::Continue(()), limits: Limits::DEFAULT }
    }

    /// Says how far it is to `watch`, which may end it.
    #[must_use]
    pub fn watched(self, watch: Watch<'a>) -> Self {
        Self { watch, ..self }
    }

    /// With paths that are no longer than `limits` say.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Writes the whole image as a tar archive: names in byte order, hard links to the first name, extended attributes as
    /// `SCHILY.xattr` records, times to the nanosecond. Sockets are left out, for tar has none.
    ///
    /// # Errors
    ///
    /// When the image is broken, a chunk is not what its digest says, the output fails, or the watch ends it.
    pub fn to_tar(self, out: &mut impl Write) -> Result<(), UnpackError> {
        tar::unpack(self, out)
    }

    /// Writes the whole image into the directory at `target`. As root, everything is restored: owners, devices, all
    /// extended attributes. Otherwise owners stay the caller's, devices are left out with a warning, and so are extended
    /// attributes that are not the caller's to set.
    ///
    /// A directory that is not there gets its name when it is complete. One that is there must be empty; it is filled
    /// where it is, and emptied again on failure.
    ///
    /// Nothing outside of `target` is touched: every file is made below an open directory, and symbolic links are never
    /// followed.
    ///
    /// # Errors
    ///
    /// When the image is broken, a chunk is not what its digest says, the file system refuses, or the watch ends it.
    pub fn to_directory(self, target: &Path) -> Result<(), UnpackError> {
        directory::unpack(self, target)
    }

    /// The extended attributes of a file. Those that no file of its type can have are left out with a warning.
    fn xattrs(&self, path: &[u8], kind: FileType, nid: Nid) -> Result<Xattrs, UnpackError> {
        let mut xattrs = self.bootstrap.stored_xattrs(nid)?;
        xattrs.retain(|name, _| {
            let fits = xattr::fits(kind, name);
            if !fits {
                let (path, name) = (error::shown(path), name.escape_ascii());
                tracing::warn!(%path, %name, "extended attribute left out: only files and directories can have it");
            }
            fits
        });
        Ok(xattrs)
    }

    fn watch(&self, bytes: u64) -> Result<(), UnpackError> {
        match (self.watch)(bytes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(UnpackError::Stopped),
        }
    }
}

/// [`Unpack::to_tar`] without a watch.
///
/// # Errors
///
/// As there.
pub fn to_tar(
    bootstrap: &Bootstrap,
    source: &impl BlobSource,
    out: &mut impl Write,
) -> Result<(), UnpackError> {
    Unpack::new(bootstrap, source).to_tar(out)
}

/// [`Unpack::to_directory`] without a watch.
///
/// # Errors
///
/// As there.
pub fn to_directory(
    bootstrap: &Bootstrap,
    source: &impl BlobSource,
    target: &Path,
) -> Result<(), UnpackError> {
    Unpack::new(bootstrap, source).to_directory(target)
}

/// How many bytes of content unpacking will write.
///
/// # Errors
///
/// When the image is broken.
pub fn content_size(bootstrap: &Bootstrap) -> Result<u64, UnpackError> {
    let mut sum = ContentSize(0);
    walk(bootstrap, Limits::DEFAULT, &mut sum)?;
    Ok(sum.0)
}

struct ContentSize(u64);

impl Visitor for ContentSize {
    type Error = ReadError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
        if found.inode.kind == FileType::Regular && !found.is_link() {
            self.0 = self.0.saturating_add(found.inode.size);
        }
        Ok(())
    }

    fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), ReadError> {
        Ok(())
    }
}
