//! A whole image: a bootstrap and one blob, both of any bytes, checked and unpacked.

#![no_main]

use std::io;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use rafs::blob::Blob;
use rafs::blob::source::{BlobSource, load_chunk_info};
use rafs::bootstrap::Bootstrap;

struct OneBlob<'a>(&'a [u8]);

impl BlobSource for OneBlob<'_> {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let range = range.start as usize..range.end as usize;
        self.0.get(range).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Stops when an archive grows beyond what the input can honestly hold: files may share chunks.
struct Limited(u64);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: (u32, &[u8])| {
    let (split, bytes) = input;
    // Bootstraps are whole blocks, so a mutation of the blob does not move the bootstrap.
    let (bootstrap, blob) = bytes.split_at((split as usize % 64 * 4096).min(bytes.len()));
    let Ok(mut bootstrap) = Bootstrap::from_bytes(bootstrap.to_vec()) else { return };
    let source = OneBlob(blob);
    let _ = load_chunk_info(&mut bootstrap, &source);
    let _ = rafs::unpack::to_tar(&bootstrap, &source, &mut Limited(16 << 20));
    let options = rafs::check::Options { threads: 1, ..Default::default() };
    let _ = rafs::check::blobs(&mut bootstrap, &source, options);
    let _ = bootstrap.blobs_with_chunks();
});
