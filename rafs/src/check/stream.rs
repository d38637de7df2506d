//! A blob's stream as its check reads it: no byte twice.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::blob::Blob;
use crate::blob::source::BlobSource;

/// What is behind the chunks is read at once if it is no larger than this, in bytes: one request instead of four.
const SMALL_TAIL: u64 = 1 << 20;

/// A stream that keeps what was read of it for when all of it is gone through.
pub(super) struct CheckedStream<'a, S> {
    pub(super) blob: &'a Blob,
    source: &'a S,
    size: u64,
    /// Where what was read begins, and its bytes. Of few ranges: the table of contents, chunk information, digests.
    kept: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl<'a, S: BlobSource> CheckedStream<'a, S> {
    pub(super) fn open(blob: &'a Blob, source: &'a S) -> io::Result<Self> {
        let size = source.size(blob)?;
        let stream = Self { blob, source, size, kept: Mutex::default() };
        if let Some(tail) = size.checked_sub(blob.compressed_size)
            && (1..=SMALL_TAIL).contains(&tail)
        {
            stream.keep(blob.compressed_size..size)?;
        }
        Ok(stream)
    }

    pub(super) fn len(&self) -> u64 {
        self.size
    }

    fn keep(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let bytes = self.take(range.clone())?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((range.start, bytes.clone()));
        Ok(bytes)
    }

    /// The bytes of a range: those that are kept from memory, the others from the source.
    pub(super) fn take(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        if range.end > self.size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it has {} bytes; expected at least {}", self.size, range.end),
            ));
        }
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let covering =
                kept.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at));
            if let Some((start, known)) = covering {
                let end = range.end.min(start + known.len() as u64);
                bytes.extend_from_slice(&known[(at - start) as usize..(end - start) as usize]);
                at = end;
                continue;
            }
            let next = kept.iter().map(|(start, _)| *start).filter(|start| *start > at).min();
            drop(kept);
            let end = next.unwrap_or(range.end).min(range.end);
            let mut read = self.source.read_once(self.blob, at..end)?;
            if read.len() as u64 != end - at {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Mostly, this is all.
            if bytes.is_empty() {
                bytes = read
            } else {
                bytes.append(&mut read)
            }
            at = end;
        }
        Ok(bytes)
    }
}

impl<S: BlobSource> BlobSource for CheckedStream<'_, S> {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.keep(range)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::compress::Compressor;
    use crate::digest::DigestAlgorithm;

    /// Takes note of what is read.
    struct Noting(RefCell<Vec<Range<u64>>>);

    impl BlobSource for Noting {
        fn size(&self, _: &Blob) -> io::Result<u64> {
            Ok(100)
        }

        fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
            self.0.borrow_mut().push(range.clone());
            Ok((range.start as u8..range.end as u8).collect())
        }
    }

    #[test]
    fn no_byte_is_read_twice() {
        let blob = Blob {
            stored_size: 100,
            compressed_size: 80,
            ..Blob::coding(4096, Compressor::None, DigestAlgorithm::Blake3)
        };
        let source = Noting(RefCell::default());
        let stream = CheckedStream::open(&blob, &source).unwrap();
        stream.read(&blob, 10..20).unwrap();
        stream.read(&blob, 75..90).unwrap();
        let all: Vec<u8> = [0..30, 30..76, 76..100].map(|range| stream.take(range).unwrap()).concat();
        assert_eq!(all, (0..100).collect::<Vec<u8>>());
        let mut read = source.0.into_inner();
        read.sort_unstable_by_key(|range| range.start);
        assert!(read.windows(2).all(|pair| pair[0].end <= pair[1].start), "{read:?}");
        assert_eq!(read.iter().map(|range| range.end - range.start).sum::<u64>(), 100);
    }
}
