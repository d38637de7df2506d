//! What can be chosen about a build.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::BuildError;
use super::dictionary::Dictionary;
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;
use crate::layout::{CHUNK_SIZE_LIMIT, MIN_CHUNK_SIZE, is_chunk_size};

/// The most worker threads: each holds two units of buffers, and memory is to stay bounded on machines of many cores.
const THREADS_LIMIT: usize = 16;

/// How a layer is built.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// How chunks are compressed.
    pub compressor: Compressor,
    /// What chunk digests are made with.
    pub digester: DigestAlgorithm,
    /// Size of a chunk in bytes: a power of two from 4 KiB to 16 MiB. All layers of an image need the same.
    pub chunk_size: u32,
    /// Pack files of one chunk that are smaller than half of this size in bytes into batches that are compressed as one:
    /// a power of two from 4 KiB to the chunk size.
    pub batch_size: Option<u32>,
    /// The number of worker threads; 0: as many as the machine has cores. The result does not depend on it.
    pub threads: usize,
    /// Chunks of other images: content that is in there is not stored again.
    pub dictionary: Option<Arc<Dictionary>>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            compressor: Compressor::default(),
            digester: DigestAlgorithm::default(),
            chunk_size: 1 << 20,
            batch_size: None,
            threads: 0,
            dictionary: None,
        }
    }
}

impl BuildOptions {
    /// Whether a layer can be built so: sizes, and the dictionary's properties.
    ///
    /// # Errors
    ///
    /// When it cannot; a build ends with the same error.
    pub fn check(&self) -> Result<(), BuildError> {
        let chunk_size = self.chunk_size;
        if !is_chunk_size(chunk_size) {
            return Err(BuildError::ChunkSize { chunk_size });
        }
        if let Some(batch_size) = self.batch_size {
            if !batch_size.is_power_of_two() || !(MIN_CHUNK_SIZE..=chunk_size).contains(&batch_size) {
                return Err(BuildError::BatchSize { batch_size, chunk_size });
            }
            if chunk_size == CHUNK_SIZE_LIMIT {
                return Err(BuildError::BatchChunkSize { chunk_size });
            }
            // A batch is always decompressed when read: there is no way to say that it is stored as it is.
            if self.compressor == Compressor::None {
                return Err(BuildError::BatchWithoutCompressor);
            }
        }
        if let Some(dictionary) = &self.dictionary {
            dictionary.check(chunk_size, self.digester)?;
        }
        Ok(())
    }

    /// The number of worker threads.
    pub(super) fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = if self.threads == 0 { cores() } else { self.threads };
        threads.min(THREADS_LIMIT)
    }
}
