//! The lock as a file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use registry::Reference;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Lock, Locked, PlatformImage};
use crate::discover::{Archive, ArchiveKind};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The most that is read of a lock: some 100,000 images.
const FILE_LIMIT_BYTES: u64 = 64 << 20;

/// Why a file is no lock, or cannot become one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockFileError {
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is something else.
    #[error("{} is no images.lock, and is left as it is: {reason}", path.display())]
    NoLock {
        /// The file.
        path: PathBuf,
        /// What is wrong with its first line.
        reason: String,
    },
    /// It is of another version.
    #[error("{} has version {version} of images.lock: expected {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A line is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The first line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(rename = "images.lock")]
    version: u32,
    platforms: Vec<String>,
}

/// Any other line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    image: String,
    digest: String,
    media_type: String,
    size: u64,
    platforms: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nydus: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    archive: Option<String>,
    asked_by: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    platform: String,
    digest: String,
    size: u64,
    bytes: u64,
}

impl Lock {
    /// Reads the lock `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no lock of this version.
    pub fn read(path: &Path) -> Result<Self, LockFileError> {
        let io = |error| LockFileError::Io { path: path.to_owned(), error };
        let size = fs::metadata(path).map_err(io)?.len();
        if size > FILE_LIMIT_BYTES {
            return Err(io(io::Error::other(format!(
                "it has {size} bytes: at most {FILE_LIMIT_BYTES} are read"
            ))));
        }
        let bytes = fs::read(path).map_err(io)?;
        let text = String::from_utf8(bytes)
            .map_err(|error| LockFileError::NoLock { path: path.to_owned(), reason: error.to_string() })?;
        Self::parse(path, &text)
    }

    /// Reads the text of a lock; `path` is its name in messages.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, LockFileError> {
        let mut lines = text.lines();
        let no_lock = |error: serde_json::Error| LockFileError::NoLock {
            path: path.to_owned(),
            reason: format!("line 1: {error}"),
        };
        let first = lines.next().unwrap_or_default();
        // Another version may have other members.
        let version = serde_json::from_str::<Version>(first).map_err(no_lock)?.version;
        if version != VERSION {
            return Err(LockFileError::Version { path: path.to_owned(), version });
        }
        let head: Head = serde_json::from_str(first).map_err(no_lock)?;
        let wrong = |line: usize, reason: String| LockFileError::Line { path: path.to_owned(), line, reason };
        let platforms = head.platforms.iter().map(|platform| platform.parse());
        let platforms = platforms.collect::<Result<_, _>>().map_err(|error| wrong(1, format!("{error}")))?;
        let mut lock = Self { platforms, images: Vec::new() };
        for (index, text) in lines.enumerate() {
            let number = index + 2;
            let line: Line = serde_json::from_str(text).map_err(|error| wrong(number, error.to_string()))?;
            let image = locked(line).map_err(|reason| wrong(number, reason))?;
            if lock.get(&image.reference).is_some() {
                return Err(wrong(number, format!("image {} is there twice", image.reference)));
            }
            lock.images.push(image);
        }
        Ok(lock)
    }

    /// Writes the lock to `path`, in place of one that is there. Nothing is there half-written at any time.
    ///
    /// # Errors
    ///
    /// When something else is there, or it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LockFileError> {
        match Self::read(path) {
            Ok(_) | Err(LockFileError::Version { .. } | LockFileError::Line { .. }) => {}
            Err(LockFileError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.replace(path).map_err(|error| LockFileError::Io { path: path.to_owned(), error })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
        file.write_all(self.to_string().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    }
}

/// What every version's first line has.
#[derive(Deserialize)]
struct Version {
    #[serde(rename = "images.lock")]
    version: u32,
}

impl std::fmt::Display for Lock {
    /// The file's content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let json = |value: serde_json::Result<String>| value.map_err(|_| std::fmt::Error);
        let platforms = self.platforms.iter().map(ToString::to_string).collect();
        writeln!(f, "{}", json(serde_json::to_string(&Head { version: VERSION, platforms }))?)?;
        for image in &self.images {
            writeln!(f, "{}", json(serde_json::to_string(&line(image)))?)?;
        }
        Ok(())
    }
}

fn line(image: &Locked) -> Line {
    let entries = |images: &[PlatformImage]| images.iter().map(entry).collect();
    Line {
        image: image.reference.to_string(),
        digest: image.digest.to_string(),
        media_type: image.media_type.clone(),
        size: image.size,
        platforms: entries(&image.platforms),
        nydus: entries(&image.nydus),
        archive: image.archive.as_ref().map(|archive| format!("{}:{}", archive.kind, archive.path)),
        asked_by: image.asked_by.clone(),
    }
}

fn entry(image: &PlatformImage) -> Entry {
    let PlatformImage { platform, digest, size, bytes } = image;
    Entry { platform: platform.to_string(), digest: digest.to_string(), size: *size, bytes: *bytes }
}

fn locked(line: Line) -> Result<Locked, String> {
    let entries = |entries: Vec<Entry>| entries.into_iter().map(platform_image).collect::<Result<_, _>>();
    Ok(Locked {
        reference: Reference::parse(&line.image).map_err(|error| error.to_string())?,
        digest: line.digest.parse().map_err(|_| format!("{:?} is no digest", line.digest))?,
        media_type: line.media_type,
        size: line.size,
        platforms: entries(line.platforms)?,
        nydus: entries(line.nydus)?,
        archive: line.archive.as_deref().map(archive).transpose()?,
        asked_by: line.asked_by,
    })
}

fn platform_image(entry: Entry) -> Result<PlatformImage, String> {
    Ok(PlatformImage {
        platform: entry.platform.parse().map_err(|error| format!("{error}"))?,
        digest: entry.digest.parse().map_err(|_| format!("{:?} is no digest", entry.digest))?,
        size: entry.size,
        bytes: entry.bytes,
    })
}

fn archive(text: &str) -> Result<Archive, String> {
    let wrong = || format!("{text:?}: expected docker-archive:PATH or oci-archive:PATH within the tree");
    let (kind, path) = text.split_once(':').ok_or_else(wrong)?;
    let kind = match kind {
        "docker-archive" => ArchiveKind::DockerArchive,
        "oci-archive" => ArchiveKind::OciArchive,
        _ => return Err(wrong()),
    };
    if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(wrong());
    }
    Ok(Archive { kind, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use registry::digest::sha256;

    use super::*;

    fn lock() -> Lock {
        let platform = |name: &str| PlatformImage {
            platform: name.parse().unwrap(),
            digest: sha256(name.as_bytes()),
            size: 7,
            bytes: 1 << 40,
        };
        let image = |name: &str| Locked {
            reference: Reference::parse(name).unwrap(),
            digest: sha256(b"index"),
            media_type: "m".to_owned(),
            size: 9,
            platforms: vec![platform("linux/amd64"), platform("linux/arm/v7")],
            nydus: vec![platform("linux/amd64")],
            archive: None,
            asked_by: vec!["a".to_owned(), "b \"c\"".to_owned()],
        };
        let archive =
            Some(Archive { kind: ArchiveKind::OciArchive, path: "images/skopeo/a:b.tar".to_owned() });
        let digest = format!("b.c/d:1@{}", sha256(b"x"));
        let images =
            vec![image("a"), image(&digest), Locked { archive, nydus: Vec::new(), ..image("z:9/y") }];
        Lock { platforms: vec!["linux/amd64".parse().unwrap()], images }
    }

    #[test]
    fn what_is_written_is_read_and_every_image_is_a_line() {
        let text = lock().to_string();
        assert_eq!(text.lines().count(), 4);
        assert_eq!(Lock::parse(Path::new("x"), &text).unwrap(), lock());
    }

    #[test]
    fn the_first_version_is_read_for_ever() {
        let text = include_str!("testdata/version-1.lock");
        assert_eq!(Lock::parse(Path::new("x"), text).unwrap(), lock());
        assert_eq!(lock().to_string(), text);
    }

    #[test]
    fn a_list_that_people_wrote_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["nginx:1\n", "", "{}", "\u{0}"] {
            let path = dir.path().join("imageList");
            fs::write(&path, text).unwrap();
            let error = lock().write(&path).unwrap_err().to_string();
            assert!(error.contains("is no images.lock"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let path = dir.path().join("images.lock");
        for _ in 0..2 {
            lock().write(&path).unwrap();
            assert_eq!(Lock::read(&path).unwrap(), lock());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let text = lock().to_string();
        for (from, to, place) in [
            ("\"images.lock\":1", "\"images.lock\":2", "version 2"),
            ("linux/amd64\"]", "linux\"]", "x:1: "),
            ("sha256:", "sha257-", "x:2: "),
            ("\"size\":9", "\"sise\":9", "x:2: "),
            (
                "z:9/y:latest",
                "docker.io/library/a:latest",
                "x:4: image docker.io/library/a:latest is there twice",
            ),
            ("oci-archive:images", "oci-archive:/images", "x:4: "),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Lock::parse(Path::new("x"), &text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(place), "{to}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(at in 0_usize..900, text in "[\"{}a0:,/\\[\\]\n]{0,20}") {
            let whole = lock().to_string();
            let at = (0..=at.min(whole.len())).rev().find(|at| whole.is_char_boundary(*at)).unwrap_or(0);
            let _ = Lock::parse(Path::new("x"), &format!("{}{text}{}", &whole[..at], &whole[at..]));
            let _ = Lock::parse(Path::new("x"), &text);
        }
    }
}
