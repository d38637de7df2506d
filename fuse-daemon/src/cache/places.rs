//! What images say of a blob's chunks: where each lies in the cache file, and what it holds.
//!
//! A chunk is verified against the image that asked for it, and then serves every image that names the blob. That is
//! right only as long as all of them mean the same bytes. So what the first image says is kept beside the cache, in
//! `<blob>.places`, one record of 48 bytes for each chunk, and later ones are held against it:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 48 n | 8 | offset | of chunk n in the uncompressed blob, in bytes |
//! | 48 n + 8 | 4 | size | uncompressed size in bytes; 0: no image has named the chunk yet |
//! | 48 n + 12 | 4 | – | 0 |
//! | 48 n + 16 | 32 | digest | of the uncompressed bytes |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rafs::blob::{Chunk, ChunkIndex};
use rafs::digest::Digest;

use super::chunk_map::CHUNK_LIMIT;

const RECORD_SIZE: usize = 48;

/// What an image says of one chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Where it starts in the uncompressed blob, in bytes.
    pub offset: u64,
    /// Its uncompressed size in bytes, at least 1.
    pub size: u32,
    /// Digest of its uncompressed bytes.
    pub digest: Digest,
}

impl Place {
    /// What is said of `chunk` by its description.
    pub fn new(index: ChunkIndex, chunk: &Chunk) -> Self {
        Self {
            chunk: index,
            offset: chunk.uncompressed_offset,
            size: chunk.uncompressed_size,
            digest: chunk.digest,
        }
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.size.into())
    }

    /// Whether both are the same bytes at the same place, under whatever index.
    fn same_bytes(&self, other: &Self) -> bool {
        (self.offset, self.size, self.digest) == (other.offset, other.size, other.digest)
    }
}

/// The first chunk of `said` that contradicts what is `known` (or another of `said`): another place or content under the
/// same index, or a place that overlaps with another chunk's. `None`: `known` now has all of `said`.
fn admit(known: &mut Vec<Option<Place>>, said: &[Place]) -> Option<ChunkIndex> {
    for place in said {
        let at = place.chunk.0 as usize;
        if at >= known.len() {
            known.resize(at + 1, None);
        }
        match &mut known[at] {
            Some(known) if known != place => return Some(place.chunk),
            known => *known = Some(*place),
        }
    }
    let mut by_offset: Vec<&Place> = known.iter().flatten().collect();
    by_offset.sort_unstable_by_key(|place| (place.offset, place.size));
    let overlap = |pair: &&[&Place]| pair[0].end() > pair[1].offset && !pair[0].same_bytes(pair[1]);
    by_offset.windows(2).find(overlap).map(|pair| pair[1].chunk)
}

/// Holds what an image says of a blob against what `file` has of earlier ones, and adds what is new; the first chunk
/// that contradicts, if one does: then nothing is added.
///
/// # Errors
///
/// The file cannot be read or written.
pub(super) fn admit_to(file: &File, said: &[Place]) -> io::Result<Option<ChunkIndex>> {
    let mut known = load(file)?;
    let new: Vec<Place> = said
        .iter()
        .filter(|place| known.get(place.chunk.0 as usize).copied().flatten() != Some(**place))
        .copied()
        .collect();
    // The usual case: the same image again, or one made of the same layers.
    if new.is_empty() {
        return Ok(None);
    }
    if let Some(chunk) = admit(&mut known, &new) {
        return Ok(Some(chunk));
    }
    let mut bytes = vec![0; known.len() * RECORD_SIZE];
    for (record, place) in bytes.chunks_exact_mut(RECORD_SIZE).zip(&known) {
        if let Some(place) = place {
            encode(place, record);
        }
    }
    file.write_all_at(&bytes, 0)?;
    Ok(None)
}

fn load(file: &File) -> io::Result<Vec<Option<Place>>> {
    let most = CHUNK_LIMIT as usize * RECORD_SIZE;
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(most).min(most);
    let mut bytes = vec![0; size / RECORD_SIZE * RECORD_SIZE];
    file.read_exact_at(&mut bytes, 0)?;
    Ok((0..)
        .map(ChunkIndex)
        .zip(bytes.chunks_exact(RECORD_SIZE))
        .map(|(chunk, record)| decode(chunk, record))
        .collect())
}

fn encode(place: &Place, record: &mut [u8]) {
    record[..8].copy_from_slice(&place.offset.to_le_bytes());
    record[8..12].copy_from_slice(&place.size.to_le_bytes());
    record[16..].copy_from_slice(&place.digest.0);
}

fn decode(chunk: ChunkIndex, record: &[u8]) -> Option<Place> {
    let (offset, rest) = record.split_first_chunk::<8>()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    let digest = Digest(*rest.last_chunk::<32>()?);
    let size = u32::from_le_bytes(*size);
    (size > 0).then_some(Place { chunk, offset: u64::from_le_bytes(*offset), size, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(chunk: u32, offset: u64, content: u8) -> Place {
        Place { chunk: ChunkIndex(chunk), offset, size: 4096, digest: Digest([content; 32]) }
    }

    fn admitted(images: &[&[Place]]) -> Vec<Option<u32>> {
        let file = tempfile::tempfile().unwrap();
        images.iter().map(|said| admit_to(&file, said).unwrap().map(|chunk| chunk.0)).collect()
    }

    #[test]
    fn images_that_name_different_chunks_of_a_blob_agree() {
        let (first, second) = ([place(0, 0, 1), place(2, 8192, 3)], [place(1, 4096, 2), place(2, 8192, 3)]);
        assert_eq!(admitted(&[&first, &second, &first]), [None, None, None]);
    }

    #[test]
    fn another_content_or_place_under_the_same_index_contradicts() {
        let honest = [place(0, 0, 1), place(1, 4096, 2)];
        for forged in [place(1, 4096, 9), place(1, 1 << 20, 2)] {
            assert_eq!(admitted(&[&honest, &[forged], &honest]), [None, Some(1), None], "{forged:?}");
        }
    }

    #[test]
    fn a_chunk_that_overlaps_another_contradicts() {
        let honest = [place(0, 0, 1), place(1, 4096, 2)];
        assert_eq!(admitted(&[&honest, &[place(7, 2048, 9)]]), [None, Some(7)]);
        assert_eq!(admitted(&[&[place(0, 0, 1), place(1, 100, 2)]]), [Some(1)], "within one image as well");
    }

    #[test]
    fn one_chunk_under_two_indexes_is_no_contradiction() {
        assert_eq!(admitted(&[&[place(0, 0, 1), place(1, 0, 1)]]), [None]);
    }
}
