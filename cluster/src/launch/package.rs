//! A package that a cluster is run of: how it comes to the nodes that serve it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use registry::reference::InvalidReference;
use registry::{Digest, Reference, Repository};

use super::error::LaunchError;
use crate::package::{self, LOCK_FILE};
use crate::saved::{DIRECTORY_REPOSITORY, SavedAt};

/// What a package in a directory consists of.
const PARTS: [&str; 3] = ["package.json", LOCK_FILE, "registry"];

/// A package: a file, or a directory of which a file is made on the way.
#[derive(Clone, Debug)]
pub struct PackageSource {
    path: PathBuf,
    /// Tells it from others.
    pub(super) id: String,
    /// The registries that its images are of.
    pub(super) hosts: BTreeSet<String>,
    /// The cluster image, by its digest.
    image: Reference,
    /// Its container images as RAFS.
    saved: Option<SavedAt>,
    /// Whether all of its container images are in it as they are.
    has_plain: bool,
}

impl PackageSource {
    /// What nodes need to know of an open package.
    ///
    /// # Errors
    ///
    /// When no cluster image is in it.
    pub fn of(package: &package::Package) -> Result<Self, LaunchError> {
        let wrong = |reason: &str| LaunchError::wrong(package.path().display().to_string(), reason);
        let about = package.about().ok_or_else(|| {
            wrong("nothing in it says which of its images is the cluster image: expected a package of `cluster save REF -o`")
        })?;
        let image = about.image.as_ref().ok_or_else(|| {
            wrong("it holds container images alone: make it of an image, not of a directory, with `cluster save REF -o`")
        })?;
        let reference = Reference::parse(&image.reference).map_err(|error| wrong(&error.to_string()))?;
        let image = reference.at_digest(image.digest.clone());
        let (mut hosts, mut has_plain) = (BTreeSet::from([image.host().to_owned()]), true);
        for locked in package.lock().into_iter().flat_map(|lock| &lock.images) {
            hosts.insert(locked.reference.host().to_owned());
            has_plain &= package.has_as_it_is(locked).map_err(|error| wrong(&error.to_string()))?;
        }
        let of = |digest: Option<&Digest>| digest.map(ToString::to_string).unwrap_or_default();
        let lock = of(about.lock.as_ref().map(|lock| &lock.digest));
        let text = format!("{image} {lock} {} {has_plain}", of(about.images.as_ref()));
        let id = registry::digest::sha256(text.as_bytes());
        let id = id.digest().get(..16).unwrap_or_default().to_owned();
        Ok(Self { path: package.path().to_owned(), id, hosts, image, saved: package.saved(), has_plain })
    }

    /// A package of which nothing else is known.
    #[cfg(test)]
    pub(super) fn named(image: &str, hosts: &[&str]) -> Self {
        let image = Reference::parse(image).unwrap();
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Self { path: PathBuf::new(), id: String::new(), hosts, image, saved: None, has_plain: true }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster image, as it is called where it is served.
    pub fn image(&self) -> &Reference {
        &self.image
    }

    /// Its container images as RAFS, if they are in it.
    pub fn saved(&self) -> Option<&SavedAt> {
        self.saved.as_ref()
    }

    /// The repository that has these where the package is served: of the cluster image's registry, so that nodes find it in the same way.
    ///
    /// # Errors
    ///
    /// When that registry's name is none.
    pub fn repository(&self) -> Result<Repository, InvalidReference> {
        Repository::parse(&format!("{}/{DIRECTORY_REPOSITORY}", self.image.host()))
    }

    /// Whether all of its container images are in it as they are.
    pub fn has_plain(&self) -> bool {
        self.has_plain
    }

    /// The size that it has as a file.
    pub(super) async fn bytes(&self) -> Result<u64, LaunchError> {
        if !self.path.is_dir() {
            let file = std::fs::metadata(&self.path).map_err(LaunchError::io(&self.path))?;
            return Ok(file.len());
        }
        // Into this very file tar writes nothing, and reads no contents either.
        let mut tar = tokio::process::Command::from(self.tar("/dev/null"));
        let said = tar.arg("--totals").output().await.map_err(LaunchError::io("tar"))?;
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let total = said
            .lines()
            .find_map(|line| line.strip_prefix("Total bytes written: ")?.split(' ').next()?.parse().ok());
        total
            .ok_or_else(|| LaunchError::Command { command: "tar".to_owned(), reason: said.trim().to_owned() })
    }

    /// Its bytes, as standard input of what brings them.
    pub(super) fn stream(&self) -> std::io::Result<Stdio> {
        if !self.path.is_dir() {
            return Ok(File::open(&self.path)?.into());
        }
        let mut tar = self.tar("-").stdout(Stdio::piped()).spawn()?;
        let stdout = tar.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        // It ends when nobody reads any more.
        std::thread::spawn(move || tar.wait());
        Ok(stdout.into())
    }

    fn tar(&self, to: &str) -> Command {
        let mut tar = Command::new("tar");
        tar.env("LC_ALL", "C").stdin(Stdio::null());
        tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--file", to]);
        tar.arg("--directory").arg(&self.path);
        tar.args(PARTS.into_iter().filter(|part| self.path.join(part).exists()));
        tar
    }
}

/// Whether something is a package, rather than an image or a tree.
pub fn is_package(path: &Path) -> bool {
    path.is_file() || package::Package::is_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_comes_as_a_tar_of_the_size_that_was_said() {
        use std::io::Read as _;

        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("registry")).unwrap();
        std::fs::write(dir.path().join("registry/data"), vec![7; 70_000]).unwrap();
        std::fs::write(dir.path().join("package.json"), "{}").unwrap();
        std::fs::write(dir.path().join("not-of-it"), "x").unwrap();
        let package = PackageSource {
            path: dir.path().to_owned(),
            ..PackageSource::named("r.example/cluster:v1", &[])
        };
        let mut cat =
            Command::new("cat").stdin(package.stream().unwrap()).stdout(Stdio::piped()).spawn().unwrap();
        let mut bytes = Vec::new();
        cat.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        cat.wait().unwrap();
        assert_eq!(package.bytes().await.unwrap(), bytes.len() as u64);
        let mut tar = tar::Archive::new(bytes.as_slice());
        let names: Vec<_> =
            tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, ["package.json", "registry/", "registry/data"].map(PathBuf::from));
    }
}
