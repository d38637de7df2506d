//! Everything a file system tree shows, as text: one line a path, so that two trees can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::stat::{major, minor};
use sha2::{Digest, Sha256};

/// Begins what a listing says last of a file with several names.
const LINKS: &str = " one-of=";

/// How many differing paths a failed comparison shows.
const SHOWN_DIFFERENCES: usize = 20;

/// What is listed in addition to type, mode, owner, size, xattrs, link target, device, content and hard links.
#[derive(Debug, Clone, Copy)]
pub struct ListOptions {
    /// Modification times to the nanosecond instead of to the second.
    pub nanoseconds: bool,
}

/// What one path is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TreeEntry {
    /// Type and mode.
    kind: String,
    /// User and group; empty if they do not count.
    owner: String,
    /// Time of modification; empty if it does not count.
    mtime: String,
    /// Size and content, link target or device; xattrs; hard links.
    details: String,
}

impl fmt::Display for TreeEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}{}", self.kind, self.owner, self.mtime, self.details)
    }
}

/// A listing: what each path (relative, `.` for the root) is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    entries: BTreeMap<PathBuf, TreeEntry>,
}

/// A path that differs, and what it is on each side.
type Difference<'a> = (&'a Path, Option<&'a TreeEntry>, Option<&'a TreeEntry>);

impl Listing {
    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the tree has this path.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(Path::new(path))
    }

    /// Leaves a path out of comparisons.
    pub fn remove(&mut self, path: &str) {
        self.entries.remove(Path::new(path));
    }

    /// Leaves owners out of comparisons.
    #[must_use]
    pub fn without_owners(mut self) -> Self {
        self.entries.values_mut().for_each(|entry| entry.owner.clear());
        self
    }

    /// Leaves times of modification out of comparisons.
    #[must_use]
    pub fn without_mtimes(mut self) -> Self {
        self.entries.values_mut().for_each(|entry| entry.mtime.clear());
        self
    }

    /// Leaves one path's time of modification out of comparisons.
    pub fn ignore_mtime(&mut self, path: &str) {
        if let Some(entry) = self.entries.get_mut(Path::new(path)) {
            entry.mtime.clear();
        }
    }

    /// Leaves fractions of seconds out of comparisons.
    #[must_use]
    pub fn in_whole_seconds(mut self) -> Self {
        for entry in self.entries.values_mut() {
            let seconds = entry.mtime.split('.').next().unwrap_or_default().len();
            entry.mtime.truncate(seconds);
        }
        self
    }

    /// Leaves out of comparisons that names of what is no regular file may be names of one file.
    #[must_use]
    pub fn without_links_of_special_files(mut self) -> Self {
        for entry in self.entries.values_mut().filter(|entry| !entry.kind.starts_with("file ")) {
            if let Some(start) = entry.details.find(LINKS) {
                entry.details.truncate(start);
            }
        }
        self
    }

    /// Takes the times of directories from an earlier listing, unless `newer` names them.
    pub fn keep_directory_times(&mut self, earlier: &Self, newer: &BTreeSet<PathBuf>) {
        for (path, entry) in &mut self.entries {
            let before = earlier.entries.get(path).filter(|_| entry.kind.starts_with("directory "));
            if let Some(before) = before.filter(|_| !newer.contains(path)) {
                entry.mtime.clone_from(&before.mtime);
            }
        }
    }

    /// Leaves the times of files out of comparisons that another listing says are of 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn ignoring_times_of_zero_in(mut self, other: &Self) -> Self {
        for (path, entry) in &other.entries {
            if let Some(entry) =
                self.entries.get_mut(path).filter(|_| matches!(&*entry.mtime, "0" | "0.000000000"))
            {
                entry.mtime.clear();
            }
        }
        self
    }

    /// Fails, showing what differs, unless both trees are the same.
    pub fn expect_same(&self, own_name: &str, other: &Self, other_name: &str) -> Result<()> {
        let differences = self.differences(other);
        if differences.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for (path, ours, theirs) in differences.iter().take(SHOWN_DIFFERENCES) {
            let show = |entry: &Option<&TreeEntry>| entry.map_or("(absent)".to_owned(), ToString::to_string);
            writeln!(
                text,
                "{}\n  {own_name}: {}\n  {other_name}: {}",
                path.display(),
                show(ours),
                show(theirs)
            )?;
        }
        bail!("{} paths differ between {own_name} and {other_name}:\n{text}", differences.len());
    }

    fn differences<'a>(&'a self, other: &'a Self) -> Vec<Difference<'a>> {
        let mut found = Vec::new();
        for (path, entry) in &self.entries {
            let theirs = other.entries.get(path);
            if theirs != Some(entry) {
                found.push((path.as_path(), Some(entry), theirs));
            }
        }
        let missing = other.entries.iter().filter(|(path, _)| !self.entries.contains_key(*path));
        found.extend(missing.map(|(path, entry)| (path.as_path(), None, Some(entry))));
        found.sort_by_key(|(path, ..)| *path);
        found
    }
}

/// Lists the tree at `root`, which need not be a mount point; reads every file.
pub fn list(root: &Path, options: ListOptions) -> Result<Listing> {
    Walk { root, options, is_overlay: false, entries: BTreeMap::new(), links: BTreeMap::new() }.run()
}

/// Lists a mount of overlayfs, as [`list`]. Where nothing below needs a whiteout, a directory there has an entry for it,
/// and nothing by that name.
pub fn list_overlay(root: &Path, options: ListOptions) -> Result<Listing> {
    Walk { root, options, is_overlay: true, entries: BTreeMap::new(), links: BTreeMap::new() }.run()
}

struct Walk<'a> {
    root: &'a Path,
    options: ListOptions,
    is_overlay: bool,
    entries: BTreeMap<PathBuf, TreeEntry>,
    /// Paths of files with more than one name, by device and inode.
    links: BTreeMap<(u64, u64), Vec<PathBuf>>,
}

impl Walk<'_> {
    fn run(mut self) -> Result<Listing> {
        self.visit(Path::new("."))?;
        self.finish()
    }

    fn visit(&mut self, relative: &Path) -> Result<()> {
        let path = self.root.join(relative);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if self.is_overlay && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.with_context(|| format!("{}", path.display()))?,
        };
        let entry = self.describe(&path, &metadata).with_context(|| format!("reading {}", path.display()))?;
        self.entries.insert(relative.to_owned(), entry);
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
                self.visit(&relative.join(entry?.file_name()))?;
            }
        } else if metadata.nlink() > 1 {
            self.links.entry((metadata.dev(), metadata.ino())).or_default().push(relative.to_owned());
        }
        Ok(())
    }

    fn describe(&self, path: &Path, metadata: &Metadata) -> Result<TreeEntry> {
        let kind = metadata.file_type();
        let mut mtime = metadata.mtime().to_string();
        if self.options.nanoseconds {
            write!(mtime, ".{:09}", metadata.mtime_nsec())?;
        }
        let mut details = String::new();
        if kind.is_file() {
            write!(details, " size={} sha256={}", metadata.len(), content_digest(path)?)?;
        } else if kind.is_symlink() {
            write!(details, " -> {}", fs::read_link(path)?.display())?;
        } else if kind.is_block_device() || kind.is_char_device() {
            write!(details, " device={},{}", major(metadata.rdev()), minor(metadata.rdev()))?;
        }
        for name in attribute_names(path)? {
            let value = xattr::get(path, &name)?.unwrap_or_default();
            write!(details, " {}={}", name.display(), hex::encode(value))?;
        }
        Ok(TreeEntry {
            kind: format!("{} {:04o}", type_name(metadata), metadata.mode() & 0o7777),
            owner: format!("{}:{}", metadata.uid(), metadata.gid()),
            mtime,
            details,
        })
    }

    /// Adds to each name of a file with several the others that are in the tree too.
    fn finish(mut self) -> Result<Listing> {
        for mut group in self.links.into_values() {
            group.sort();
            let Some(first) = group.first().filter(|_| group.len() > 1).cloned() else { continue };
            for path in &group {
                if let Some(entry) = self.entries.get_mut(path) {
                    write!(entry.details, "{LINKS}{} first={}", group.len(), first.display())?;
                }
            }
        }
        Ok(Listing { entries: self.entries })
    }
}

fn type_name(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "character-device",
        () if kind.is_block_device() => "block-device",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    }
}

/// Names of extended attributes, sorted. Those the kernel keeps for itself on an overlay are not the image's.
fn attribute_names(path: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names: Vec<_> = match xattr::list(path) {
        Ok(names) => names.filter(|name| !name.as_bytes().starts_with(b"trusted.overlay.")).collect(),
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    names.sort();
    Ok(names)
}

/// The SHA-256 of a file's content, as hex.
pub fn content_digest(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const EXACT: ListOptions = ListOptions { nanoseconds: true };

    fn sample(dir: &Path) -> PathBuf {
        let root = dir.join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a"), "text").unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
        root
    }

    #[test]
    fn a_tree_equals_itself_and_names_its_hard_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = sample(dir.path());
        let listing = list(&root, EXACT).unwrap();
        assert_eq!(listing.len(), 3);
        assert!(listing.entries[Path::new("./b")].details.ends_with("one-of=2 first=./a"));
        listing.expect_same("one", &list(&root, EXACT).unwrap(), "other").unwrap();
    }

    #[test]
    fn what_does_not_count_is_not_compared() {
        let dir = tempfile::tempdir().unwrap();
        let root = sample(dir.path());
        let before = list(&root, EXACT).unwrap();
        let mut other = before.clone();
        other.entries.get_mut(Path::new("./a")).unwrap().owner = "7:7".to_owned();
        before.expect_same("one", &other, "other").unwrap_err();
        before.without_owners().expect_same("one", &other.without_owners(), "other").unwrap();
    }

    #[test]
    fn any_single_change_is_shown_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = sample(dir.path());
        let before = list(&root, EXACT).unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o600)).unwrap();
        let error = before.expect_same("before", &list(&root, EXACT).unwrap(), "after").unwrap_err();
        assert!(error.to_string().contains("./a") && error.to_string().contains("0600"), "{error}");
        fs::remove_file(root.join("b")).unwrap();
        let error = before.expect_same("before", &list(&root, EXACT).unwrap(), "after").unwrap_err();
        assert!(error.to_string().contains("after: (absent)"), "{error}");
    }
}
