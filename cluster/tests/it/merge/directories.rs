//! Cluster images that have their container images in `registry/`, where `cluster save DIR` brought them.

use std::fs;
use std::path::Path;

use cluster::merge::{NotMerged, merge};
use cluster::save::{Destination, SaveOptions, save};
use cluster::saved::{SavedAt, SavedImages};
use image::convert::{Conversion, convert};
use image::files;
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::location::Location;
use image::options::{Options, Recipe};
use image::progress::Progress;
use registry::layout::Layout;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::files_below;
use super::saved::{AMD64, World, check};
use crate::peers::noise;
use crate::support::layer;

/// Pushes the cluster image `name:v1`, plain, and `name:nydus`, of a tree whose container images are saved in it. Returns the tree.
async fn filled(world: &World, name: &str, images: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let lock = world.lock(images).await;
    fs::write(dir.path().join("images.lock"), lock.to_string()).unwrap();
    let to = Destination::Directory(dir.path().join("registry"));
    save(&lock, dir.path(), &world.client(), &to, &SaveOptions::default(), &|_| {}).await.unwrap();
    fs::remove_dir_all(dir.path().join("registry/.nydus-cluster-save")).unwrap();
    let files = files_below(dir.path());
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    let image = world.to.image(name, AMD64, &[&layer(&files)]).await;
    world.to.tag(name, "v1", image.content).await;
    let recipe = Recipe::new(Options::default(), None, Vec::new(), 1).unwrap();
    let how = Conversion {
        converter: &Converter::new(recipe, 1, LayerCache::new(0)),
        client: &world.client(),
        scratch_space: &ScratchSpace::new(&std::env::temp_dir(), 0),
        reuse_present: false,
        progress: &Progress::new(),
        cancel: &CancellationToken::new(),
    };
    let [from, to] = ["v1", "nydus"].map(|tag| Location::Registry(world.name(&format!("{name}:{tag}"))));
    convert(&from, &to, how).await.unwrap();
    dir
}

/// Merges the images `name:form`, and returns all files of the merged one.
async fn merged(world: &World, names: &[&str], form: &str) -> Result<TempDir, NotMerged> {
    let location = |name: &str| Location::Registry(world.name(&format!("{name}:{form}")));
    let locations: Vec<Location> = names.iter().map(|name| location(name)).collect();
    merge(&locations, &world.client(), &world.name(&format!("merged:{form}")), &[]).await?;
    let dir = tempfile::tempdir().unwrap();
    let platform = AMD64.parse().unwrap();
    let all = |_: &[u8]| true;
    files::extract(&location("merged"), &world.client(), &platform, all, dir.path()).await.unwrap();
    Ok(dir)
}

async fn opened(world: &World, tree: &Path) -> SavedImages {
    SavedImages::open(&SavedAt::Directory(tree.join("registry")), &world.client()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directories_of_merged_images_are_one_that_names_all_images() {
    let world = World::start().await;
    let [both, one, other] = [
        world.push("both:v1", &noise(3, 300_000)).await,
        world.push("one:v1", &noise(4, 300_000)).await,
        world.push_alone("other:v1", &noise(5, 300_000)).await,
    ];
    let first = filled(&world, "k8s", &["both:v1", "one:v1"]).await;
    let second = filled(&world, "db", &["both:v1", "other:v1"]).await;
    let tagged = |tree: &Path, name: &str| {
        Layout::directory(&tree.join("registry")).tagged(name, "v1").unwrap().unwrap()
    };
    assert_ne!(tagged(first.path(), "both"), tagged(second.path(), "both"));
    for form in ["v1", "nydus"] {
        let merged = merged(&world, &["k8s", "db"], form).await.unwrap();
        let saved = opened(&world, merged.path()).await;
        check(&saved, &[&both, &one, &other]).await;
        // And each under its name: what two saves made of one image is that of the first.
        for (tree, name) in [(&first, "both"), (&first, "one"), (&second, "other")] {
            assert_eq!(tagged(merged.path(), name), tagged(tree.path(), name), "{form} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_the_only_one_stays_what_it_is() {
    let world = World::start().await;
    let one = world.push("one:v1", &noise(4, 300_000)).await;
    let tree = filled(&world, "k8s", &["one:v1"]).await;
    world.cluster_image("db:v1", None).await;
    let merged = merged(&world, &["k8s", "db"], "v1").await.unwrap();
    let (before, after) = (opened(&world, tree.path()).await, opened(&world, merged.path()).await);
    assert_eq!(after.digest(), before.digest());
    check(&after, &[&one]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_that_two_directories_have_for_two_images_is_named() {
    let world = World::start().await;
    world.push("both:v1", &noise(3, 300_000)).await;
    filled(&world, "k8s", &["both:v1"]).await;
    world.push("both:v1", &noise(4, 300_000)).await;
    filled(&world, "db", &["both:v1"]).await;
    for form in ["v1", "nydus"] {
        let error = merged(&world, &["k8s", "db"], form).await.unwrap_err().to_string();
        assert!(error.contains("/k8s:") && error.contains("/db:") && error.contains("/both:v1"), "{error}");
    }
}
