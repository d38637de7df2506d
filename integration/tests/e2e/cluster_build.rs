//! The key `images`: the container images that a build's result asks for are locked in it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::{demo, gnu_tar, peers, process};
use serde_json::Value;

use crate::fixture::{Fixture, manifest, nydus_layers};

pub(crate) fn locked(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-build")?;
    let pause = fixture.pause()?;
    let context = |name: &str, image: &str| {
        let tree = dir.join(name);
        fs::create_dir_all(tree.join("manifests"))?;
        fs::write(tree.join("manifests/imageList"), format!("# what it needs\n{image}\n"))?;
        let layer = dir.join(format!("{name}.tar"));
        gnu_tar::pack(&tree, &layer)?;
        demo::one_layer(&layer, &dir.join(format!("{name}-context")))
    };
    let registry = fixture.registry()?.address();
    let name = format!("{registry}/cluster-build:v1");
    let good = context("good", pause)?;
    fixture.buildctl()?.build(&good, &[&format!("type=nydus-cluster,name={name},images=ref")])?;
    let inspect = || {
        Command::new(peers::nydus_cluster()?)
            .args(["cluster", "inspect", &name, "--json"])
            .output()
            .map_err(anyhow::Error::from)
    };
    let report: Value = serde_json::from_slice(&inspect()?.stdout).context("the report")?;
    let locked = report["images"][0]["image"].as_str().unwrap_or_default();
    ensure!(locked.starts_with(pause), "{report}");
    let said = manifest(&name)?["annotations"]["sealer.image.container.images"].to_string();
    ensure!(said.contains(pause), "{said}");
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;

    // With its images in the repository, under a tag of their own.
    fixture.buildctl()?.build(&good, &[&format!("type=nydus-cluster,name={name},images=embed")])?;
    let saved = manifest(&format!("{name}-images"))?;
    ensure!(saved["manifests"].as_array().is_some_and(|all| all.len() > 1), "{saved}");

    // Flattened, all layers of the build are one blob, and the lock is one more.
    let dockerfile = good.join("Dockerfile");
    fs::write(&dockerfile, fs::read_to_string(&dockerfile)? + "COPY Dockerfile /second-layer\n")?;
    let flat = format!("{registry}/cluster-build-flat:v1");
    fixture
        .buildctl()?
        .build(&good, &[&format!("type=nydus-cluster,name={flat},images=ref,flatten=true")])?;
    let made = manifest(&flat)?;
    ensure!(nydus_layers(&made)?.0.len() == 2, "{made}");
    ensure!(made["annotations"]["sealer.image.container.images"].to_string().contains(pause), "{made}");
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &flat]))?;

    // The plain image beside it stays as BuildKit made it.
    let both = format!("{registry}/cluster-build-both");
    let output = format!("type=nydus-cluster,name={both}:v1,images=ref,also-oci=true");
    fixture.buildctl()?.build(&good, &[&output])?;
    let index = manifest(&format!("{both}:v1"))?;
    let entry = |number: usize| {
        let digest = index["manifests"][number]["digest"].as_str().context("an entry")?;
        manifest(&format!("{both}@{digest}"))
    };
    let (plain, nydus) = (entry(0)?, entry(1)?);
    ensure!(plain["layers"].as_array().is_some_and(|layers| layers.len() == 2), "{plain}");
    ensure!(nydus_layers(&nydus)?.0.len() == 3, "{nydus}");
    ensure!(nydus["annotations"]["sealer.image.container.images"].to_string().contains(pause), "{nydus}");

    // The same without the key has no lock.
    fixture.buildctl()?.build(&good, &[&format!("type=nydus-cluster,name={name},images=none")])?;
    let report: Value = serde_json::from_slice(&inspect()?.stdout).context("the report")?;
    ensure!(report["images"].as_array().is_some_and(Vec::is_empty), "{report}");

    // What is not there fails the build, and is named with file and line.
    let bad = context("bad", &format!("{registry}/not-there:v1"))?;
    let output = format!("type=nydus-cluster,name={registry}/cluster-bad:v1,images=ref");
    let error = fixture.buildctl()?.build(&bad, &[&output]).err().context("an image is missing")?;
    let error = format!("{error:#}");
    ensure!(error.contains("manifests/imageList:2") && error.contains("not-there:v1"), "{error}");
    ensure!(manifest(&format!("{registry}/cluster-bad:v1")).is_err(), "it has no name");
    Ok(())
}
