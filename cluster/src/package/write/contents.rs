//! All that a package holds: small files whole, blobs by where they come from.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt as _;
use image::source::{Document, Source};
use registry::client::{Client, Descriptor};
use registry::layout::Paths;
use registry::media_types::OCI_INDEX;
use registry::{Digest, Reference, digest};
use serde_json::json;

use super::lazily::Lazily;
use super::{REGISTRY, destination};
use crate::lock::{self, Locked};
use crate::package::Contents;
use crate::save::plan::Plan;
use crate::save::{Failed, Forms, NotSaved, SaveError};
use crate::saved::{DIRECTORY_REPOSITORY, DIRECTORY_TAG, Parts, SavedManifest, Table};

/// A blob, and where it comes from.
#[derive(Clone)]
pub(super) struct Blob {
    pub(super) descriptor: Descriptor,
    pub(super) source: Source,
    /// The numbers of the images that have it.
    pub(super) images: Vec<usize>,
}

/// An image, as it is to be reported.
pub(super) struct Listed {
    pub(super) reference: Reference,
    /// Of its blobs.
    pub(super) bytes: u64,
    /// How many blobs it has.
    pub(super) blobs: usize,
    /// Whether it was reported already.
    pub(super) said: bool,
}

/// All images, with the files that they are made of.
pub(super) struct Gathered {
    pub(super) images: Vec<Listed>,
    /// Documents and links, by their names.
    pub(super) files: BTreeMap<String, Bytes>,
    /// Blobs by the texts of their digests.
    pub(super) blobs: BTreeMap<String, Blob>,
}

impl Gathered {
    /// Reads the documents of all images of `contents`, `at_once` at once. What is there as RAFS is in `lazily`.
    pub(super) async fn of(
        contents: &Contents<'_>,
        plain: bool,
        lazily: Option<&Lazily>,
        client: &Client,
        at_once: usize,
    ) -> Result<Self, NotSaved> {
        let table = lazily.and_then(|lazily| lazily.images.table());
        let as_it_is = contents.lock.images.iter().map(|locked| match table {
            Some(table) if !plain => (locked, as_they_are(locked, table)),
            _ => (locked, Some(locked.clone())),
        });
        let all =
            contents.cluster.map(|cluster| (cluster, Some(cluster.clone()))).into_iter().chain(as_it_is);
        let read = |(locked, rest): (&Locked, Option<Locked>)| {
            let name = locked.reference.clone();
            async move {
                let Some(rest) = rest else { return (name, Ok(None)) };
                let planned = planned(&rest, contents.root, client).await;
                (name, planned.map(|(source, plan)| Some((rest, source, plan))))
            }
        };
        let reads: Vec<_> = all.map(read).collect();
        let plans: Vec<_> = futures::stream::iter(reads).buffered(at_once.max(1)).collect().await;
        let parts = match lazily {
            None => None,
            Some(lazily) => Some(lazily.images.parts(client).await.map_err(destination)?),
        };
        let mut gathered = Self { images: Vec::new(), files: BTreeMap::new(), blobs: BTreeMap::new() };
        let mut failed = Vec::new();
        let said = lazily.is_some_and(|lazily| lazily.made);
        for (number, (image, planned)) in plans.into_iter().enumerate() {
            // The cluster image comes first, and is not among those that were just saved.
            let said = said && (number > 0 || contents.cluster.is_none());
            let added = planned.and_then(|planned| match (planned, &parts) {
                (Some((locked, source, plan)), _) => gathered.add(&locked, &source, &plan, said),
                (None, Some(parts)) => gathered.add_nydus(&image, parts, said),
                (None, None) => Ok(()),
            });
            failed.extend(added.err().map(|error| Failed { image, error }));
        }
        if !failed.is_empty() {
            return Err(NotSaved::Images(failed));
        }
        if let Some(parts) = &parts {
            gathered.add_set(parts, table, plain).map_err(destination)?;
        }
        Ok(gathered)
    }

    /// Adds an image as it is.
    fn add(&mut self, locked: &Locked, source: &Source, plan: &Plan, said: bool) -> Result<(), SaveError> {
        let repository = locked.reference.repository().name();
        for document in plan.manifests.iter().chain(&plan.indexes) {
            self.document(repository, document)?;
        }
        let number = self.images.len();
        for blob in &plan.blobs {
            self.blob(repository, blob, source, number)?;
        }
        if let (Some(tag), Some(root)) = (locked.reference.tag(), plan.root()) {
            self.tag(repository, tag, root.descriptor.digest());
        }
        self.list(&locked.reference, &plan.blobs, said);
        Ok(())
    }

    /// Adds an image under whose name are its nydus images, by an index of their own.
    fn add_nydus(&mut self, image: &Reference, parts: &Parts, said: bool) -> Result<(), SaveError> {
        let (repository, number) = (image.repository().name(), self.images.len());
        let own: Vec<&SavedManifest> = parts.parts.iter().filter(|part| part.is_nydus_of(image)).collect();
        let manifests: Vec<_> = own.iter().map(|part| &part.entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let content = Bytes::from(index.to_string());
        let digest = digest::sha256(&content);
        let descriptor = Descriptor::new(OCI_INDEX.into(), content.len() as u64, digest.clone());
        self.document(repository, &Document { descriptor, content })?;
        let mut blobs: Vec<Descriptor> = Vec::new();
        for part in own {
            self.document(repository, &part.manifest)?;
            for blob in &part.blobs {
                if !blobs.iter().any(|known| known.digest() == blob.digest()) {
                    self.blob(repository, blob, &parts.source, number)?;
                    blobs.push(blob.clone());
                }
            }
        }
        if let Some(tag) = image.tag() {
            self.tag(repository, tag, &digest);
        }
        self.list(image, &blobs, said);
        Ok(())
    }

    /// Adds what names all images that are there as RAFS. An image that is there as that alone is not taken as it is from there either.
    fn add_set(&mut self, parts: &Parts, table: Option<&Table>, plain: bool) -> Result<(), SaveError> {
        self.document(DIRECTORY_REPOSITORY, &parts.index)?;
        self.tag(DIRECTORY_REPOSITORY, DIRECTORY_TAG, parts.index.descriptor.digest());
        let is_rafs = |part: &SavedManifest| {
            table.is_some_and(|table| table.images.contains_key(part.manifest.descriptor.digest()))
        };
        for part in parts.parts.iter().filter(|part| part.is_ours() || plain || !is_rafs(part)) {
            self.document(DIRECTORY_REPOSITORY, &part.manifest)?;
            for blob in &part.blobs {
                let known = self.blobs.contains_key(&blob.digest().to_string());
                // What names all of them comes with the last image.
                let last = self.images.len().saturating_sub(1);
                self.blob(DIRECTORY_REPOSITORY, blob, &parts.source, last)?;
                if let (false, Some(listed)) = (known, self.images.last_mut()) {
                    listed.blobs += 1;
                    listed.bytes = listed.bytes.saturating_add(blob.size());
                }
            }
        }
        Ok(())
    }

    fn list(&mut self, reference: &Reference, blobs: &[Descriptor], said: bool) {
        let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size()));
        self.images.push(Listed { reference: reference.clone(), bytes, blobs: blobs.len(), said });
    }

    fn document(&mut self, repository: &str, document: &Document) -> Result<(), SaveError> {
        let digest = document.descriptor.digest();
        sha256(digest)?;
        self.link(&paths().revision(repository, digest), digest);
        self.files.insert(paths().data(digest).display().to_string(), document.content.clone());
        Ok(())
    }

    /// Notes a blob of the image with this number.
    fn blob(
        &mut self,
        repository: &str,
        blob: &Descriptor,
        source: &Source,
        number: usize,
    ) -> Result<(), SaveError> {
        sha256(blob.digest())?;
        self.link(&paths().layer(repository, blob.digest()), blob.digest());
        let new = || Blob { descriptor: blob.clone(), source: source.clone(), images: Vec::new() };
        let images = &mut self.blobs.entry(blob.digest().to_string()).or_insert_with(new).images;
        if repository != DIRECTORY_REPOSITORY || images.is_empty() {
            images.push(number);
        }
        Ok(())
    }

    fn tag(&mut self, repository: &str, tag: &str, digest: &Digest) {
        self.link(&paths().tag_index(repository, tag, digest), digest);
        self.link(&paths().tag_current(repository, tag), digest);
    }

    fn link(&mut self, path: &Path, digest: &Digest) {
        self.files.insert(path.display().to_string(), digest.to_string().into());
    }
}

/// The images of `locked` that are not there as RAFS; `None` if all are.
fn as_they_are(locked: &Locked, table: &Table) -> Option<Locked> {
    let is_rafs = |digest: &Digest| table.images.contains_key(digest);
    let mut rest = locked.clone();
    rest.nydus = locked.own_nydus(is_rafs).cloned().collect();
    rest.platforms.retain(|image| !is_rafs(&image.digest));
    let as_rafs = rest.platforms.len() < locked.platforms.len();
    (!as_rafs || !rest.platforms.is_empty() || !rest.nydus.is_empty()).then_some(rest)
}

async fn planned(locked: &Locked, root: &Path, client: &Client) -> Result<(Source, Plan), SaveError> {
    let source = lock::open(&lock::locked_source(locked, root), client).await?;
    let plan = Plan::of(locked, &source, Forms::PLAIN).await?;
    Ok((source, plan))
}

fn paths() -> Paths {
    Paths::new(Path::new(REGISTRY))
}

/// The layout has other content under the digest of its SHA-256, which is known only when it is here.
fn sha256(digest: &Digest) -> Result<(), SaveError> {
    match digest.algorithm().as_ref() {
        "sha256" => Ok(()),
        _ => Err(crate::save::LayoutError::Algorithm(digest.clone()).into()),
    }
}
