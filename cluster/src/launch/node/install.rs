//! What of the image's tree a node's system gets: programs as links into the tree, units and configuration as files.
//!
//! | in the image | on the node |
//! |---|---|
//! | `bin/NAME` | `/usr/bin/NAME`, where the node has no program of this name |
//! | `opt/cni/bin/NAME` | `/opt/cni/bin/NAME` |
//! | `etc/systemd/system/…` | the same, where the node has no unit of this name |
//! | `etc/containerd/…` | the same |
//!
//! A node that has containerd keeps its own: then none of `bin/containerd*`, `bin/ctr` and `bin/runc`, nothing of
//! `etc/containerd/` and no `containerd.service` of the image's is used. What it is told is in `foreign`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::commands::systemctl;
use super::ledger::Ledger;
use super::{containerd, lazy, mirrors};
use crate::launch::error::LaunchError;
use crate::launch::task::Mirror;

const UNITS: &str = "etc/systemd/system";
const CONTAINERD: &str = "etc/containerd";
/// What a template's name has more than that of what it becomes.
const TEMPLATE: &str = ".tmpl";
/// How deep units and configuration may lie, and how large a file of them may be.
const DEPTH_LIMIT: usize = 4;
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Services that need the image's tree.
const SERVICES: [&str; 2] = ["containerd.service", "kubelet.service"];

/// Which parts of the image a node gets, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Installation<'a> {
    /// containerd, since the node has none from elsewhere.
    pub(super) containerd: bool,
    /// What units that need the tree are given, if it is mounted.
    pub(super) needed: Option<&'a str>,
    /// The containerd that is installed unpacks with our snapshotter.
    pub(super) lazy: bool,
    /// What stands in files for containerd already, before what the image has there.
    pub(super) mirrors: &'a [Mirror],
}

/// Installs what is missing.
pub(super) fn install(ledger: &mut Ledger, tree: &Path, parts: Installation<'_>) -> Result<(), LaunchError> {
    let restart = || {
        systemctl(&["daemon-reload"])?;
        // One that an earlier run started has read what was there then.
        if parts.containerd { systemctl(&["try-restart", SERVICES[0]]) } else { Ok(()) }
    };
    ledger.put_for(SERVICES[0], |ledger| put(ledger, tree, parts), restart)
}

fn put(ledger: &mut Ledger, tree: &Path, parts: Installation<'_>) -> Result<(), LaunchError> {
    for name in names(&tree.join("bin"))? {
        if (parts.containerd || !is_runtime(&name)) && foreign(ledger, &name).is_none() {
            ledger.link(&Path::new("/usr/bin").join(&name), &tree.join("bin").join(&name))?;
        }
    }
    for name in names(&tree.join("opt/cni/bin"))? {
        let (here, there) = (Path::new("/opt/cni/bin").join(&name), tree.join("opt/cni/bin").join(&name));
        if ledger.has(&here) || !here.exists() {
            ledger.link(&here, &there)?;
        }
    }
    let mut files = Vec::new();
    find(tree, Path::new(UNITS), DEPTH_LIMIT, &mut files)?;
    if parts.containerd {
        find(tree, Path::new(CONTAINERD), DEPTH_LIMIT, &mut files)?;
    }
    for file in files {
        let there = Path::new("/").join(&file);
        let of_containerd = file.file_name() == Some(OsStr::new(SERVICES[0]));
        let certs = Path::new(mirrors::CERTS_DIR);
        let is_mirror = |mirror: &Mirror| there == mirrors::file(certs, &mirror.host);
        let ours =
            parts.lazy && there == Path::new(containerd::CONFIG) || parts.mirrors.iter().any(is_mirror);
        if !ours && (parts.containerd || !of_containerd) && (ledger.has(&there) || !there.exists()) {
            ledger.file(&there, &read(&tree.join(&file))?)?;
        }
    }
    if parts.lazy && parts.containerd {
        configure(ledger, tree)?;
    }
    if let Some(needed) = parts.needed {
        // One that the node has from elsewhere runs nothing of the image's.
        for service in SERVICES.into_iter().filter(|service| parts.containerd || *service != SERVICES[0]) {
            let dropin = Path::new("/").join(UNITS).join(format!("{service}.d/10-nydus-cluster.conf"));
            ledger.file(&dropin, needed)?;
        }
    }
    Ok(())
}

/// Puts what the image's templates were rendered to into its tree, with their modes: scripts among them are run.
pub(super) fn rendered(
    ledger: &mut Ledger,
    tree: &Path,
    files: &BTreeMap<String, String>,
) -> Result<(), LaunchError> {
    for (file, text) in files {
        if Path::new(file).components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(LaunchError::wrong(file, "expected a path in the image's tree"));
        }
        let template = fs::metadata(tree.join(format!("{file}{TEMPLATE}")));
        let mode = template.map_or(0o644, |template| template.permissions().mode() & 0o7777);
        ledger.file_with_mode(&tree.join(file), text, mode)?;
    }
    Ok(())
}

/// Puts our snapshotter into the configuration of the image's containerd: the node's file, or else the image's.
fn configure(ledger: &mut Ledger, tree: &Path) -> Result<(), LaunchError> {
    let file = Path::new(containerd::CONFIG);
    let of_image = tree.join(file.strip_prefix("/").unwrap_or(file));
    let text = match ledger.before(file)? {
        None if of_image.exists() => Some(read(&of_image)?),
        before => before,
    };
    let default = || containerd::default_of(Path::new("containerd"));
    ledger.file(file, &containerd::configured(file, text.as_deref(), Some(&lazy::socket()), default)?)
}

/// Whether the node has no containerd, but ours.
pub(super) fn has_no_containerd(ledger: &Ledger) -> bool {
    foreign(ledger, OsStr::new("containerd")).is_none()
}

fn is_runtime(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("containerd") || name == "ctr" || name == "runc"
}

/// A program of this name that the node has from elsewhere.
fn foreign(ledger: &Ledger, name: &OsStr) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(usual).map(|folder| folder.join(name));
    // What `/bin` shows is ours too where it is a link to `/usr/bin`.
    let ours =
        |program: &Path| fs::read_link(program).is_ok() && ledger.has(&Path::new("/usr/bin").join(name));
    found.into_iter().find(|program| program.exists() && !ours(program))
}

/// The names in a directory, in order; none if it is not there.
fn names(directory: &Path) -> Result<Vec<std::ffi::OsString>, LaunchError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(LaunchError::io(directory))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let mut names = names.map_err(LaunchError::io(directory))?;
    names.sort();
    Ok(names)
}

/// All files below `directory` of `tree`.
fn find(tree: &Path, directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), LaunchError> {
    for name in names(&tree.join(directory))? {
        let path = directory.join(name);
        let kind = fs::symlink_metadata(tree.join(&path)).map_err(LaunchError::io(&path))?.file_type();
        if kind.is_dir() && depth > 0 {
            find(tree, &path, depth - 1, found)?;
        } else if kind.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A file of the image that is copied.
pub(super) fn read(file: &Path) -> Result<String, LaunchError> {
    let size = fs::metadata(file).map_err(LaunchError::io(file))?.len();
    if size > FILE_LIMIT_BYTES {
        let reason = format!("it has {size} bytes: at most {FILE_LIMIT_BYTES} are expected");
        return Err(LaunchError::wrong(file.display().to_string(), reason));
    }
    fs::read_to_string(file).map_err(LaunchError::io(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_becomes_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, script) = (dir.path().join("tree"), "scripts/up.sh");
        fs::create_dir_all(tree.join("scripts")).unwrap();
        let template = tree.join("scripts/up.sh.tmpl");
        fs::write(&template, "").unwrap();
        fs::set_permissions(&template, fs::Permissions::from_mode(0o755)).unwrap();
        let files = BTreeMap::from([(script, "#!/bin/sh\n"), ("etc/of-none", "text\n")])
            .into_iter()
            .map(|(file, text)| (file.to_owned(), text.to_owned()))
            .collect();
        let mode = |file: &str| fs::metadata(tree.join(file)).unwrap().permissions().mode() & 0o7777;
        let mut ledger = Ledger::open(dir.path()).unwrap();
        rendered(&mut ledger, &tree, &files).unwrap();
        assert_eq!((mode(script), mode("etc/of-none")), (0o755, 0o644));
        // As an earlier version left it.
        fs::set_permissions(tree.join(script), fs::Permissions::from_mode(0o644)).unwrap();
        rendered(&mut ledger, &tree, &files).unwrap();
        assert_eq!(mode(script), 0o755);
        assert_eq!(ledger.changed(), 3);
    }
}
