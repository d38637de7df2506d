//! The images of a run: random stacks of random layers, images of upstream's, and hostile ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use integration::corpus::{self, Tree};
use rafs::bootstrap::{self, WriteOptions};
use rafs::build::{BuildOptions, Dictionary, build_layer};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::tree::Layer;

use super::hostile;
use super::image::{Home, Image, contents_below};
use super::lab::Lab;
use super::layers::{self, Contents};
use super::random::Random;

/// Images that are made of the layers of one family.
const IMAGES_OF_FAMILY: u64 = 5;
const FAMILIES: u64 = 2;
/// Hostile ones: those whose lies are well written, and those that are damaged.
const LIARS: u64 = 4;
const GARBLED: u64 = 2;

#[derive(Debug)]
pub(super) struct World {
    pub(super) images: Vec<Image>,
}

/// Layers that fit together: of one chunk size and digest.
struct Family {
    layers: Vec<(corpus::Layer, Layer)>,
    blobs: BTreeMap<String, Vec<u8>>,
    chunk_size: u32,
    digester: DigestAlgorithm,
}

impl World {
    /// Makes images in `dir`, and puts their blobs where they are read from.
    pub(super) fn random(random: &mut Random, lab: &Lab, dir: &Path, prefix: &str) -> Result<Self> {
        let mut world = Self { images: Vec::new() };
        let mut sources = Vec::new();
        for _ in 0..FAMILIES {
            let family = Family::random(random)?;
            for _ in 0..IMAGES_OF_FAMILY {
                let number = world.images.len();
                let homes = homes(random, prefix, number);
                let (image, merged) = family.image(random, &dir.join(number.to_string()), number, homes)?;
                for home in &image.homes {
                    for blob in &image.blobs {
                        lab.push(home, *blob, &family.blobs[&blob.to_string()])?;
                    }
                }
                sources.push((number, merged));
                world.images.push(image);
            }
        }
        for name in ["v5-lz4", "v5-none", "v6-zstd", "v6-batch"] {
            if random.chance(60) {
                let number = world.images.len();
                let image = upstream(name, homes(random, prefix, number))?;
                let stored = fs::read(fixture(name, "blob"))?;
                for home in &image.homes {
                    for blob in &image.blobs {
                        lab.push(home, *blob, &stored)?;
                    }
                }
                world.images.push(image);
            }
        }
        let honest = world.images.len() as u64;
        for _ in 0..LIARS {
            let (victim, merged) = random.one_of(&sources);
            let name = format!("hostile-{}", world.images.len());
            let image = hostile::liar(random, (*victim, &world.images[*victim]), merged, dir, &name)?;
            world.images.extend(image);
        }
        for _ in 0..GARBLED {
            let victim = random.within(0..honest) as usize;
            let name = format!("hostile-{}", world.images.len());
            let image = hostile::garbled(random, (victim, &world.images[victim]), dir, &name)?;
            world.images.extend(image);
        }
        Ok(world)
    }
}

/// One or two places that have an image's blobs, some of them those of other images too.
fn homes(random: &mut Random, prefix: &str, number: usize) -> Vec<Home> {
    // One of them has more than its share.
    let count = Lab::ORIGINS.len();
    let first = if random.chance(30) { 0 } else { random.within(0..count as u64) as usize };
    let mut origins = vec![Lab::ORIGINS[first]];
    if random.chance(40) {
        origins.push(Lab::ORIGINS[(first + 1) % count]);
    }
    let shared = random.chance(30);
    let name = if shared { format!("{prefix}/shared") } else { format!("{prefix}/image-{number}") };
    origins.into_iter().map(|origin| Home { origin, name: name.clone() }).collect()
}

impl Family {
    fn random(random: &mut Random) -> Result<Self> {
        let contents = Contents::random(random);
        let chunk_size = *random.one_of(&[4 << 10, 64 << 10, 1 << 20]);
        let digester = *random.one_of(&[DigestAlgorithm::Blake3, DigestAlgorithm::Sha256]);
        let mut family = Self { layers: Vec::new(), blobs: BTreeMap::new(), chunk_size, digester };
        for number in 0..random.within(4..7) {
            let layer = layers::random(random, &contents, number == 0);
            let options = family.options(random)?;
            let mut blob = Vec::new();
            let built = build_layer(layer.to_tar().as_slice(), &mut blob, &options)?;
            let id = built.blobs[0].id.context("a blob without an id")?;
            family.blobs.insert(format!("sha256:{id}"), blob);
            family.layers.push((layer, built));
        }
        Ok(family)
    }

    fn options(&self, random: &mut Random) -> Result<BuildOptions> {
        let compressor = *random.one_of(&[Compressor::Zstd { level: 1 }, Compressor::Lz4, Compressor::None]);
        let batched = compressor != Compressor::None && random.chance(25);
        let dictionary = match self.layers.first() {
            Some((_, base)) if random.chance(30) => {
                Some(Arc::new(Dictionary::new(rafs::merge::merge(vec![base.clone()])?)))
            }
            _ => None,
        };
        Ok(BuildOptions {
            compressor,
            digester: self.digester,
            chunk_size: self.chunk_size,
            batch_size: batched.then_some(self.chunk_size.min(16 << 10)),
            threads: 1,
            dictionary,
        })
    }

    /// A stack of some of the layers, on the base more often than not.
    fn image(
        &self,
        random: &mut Random,
        dir: &Path,
        number: usize,
        homes: Vec<Home>,
    ) -> Result<(Image, rafs::tree::Image)> {
        let mut stack = Vec::new();
        for (place, layer) in self.layers.iter().enumerate() {
            if random.chance(if place == 0 { 85 } else { 45 }) {
                stack.push(layer);
            }
        }
        if stack.is_empty() {
            stack.push(&self.layers[0]);
        }
        fs::create_dir_all(dir)?;
        let merged = rafs::merge::merge(stack.iter().map(|(_, built)| built.clone()).collect())?;
        let path = dir.join("image.boot");
        let options = WriteOptions { chunk_size: self.chunk_size, ..WriteOptions::default() };
        bootstrap::write(&merged, &options, &mut File::create(&path)?)?;
        // What an image shows is made by system calls alone, and forgotten except for what files hold.
        let tree = dir.join("tree");
        let layers: Vec<_> = stack.iter().map(|(layer, _)| layer.clone()).collect();
        Tree::make(&layers, &tree)?;
        let contents = contents_below(&tree)?;
        fs::remove_dir_all(&tree)?;
        Ok((Image::new(format!("image-{number}"), path, contents, homes)?, merged))
    }
}

/// An image of upstream's nydus-image (`rafs/tests/data/README.md` says how they were made, and of what).
fn upstream(name: &str, homes: Vec<Home>) -> Result<Image> {
    let lines = |last: u32| (1..=last).map(|line| format!("{line}\n")).collect::<String>();
    let mut files = vec![
        ("file", "hello\n".to_owned()),
        ("directory/link", "hello\n".to_owned()),
        ("empty", String::new()),
    ];
    match name {
        "v5-none" => {
            files.extend([("directory/lines", lines(1200)), ("copy", lines(1200))]);
        }
        _ => files.push(("directory/lines", lines(3000))),
    }
    let contents =
        files.into_iter().map(|(path, content)| (path.to_owned(), Arc::from(content.into_bytes()))).collect();
    Image::new(name.to_owned(), fixture(name, "boot"), contents, homes)
}

fn fixture(name: &str, extension: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rafs/tests/data");
    data.join(format!("{name}.{extension}"))
}
