//! Whether two files have the same content.

use std::collections::HashSet;

use crate::blob::Chunk;
use crate::blob::source::{BlobError, BlobSource, ChunkReader};
use crate::bootstrap::Bootstrap;
use crate::tree::{ChunkRef, Image};

/// What two files of the same size, or not, have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compared {
    Same,
    Differs {
        /// As in [`Difference::Content`](super::Difference::Content).
        offset: Option<u64>,
        bytes: u64,
    },
    /// The digests do not say: they are of other algorithms, or of chunks of other sizes.
    Unknown,
}

/// Whether chunk digests of one image say anything about those of the other.
pub(super) fn comparable(a: &Image, b: &Image) -> bool {
    let properties = |image: &Image| image.blobs.first().map(|blob| (blob.chunk_size, blob.digester));
    match (properties(a), properties(b)) {
        (Some(a), Some(b)) => a == b,
        // One of them has no content at all.
        _ => true,
    }
}

fn chunk<'a>(image: &'a Image, at: &ChunkRef) -> Option<&'a Chunk> {
    image.blobs.get(usize::from(at.blob.0))?.chunks.get(at.chunk.0 as usize)
}

/// Compares two files by the digests of their chunks, which are [`comparable`].
pub(super) fn by_digest(a: (&Image, &[ChunkRef]), b: (&Image, &[ChunkRef])) -> Compared {
    let contents = |(image, chunks): (_, &[ChunkRef])| {
        let content = |at| chunk(image, at).map(|chunk| (chunk.digest, chunk.uncompressed_size));
        chunks.iter().map(content).collect::<Option<Vec<_>>>()
    };
    let (Some(ours), Some(theirs)) = (contents(a), contents(b)) else { return Compared::Unknown };
    let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    if same == ours.len() && same == theirs.len() {
        return Compared::Same;
    }
    let known: HashSet<_> = ours.iter().collect();
    let new = theirs.iter().filter(|content| !known.contains(content));
    let start = ours[..same].iter().map(|(_, size)| u64::from(*size)).sum();
    Compared::Differs { offset: Some(start), bytes: new.map(|(_, size)| u64::from(*size)).sum() }
}

/// Compares the contents of files whose chunks cannot be compared, by reading them.
pub struct ContentReader<'a, S> {
    a: ChunkReader<'a, S>,
    b: ChunkReader<'a, S>,
}

impl<'a, S: BlobSource> ContentReader<'a, S> {
    /// Reads the files of two images. Both need their chunk information
    /// ([`load_chunk_info`](crate::blob::source::load_chunk_info)).
    pub fn new(a: (&'a Bootstrap, &'a S), b: (&'a Bootstrap, &'a S)) -> Self {
        Self { a: ChunkReader::new(a.0, a.1), b: ChunkReader::new(b.0, b.1) }
    }

    /// Where the contents of two files differ first, in bytes; `None` where they do not.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read, or is not what its digests say.
    pub fn first_difference(&mut self, a: &[ChunkRef], b: &[ChunkRef]) -> Result<Option<u64>, BlobError> {
        let (mut a, mut b) = (a.iter(), b.iter());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut at = 0;
        loop {
            if ours.is_empty()
                && let Some(next) = a.next()
            {
                ours = self.a.read(next.blob, next.chunk)?;
            }
            if theirs.is_empty()
                && let Some(next) = b.next()
            {
                theirs = self.b.read(next.blob, next.chunk)?;
            }
            let len = ours.len().min(theirs.len());
            let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            if same < len || len == 0 {
                let ended = ours.is_empty() && theirs.is_empty();
                return Ok((!ended).then_some(at + same as u64));
            }
            at += len as u64;
            ours.drain(..len);
            theirs.drain(..len);
        }
    }
}
