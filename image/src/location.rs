//! Where images are, as people type it: a registry, or files of this machine, each way with a name of its own.
//!
//! | text | is | read | written |
//! |---|---|---|---|
//! | `docker://REF`, or `REF` alone | an image in a registry | yes | yes |
//! | `oci:DIR[:IMAGE]` | an OCI image layout in a directory | yes | yes |
//! | `oci-archive:FILE[:IMAGE]` | an OCI image layout in a tar | yes | yes |
//! | `docker-archive:FILE[:IMAGE]` | what `docker save` writes | yes | |
//! | `package:PATH[:IMAGE]` | a package of a cluster image, a registry's directory, or a tar of one | yes | |
//! | `directory:DIR` | a file system tree | yes | |
//! | `files:DIR` | a nydus image as its parts: `image.boot` and `blobs/` | | yes |
//!
//! The names are those of skopeo. As there, the path ends at the first colon. `IMAGE` is a name that the layout or archive
//! has for the image, or `@DIGEST` for one without a name (in a docker-archive `@NUMBER`, from 0). Without it a package's is the
//! cluster image.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use registry::reference::{InvalidReference, Reference};

/// A text that says nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidLocation {
    /// It is no reference, and has no other form either.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// It is a path, of which nobody knows what is there.
    #[error(
        "{text:?} is a path: say what is there with oci:, oci-archive:, docker-archive:, package:, directory: or \
         files: before it"
    )]
    Path {
        /// The text as given.
        text: String,
    },
    /// There is nothing behind the name of the way.
    #[error("{text:?}: expected a path after the colon")]
    NoPath {
        /// The text as given.
        text: String,
    },
    /// There is nothing behind the path's colon.
    #[error("{text:?}: expected an image's name after the last colon, or no colon")]
    NoImage {
        /// The text as given.
        text: String,
    },
}

/// Where an image is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a registry.
    Registry(Reference),
    /// In an OCI image layout in a directory.
    Oci(InFile),
    /// In an OCI image layout in a tar.
    OciArchive(InFile),
    /// In a tar as of `docker save`.
    DockerArchive(InFile),
    /// Among what a registry stores, in a directory or a tar.
    Package(InFile),
    /// The tree of files in a directory.
    Directory(PathBuf),
    /// A nydus image as its parts in a directory.
    Files(PathBuf),
}

/// One of the images that a path holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFile {
    /// The file or directory.
    pub path: PathBuf,
    /// Which of its images: a name, or `@` and a digest or number; none where there is but one.
    pub image: Option<String>,
}

impl InFile {
    fn parse(text: &str, rest: &str) -> Result<Self, InvalidLocation> {
        let (path, image) = match rest.split_once(':') {
            Some((_, "")) => return Err(InvalidLocation::NoImage { text: text.to_owned() }),
            Some((path, image)) => (path, Some(image.to_owned())),
            None => (rest, None),
        };
        Ok(Self { path: path_of(text, path)?, image })
    }
}

fn path_of(text: &str, path: &str) -> Result<PathBuf, InvalidLocation> {
    if path.is_empty() {
        return Err(InvalidLocation::NoPath { text: text.to_owned() });
    }
    Ok(PathBuf::from(path))
}

impl Location {
    /// The path of what is on this machine.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Registry(_) => None,
            Self::Oci(place)
            | Self::OciArchive(place)
            | Self::DockerArchive(place)
            | Self::Package(place) => Some(&place.path),
            Self::Directory(path) | Self::Files(path) => Some(path),
        }
    }
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        match text.split_once(':') {
            Some(("docker", rest)) if rest.starts_with("//") => {
                Ok(Self::Registry(Reference::parse(&rest["//".len()..])?))
            }
            Some(("oci", rest)) => InFile::parse(text, rest).map(Self::Oci),
            Some(("oci-archive", rest)) => InFile::parse(text, rest).map(Self::OciArchive),
            Some(("docker-archive", rest)) => InFile::parse(text, rest).map(Self::DockerArchive),
            Some(("package", rest)) => InFile::parse(text, rest).map(Self::Package),
            Some(("directory", rest)) => path_of(text, rest).map(Self::Directory),
            Some(("files", rest)) => path_of(text, rest).map(Self::Files),
            _ if text.starts_with(['/', '.']) => Err(InvalidLocation::Path { text: text.to_owned() }),
            _ => Ok(Self::Registry(Reference::parse(text)?)),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, place) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::Directory(path) => return write!(f, "directory:{}", path.display()),
            Self::Files(path) => return write!(f, "files:{}", path.display()),
            Self::Oci(place) => ("oci", place),
            Self::OciArchive(place) => ("oci-archive", place),
            Self::DockerArchive(place) => ("docker-archive", place),
            Self::Package(place) => ("package", place),
        };
        write!(f, "{way}:{}", place.path.display())?;
        place.image.as_ref().map_or(Ok(()), |image| write!(f, ":{image}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_alike() {
        for text in [
            "docker://127.0.0.1:5000/app:v1",
            "oci:/var/layout",
            "oci:layout:v1",
            "oci-archive:a.tar:docker.io/library/app:v1",
            "docker-archive:/a/b.tar.gz:@0",
            "package:cluster.tar",
            "package:/srv/cluster:k8s.gcr.io/pause:3.9",
            "directory:/srv/root:with colon",
            "files:out",
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn a_bare_name_is_a_reference_and_the_path_ends_at_the_first_colon() {
        let reference = Reference::parse("127.0.0.1:5000/app:v1").unwrap();
        assert_eq!("127.0.0.1:5000/app:v1".parse(), Ok(Location::Registry(reference)));
        let image = Some("host:5000/app:v1".to_owned());
        let expected = Location::OciArchive(InFile { path: "x.tar".into(), image });
        assert_eq!("oci-archive:x.tar:host:5000/app:v1".parse(), Ok(expected));
        assert_eq!("directory:a:b".parse(), Ok(Location::Directory("a:b".into())));
    }

    #[test]
    fn what_says_nowhere_is_an_error_that_says_what_is_missing() {
        for (text, word) in [
            ("./layout", "oci:"),
            ("/x.tar", "docker-archive:"),
            ("oci:", "path"),
            ("oci:x:", "name"),
            ("", ""),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
