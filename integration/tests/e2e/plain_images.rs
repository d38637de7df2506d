//! What is not ours works as without us: plain images, other outputs, either registry.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::servers::{DockerRegistry, DockerRegistryOptions};
use integration::{demo, process};

use crate::fixture::{Fixture, manifest, nydus_layers};
use crate::same_tree::{container_tree, list_image_tree};

pub(crate) fn runs(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let name = format!("{}/plain:v1", fixture.registry()?.address());
    let output = format!("type=image,name={name},push=true,compression=gzip,registry.insecure=true");
    fixture.plain_buildctl()?.build(&image.context, &[&output])?;
    let node = fixture.node()?;
    node.cri().pull(&name)?;
    let pod = node.pod("plain")?;
    let container =
        node.cri().run_container(&pod, &ContainerSpec::new("plain", &name, &["/bin/sleep", "infinity"]))?;
    let said = node.cri().exec(&container, &["python3", "-c", "import numpy; print(numpy.eye(2).sum())"])?;
    ensure!(said.clone().success()? == "2.0\n", "{said:?}");
    node.cri().exec(&container, &["sh", "-c", "echo new >/written && rm /etc/debian_version"])?.success()?;
    node.cri().remove_pod(&pod.id)?;
    let seen = container_tree(fixture, &name, "plain-mount")?;
    fixture.demo_exported()?.expect_same(&seen, "the container")?;
    node.cri().remove_image(&name)
}

pub(crate) fn passes_through(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("through")?, &[("data", 1 << 20)])?;
    let dir = fixture.subdir("through-out")?;
    let outputs = |name: &str| {
        let folder = dir.join(name);
        [format!("type=local,dest={}", folder.display()), format!("type=oci,dest={}.tar", folder.display())]
    };
    let (through, direct) = (outputs("through"), outputs("direct"));
    let at_once = if fixture.has_oldest_buildkit() { 1 } else { through.len() };
    for (buildctl, outputs) in [(fixture.buildctl()?, &through), (fixture.plain_buildctl()?, &direct)] {
        for outputs in outputs.chunks(at_once) {
            buildctl.build(&context, &outputs.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
    }
    list_image_tree(&dir.join("through"))?.expect_same(
        "through the exporter",
        &list_image_tree(&dir.join("direct"))?,
        "directly",
    )?;
    let manifests = |name: &str| -> Result<String> {
        let archive = dir.join(format!("{name}.tar"));
        Ok(process::run(Command::new("tar").arg("-xOf").arg(archive).arg("index.json"))?.stdout)
    };
    let digest = |index: &str| -> Result<String> {
        let parsed: serde_json::Value = serde_json::from_str(index)?;
        let digest = parsed["manifests"][0]["digest"].as_str().map(str::to_owned);
        digest.with_context(|| format!("the index names no manifest: {index}"))
    };
    ensure!(digest(&manifests("through")?)? == digest(&manifests("direct")?)?, "the OCI exports differ");
    let unknown = "type=nydus-cluster,name=127.0.0.1:1/x,colour=blue";
    let said = process::run_failing(&mut fixture.buildctl()?.build_command(&context, &[unknown]))?.stderr;
    ensure!(
        said.contains("colour") && said.contains("registry.insecure"),
        "an unknown key is named, and the known ones: {said}"
    );
    Ok(())
}

pub(crate) fn both_registries(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("both")?, &[("data", 2 << 20)])?;
    let dir = fixture.subdir("both-registry")?;
    // Pushed to docker-registry by the exporter, pulled from there by the node.
    let theirs = DockerRegistry::start(&dir.join("theirs"), &DockerRegistryOptions::default())?;
    let name = format!("{}/both:v1", theirs.address());
    fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name}")])?;
    run_and_read(fixture, &name, &context)?;
    // docker-registry takes over what the embedded one stored.
    let image = fixture.build(&context, "both:v1")?;
    let storage = dir.join("taken-over");
    process::run(Command::new("cp").arg("-a").arg(fixture.registry()?.root()).arg(&storage))?;
    let options = DockerRegistryOptions { storage: Some(storage.clone()), htpasswd: None };
    let taken_over = DockerRegistry::start(&dir.join("over"), &options)?;
    let name = format!("{}/both:v1", taken_over.address());
    ensure!(manifest(&name)? == image.manifest, "docker-registry serves another manifest");
    run_and_read(fixture, &name, &context)?;
    drop(taken_over);
    fs::remove_dir_all(&storage)?;
    Ok(())
}

fn run_and_read(fixture: &Fixture, name: &str, context: &std::path::Path) -> Result<()> {
    nydus_layers(&manifest(name)?)?;
    let node = fixture.node()?;
    node.cri().pull(name)?;
    let pod = node.pod("both")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", name, &[]))?;
    let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");
    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_image(name)
}
