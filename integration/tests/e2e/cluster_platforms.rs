//! A cluster image for several platforms, of which each has an archive of its own with an image of the same name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::{gnu_tar, oci_layout, peers, process};
use serde_json::Value;

use crate::fixture::{Fixture, manifest};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// The image in the archives.
const OWN: &str = "docker.io/team/own:v1";

/// What is built: for each architecture a file that names it, in an image in an archive.
fn context(dir: &Path) -> Result<std::path::PathBuf> {
    let context = dir.join("context");
    fs::create_dir(&context)?;
    for architecture in ARCHITECTURES {
        let (tree, layer) = (dir.join(architecture), dir.join(format!("{architecture}.tar")));
        fs::create_dir(&tree)?;
        fs::write(tree.join("word"), architecture)?;
        gnu_tar::pack(&tree, &layer)?;
        let layout = dir.join(format!("{architecture}-layout"));
        oci_layout::write(&layout, &[&layer], &["/word"], &[architecture])?;
        let archive = context.join(format!("own-{architecture}.tar"));
        oci_layout::copy(
            &format!("oci:{}", layout.display()),
            &format!("docker-archive:{}:team/own:v1", archive.display()),
        )?;
    }
    fs::write(context.join("tar.txt"), "docker-archive:own.tar@team/own:v1\n")?;
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY tar.txt /images/skopeo/\nCOPY own-$TARGETARCH.tar /images/skopeo/own.tar\n";
    fs::write(context.join("Dockerfile"), dockerfile)?;
    Ok(context)
}

pub(crate) fn archives_of_their_own(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-platforms")?;
    let repository = format!("{}/cluster-platforms", fixture.registry()?.address());
    let name = format!("{repository}:v1");
    let output = format!("type=nydus-cluster,name={name},images=embed");
    let mut build = fixture.buildctl()?.build_command(&context(&dir)?, &[&output]);
    process::run(build.args(["--opt", "platform=linux/amd64,linux/arm64"]))?;

    // One image of that name, for both.
    let saved = manifest(&format!("{name}-images"))?;
    let is_own = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == OWN;
    let entries: Vec<_> = saved["manifests"].as_array().into_iter().flatten().filter(is_own).collect();
    ensure!(entries.len() == ARCHITECTURES.len(), "{saved}");
    for entry in entries {
        let architecture = entry["platform"]["architecture"].as_str().context("an architecture")?;
        let digest = entry["digest"].as_str().context("a digest")?;
        let unpacked = dir.join(format!("{architecture}-unpacked"));
        let mut unpack = Command::new(peers::nydus_cluster()?);
        unpack.args(["image", "unpack", &format!("{repository}@{digest}")]).arg(&unpacked);
        process::run(unpack.arg("--directory"))?;
        let word = fs::read_to_string(unpacked.join("word"))?;
        ensure!(word == architecture, "the image for {architecture} has {word}");
    }

    // In the lock of each platform it is what its archive has, and nodes are told of what was saved all the same.
    let mut digests = BTreeSet::new();
    for architecture in ARCHITECTURES {
        let mut inspect = Command::new(peers::nydus_cluster()?);
        inspect.args(["cluster", "inspect", &name, "--json", "--platform", &format!("linux/{architecture}")]);
        let report: Value = serde_json::from_str(&process::run(&mut inspect)?.stdout)?;
        ensure!(report["images"][0]["image"] == OWN, "{report}");
        digests.insert(report["images"][0]["digest"].to_string());
    }
    ensure!(digests.len() == ARCHITECTURES.len(), "{digests:?}");
    let mut run = Command::new(peers::nydus_cluster()?);
    // Nobody listens there.
    run.args(["cluster", "run", &name, "--masters", "127.0.0.1:1"]);
    let said = process::run_failing(run.env("XDG_STATE_HOME", dir.join("state")))?.stderr;
    ensure!(said.contains(&format!("read lazily from {repository}@")), "{said}");
    Ok(())
}
