//! Two whole images, bootstraps and blobs changed anyhow, as commands take them: checked, compared with each other, and
//! merged as layers, with limits that hostile chunk information meets soon.

#![no_main]

use fuzz::seed::Image;
use fuzz::{digests, patch, seed};
use libfuzzer_sys::fuzz_target;
use rafs::blob::source::load_chunk_info_within;
use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::diff::{self, ContentReader};
use rafs::limits::Limits;
use rafs::merge::merge;

const LIMITS: Limits = Limits { chunk_info_bytes: 8 << 20, part_bytes: 8 << 20, ..Limits::DEFAULT };

fuzz_target!(|input: &[u8]| {
    let &[choice, split, ref changes @ ..] = input else { return };
    let (first, second) = changes.split_at((usize::from(split) + 1).min(changes.len()));
    let seeds = |bit: u8| if choice & bit == 0 { seed::v6() } else { seed::v5() };
    let Some((a, image_a)) = opened(first, seeds(1), choice & 4 == 0) else { return };
    let Some((b, image_b)) = opened(second, seeds(2), choice & 8 == 0) else { return };
    compare((&a, &image_a), (&b, &image_b));
    let layers: Vec<_> = [a.to_layer(), b.to_layer()].into_iter().flatten().collect();
    if let Ok(merged) = merge(layers) {
        let mut bytes = Vec::new();
        if bootstrap::write(&merged, &WriteOptions::default(), &mut bytes).is_ok() {
            let again = Bootstrap::from_bytes(bytes).expect("what is written can be opened");
            // Each may count as many chunks as one image may, and describe few.
            let _ = again.to_image();
        }
    }
});

/// An image that was checked. Whatever is said of it, the check ends.
fn opened(input: &[u8], seeds: &[Image], mend: bool) -> Option<(Bootstrap, Image)> {
    let mut image = patch::image(input, seeds)?;
    if mend {
        let (_, stream) = &mut image.blobs[0];
        let _ = digests::mend(&mut image.bootstrap, stream);
    }
    let mut bootstrap = Bootstrap::from_bytes(image.bootstrap.clone()).ok()?;
    let options = rafs::check::Options { threads: 1, limits: LIMITS, ..Default::default() };
    let mut report = rafs::check::structure(&bootstrap);
    report.merge(rafs::check::blobs(&mut bootstrap, &image, options));
    assert!(report.findings.len() <= LIMITS.findings && report.unknown.len() <= LIMITS.findings);
    let _ = load_chunk_info_within(&mut bootstrap, &image, LIMITS);
    Some((bootstrap, image))
}

fn compare(a: (&Bootstrap, &Image), b: (&Bootstrap, &Image)) {
    let (Ok(tree_a), Ok(tree_b)) = (a.0.to_image(), b.0.to_image()) else { return };
    let mut reader = ContentReader::new(a, b);
    let mut read = |a: &[_], b: &[_]| reader.first_difference(a, b);
    let _ = diff::images(&tree_a, &tree_b, &mut read, &mut |change| _ = change.shown());
    let fetch = diff::fetch(&tree_a, &tree_b);
    assert!(fetch.new_stored_bytes() <= fetch.stored_bytes());
    let same = diff::fetch(&tree_a, &tree_a);
    assert!(a.0.blobs().iter().any(|blob| blob.id.is_none()) || same.stored_bytes() == 0);
}
