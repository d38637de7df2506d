//! All that a package holds: small files whole, blobs by where they come from.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt as _;
use image::source::Source;
use registry::client::{Client, Descriptor};
use registry::layout::Paths;
use registry::{Digest, Reference};

use super::REGISTRY;
use crate::lock::{self, Lock, Locked};
use crate::save::plan::Plan;
use crate::save::{Failed, Forms, NotSaved, SaveError};

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
    /// Reads the documents of all images of `lock`, `at_once` at once.
    pub(super) async fn of(
        lock: &Lock,
        root: &Path,
        client: &Client,
        at_once: usize,
    ) -> Result<Self, NotSaved> {
        let plan = |locked: Locked| async move {
            let planned = async {
                let source = Source::open(&lock::locked_source(&locked, root), client).await?;
                let plan = Plan::of(&locked, &source, Forms::PLAIN).await?;
                Ok((source, plan))
            };
            let planned: Result<(Source, Plan), SaveError> = planned.await;
            (locked, planned)
        };
        let plans: Vec<_> = lock.images.iter().cloned().map(plan).collect();
        let plans: Vec<_> = futures::stream::iter(plans).buffered(at_once.max(1)).collect().await;
        let mut gathered = Self { images: Vec::new(), files: BTreeMap::new(), blobs: BTreeMap::new() };
        let mut failed = Vec::new();
        for (locked, planned) in plans {
            let added = planned.and_then(|(source, plan)| gathered.add(&locked, &source, &plan));
            failed.extend(added.err().map(|error| Failed { image: locked.reference.clone(), error }));
        }
        if failed.is_empty() { Ok(gathered) } else { Err(NotSaved::Images(failed)) }
    }

    fn add(&mut self, locked: &Locked, source: &Source, plan: &Plan) -> Result<(), SaveError> {
        let paths = Paths::new(Path::new(REGISTRY));
        let repository = locked.reference.repository().name();
        let mut link = |path: std::path::PathBuf, digest: &Digest| {
            self.files.insert(path.display().to_string(), digest.to_string().into());
        };
        for document in plan.manifests.iter().chain(&plan.indexes) {
            let digest = document.descriptor.digest();
            link(paths.revision(repository, digest), digest);
        }
        for blob in &plan.blobs {
            sha256(blob.digest())?;
            link(paths.layer(repository, blob.digest()), blob.digest());
        }
        if let (Some(tag), Some(root)) = (locked.reference.tag(), plan.root()) {
            let digest = root.descriptor.digest();
            link(paths.tag_index(repository, tag, digest), digest);
            link(paths.tag_current(repository, tag), digest);
        }
        for document in plan.manifests.iter().chain(&plan.indexes) {
            let digest = document.descriptor.digest();
            sha256(digest)?;
            self.files.insert(paths.data(digest).display().to_string(), document.content.clone());
        }
        let number = self.images.len();
        for blob in &plan.blobs {
            let new = || Blob { descriptor: blob.clone(), source: source.clone(), images: Vec::new() };
            self.blobs.entry(blob.digest().to_string()).or_insert_with(new).images.push(number);
        }
        let bytes = plan.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size()));
        let (reference, blobs) = (locked.reference.clone(), plan.blobs.len());
        self.images.push(Listed { reference, bytes, blobs });
        Ok(())
    }
}

/// The layout has other content under the digest of its SHA-256, which is known only when it is here.
fn sha256(digest: &Digest) -> Result<(), SaveError> {
    match digest.algorithm().as_ref() {
        "sha256" => Ok(()),
        _ => Err(crate::save::LayoutError::Algorithm(digest.clone()).into()),
    }
}
