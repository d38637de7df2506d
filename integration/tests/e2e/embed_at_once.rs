//! Builds at once that save their container images in one repository, each under several names.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use integration::{demo, gnu_tar, peers, process};

use crate::fixture::{Fixture, manifest};

/// So many builds at once.
const BUILDS: usize = 3;

pub(crate) fn one_repository(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("embed-at-once")?;
    let pause = fixture.pause()?;
    let layer = manifest(pause)?["layers"][0]["digest"].as_str().context("pause has a layer")?.to_owned();
    let repository = format!("{}/embed-at-once", fixture.registry()?.address());
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    let mut builds = Vec::new();
    for number in 0..BUILDS {
        let tree = dir.join(format!("tree-{number}"));
        fs::create_dir_all(&tree)?;
        fs::write(tree.join("imageList"), format!("# of {number}\n{pause}\n"))?;
        let packed = dir.join(format!("tree-{number}.tar"));
        gnu_tar::pack(&tree, &packed)?;
        let context = demo::one_layer(&packed, &dir.join(format!("context-{number}")))?;
        let output = format!(
            "type=nydus-cluster,\"name={repository}:v{number},{repository}:also-{number}\",images=embed"
        );
        let mut command = fixture.buildctl()?.build_command(&context, &[&output]);
        builds.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    }
    for (number, build) in builds.into_iter().enumerate() {
        let ended = build.wait_with_output()?;
        ensure!(ended.status.success(), "build {number}: {}", String::from_utf8_lossy(&ended.stderr));
    }
    for number in 0..BUILDS {
        let [name, also] = ["v", "also-"].map(|tag| format!("{repository}:{tag}{number}"));
        let saved = manifest(&format!("{name}-images"))?;
        ensure!(manifest(&format!("{also}-images"))? == saved, "{also} has other images than {name}");
        ensure!(manifest(&name)? == manifest(&also)?);
        process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    }
    // An image of several names is saved once.
    let reads = log.since(start)?.iter().filter(|request| request.reads_blob(&layer)).count();
    ensure!(reads == BUILDS, "{BUILDS} builds read the image's layer {reads} times");
    Ok(())
}
