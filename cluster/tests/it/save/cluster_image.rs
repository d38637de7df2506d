//! What container images have in common with the cluster image's own root file system.

use std::collections::HashSet;

use cluster::save::{Destination, SaveOptions};
use image::convert::{Conversion, convert};
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::location::Location;
use image::options::{Options, Recipe};
use image::progress::Progress;
use registry::{Digest, Reference};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::rafs::{World, opened, stored};
use super::{client, locked, saved_in};
use crate::peers::noise;
use crate::support::{Registry, layer};

/// Converts a plain image to a nydus image.
pub(crate) async fn converted(from: &Reference, to: &Reference) {
    converted_as(Options::default(), from, to).await;
}

pub(crate) async fn converted_as(options: Options, from: &Reference, to: &Reference) {
    let recipe = Recipe::new(options, None, Vec::new(), 1).unwrap();
    let how = Conversion {
        converter: &Converter::new(recipe, 1, LayerCache::new(0)),
        client: &client(),
        scratch_space: &ScratchSpace::new(&std::env::temp_dir(), 0),
        reuse_present: false,
        progress: &Progress::new(),
        cancel: &CancellationToken::new(),
    };
    convert(&Location::Registry(from.clone()), &Location::Registry(to.clone()), how).await.unwrap();
}

/// The blobs of the only manifest at a name, without the bootstrap.
async fn blobs(image: &Reference) -> HashSet<Digest> {
    let mut manifest: Value = serde_json::from_slice(&client().manifest(image).await.unwrap().1).unwrap();
    if let Some(digest) = manifest["manifests"][0]["digest"].as_str() {
        let only = image.at_digest(digest.parse().unwrap());
        manifest = serde_json::from_slice(&client().manifest(&only).await.unwrap().1).unwrap();
    }
    let layers = manifest["layers"].as_array().unwrap().split_last().unwrap().1;
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_the_cluster_image_are_used_in_its_own_repository_alone() {
    let world = World::new().await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &["linux/amd64"]).await;
    // A program of an image is one of the root file system's as well.
    let root = layer(&[("bin/tool", &world.lib), ("etc/own", &noise(9, 100_000))]);
    let plain = to.image("team/plain", "linux/amd64", &[&root]).await;
    to.tag("team/plain", "v1", plain.content).await;
    let name = |name: &str| Reference::parse(&format!("{}/{name}", to.host())).unwrap();
    let cluster = name("team/cluster:v1");
    converted(&name("team/plain:v1"), &cluster).await;
    let of_cluster = blobs(&cluster).await;
    let save = async |to: &str, cluster_image: &Reference| {
        let options = SaveOptions { cluster_image: vec![cluster_image.clone()], ..SaveOptions::default() };
        let destination = Destination::Repository(name(to));
        let (_, failed) = saved_in(&client(), &lock, dir.path(), &destination, &options).await;
        assert!(failed.is_empty(), "{failed:?}");
        opened(&name(to)).await
    };
    let used = |table: &cluster::saved::Table| -> Vec<u64> {
        let of_cluster = table.blobs.iter().filter(|(blob, _)| of_cluster.contains(blob));
        of_cluster.map(|(_, blob)| blob.size).collect()
    };

    let saved = save("team/cluster:v1-images", &cluster).await;
    let table = saved.table().unwrap();
    let [size] = used(table)[..] else { panic!("one blob of the cluster image is used: {table:?}") };
    let own = world.distinct() - world.app[1].len() as u64 - world.lib.len() as u64;
    let new = stored(table) - size;
    assert!(new < own + (64 << 10), "{new} of {own}");
    world.check_amd64(&saved).await;
    // The tag of the images keeps what they need of it.
    let listed = client().manifest(&name("team/cluster:v1-images")).await.unwrap().1;
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    let images =
        name("team/cluster").at_digest(listed["manifests"][0]["digest"].as_str().unwrap().parse().unwrap());
    let images = String::from_utf8(client().manifest(&images).await.unwrap().1.to_vec()).unwrap();
    assert!(of_cluster.iter().any(|blob| images.contains(blob.as_ref())));

    // Whoever may read another repository need not be allowed to read this one; and a plain image has no blobs of ours.
    let elsewhere = save("other/cluster:v1-images", &cluster).await;
    assert!(used(elsewhere.table().unwrap()).is_empty());
    let of_plain = save("team/plain:v1-images", &name("team/plain:v1")).await;
    assert!(used(of_plain.table().unwrap()).is_empty());
    world.check_amd64(&of_plain).await;
}
