//! From stored bytes to a chunk in the cache: decode, verify, write, set the bit.

use std::sync::Arc;

use rafs::blob::decode::{Batch, decode, verify};
use rafs::blob::{Chunk, ChunkIndex};

use super::fetch::Arrived;
use super::plan::Extent;
use super::pool::Job;
use super::{Shared, Source};
use crate::front::{ChunkError, ChunkKey};

impl Shared {
    /// Puts the chunks of an extent that arrived into the cache.
    pub(super) fn store(self: Arc<Self>, arrived: Arrived) {
        let source = &arrived.sources[0];
        let blob = source.blob();
        let batch = match arrived.extent.chunks.first() {
            Some((_, first)) if first.batch.is_some() => Some(Batch::decode(blob, first, &arrived.stored)),
            _ => None,
        };
        let mut corrupt = Vec::new();
        for (index, chunk) in &arrived.extent.chunks {
            let stored = match &batch {
                None => decode(blob, chunk, &arrived.stored)
                    .map_err(|error| describe(&error))
                    .map(|content| self.write(source, *index, chunk, &content)),
                Some(batch) => batch
                    .as_ref()
                    .map_err(|error| describe(error))
                    .and_then(|batch| batch.member(blob, chunk).map_err(|error| describe(&error)))
                    .map(|content| self.write(source, *index, chunk, content)),
            };
            if let Err(reason) = stored {
                corrupt.push((*index, chunk.clone(), reason));
            }
        }
        self.refuse(&arrived, corrupt);
    }

    fn write(&self, source: &Source, index: ChunkIndex, chunk: &Chunk, content: &[u8]) {
        let key = ChunkKey { blob: source.cached.id(), chunk: index };
        let written = source.cached.store(index, chunk.uncompressed_offset, content);
        self.conclude(key, written.map_err(|error| self.cache_failed(key, &error)));
    }

    fn cache_failed(&self, key: ChunkKey, error: &std::io::Error) -> ChunkError {
        tracing::error!(blob = %key.blob, chunk = key.chunk.0, %error, "cannot write or read the cache");
        ChunkError::Cache(error.to_string())
    }

    /// Corrupt chunks are fetched once more, then given up.
    fn refuse(self: &Arc<Self>, arrived: &Arrived, corrupt: Vec<(ChunkIndex, Chunk, String)>) {
        if corrupt.is_empty() {
            return;
        }
        let chunks = corrupt.iter().map(|(index, chunk, _)| (*index, chunk.clone())).collect();
        let extent = Extent { chunks, ..arrived.extent.clone() };
        let again = self.fetch_again(arrived, extent);
        let id = arrived.sources[0].cached.id();
        for (index, chunk, reason) in corrupt {
            let (blob, at) = (id, chunk.compressed_offset);
            if again {
                tracing::warn!(%blob, chunk = index.0, at, reason, "corrupt chunk, fetching it again");
            } else {
                tracing::error!(%blob, chunk = index.0, at, reason, "corrupt chunk, reads of it fail");
                self.conclude(ChunkKey { blob: id, chunk: index }, Err(ChunkError::Corrupt(reason)));
            }
        }
    }

    /// Verifies a chunk that the cache claims to hold from an earlier boot; fetches it if it does not.
    pub(super) fn verify_claim(self: &Arc<Self>, source: Arc<Source>, key: ChunkKey, chunk: Chunk) {
        let shared = Arc::clone(self);
        let run = move || {
            let mut content = vec![0; chunk.uncompressed_size as usize];
            let read = source.cached.read(&mut content, chunk.uncompressed_offset);
            if read.is_ok() && verify(source.blob(), &chunk, &content).is_ok() {
                source.cached.confirm(key.chunk);
                return shared.conclude(key, Ok(()));
            }
            tracing::info!(blob = %key.blob, chunk = key.chunk.0, "the cache lost a chunk, fetching it");
            source.cached.discard(key.chunk);
            // Asked for anew, as any missing chunk.
            shared.state.lock().leave(key);
            shared.request(key.blob, &[key]);
        };
        self.pool.submit(Job { chunks: vec![key], run: Box::new(run) }, true);
    }
}

/// An error with its causes.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
