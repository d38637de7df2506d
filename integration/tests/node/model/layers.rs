//! Random layers: few names, so that layers replace and remove what others have; few contents, so that they share them.

use std::collections::BTreeSet;

use integration::corpus::{self, Layer};

use super::random::Random;

/// Sizes in bytes that files have: none, less than a chunk, several chunks, much more than the kernel reads at once.
const SIZES: [u64; 8] = [0, 1, 100, 4096, 5_000, 40_000, 300_000, 1_500_000];
const DIRECTORIES: [&str; 3] = ["a", "b", "c"];
/// File names of each directory.
const NAMES: u64 = 7;

/// What files hold.
#[derive(Debug)]
pub(super) struct Contents(Vec<Vec<u8>>);

impl Contents {
    pub(super) fn random(random: &mut Random) -> Self {
        let contents = (0..20).map(|_| {
            let most = *random.one_of(&SIZES);
            let size = if random.chance(50) { most } else { random.within(0..most + 1) };
            // Half of it compresses.
            let repeat = if random.chance(50) { 1 } else { 7 };
            corpus::bytes(random.next(), size as usize, repeat)
        });
        Self(contents.collect())
    }
}

/// A layer; `base` ones are larger and remove nothing.
pub(super) fn random(random: &mut Random, contents: &Contents, base: bool) -> Layer {
    let mut layer = Layer::default();
    for directory in DIRECTORIES {
        layer.directory(directory);
        if !base && random.chance(8) {
            layer.opaque(directory);
        }
    }
    let mut taken = BTreeSet::new();
    let mut files = Vec::new();
    let count = if base { random.within(10..18) } else { random.within(1..7) };
    for _ in 0..count {
        let path = format!("{}/{}", random.one_of(&DIRECTORIES), random.within(0..NAMES));
        if !taken.insert(path.clone()) {
            continue;
        }
        match random.within(0..100) {
            0..20 if !base => layer.whiteout(&path),
            0..35 if !files.is_empty() => _ = layer.link(&path, random.one_of(&files)),
            _ => {
                layer.file(&path, random.one_of(&contents.0));
                files.push(path);
            }
        }
    }
    layer
}
