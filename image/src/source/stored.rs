//! Images in the storage layout of CNCF distribution, which is what a registry's directory holds: packages of cluster images, and
//! the `registry` directories of sealer and sealos. In a directory, or in a tar.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use registry::Repository;
use registry::client::Descriptor;
use registry::digest::Digest;
use registry::layout::{self, Layout, LayoutError, Members};
use registry::reference::Reference;
use serde::Deserialize;

use super::Document;
use super::archive::Archive;
use super::blob::BlobStream;
use super::error::SourceError;
use super::files::Part;
use crate::document::{OCI_MANIFEST, Parsed};

/// What every such tree has in it.
const TREE: &str = "docker/registry/v2/";

/// The file of a package that says what it holds.
pub const PACKAGE_FILE: &str = "package.json";

/// How many names a message lists.
const SHOWN: usize = 50;

/// All that is stored in a directory or a tar. Everything here blocks on the disk.
#[derive(Clone, Debug)]
pub struct StoredImages {
    name: String,
    layout: Layout,
    /// The folder that `registry/` is in: a path, or a name within the tar.
    files: StoredFiles,
}

#[derive(Clone, Debug)]
enum StoredFiles {
    Directory(std::path::PathBuf),
    Archive { members: Arc<Members>, folder: String },
}

/// The image that a package is of.
#[derive(Deserialize)]
struct Head {
    image: Option<Main>,
}

#[derive(Deserialize)]
struct Main {
    repository: String,
    digest: String,
}

impl StoredImages {
    /// Opens what is at `path`: a directory with `registry/docker/registry/v2` or `docker/registry/v2`, or a tar that has it in
    /// any folder. One that is compressed with gzip is decompressed to an unnamed file in `spool` first.
    ///
    /// # Errors
    ///
    /// When there is no such thing, or several.
    pub fn open(path: &Path, spool: &Path) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        if path.is_dir() {
            for root in [path.join("registry"), path.to_owned()] {
                if root.join(TREE).is_dir() {
                    let layout = Layout::directory(&root);
                    return Ok(Self { name, layout, files: StoredFiles::Directory(path.to_owned()) });
                }
            }
            let reason = format!("no registry's content: expected registry/{TREE} or {TREE} in it");
            return Err(SourceError::document(name, reason));
        }
        Self::of_archive(&Archive::open(path, spool)?)
    }

    /// What a tar that was scanned holds.
    pub(super) fn of_archive(archive: &Archive) -> Result<Self, SourceError> {
        let members = Arc::new(archive.members());
        let name = archive.path().display().to_string();
        let mut roots: BTreeSet<&str> = BTreeSet::new();
        for member in members.names() {
            let end = member.find(TREE).filter(|end| *end == 0 || member[..*end].ends_with('/'));
            roots.extend(end.map(|end| &member[..end]));
        }
        let mut roots = roots.into_iter();
        let (Some(root), None) = (roots.next(), roots.next()) else {
            let reason = format!("expected a tar with one folder that has {TREE} in it");
            return Err(SourceError::document(name, reason));
        };
        let root = root.trim_end_matches('/').to_owned();
        drop(roots);
        let folder = root.strip_suffix("registry").unwrap_or(&root).to_owned();
        let layout = Layout::archive(Arc::clone(&members), &root);
        Ok(Self { name, layout, files: StoredFiles::Archive { members, folder } })
    }

    /// As people named it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of it.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The content of a small file next to `registry/`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When it is larger than a manifest may be, or the disk fails.
    pub fn file(&self, file: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let part = match &self.files {
            StoredFiles::Archive { members, folder } => match members.part(&format!("{folder}{file}")) {
                Some(part) => self.part(part, file),
                None => return Ok(None),
            },
            StoredFiles::Directory(path) => match super::files::Files::Directory(path.clone()).part(file) {
                Err(SourceError::Missing { .. }) => return Ok(None),
                part => part?,
            },
        };
        part.document().map(Some)
    }

    /// The image that `wanted` chooses: its name with or without host, with tag or digest; or the one that the package is of; or
    /// the only one. Returns its repository here, and its digest.
    ///
    /// # Errors
    ///
    /// When there is no such image, or it is not said which one is meant.
    pub fn image(&self, wanted: Option<&str>) -> Result<(String, Digest), SourceError> {
        match wanted {
            Some(wanted) => self.named(wanted)?.ok_or_else(|| self.no_such(wanted)),
            None => match self.main()? {
                Some(main) => Ok(main),
                None => self.only(),
            },
        }
    }

    /// The image of this name.
    pub fn named(&self, wanted: &str) -> Result<Option<(String, Digest)>, SourceError> {
        let reference =
            Reference::parse(wanted).map_err(|error| SourceError::document(self.name.clone(), error))?;
        let (host, path) = (reference.host(), reference.repository().name());
        // As it is written, with its host, and as sealer and sealos save it: without.
        let written = wanted.split('@').next().unwrap_or(wanted);
        let written = written.strip_suffix(&format!(":{}", reference.identifier())).unwrap_or(written);
        for name in [written, &format!("{host}/{path}"), path] {
            let is_name = Repository::parse(&format!("any.example/{name}")).is_ok_and(|it| it.name() == name);
            if !is_name {
                continue;
            }
            let digest = match (reference.digest(), reference.tag()) {
                (Some(digest), _) if self.layout.has_manifest(name, digest)? => Some(digest.clone()),
                (None, Some(tag)) => self.layout.tagged(name, tag)?,
                _ => None,
            };
            if let Some(digest) = digest {
                return Ok(Some((name.to_owned(), digest)));
            }
        }
        Ok(None)
    }

    fn main(&self) -> Result<Option<(String, Digest)>, SourceError> {
        let Some(content) = self.file(PACKAGE_FILE)? else { return Ok(None) };
        let place = format!("{PACKAGE_FILE} of {}", self.name);
        let head: Head =
            serde_json::from_slice(&content).map_err(|error| SourceError::document(place.clone(), error))?;
        let Some(image) = head.image else { return Ok(None) };
        let digest = image
            .digest
            .parse()
            .map_err(|_| SourceError::document(place, format!("{:?} is no digest", image.digest)))?;
        Ok(Some((image.repository, digest)))
    }

    fn only(&self) -> Result<(String, Digest), SourceError> {
        let names = self.names()?;
        match &names[..] {
            [(repository, tag)] => {
                let digest = self.layout.tagged(repository, tag)?;
                Ok((repository.clone(), digest.ok_or_else(|| self.no_such(tag))?))
            }
            [] => Err(SourceError::document(self.name.clone(), "there is no image in it")),
            names => Err(SourceError::SeveralImages {
                source_name: self.name.clone(),
                count: names.len(),
                images: list(names),
            }),
        }
    }

    /// All images with a name: repository and tag, sorted.
    pub fn names(&self) -> Result<Vec<(String, String)>, SourceError> {
        let mut names = Vec::new();
        for repository in self.layout.repositories()? {
            names.extend(self.layout.tags(&repository)?.into_iter().map(|tag| (repository.clone(), tag)));
        }
        Ok(names)
    }

    fn no_such(&self, wanted: &str) -> SourceError {
        let images = self.names().map(|names| list(&names)).unwrap_or_default();
        SourceError::NoSuchImage { source_name: self.name.clone(), wanted: wanted.to_owned(), images }
    }

    fn part(&self, part: layout::Part, what: &str) -> Part {
        let place = format!("{what} in {}", self.name);
        Part { place, file: part.file, offset: part.offset, size: part.size }
    }
}

fn list(names: &[(String, String)]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> =
        names.iter().take(SHOWN).map(|(repository, tag)| format!("{repository}:{tag}")).collect();
    shown.join(", ")
}

/// One of them.
#[derive(Debug)]
pub(super) struct StoredImage {
    all: StoredImages,
    /// As people named it.
    name: String,
    repository: String,
    digest: Digest,
}

impl StoredImage {
    pub(super) fn open(name: String, all: StoredImages, wanted: Option<&str>) -> Result<Self, SourceError> {
        let (repository, digest) = all.image(wanted)?;
        Ok(Self { all, name, repository, digest })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the image's name leads to.
    pub(super) fn root(&self) -> Result<Document, SourceError> {
        let content = self.content(&self.digest)?;
        let size = content.len() as u64;
        // What is none is said to be none where it is read.
        let parsed = Parsed::parse(&content);
        let media_type = parsed.as_ref().map_or(OCI_MANIFEST, Parsed::media_type);
        let descriptor = Descriptor::new(media_type.into(), size, self.digest.clone());
        Ok(Document { descriptor, content: content.into() })
    }

    /// A manifest, verified.
    pub(super) fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.content(descriptor.digest())
    }

    fn content(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let place = || format!("manifest {digest} of {}", self.name);
        let content = self.all.layout.manifest(&self.repository, digest)?;
        let content = content.ok_or_else(|| SourceError::Missing { place: place() })?;
        super::files::verify(&content, digest, place)?;
        Ok(content)
    }

    pub(super) fn part(&self, digest: &Digest) -> Result<Part, SourceError> {
        let layout = &self.all.layout;
        // What is mounted elsewhere may have no link here; the digest says what it is.
        let part = match layout.blob(&self.repository, digest)? {
            Some(part) => Some(part),
            None => layout.data(digest)?,
        };
        let what = format!("blob {digest}");
        let place = format!("{what} in {}", self.all.name);
        part.map(|part| self.all.part(part, &what)).ok_or(SourceError::Missing { place })
    }

    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.part(descriptor.digest())?.verified(descriptor)
    }

    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, SourceError> {
        BlobStream::part(self.part(descriptor.digest())?, descriptor)
    }
}

impl From<LayoutError> for SourceError {
    fn from(error: LayoutError) -> Self {
        let place = error.path.display().to_string();
        SourceError::Io { place, error: error.error }
    }
}

#[cfg(test)]
mod tests;
