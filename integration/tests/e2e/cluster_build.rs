//! The key `images`: the container images that a build's result asks for are locked in it.

use std::fs;
use std::path::Path;
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
    bound(fixture, &name, &good, &dir)?;

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

const BOUND: &str = "io.nydus-cluster.images";

/// The cluster image `name`, built of `context` with its images embedded, says by digest which saved images are its own.
fn bound(fixture: &Fixture, name: &str, context: &Path, dir: &Path) -> Result<()> {
    let (repository, _) = name.rsplit_once(':').context("a tag")?;
    let of = |name: &str| {
        Ok::<_, anyhow::Error>(manifest(name)?["annotations"][BOUND].as_str().map(str::to_owned))
    };
    let digest = of(name)?.context("the image is bound to nothing")?;
    let saved = manifest(&format!("{name}-images"))?;
    ensure!(manifest(&format!("{repository}@{digest}"))? == saved, "{digest} is not what was saved");

    // The tag of what was saved is moved: nodes are told of what the image is bound to, before any of them is reached.
    let tree = dir.join("other");
    fs::create_dir(&tree)?;
    fs::write(tree.join("imageList"), format!("{}\n", fixture.demo()?.name))?;
    let mut save = Command::new(peers::nydus_cluster()?);
    save.args(["cluster", "save"]).arg(&tree).args(["--to", &format!("{name}-images")]);
    process::run(&mut save)?;
    ensure!(manifest(&format!("{name}-images"))? != saved, "the tag was moved");
    let run = |more: &[&str]| -> Result<String> {
        let mut run = Command::new(peers::nydus_cluster()?);
        // Nobody listens there.
        run.args(["cluster", "run", name, "--masters", "127.0.0.1:1"]).args(more);
        let run = run.env("XDG_STATE_HOME", dir.join("state")).output()?;
        ensure!(!run.status.success(), "there is no such node");
        Ok(String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let said = run(&[])?;
    ensure!(said.contains(&format!("read lazily from {repository}@{digest}")), "{said}");
    // Others are refused, wherever they are; the same elsewhere, which are not there, are named.
    let other = format!("{repository}@sha256:{}", "0".repeat(64));
    let said = run(&["--images", &other])?;
    ensure!(said.contains("is bound to other saved images") && !said.contains("ssh"), "{said}");
    let elsewhere = format!("{repository}-elsewhere");
    let said = run(&["--images", &elsewhere])?;
    ensure!(said.contains(&format!("are not in {elsewhere}")) && said.contains(&digest), "{said}");

    // A build that saves nothing is bound to nothing, until its images are saved.
    fixture.buildctl()?.build(context, &[&format!("type=nydus-cluster,name={name},images=ref")])?;
    ensure!(of(name)?.is_none());
    for _ in 0..2 {
        let mut save = Command::new(peers::nydus_cluster()?);
        save.args(["cluster", "save", name, "--bind", "--to", &format!("{name}-images")]);
        process::run(&mut save)?;
        let digest = of(name)?.context("the image is bound to nothing")?;
        ensure!(manifest(&format!("{repository}@{digest}"))? == manifest(&format!("{name}-images"))?);
    }
    Ok(())
}
