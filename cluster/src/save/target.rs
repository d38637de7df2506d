//! Where blobs and documents go: a directory or a repository, and the names that are given there.

use std::sync::Arc;

use image::destination::{BlobFolder, InRegistry};
use registry::client::Client;
use registry::{Digest, digest};

use super::layout::RegistryFolder;
use super::{Destination, SaveError, Saved, set};
use crate::lock::Lock;
use crate::saved::{BlobStore, Table};

/// Where blobs and documents go.
#[derive(Clone)]
pub(crate) enum Target {
    Layout(Arc<RegistryFolder>),
    Repository { client: Client, repository: registry::Repository },
}

impl Target {
    /// Opens it; returns where converted layers wait, too.
    pub(super) fn open(
        lock: &Lock,
        destination: &Destination,
        client: &Client,
    ) -> Result<(Self, std::path::PathBuf), SaveError> {
        match destination {
            Destination::Directory(path) => {
                let layout = Arc::new(RegistryFolder::open(path, lock)?);
                let spool = layout.spool();
                Ok((Self::Layout(layout), spool))
            }
            Destination::Repository(reference) => {
                let repository = reference.repository().clone();
                let name = digest::sha256(repository.to_string().as_bytes());
                let name = format!("nydus-cluster-save-{}", name.digest().get(..16).unwrap_or_default());
                let spool = client.config().upload.spool_dir.join(name);
                Ok((Self::Repository { client: client.clone(), repository }, spool))
            }
        }
    }

    pub(super) fn store(&self) -> BlobStore {
        match self {
            Self::Layout(layout) => BlobStore::Folder(Arc::clone(layout.blobs())),
            Self::Repository { client, repository } => {
                BlobStore::Repository { client: client.clone(), repository: repository.clone() }
            }
        }
    }

    /// As a place that images go to.
    pub(super) fn destination(&self) -> Arc<dyn image::destination::Destination> {
        match self {
            Self::Layout(layout) => Arc::<BlobFolder>::clone(layout.blobs()),
            Self::Repository { client, repository } => {
                Arc::new(InRegistry::new(client.clone(), repository.clone()))
            }
        }
    }

    /// Names all of `saved`, and each image where they have names of their own. Returns the digest of what names all.
    pub(super) async fn name(
        &self,
        destination: &Destination,
        lock: &Lock,
        table: Option<&Table>,
        saved: &[Saved],
    ) -> Result<Option<Digest>, SaveError> {
        if matches!(self, Self::Layout(_)) && table.is_none() {
            // Whoever wants plain images of a directory asks for them by their names.
            return Ok(None);
        }
        let set = set::put(self.destination().as_ref(), lock, table, saved).await?;
        let digest = digest::sha256(&set.index);
        match (self, destination) {
            (Self::Layout(layout), _) => {
                for image in saved.iter().filter(|image| image.plan.plain.is_empty()) {
                    layout.name_nydus(image).await?;
                }
                layout.name_set(&set).await?;
            }
            (Self::Repository { client, .. }, Destination::Repository(reference)) => {
                client.put_manifest(reference, registry::media_types::OCI_INDEX, set.index).await?;
            }
            (Self::Repository { .. }, Destination::Directory(_)) => {}
        }
        Ok(Some(digest))
    }
}
