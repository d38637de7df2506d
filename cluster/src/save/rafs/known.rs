//! What is stored at the destination already: the layers of earlier saves, and what their blobs hold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use image::destination::StoreError;
use image::files::nydus_blobs;
use image::location::Location;
use image::platform::PlatformName;
use rafs::blob::Blob;
use rafs::build::BuildOptions;
use rafs::share::{Holders, StoredError};
use registry::client::Client;
use registry::{Digest, Reference};

use crate::save::SaveError;
use crate::saved::{
    BlobEntry, BlobStore, BootstrapEntry, ImageEntry, LayerEntry, Table, oci_digest, rafs_digest,
};

/// Blobs that are looked at at once.
const AT_ONCE: usize = 8;

/// What is stored.
#[derive(Default)]
pub(crate) struct Known {
    chunk_size: u32,
    digester: String,
    blobs: HashMap<Digest, BlobEntry>,
    layers: HashMap<Digest, LayerEntry>,
    /// Nydus images of earlier saves, with their bootstraps, by the images' own manifests.
    images: HashMap<Digest, (ImageEntry, BootstrapEntry)>,
    /// What the blobs hold, once somebody asked.
    holders: Option<Arc<Holders>>,
}

impl Known {
    /// What `tables` say that is there, as far as blobs are built as `options` say and still there.
    pub(crate) async fn of(
        tables: Vec<Table>,
        store: &BlobStore,
        options: &BuildOptions,
    ) -> Result<Self, SaveError> {
        let digester = options.digester.word().to_owned();
        let mut known = Self { chunk_size: options.chunk_size, digester, ..Self::default() };
        for table in tables {
            if table.chunk_size != known.chunk_size || table.digester != known.digester {
                tracing::info!(table.chunk_size, table.digester, "saved with other chunks: not used");
                continue;
            }
            for (id, image) in table.images {
                let bootstrap = table.chains.get(&image.chain).and_then(|chain| chain.bootstrap.clone());
                if let Some(bootstrap) = bootstrap {
                    known.images.entry(id).or_insert((image, bootstrap));
                }
            }
            known.blobs.extend(table.blobs);
            for (id, layer) in table.layers {
                known.layers.entry(id).or_insert(layer);
            }
        }
        let blobs: Vec<Digest> = known.blobs.keys().cloned().collect();
        let look = |blob: Digest| async move {
            let there = store.has(&blob).await.map_err(StoreError::from)?;
            Ok::<_, SaveError>((!there).then_some(blob))
        };
        let gone: Vec<Option<Digest>> =
            futures::stream::iter(blobs).map(look).buffer_unordered(AT_ONCE).try_collect().await?;
        let gone: HashSet<Digest> = gone.into_iter().flatten().collect();
        let is_there = |blob: &Digest| !gone.contains(blob);
        known.blobs.retain(|blob, _| is_there(blob));
        known.layers.retain(|_, layer| is_there(&layer.blob) && layer.foreign.iter().all(is_there));
        known.images.retain(|_, (image, _)| image.blobs.iter().all(is_there));
        Ok(known)
    }

    /// Adds the blobs of the nydus images of `image`, as far as they are built as these are and in the same place.
    pub(crate) async fn add_image(
        &mut self,
        image: &Reference,
        platforms: &[PlatformName],
        client: &Client,
        store: &BlobStore,
    ) -> Result<(), SaveError> {
        let location = Location::Registry(image.clone());
        for platform in platforms {
            let blobs = nydus_blobs(&location, client, platform).await;
            let blobs = blobs.map_err(|error| SaveError::ClusterImage {
                image: Box::new(image.clone()),
                error: Box::new(error),
            })?;
            for blob in blobs.into_iter().flatten() {
                if !self.fits(&blob) {
                    continue;
                }
                let (Some(id), Some((toc, _))) = (blob.id.map(oci_digest), blob.toc) else { continue };
                if !self.blobs.contains_key(&id) && store.has(&id).await.map_err(StoreError::from)? {
                    self.blobs.insert(id, BlobEntry { size: blob.stored_size, toc: oci_digest(toc) });
                }
            }
        }
        Ok(())
    }

    /// Whether the chunks of a blob are as those of all others are here.
    fn fits(&self, blob: &Blob) -> bool {
        blob.chunk_size == self.chunk_size
            && blob.digester.word() == self.digester
            && blob.chunks.iter().all(|chunk| chunk.batch.is_none())
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> Option<&LayerEntry> {
        self.layers.get(diff_id)
    }

    pub(crate) fn blob(&self, blob: &Digest) -> Option<&BlobEntry> {
        self.blobs.get(blob)
    }

    /// The nydus image that an earlier save made of the image with this manifest.
    pub(crate) fn image(&self, manifest: &Digest) -> Option<&(ImageEntry, BootstrapEntry)> {
        self.images.get(manifest)
    }

    /// A table of blobs and layers alone.
    pub(crate) fn layers_table(&self) -> Table {
        Table {
            chunk_size: self.chunk_size,
            digester: self.digester.clone(),
            blobs: self.blobs.clone(),
            layers: self.layers.clone(),
            ..Table::default()
        }
    }

    /// What all blobs hold.
    pub(crate) async fn holders(&mut self, store: &BlobStore) -> Result<Arc<Holders>, SaveError> {
        if let Some(holders) = &self.holders {
            return Ok(Arc::clone(holders));
        }
        let blobs: Vec<_> = self.blobs.iter().map(|(id, entry)| (id.clone(), entry.clone())).collect();
        let read = |(id, entry): (Digest, BlobEntry)| async move {
            let Some(own) = rafs_digest(&id) else { return Ok(None) };
            let (toc, read) = (rafs_digest(&entry.toc), store.blocking(&id));
            let chunks = move || rafs::share::read_chunks(own, entry.size, toc, read);
            match tokio::task::spawn_blocking(chunks).await? {
                // A blob of a cluster image that others made.
                Err(StoredError::NoBootstrap { .. }) => Ok(None),
                chunks => Ok::<_, SaveError>(chunks?),
            }
        };
        let blobs: Vec<Option<Blob>> =
            futures::stream::iter(blobs).map(read).buffer_unordered(AT_ONCE).try_collect().await?;
        let holders = Arc::new(Holders::new(blobs.into_iter().flatten().collect()));
        self.holders = Some(Arc::clone(&holders));
        Ok(holders)
    }

    /// Adds layers that were stored, and all blobs of them; `chunks` are those of new blobs.
    pub(crate) fn add(
        &mut self,
        layers: Vec<(Digest, LayerEntry)>,
        blobs: Vec<(Digest, BlobEntry)>,
        chunks: Vec<Blob>,
    ) {
        self.layers.extend(layers);
        self.blobs.extend(blobs);
        if let Some(holders) = self.holders.take() {
            let old =
                Arc::try_unwrap(holders).map_or_else(|shared| shared.blobs().to_vec(), Holders::into_blobs);
            self.holders = Some(Arc::new(Holders::new(old.into_iter().chain(chunks).collect())));
        }
    }
}
