//! A whole image, bootstrap and blobs changed anyhow: opened, walked, checked, its chunks read, unpacked, merged, written.

#![no_main]

use fuzz::exercise::{self, Limited};
use fuzz::seed::Image;
use fuzz::{digests, patch, seed};
use libfuzzer_sys::fuzz_target;
use rafs::blob::BlobIndex;
use rafs::blob::ChunkIndex;
use rafs::blob::source::{ChunkReader, load_chunk_info, read_toc};
use rafs::bootstrap::Bootstrap;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else { return };
    let seeds = if choice & 1 == 0 { seed::v6() } else { seed::v5() };
    let Some(mut image) = patch::image(input, seeds) else { return };
    if choice & 2 == 0 {
        let (_, stream) = &mut image.blobs[0];
        let _ = digests::mend(&mut image.bootstrap, stream);
    }
    let Ok(bootstrap) = Bootstrap::from_bytes(std::mem::take(&mut image.bootstrap)) else { return };
    use_image(bootstrap, &image);
});

fn use_image(mut bootstrap: Bootstrap, image: &Image) {
    for blob in bootstrap.blobs().iter().take(3) {
        let _ = read_toc(image, blob);
    }
    let _ = load_chunk_info(&mut bootstrap, image);
    let mut reader = ChunkReader::new(&bootstrap, image);
    for blob in 0..bootstrap.blobs().len().min(3) as u8 {
        for chunk in 0..bootstrap.chunk_count(BlobIndex(blob)).min(20) {
            let _ = reader.read(BlobIndex(blob), ChunkIndex(chunk));
        }
    }
    let _ = rafs::unpack::to_tar(&bootstrap, image, &mut Limited(1 << 20));
    let options = rafs::check::Options { threads: 1, ..Default::default() };
    let _ = rafs::check::blobs(&mut bootstrap, image, options);
    let _ = bootstrap.blobs_with_chunks();
    exercise::tree(&bootstrap);
}
