//! `nydus-cluster cluster save`: images as RAFS are what they were, to our own tools and to upstream's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use integration::nydus_image::NydusImage;
use integration::{demo, peers, process};

use crate::fixture::{Built, Fixture, manifest, nydus_layers};
use crate::image_commands::{expect_exit, image};
use crate::same_tree::list_image_tree;
use crate::upstream::image_files;

/// Two images that have files in common, and no layer.
pub(crate) fn as_rafs(fixture: &Fixture) -> Result<()> {
    let host = fixture.registry()?.address();
    let dir = fixture.subdir("cluster-save")?;
    let demo = fixture.demo()?;
    let plain = |context: &Path, name: &str| -> Result<String> {
        let name = format!("{host}/to-save/{name}");
        let output = format!("type=image,name={name},push=true,compression=gzip,registry.insecure=true");
        fixture.plain_buildctl()?.build(context, &[&output])?;
        Ok(name)
    };
    let first = plain(&demo.context, "demo:v1")?;
    let numpy = fixture.peers().demo_layer("numpy")?;
    let context = demo::one_layer(&numpy, &dir.join("context"))?;
    let second = plain(&context, "numpy:v1")?;
    let tree = dir.join("rootfs");
    fs::create_dir(&tree)?;
    fs::write(tree.join("imageList"), format!("{first}\n{second}\n"))?;

    let set = format!("{host}/saved/cluster:v1");
    let mut save = Command::new(peers::nydus_cluster()?);
    let said = process::run(save.args(["cluster", "save"]).arg(&tree).args(["--to", &set]))?.stdout;
    ensure!(said.contains(&first) && said.contains(&second), "each image has a line: {said}");
    let index = manifest(&set)?;
    let mut blobs: Vec<BTreeSet<String>> = Vec::new();
    for entry in index["manifests"].as_array().into_iter().flatten() {
        if entry["artifactType"] != "application/vnd.nydus.image.manifest.v1+json" {
            continue;
        }
        let digest = entry["digest"].as_str().unwrap_or_default();
        let name = format!("{host}/saved/cluster@{digest}");
        let built = Built { manifest: manifest(&name)?, name, context: dir.clone() };
        expect_exit(0, &mut image("check", &built.name)?)?;
        let files_dir = dir.join(digest.trim_start_matches("sha256:"));
        fs::create_dir(&files_dir)?;
        NydusImage::new(fixture.peers())?.check(&image_files(fixture, &built, &files_dir)?)?;
        blobs.push(nydus_layers(&built.manifest)?.0.into_iter().collect());
        if entry["annotations"]["org.opencontainers.image.ref.name"] == first.as_str() {
            let unpacked = files_dir.join("unpacked");
            process::run(image("unpack", &built.name)?.arg(&unpacked).arg("--directory"))?;
            let expected = fixture.demo_exported()?;
            expected.expect_same(&list_image_tree(&unpacked)?, "the saved image, unpacked")?;
        }
    }
    ensure!(blobs.len() == 2, "two nydus images: {index}");
    ensure!(!blobs[0].is_disjoint(&blobs[1]), "they share a blob: {blobs:?}");
    Ok(())
}
