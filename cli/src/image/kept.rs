//! Bootstraps that a chunk cache's directory keeps, so that an image that is named by its digest is mounted again without a
//! registry, as when a node boots:
//!
//! ```text
//! DIR/bootstraps/NAME/image.boot       NAME is of the repository, the digest and the platform
//! DIR/bootstraps/NAME/image.boot.sha256
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use image::location::Location;
use image::platform::PlatformName;
use registry::digest::{Hasher, sha256};
use tempfile::TempDir;

use super::source::BOOTSTRAP_FILE;

const FOLDER: &str = "bootstraps";
const DIGEST_FILE: &str = "image.boot.sha256";
/// The images of which bootstraps are kept: the one that is used, and a few that may come back.
const IMAGES_LIMIT: usize = 4;
/// A bootstrap is read in steps of this many bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// The place of one image's bootstrap.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Holds those of all images.
    all: PathBuf,
    folder: PathBuf,
}

impl Kept {
    /// The place in the directory of a cache, for an image that is always the same.
    pub(super) fn place(cache: &Path, location: &Location, platform: &PlatformName) -> Option<Self> {
        let Location::Registry(reference) = location else { return None };
        let image = reference.at_digest(reference.digest()?.clone());
        let name = sha256(format!("{image} {platform}").as_bytes());
        let all = cache.join(FOLDER);
        Some(Self { folder: all.join(name.digest()), all })
    }

    /// The bootstrap, if it is there as it was written. It counts as used.
    pub(super) async fn find(&self) -> anyhow::Result<Option<PathBuf>> {
        let folder = self.folder.clone();
        let found = move || {
            let path = folder.join(BOOTSTRAP_FILE);
            let written = fs::read_to_string(folder.join(DIGEST_FILE)).ok()?;
            // What cannot be read is fetched again, as what is not whole.
            let is_whole = digest_of(&path).is_ok_and(|digest| digest == written);
            is_whole.then(|| {
                // Where the time cannot be set, it is let go of earlier.
                let _ = File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now()));
                path
            })
        };
        Ok(tokio::task::spawn_blocking(found).await?)
    }

    /// A directory for the bootstrap, until it is whole.
    pub(super) fn begin(&self) -> anyhow::Result<TempDir> {
        fs::create_dir_all(&self.all)
            .and_then(|()| tempfile::tempdir_in(&self.all))
            .with_context(|| format!("cannot write to {}", self.all.display()))
    }

    /// Puts `directory`, in which the bootstrap is whole, in the place of what is there. Those of images that were used long ago go.
    pub(super) async fn keep(&self, directory: TempDir) -> anyhow::Result<PathBuf> {
        let kept = self.clone();
        tokio::task::spawn_blocking(move || {
            let folder = &kept.folder;
            let written = kept.write(directory).and_then(|()| kept.let_go());
            written.with_context(|| format!("cannot write {}", folder.display()))?;
            Ok(folder.join(BOOTSTRAP_FILE))
        })
        .await?
    }

    /// Bootstrap and digest are on disk before they have their name, so that a power cut leaves both or none.
    fn write(&self, directory: TempDir) -> io::Result<()> {
        let bootstrap = directory.path().join(BOOTSTRAP_FILE);
        let digest = directory.path().join(DIGEST_FILE);
        fs::write(&digest, digest_of(&bootstrap)?)?;
        // The directory last: without its entries, the name would lead to an empty one.
        for path in [bootstrap.as_path(), &digest, directory.path()] {
            File::open(path)?.sync_all()?;
        }
        remove(&self.folder)?;
        fs::rename(directory.path(), &self.folder)?;
        // It has another name now.
        let _ = directory.keep();
        File::open(&self.all)?.sync_all()
    }

    /// Removes all but those that were used last; also what a process that was killed had begun.
    fn let_go(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.all)? {
            let entry = entry?;
            all.push((entry.metadata()?.modified()?, entry.path()));
        }
        all.retain(|(_, path)| *path != self.folder);
        all.sort_by(|(a, _), (b, _)| b.cmp(a));
        all.iter().skip(IMAGES_LIMIT - 1).try_for_each(|(_, path)| remove(path))
    }
}

/// SHA-256 of a file.
fn digest_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher) = (File::open(path)?, Hasher::sha256());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().to_string()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(cache: &Path, image: &str, platform: &str) -> Option<Kept> {
        Kept::place(cache, &image.parse().unwrap(), &platform.parse().unwrap())
    }

    #[test]
    fn a_place_is_of_what_is_always_the_same() {
        let digest = format!("sha256:{:064}", 1);
        let of = |image: &str, platform: &str| {
            place(Path::new("/c"), image, platform).map(|kept| kept.folder.to_string_lossy().into_owned())
        };
        let one = of(&format!("r.example/a@{digest}"), "linux/amd64");
        assert!(one.as_deref().is_some_and(|one| one.starts_with("/c/bootstraps/")), "{one:?}");
        assert_eq!(of(&format!("docker://r.example/a:v1@{digest}"), "linux/amd64"), one);
        assert_ne!(of(&format!("r.example/a@{digest}"), "linux/arm64"), one);
        assert_ne!(of(&format!("r.example/b@{digest}"), "linux/amd64"), one);
        assert_eq!(of("r.example/a:v1", "linux/amd64"), None);
        assert_eq!(of("oci:layout", "linux/amd64"), None);
    }

    #[tokio::test]
    async fn the_bootstraps_of_the_images_that_were_used_last_are_kept() {
        let cache = tempfile::tempdir().unwrap();
        let image = |number: usize| {
            place(cache.path(), &format!("r.example/a@sha256:{number:064}"), "linux/amd64").unwrap()
        };
        for number in 0..6 {
            let kept = image(number);
            assert_eq!(kept.find().await.unwrap(), None);
            let directory = kept.begin().unwrap();
            fs::write(directory.path().join(BOOTSTRAP_FILE), number.to_string()).unwrap();
            let path = kept.keep(directory).await.unwrap();
            assert_eq!(kept.find().await.unwrap(), Some(path));
            // The first one is in use all the time.
            assert!(image(0).find().await.unwrap().is_some());
        }
        let mut there = Vec::new();
        for number in 0..6 {
            if image(number).find().await.unwrap().is_some() {
                there.push(number);
            }
        }
        assert_eq!(there, [0, 3, 4, 5]);
        assert_eq!(fs::read_dir(cache.path().join(FOLDER)).unwrap().count(), IMAGES_LIMIT);

        // A torn one is put in its place again.
        let kept = image(0);
        fs::write(kept.folder.join(BOOTSTRAP_FILE), "").unwrap();
        assert_eq!(kept.find().await.unwrap(), None);
        let directory = kept.begin().unwrap();
        fs::write(directory.path().join(BOOTSTRAP_FILE), "again").unwrap();
        let path = kept.keep(directory).await.unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "again");
        assert!(kept.find().await.unwrap().is_some());
    }
}
