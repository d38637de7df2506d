//! Which chunks are not in the cache: some at a time, so that no list depends on the size of a file or an image.

use std::ops::Range;
use std::sync::Arc;

use rafs::blob::ChunkIndex;
use rafs::bootstrap::Nid;

use super::{FileSystem, FsError};
use crate::front::Want;

/// Pieces of a file that are looked at before others have their turn.
const PIECES_LIMIT: usize = 1 << 12;

impl FileSystem {
    /// The first chunks of a range of a file that are not in the cache, at most `limit`, and where in the file to go on; no place
    /// if there is nothing behind them. A chunk that the file repeats, one piece after the other, is named once.
    ///
    /// # Errors
    ///
    /// [`FsError::Bootstrap`].
    pub fn missing_of_file(
        &self,
        nid: Nid,
        range: Range<u64>,
        limit: usize,
    ) -> Result<(Vec<Want>, Option<u64>), FsError> {
        self.sound(|bootstrap| {
            let (mut missing, mut last) = (Vec::new(), None);
            for (looked_at, piece) in bootstrap.chunks(nid, range)?.enumerate() {
                let piece = piece?;
                if missing.len() == limit || looked_at == PIECES_LIMIT {
                    return Ok((missing, Some(piece.file_offset)));
                }
                if last.replace((piece.blob, piece.chunk)) == Some((piece.blob, piece.chunk)) {
                    continue;
                }
                let blob = self.blob(piece.blob)?;
                if !blob.is_ready(piece.chunk) {
                    missing.push(Want { blob: Arc::clone(blob), chunk: piece.chunk });
                }
            }
            Ok((missing, None))
        })
    }

    /// The first chunks of the image that are not in the cache, at most `limit`, and where those behind them begin. From
    /// `(0, 0)` on it comes to all: then there are none, and no place.
    pub fn missing_from(
        &self,
        from: (usize, ChunkIndex),
        limit: usize,
    ) -> (Vec<Want>, Option<(usize, ChunkIndex)>) {
        let mut missing = Vec::new();
        let (first, mut start) = from;
        for (index, lease) in self.blobs.iter().enumerate().skip(first) {
            for chunk in (start.0..self.chunk_count(index)).map(ChunkIndex) {
                if missing.len() == limit {
                    return (missing, Some((index, chunk)));
                }
                let blob = lease.blob();
                if !blob.is_ready(chunk) && blob.describe(chunk).is_some() {
                    missing.push(Want { blob: Arc::clone(blob), chunk });
                }
            }
            start = ChunkIndex(0);
        }
        (missing, None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use rafs::blob::{Blob, BlobIndex};
    use rafs::bootstrap::{Bootstrap, WriteOptions, write};
    use rafs::build::{BuildOptions, build_layer};
    use test_support::{noise, tar_of};
    use tokio::sync::mpsc;

    use super::*;
    use crate::cache::{BootId, Cache};
    use crate::control::BlobId;
    use crate::front::{ChunkKey, Front, FrontConfig, Order, Worker};
    use crate::fs::{Asker, Gates, Later, Told};

    const CHUNK: usize = 4096;

    /// Fetches nothing, and asks nobody.
    struct Nothing;

    impl Worker for Nothing {
        fn fetch(&self, _orders: Vec<Order>) {}

        fn hurry(&self, _chunk: ChunkKey) {}
    }

    impl Asker for Nothing {
        fn ask(&self, _blob: BlobId, _until: Instant, _told: Told) {}

        fn at(&self, _time: Instant, _then: Later) {}
    }

    /// The file system of an image with one file, whose cache in `dir` is empty.
    fn file_system(dir: &Path, content: &[u8]) -> (FileSystem, Nid) {
        let options = BuildOptions { chunk_size: CHUNK as u32, ..BuildOptions::default() };
        let tar = tar_of(&[("file", content)]);
        let layer = build_layer(tar.as_slice(), Vec::new(), &options).unwrap();
        let image = rafs::merge::merge(vec![layer]).unwrap();
        let mut bytes = Vec::new();
        write(&image, &WriteOptions::default(), &mut bytes).unwrap();
        let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        let file = bootstrap.lookup_path(b"file").unwrap().unwrap();
        let blob = bootstrap.blobs()[0].clone();
        let said = bootstrap.known_chunks(BlobIndex(0)).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let (id, size) = (BlobId(blob.id.unwrap()), blob.uncompressed_size);
        let coding = Arc::new(Blob { chunks: Vec::new(), ..blob });
        let lease = Cache::open(dir, BootId([1; 16])).unwrap().blob(id, &coding, size, &said).unwrap();
        let config = FrontConfig {
            deadline: Duration::from_secs(20),
            request_bytes: 1,
            ahead_bytes: 0,
            threads: 1,
            failure_memory: Duration::ZERO,
        };
        let front = Front::new(Arc::new(Nothing), config).unwrap();
        let gates = Gates::new(Arc::new(Nothing), [], Duration::ZERO);
        let (programs, _) = mpsc::channel(1);
        (FileSystem::new(Arc::new(bootstrap), vec![lease], gates, front, programs), file)
    }

    /// The chunk comes into the cache.
    fn store(fs: &FileSystem, chunk: u32, content: &[u8]) {
        let (blob, chunk) = (fs.blobs[0].blob(), ChunkIndex(chunk));
        let described = blob.describe(chunk).unwrap();
        blob.store(chunk, &described.chunk, content).unwrap();
    }

    /// What is missing of the file, a list for each time that it is looked at.
    fn missing(fs: &FileSystem, file: Nid, limit: usize) -> Vec<Vec<u32>> {
        let (mut lists, mut from) = (Vec::new(), Some(0));
        while let Some(start) = from {
            let (missing, next) = fs.missing_of_file(file, start..u64::MAX, limit).unwrap();
            lists.push(missing.iter().map(|want| want.chunk.0).collect());
            from = next;
        }
        lists
    }

    #[test]
    fn what_is_missing_of_a_file_is_listed_some_chunks_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let content = noise(1, 10 * CHUNK);
        let (fs, file) = file_system(dir.path(), &content);
        assert_eq!(missing(&fs, file, 4), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
        assert_eq!(missing(&fs, file, 10), [Vec::from_iter(0..10)]);
        store(&fs, 1, &content[CHUNK..2 * CHUNK]);
        assert_eq!(missing(&fs, file, 4), [vec![0, 2, 3, 4], vec![5, 6, 7, 8], vec![9]]);
        let part = CHUNK as u64 + 1..3 * CHUNK as u64;
        let (part, next) = fs.missing_of_file(file, part, 4).unwrap();
        assert_eq!((part.len(), part[0].chunk, next), (1, ChunkIndex(2), None));
    }

    #[test]
    fn a_chunk_that_a_file_repeats_is_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (noise(2, CHUNK), noise(3, CHUNK));
        let content = [one.repeat(1000), other, one.repeat(1000)].concat();
        let (fs, file) = file_system(dir.path(), &content);
        assert_eq!(missing(&fs, file, 2), [vec![0, 1], vec![0]]);
        assert_eq!(missing(&fs, file, 1000), [[0, 1, 0]]);
        store(&fs, 0, &one);
        assert_eq!(missing(&fs, file, 1000), [[1]]);
    }

    #[test]
    fn others_have_their_turn_while_a_file_of_many_equal_chunks_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let one = noise(4, CHUNK);
        let (fs, file) = file_system(dir.path(), &one.repeat(PIECES_LIMIT + 10));
        let (first, next) = fs.missing_of_file(file, 0..u64::MAX, 1000).unwrap();
        assert_eq!((first.len(), next), (1, Some((PIECES_LIMIT * CHUNK) as u64)));
        store(&fs, 0, &one);
        assert_eq!(missing(&fs, file, 1000), [[0; 0], []]);
    }
}
