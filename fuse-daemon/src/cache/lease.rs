//! What a mount holds of a cached blob.

use std::ops::Range;
use std::sync::Arc;

use rafs::blob::ChunkIndex;

use super::blob::Variant;
use super::description::Said;
use super::{CacheState, CachedBlob};

/// Keeps a blob from being removed for as long as a mount may read from it, and has what the mount's image says of the
/// blob's chunks count for as long.
#[derive(Debug)]
pub struct Lease {
    cache: Arc<CacheState>,
    pub(super) blob: Arc<CachedBlob>,
    pub(super) variant: Variant,
    /// The chunks that the image says something of.
    said: Box<[Range<u32>]>,
}

impl Lease {
    /// Given out under the cache's lock alone, under which blobs are removed.
    pub(super) fn new(
        cache: Arc<CacheState>,
        blob: Arc<CachedBlob>,
        variant: Variant,
        said: &[Said],
    ) -> Self {
        blob.leased();
        Self { cache, blob, variant, said: runs(said.iter().map(|(index, _)| *index)) }
    }

    /// The blob. Who holds it but no lease, as work in progress may, finds itself with deleted files some day.
    pub fn blob(&self) -> &Arc<CachedBlob> {
        &self.blob
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.cache.released(self, || {
            self.blob.release(&self.said);
            self.blob.returned();
        });
    }
}

/// Ascending indexes, as ranges.
fn runs(indexes: impl Iterator<Item = ChunkIndex>) -> Box<[Range<u32>]> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for ChunkIndex(index) in indexes {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs.into()
}
