//! A layer's tar as it is when nothing is compressed, and the digest of that: its diff id.

use std::io::{self, Read};

use rafs::source::decompress::Decompressor;
use registry::digest::{Digest, Hasher};

/// Undoes a layer's compression, and hashes what comes out. A layer that is not compressed is only passed on: whoever reads
/// it knows its digest already.
pub(super) struct Plain<R> {
    decompressor: Decompressor<R>,
    hasher: Option<Hasher>,
    begun: bool,
}

impl<R: Read> Plain<R> {
    pub(super) fn new(input: R) -> Self {
        Self { decompressor: Decompressor::new(input), hasher: None, begun: false }
    }

    /// The diff id of what was read to its end, if it was compressed.
    pub(super) fn diff_id(self) -> Option<Digest> {
        self.hasher.map(Hasher::finish)
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.decompressor.read(out)?;
        if !self.begun {
            self.begun = true;
            self.hasher = self.decompressor.is_compressed().then(Hasher::sha256);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&out[..length]);
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(input: &[u8]) -> (Vec<u8>, Option<Digest>) {
        let (mut plain, mut content) = (Plain::new(input), Vec::new());
        plain.read_to_end(&mut content).unwrap();
        (content, plain.diff_id())
    }

    #[test]
    fn the_diff_id_is_that_of_what_was_compressed() {
        let content: Vec<u8> = (0..300_000).map(|at| (at % 251) as u8).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&content).unwrap();
        let digest = registry::digest::sha256(&content);
        assert_eq!(read(&gzip.finish().unwrap()), (content.clone(), Some(digest)));
        assert_eq!(read(&content), (content, None));
    }
}
