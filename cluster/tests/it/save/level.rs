//! How much saved images are compressed.

use std::fs;

use cluster::lock::Lock;
use cluster::save::{Destination, SaveOptions};
use cluster::saved::Table;
use image::options::Options;
use registry::Reference;
use tempfile::TempDir;

use super::rafs::{blobs, opened, stored};
use super::{client, locked, saved_in};
use crate::peers::noise;
use crate::support::{Registry, layer};

/// Of the program, which is larger.
const PROGRAM_BYTES: usize = 3 << 20;
/// What documents and metadata may take.
const SMALL_BYTES: u64 = 64 << 10;

/// The middle of a program, which compresses as programs do.
fn program() -> Vec<u8> {
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    program[program.len() / 3..][..PROGRAM_BYTES].to_vec()
}

async fn save(lock: &Lock, dir: &TempDir, to: &Reference, options: &SaveOptions) -> Table {
    let destination = Destination::Repository(to.clone());
    let (_, failed) = saved_in(&client(), lock, dir.path(), &destination, options).await;
    assert!(failed.is_empty(), "{failed:?}");
    opened(to).await.table().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_take_less_than_what_is_built_and_use_its_chunks_all_the_same() {
    let (from, to, dir) = (Registry::start().await, Registry::start().await, tempfile::tempdir().unwrap());
    let program = program();
    let lock = async |name: &str, files: &[(&str, &[u8])]| {
        let image = from.image(name, "linux/amd64", &[&layer(files)]).await;
        from.tag(name, "v1", image.content).await;
        locked(&dir, &format!("{}/{name}:v1\n", from.host()), &["linux/amd64"]).await
    };
    let name = |name: &str| Reference::parse(&format!("{}/{name}", to.host())).unwrap();
    let at = |compression_level| SaveOptions {
        image: Options { compression_level, ..Options::default() },
        ..SaveOptions::default()
    };
    let app = lock("app", &[("bin/tool", &program)]).await;
    let usual = save(&app, &dir, &name("usual:v1"), &SaveOptions::default()).await;
    let at_five = save(&app, &dir, &name("five:v1"), &at(Some(5))).await;
    assert_eq!(blobs(&usual), blobs(&at_five));
    let as_built = save(&app, &dir, &name("built:v1"), &at(None)).await;
    let (less, more) = (stored(&usual), stored(&as_built));
    assert!(less < more, "{less} bytes are stored, {more} as builds compress");

    // An image with the same program: whatever it was compressed with, it is there.
    let own = noise(1, 200_000);
    let next = lock("next", &[("bin/tool", &program), ("own", &own)]).await;
    let options = SaveOptions { base: Some(name("built:v1")), ..SaveOptions::default() };
    let after = save(&next, &dir, &name("built:v2"), &options).await;
    let new = after.blobs.iter().filter(|(blob, _)| !as_built.blobs.contains_key(*blob));
    let new: u64 = new.map(|(_, blob)| blob.size).sum();
    assert!(new < own.len() as u64 + SMALL_BYTES, "{new} bytes are new");
}
