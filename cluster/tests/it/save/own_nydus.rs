//! Images that have a nydus form already: beside their plain one, or alone.

use cluster::save::{Destination, Forms, SaveOptions};
use cluster::serve::Kept;
use image::options::{Algorithm, Options};
use registry::{Digest, Reference};
use serde_json::Value;

use super::cluster_image::{converted, converted_as};
use super::rafs::opened;
use super::served::Node;
use super::{check_image, client, locked, saved_in};
use crate::peers::noise;
use crate::support::{Registry, layer};

/// The first blob of a manifest in the image's repository.
async fn blob_of(image: &Reference, manifest: &Digest) -> Digest {
    let (_, content) = client().manifest(&image.at_digest(manifest.clone())).await.unwrap();
    let manifest: Value = serde_json::from_slice(&content).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_images_own_nydus_form_is_saved_where_nothing_is_made_of_a_plain_one() {
    let (from, to, dir) = (Registry::start().await, Registry::start().await, tempfile::tempdir().unwrap());
    let name = |tag: &str| from.repository("app").with_tag(tag).unwrap();
    let mut plain = Vec::new();
    for (seed, tag, also_oci) in [(1, "both", true), (2, "nydus", false)] {
        let image = from.image("app", "linux/amd64", &[&layer(&[("file", &noise(seed, 300_000))])]).await;
        from.tag("app", "plain", image.content).await;
        plain.push(image.digest);
        // With blobs that no save would make.
        let options = Options { compressor: Algorithm::Lz4, also_oci, ..Options::default() };
        converted_as(options, &name("plain"), &name(tag)).await;
    }
    let lock = locked(&dir, &format!("{}\n{}\n", name("both"), name("nydus")), &["linux/amd64"]).await;
    let [both, nydus] = &lock.images[..] else { panic!("{lock:?}") };
    assert_eq!(both.platforms[0].digest.to_string(), plain[0]);
    let own = [&both.nydus[0].digest, &nydus.platforms[0].digest];
    for (tag, forms, of_both) in
        [("rafs", Forms::RAFS, false), ("all", Forms { rafs: true, plain: true }, true)]
    {
        let saved = to.repository(tag).with_tag("images").unwrap();
        let options = SaveOptions { forms, ..SaveOptions::default() };
        let destination = Destination::Repository(saved.clone());
        let (reports, failed) = saved_in(&client(), &lock, dir.path(), &destination, &options).await;
        assert!(failed.is_empty() && reports.len() == 2, "{failed:?}");
        let table = opened(&saved).await.table().unwrap().clone();
        assert_eq!(table.images.keys().collect::<Vec<_>>(), [&both.platforms[0].digest]);
        for (manifest, expected) in own.into_iter().zip([of_both, true]) {
            let there = saved.at_digest(manifest.clone());
            assert_eq!(client().head_manifest(&there).await.unwrap().is_some(), expected, "{tag} {manifest}");
            if expected {
                check_image(saved.repository(), manifest.as_ref()).await;
            }
        }
        let blob = blob_of(&name("both"), own[0]).await;
        assert_eq!(client().has_blob(saved.repository(), &blob).await.unwrap(), of_both, "{tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_for_a_nydus_image_alone_with_blobs_from_where_it_was_saved() {
    let (from, to, dir) = (Registry::start().await, Registry::start().await, tempfile::tempdir().unwrap());
    let name = |tag: &str| from.repository("app").with_tag(tag).unwrap();
    let image = from.image("app", "linux/amd64", &[&layer(&[("file", &noise(3, 300_000))])]).await;
    from.tag("app", "plain", image.content).await;
    converted(&name("plain"), &name("nydus")).await;
    let lock = locked(&dir, &format!("{}\n", name("nydus")), &["linux/amd64"]).await;
    let manifest = lock.images[0].platforms[0].digest.clone();
    let blob = blob_of(&name("nydus"), &manifest).await;
    let repository = to.repository("team/cluster");
    let saved = repository.with_tag("images").unwrap();
    let destination = Destination::Repository(saved.clone());
    let (_, failed) = saved_in(&client(), &lock, dir.path(), &destination, &SaveOptions::default()).await;
    assert!(failed.is_empty(), "{failed:?}");
    let documents = dir.path().join("documents");
    Kept::keep(&documents, &opened(&saved).await).await.unwrap();

    // Its own registry is gone, and what is kept is all that the node knows after it has booted.
    let host = from.host().replace(':', "_");
    drop(from);
    let kept = Kept::open(&documents).unwrap().unwrap();
    let node = Node::serve_from(&kept, Some((client(), repository.clone()))).await;
    let here = Reference::parse(&format!("{}/{host}/app:nydus", node.address)).unwrap();
    let found = client().manifest(&here).await.unwrap().0;
    assert_eq!(*found.digest(), lock.images[0].digest);
    check_image(here.repository(), manifest.as_ref()).await;
    let path = format!("{host}/app/blobs/{blob}");
    let answer = node.ask_with("GET", &path, "Range: bytes=1000-200999\r\n").await;
    assert_eq!((answer.status(), answer.body.len()), ("206", 200_000));
    let part = client().blob_range(&repository, &blob, 1000, 200_000).await.unwrap();
    assert!(answer.body == part, "other bytes came");
    let size = client().blob_size(&repository, &blob).await.unwrap().unwrap();
    assert_eq!(answer.header("content-range"), format!("bytes 1000-200999/{size}"));
    let answer = node.ask_with("HEAD", &path, "").await;
    assert_eq!((answer.status(), answer.header("content-length")), ("200", size.to_string().as_str()));
    let answer = node.ask_with("GET", &path, &format!("Range: bytes={size}-\r\n")).await;
    assert_eq!(answer.status(), "416");
    // It is a blob of this image, and of no other.
    let answer = node.ask_with("GET", &format!("{host}/other/blobs/{blob}"), "").await;
    assert_eq!(answer.status(), "404");
    // What the repository has lost, containerd and the daemon look for elsewhere.
    std::fs::remove_file(to.data(&blob)).unwrap();
    for method in ["GET", "HEAD"] {
        let answer = node.ask_with(method, &path, "").await;
        assert_eq!(answer.status(), "404", "{method}");
    }
    drop(to);
    let answer = node.ask_with("GET", &path, "").await;
    assert_eq!(answer.status(), "502");
}
