//! Two tar streams as layers: built, merged, written, read again, checked, unpacked, and built once more.
//!
//! Any of this may be refused; but what is built passes the checks, and what was unpacked can be built.

#![no_main]

use fuzz::archive::{Wrapping, mend_checksums};
use fuzz::seed::Image;
use fuzz::{exercise, patch, seed};
use libfuzzer_sys::fuzz_target;
use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, build_layer};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::merge::merge;
use rafs::tree::Layer;

/// Larger content is not worth the time that it takes.
const LARGEST: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let &[choice, split, ref changes @ ..] = bytes else { return };
    // Changes to the lower layer and to the upper one.
    let (lower, upper) = changes.split_at((usize::from(split) + 1).min(changes.len()));
    let Some(lower) = patch::bytes(lower, seed::archives()) else { return };
    let upper = patch::bytes(upper, seed::archives()).unwrap_or_else(seed::upper_archive);
    let batch = choice & 1 == 1;
    let options = BuildOptions {
        compressor: if choice & 2 == 2 { Compressor::Lz4 } else { Compressor::Zstd { level: 1 } },
        digester: if choice & 4 == 4 { DigestAlgorithm::Sha256 } else { DigestAlgorithm::Blake3 },
        chunk_size: 4096,
        batch_size: batch.then_some(4096),
        threads: 1,
        dictionary: None,
    };
    let wrapping = if choice & 8 == 8 { Wrapping::Gzip } else { Wrapping::Plain };
    let mut layers = Vec::new();
    let mut image = Image { bootstrap: Vec::new(), blobs: Vec::new() };
    for mut archive in [lower, upper] {
        mend_checksums(&mut archive);
        if let Some((layer, blob)) = build(&wrapping.wrap(archive), &options) {
            layers.push(layer);
            image.blobs.push(blob);
        }
    }
    if layers.is_empty() {
        return;
    }
    let merged = merge(layers).expect("layers that are built alike can be merged");
    if bootstrap::write(&merged, &WriteOptions::default(), &mut image.bootstrap).is_err() {
        return;
    }
    let mut bootstrap =
        Bootstrap::from_bytes(image.bootstrap.clone()).expect("what is written can be opened");
    rafs::blob::source::load_chunk_info(&mut bootstrap, &image).expect("what is written can be read");
    let mut report = rafs::check::structure(&bootstrap);
    let checked = rafs::check::Options { threads: 1, ..Default::default() };
    report.merge(rafs::check::blobs(&mut bootstrap, &image, checked));
    assert!(report.is_clean(), "{:?}", report.findings);
    let mut archive = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &image, &mut archive).expect("what is built can be unpacked");
    assert!(build(&archive, &options).is_some(), "what is unpacked can be built");
});

fn build(archive: &[u8], options: &BuildOptions) -> Option<(Layer, (Digest, Vec<u8>))> {
    // Holes may have any size.
    if exercise::archive(archive).ok()? > LARGEST {
        return None;
    }
    let mut stream = Vec::new();
    let layer = build_layer(archive, &mut stream, options).ok()?;
    let id = layer.blobs[0].id.expect("a layer's own blob has an id");
    Some((layer, (id, stream)))
}
