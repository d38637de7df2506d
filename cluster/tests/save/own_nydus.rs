//! Images that have a nydus form already: beside their plain one, or alone.

use cluster::save::{Destination, Forms, SaveOptions};
use image::options::{Algorithm, Options};
use registry::{Digest, Reference};
use serde_json::Value;

use crate::cluster_image::converted_as;
use crate::peers::noise;
use crate::rafs::opened;
use crate::support::{Registry, layer};
use crate::{check_image, client, locked, saved_in};

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
        let by_name: Vec<bool> = reports.iter().map(|report| report.is_read_by_name).collect();
        assert_eq!(by_name, [false, true], "what nodes do not answer for is said: {reports:?}");
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
