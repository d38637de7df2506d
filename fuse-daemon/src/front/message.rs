//! What front and worker say to each other. Nothing in it points into the other's memory, so that they can be processes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rafs::blob::{Blob, Chunk, ChunkIndex};

use crate::cache::Generation;
use crate::control::BlobId;

/// A chunk of a blob's files in the cache. What is on its way for files that were removed meanwhile has another
/// generation than the next ones, and reaches nobody who reads from those.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkKey {
    /// The blob.
    pub blob: BlobId,
    /// Which of its files in the cache.
    pub generation: Generation,
    /// The chunk in it.
    pub chunk: ChunkIndex,
}

/// Who has blobs, by its name: the text of its specification.
pub type BackendName = Arc<str>;

/// Stored bytes that are decoded as one: of one chunk, or of a batch of them.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Where the stored bytes are in the blob.
    pub stored: Range<u64>,
    /// The chunks in them that are wanted.
    pub chunks: Vec<(ChunkIndex, Chunk)>,
}

/// Chunks to bring: extents of a blob, each of which starts where the one before it ends.
#[derive(Clone, Debug)]
pub struct Order {
    /// The blob.
    pub blob: BlobId,
    /// Which of its files in the cache they are for.
    pub generation: Generation,
    /// How its chunks are coded.
    pub coding: Arc<Blob>,
    /// What is to be fetched.
    pub extents: VecDeque<Extent>,
    /// Chunks that readers wait for; the others come along since programs read on.
    pub demanded: Vec<ChunkIndex>,
    /// Backends that delivered it corrupt.
    pub refused: Vec<BackendName>,
    /// When it is too late: the clock has started with the reader.
    pub until: Instant,
}

impl Order {
    /// The bytes of the blob.
    pub fn stored(&self) -> Range<u64> {
        let start = self.extents.front().map_or(0, |extent| extent.stored.start);
        let end = self.extents.back().map_or(start, |extent| extent.stored.end);
        start..end
    }

    /// The index behind its last chunk.
    pub fn end(&self) -> ChunkIndex {
        let last = self.extents.back().and_then(|extent| extent.chunks.last());
        ChunkIndex(last.map_or(0, |(last, _)| last.0 + 1))
    }

    /// The key of one of its chunks.
    pub fn key(&self, chunk: ChunkIndex) -> ChunkKey {
        ChunkKey { blob: self.blob, generation: self.generation, chunk }
    }

    /// The keys of all its chunks.
    pub fn keys(&self) -> impl Iterator<Item = ChunkKey> {
        let chunks = self.extents.iter().flat_map(|extent| &extent.chunks);
        chunks.map(|(chunk, _)| self.key(*chunk))
    }
}

/// What a chunk decodes to, as the worker says: nothing is believed before it is verified. The bytes are the caller's
/// alone, so that nobody changes them after they were verified.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The uncompressed bytes.
    pub bytes: &'a [u8],
    /// Who delivered them.
    pub from: &'a BackendName,
}

/// The fallible half: it fetches and decodes. It keeps nothing that its successor could not do without.
pub trait Worker: Send + Sync {
    /// Queues orders and returns at once. Each chunk is answered by one [`Responses::finished`], sooner or later, unless
    /// the worker ends before.
    fn fetch(&self, orders: Vec<Order>);

    /// A reader waits for a chunk that was ordered ahead of any.
    fn hurry(&self, chunk: ChunkKey);
}

type Fill<'a> = dyn FnMut(&mut [u8]) -> Result<(), String> + 'a;

/// A chunk that has arrived and is to be decoded.
pub struct ArrivedChunk<'a> {
    /// The chunk.
    pub chunk: ChunkKey,
    /// How many bytes it has.
    pub len: usize,
    /// Writes its bytes, all of them; an error says why they cannot be decoded.
    pub fill: Box<Fill<'a>>,
}

/// Where the worker reports to.
pub trait Responses: Send + Sync {
    /// A chunk has arrived, or will not. It is verified and stored by the thread that calls, which is to be one of the
    /// front's process.
    fn finished(&self, chunk: ChunkKey, outcome: Result<Content<'_>, ChunkError>);

    /// Chunks of a blob's files have arrived from a backend; they are decoded into memory of whoever reports.
    fn arrived(&self, from: &BackendName, arrivals: Vec<ArrivedChunk<'_>>) {
        for ArrivedChunk { chunk, len, mut fill } in arrivals {
            let mut bytes = vec![0; len];
            let corrupt = |reason| ChunkError::Corrupt { from: Arc::clone(from), reason };
            let outcome = fill(&mut bytes).map(|()| Content { bytes: &bytes, from });
            self.finished(chunk, outcome.map_err(corrupt));
        }
    }
}

/// Whoever orders from a worker that may end.
pub trait Orders: Responses {
    /// A worker has ended by itself, or was ended as it hung, while it owed these chunks: one of them may be the reason.
    fn blame(&self, owed: &[ChunkKey]);

    /// There is no worker from now on, until another one is ready.
    fn left_alone(&self);

    /// Another worker has taken the place of one that ended: it knows of no order.
    fn order_again(&self);
}

/// Why a chunk cannot be brought into the cache.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChunkError {
    /// No backend delivers it.
    #[error("fetching it failed: {0}")]
    Fetch(String),
    /// No backend delivered it in time.
    #[error("it did not arrive in time: {0}")]
    Late(String),
    /// What a backend delivered cannot be decoded.
    #[error("what {from} delivered is corrupt: {reason}")]
    Corrupt {
        /// The backend.
        from: BackendName,
        /// What is wrong.
        reason: String,
    },
    /// All backends delivered it corrupt.
    #[error("no other backend has it")]
    Exhausted,
    /// The worker lost it, by a bug.
    #[error("the work on it ended in a bug")]
    Lost,
    /// Workers end over it.
    #[error("each worker that fetched it has ended")]
    Deadly,
    /// It could not be written to the cache, or read there.
    #[error("the cache file cannot be written or read: {0}")]
    Cache(String),
    /// No mounted image describes the chunk, or no source of the blob is known.
    #[error("no mounted image has this chunk")]
    Unknown,
}
