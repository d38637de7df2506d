//! Layers as the directory that unpacking them leaves.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;

use super::{Content, Entry, Kind, Layer};

/// A directory that layers are laid over one another in. Needs root.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// The times that directories get at the end, for what is made in them changes them.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
}

impl Tree {
    /// An empty tree at `root`, which is made.
    pub fn new(root: &Path) -> Result<Self> {
        let mut tree = Self { root: root.to_owned(), times: BTreeMap::new() };
        tree.make_directory(b"")?;
        Ok(tree)
    }

    /// Makes a directory at `root` of layers, the lowest first.
    pub fn make(layers: &[Layer], root: &Path) -> Result<()> {
        let mut tree = Self::new(root)?;
        layers.iter().try_for_each(|layer| tree.apply(layer))?;
        tree.finish()
    }

    /// Lays a layer over those before.
    pub fn apply(&mut self, layer: &Layer) -> Result<()> {
        // What is removed is what the layers below have, wherever in its layer the whiteout comes.
        for entry in &layer.entries {
            match entry.kind {
                Kind::Whiteout => self.remove(&entry.path),
                Kind::Opaque => self.clear(&entry.path),
                _ => Ok(()),
            }
            .with_context(|| format!("removing {}", entry.path.escape_ascii()))?;
        }
        let mut links = Vec::new();
        for entry in &layer.entries {
            let made = match &entry.kind {
                Kind::Whiteout | Kind::Opaque => Ok(()),
                Kind::HardLink(target) if !self.exists(target) => {
                    links.push((&entry.path, target));
                    Ok(())
                }
                _ => self.add(entry),
            };
            made.with_context(|| format!("making {}", entry.path.escape_ascii()))?;
        }
        for (path, target) in links {
            self.link(path, target).with_context(|| format!("linking {}", path.escape_ascii()))?;
        }
        Ok(())
    }

    /// Puts a layer into the tree, which is to be this layer alone, as the kernel's overlayfs wants it: whiteouts are
    /// character devices 0/0, opaque directories have an attribute.
    pub fn apply_for_overlayfs(&mut self, layer: &Layer) -> Result<()> {
        let (removals, files): (Vec<_>, Vec<_>) = layer
            .entries
            .iter()
            .cloned()
            .partition(|entry| matches!(entry.kind, Kind::Whiteout | Kind::Opaque));
        self.apply(&Layer { entries: files })?;
        for entry in removals {
            let place = self.place(&entry.path);
            let is_opaque = matches!(entry.kind, Kind::Opaque) || self.is_directory(&entry.path);
            if is_opaque {
                // What was whited out and is a directory again has nothing of what it was.
                xattr::set(&place, "trusted.overlay.opaque", b"y")?;
            } else if !self.exists(&entry.path) {
                self.make_parents(&entry.path)?;
                mknod(&place, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(0, 0))?;
            }
        }
        Ok(())
    }

    /// Gives directories their times.
    pub fn finish(self) -> Result<()> {
        for (path, &time) in &self.times {
            set_time(&self.place(path), time)?;
        }
        Ok(())
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(OsStr::from_bytes(path)) }
    }

    fn exists(&self, path: &[u8]) -> bool {
        fs::symlink_metadata(self.place(path)).is_ok()
    }

    fn is_directory(&self, path: &[u8]) -> bool {
        fs::symlink_metadata(self.place(path)).is_ok_and(|metadata| metadata.is_dir())
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let place = self.place(path);
        if self.is_directory(path) {
            fs::remove_dir_all(&place)?;
            let below = [path, b"/"].concat();
            self.times.retain(|other, _| other != path && !other.starts_with(&below));
        } else if self.exists(path) {
            fs::remove_file(&place)?;
        }
        Ok(())
    }

    fn clear(&mut self, path: &[u8]) -> Result<()> {
        if !self.is_directory(path) {
            return Ok(());
        }
        for entry in fs::read_dir(self.place(path))? {
            let name = entry?.file_name();
            let child = if path.is_empty() {
                name.as_bytes().to_vec()
            } else {
                [path, b"/", name.as_bytes()].concat()
            };
            self.remove(&child)?;
        }
        Ok(())
    }

    /// A directory that nothing says more about than that something is in it.
    fn make_directory(&mut self, path: &[u8]) -> Result<()> {
        let place = self.place(path);
        fs::create_dir(&place)?;
        fchmodat(AT_FDCWD, &place, Mode::from_bits_truncate(0o755), FchmodatFlags::FollowSymlink)?;
        self.times.insert(path.to_vec(), (0, 0));
        Ok(())
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<()> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for slash in slashes {
            let parent = &path[..slash];
            if !self.is_directory(parent) {
                self.remove(parent)?;
                self.make_directory(parent)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        self.make_parents(path)?;
        self.remove(path)?;
        Ok(fs::hard_link(self.place(target), self.place(path))?)
    }

    fn add(&mut self, entry: &Entry) -> Result<()> {
        let place = self.place(&entry.path);
        self.make_parents(&entry.path)?;
        let device = |kind, (major, minor)| mknod(&place, kind, Mode::S_IRUSR, makedev(major, minor));
        match &entry.kind {
            Kind::HardLink(target) => return self.link(&entry.path, target),
            Kind::Directory if self.is_directory(&entry.path) => {}
            _ => self.remove(&entry.path)?,
        }
        match &entry.kind {
            Kind::Directory if self.is_directory(&entry.path) => clear_xattrs(&place)?,
            Kind::Directory => self.make_directory(&entry.path)?,
            Kind::File(content) => write_content(&place, content)?,
            Kind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &place)?,
            &Kind::CharDevice(major, minor) => device(SFlag::S_IFCHR, (major.into(), minor.into()))?,
            &Kind::BlockDevice(major, minor) => device(SFlag::S_IFBLK, (major.into(), minor.into()))?,
            Kind::Fifo => device(SFlag::S_IFIFO, (0, 0))?,
            Kind::HardLink(_) | Kind::Whiteout | Kind::Opaque => {}
        }
        lchown(&place, Some(entry.owner.0), Some(entry.owner.1))?;
        for (name, value) in &entry.xattrs {
            xattr::set(&place, name, value).with_context(|| format!("attribute {name}"))?;
        }
        if !matches!(entry.kind, Kind::Symlink(_)) {
            let mode = Mode::from_bits_truncate(entry.mode);
            fchmodat(AT_FDCWD, &place, mode, FchmodatFlags::FollowSymlink)?;
        }
        match entry.kind {
            Kind::Directory => _ = self.times.insert(entry.path.clone(), entry.mtime),
            _ => set_time(&place, entry.mtime)?,
        }
        Ok(())
    }
}

/// Another entry for a directory replaces all that the first said.
fn clear_xattrs(place: &Path) -> io::Result<()> {
    for name in xattr::list(place)? {
        xattr::remove(place, name)?;
    }
    Ok(())
}

fn write_content(place: &Path, content: &Content) -> io::Result<()> {
    let file = File::create_new(place)?;
    file.set_len(content.size)?;
    for (offset, data) in &content.segments {
        file.write_all_at(data, *offset)?;
    }
    Ok(())
}

fn set_time(place: &Path, (seconds, nanoseconds): (i64, u32)) -> Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds.into());
    Ok(utimensat(AT_FDCWD, place, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}
