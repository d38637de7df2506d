//! The key `images`: the container images that a build's result asks for are locked in it, and saved with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::{demo, gnu_tar, oci_layout, peers, process};
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

    // The plain image next to it stays as BuildKit made it.
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

/// A lock in what is built is obeyed, wherever the tags of its images lead meanwhile; without one they are looked up.
pub(crate) fn obeyed(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-obeyed")?;
    let registry = fixture.registry()?.address();
    let push = |version: &str| -> Result<String> {
        let tree = dir.join(version);
        fs::create_dir_all(&tree)?;
        fs::write(tree.join("version"), version)?;
        let layer = dir.join(format!("{version}.tar"));
        gnu_tar::pack(&tree, &layer)?;
        let layout = dir.join(format!("{version}-layout"));
        oci_layout::push(registry, "cluster-obeyed-moving", &layer, &["/version"], &layout)
    };
    let moving = push("first")?;
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("manifests"))?;
    fs::write(tree.join("manifests/imageList"), format!("{moving}\n"))?;
    let build = |name: &str| -> Result<Value> {
        let packed = dir.join("tree.tar");
        gnu_tar::pack(&tree, &packed)?;
        let context = demo::one_layer(&packed, &dir.join("context"))?;
        fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name},images=ref")])?;
        let mut inspect = Command::new(peers::nydus_cluster()?);
        let said = process::run(inspect.args(["cluster", "inspect", name, "--json"]))?.stdout;
        let report: Value = serde_json::from_str(&said)?;
        Ok(report["images"][0]["digest"].clone())
    };
    let without = format!("{registry}/cluster-obeyed-without:v1");
    let first = build(&without)?;
    let mut lock = Command::new(peers::nydus_cluster()?);
    lock.args(["cluster", "images"]).arg(&tree).arg("--lock").arg(tree.join("images.lock"));
    let platform = format!("linux/{}", oci_layout::architecture());
    process::run(lock.args(["--platform", &platform]))?;
    push("second")?;
    let locked = build(&format!("{registry}/cluster-obeyed-with:v1"))?;
    ensure!(locked == first && first.is_string(), "{locked} is locked: expected {first}");
    fs::remove_file(tree.join("images.lock"))?;
    let second = build(&without)?;
    ensure!(second != first && second.is_string(), "{second}: the tag was moved from {first}");
    Ok(())
}

/// An image in an archive of the tree is locked, and embedded with the others.
pub(crate) fn archived(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-archived")?;
    let tree = dir.join("tree");
    let place = tree.join("images/skopeo");
    fs::create_dir_all(&place)?;
    fs::write(place.join("tar.txt"), "docker-archive:own.tar@team/own:v1\n")?;
    let archive = format!("docker-archive:{}:team/own:v1", place.join("own.tar").display());
    oci_layout::copy(&format!("docker://{}", fixture.pause()?), &archive)?;
    let packed = dir.join("tree.tar");
    gnu_tar::pack(&tree, &packed)?;
    let context = demo::one_layer(&packed, &dir.join("context"))?;
    let name = format!("{}/cluster-archived:v1", fixture.registry()?.address());
    fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name},images=embed")])?;
    let inspect = ["cluster", "inspect", &name];
    let said = process::run(Command::new(peers::nydus_cluster()?).args(inspect))?.stdout;
    ensure!(said.contains("docker.io/team/own:v1"), "{said}");
    let (repository, _) = name.rsplit_once(':').context("a tag")?;
    let saved = manifest(&format!("{name}-images"))?;
    let of_image =
        |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/team/own:v1";
    let entry = saved["manifests"].as_array().into_iter().flatten().find(of_image);
    let digest = entry.and_then(|entry| entry["digest"].as_str()).context("the image is not saved")?;
    let check = ["image", "check", &format!("{repository}@{digest}")];
    process::run(Command::new(peers::nydus_cluster()?).args(check))?;
    archived_for_all(fixture, &dir)
}

/// An archive with several platforms is embedded for all platforms of a build.
fn archived_for_all(fixture: &Fixture, dir: &Path) -> Result<()> {
    let tree = dir.join("tree-of-all");
    let place = tree.join("images/skopeo");
    fs::create_dir_all(&place)?;
    fs::write(place.join("tar.txt"), "oci-archive:own.tar@team/own:v1\n")?;
    let layout = dir.join("layout-of-all");
    let pause = fixture.peers().pause_rootfs()?;
    oci_layout::write(&layout, &[&pause], &["/bin/sleep"], &["amd64", "arm64"])?;
    gnu_tar::pack(&layout, &place.join("own.tar"))?;
    let packed = dir.join("tree-of-all.tar");
    gnu_tar::pack(&tree, &packed)?;
    let context = demo::one_layer(&packed, &dir.join("context-of-all"))?;
    let name = format!("{}/cluster-archived-for-all:v1", fixture.registry()?.address());
    let output = format!("type=nydus-cluster,name={name},images=embed");
    let mut command = fixture.buildctl()?.build_command(&context, &[&output]);
    process::run(command.args(["--opt", "platform=linux/amd64,linux/arm64"]))?;
    let saved = manifest(&format!("{name}-images"))?;
    let nydus = saved["manifests"].as_array().context("no index")?.iter();
    let nydus = nydus
        .filter(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/team/own:v1");
    let platforms: BTreeSet<_> =
        nydus.filter_map(|entry| entry["platform"]["architecture"].as_str()).collect();
    ensure!(platforms == BTreeSet::from(["amd64", "arm64"]), "{saved}");
    Ok(())
}

/// What an image says of itself in the words of one system, it says in those of the other as well.
pub(crate) fn described(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-described")?;
    let registry = fixture.registry()?;
    let metadata = r#"{"version": "v1.29.0", "arch": "any", "ClusterRuntime": "k8s", "more": 1}"#;
    let labels =
        "LABEL sealos.io.type=rootfs sealos.io.distribution=k3s version=v1.30.0 init=\"sh init.sh\"\n";
    for (system, metadata, labels) in [("sealer", Some(metadata), ""), ("sealos", None, labels)] {
        let tree = dir.join(system);
        fs::create_dir_all(tree.join("manifests"))?;
        fs::write(tree.join("manifests/imageList"), format!("{}\n", fixture.pause()?))?;
        metadata.map(|text| fs::write(tree.join("Metadata"), text)).transpose()?;
        let packed = dir.join(format!("{system}.tar"));
        gnu_tar::pack(&tree, &packed)?;
        let context = demo::one_layer(&packed, &dir.join(format!("{system}-context")))?;
        let dockerfile = context.join("Dockerfile");
        fs::write(&dockerfile, fs::read_to_string(&dockerfile)? + labels)?;
        let name = format!("{}/cluster-described:{system}", registry.address());
        fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name},images=ref")])?;

        let unpacked = dir.join(format!("{system}-unpacked"));
        let mut unpack = Command::new(peers::nydus_cluster()?);
        process::run(unpack.args(["image", "unpack", &name]).arg(&unpacked).arg("--directory"))?;
        let text = fs::read_to_string(unpacked.join("Metadata"))?;
        let said: Value = serde_json::from_str(&text)?;
        let made = manifest(&name)?;
        let digest = made["config"]["digest"].as_str().and_then(|digest| digest.split(':').nth(1));
        let digest = digest.context("a config")?;
        let blobs = registry.root().join("docker/registry/v2/blobs/sha256");
        let config: Value =
            serde_json::from_slice(&fs::read(blobs.join(&digest[..2]).join(digest).join("data"))?)?;
        let labels = &config["config"]["Labels"];
        let extension = made["annotations"]["sealer.image.extension"].as_str().unwrap_or_default();
        ensure!(extension.contains("kube-installer"), "{made}");
        ensure!(labels["sealos.io.type"] == "rootfs" && labels["sealos.io.version"] == "v1beta1", "{config}");
        ensure!(labels["version"] == said["version"], "{config}: {said}");
        ensure!(labels["sealos.io.distribution"] == said["ClusterRuntime"], "{config}: {said}");
        ensure!(labels["cluster.alpha.sealer.io/cluster-runtime-type"] == said["ClusterRuntime"], "{config}");
        match metadata {
            Some(metadata) => ensure!(text == metadata, "{text}: what is there stays"),
            None => {
                ensure!(said["version"] == "v1.30.0" && said["ClusterRuntime"] == "k3s", "{said}");
                ensure!(said["arch"] == oci_layout::architecture(), "{said}");
                ensure!(labels["init"] == "sh init.sh", "{config}");
            }
        }
    }
    Ok(())
}

/// A program that the root file system has, and a container image.
const PROGRAM_BYTES: u64 = 3 << 20;
/// What documents and metadata may take.
const SMALL_BYTES: u64 = 64 << 10;

/// What the root file system has is not stored again for the container images, whether a plain image is next to it or not: the build's own, or the
/// one that its name had.
pub(crate) fn shared(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("cluster-shared")?;
    let registry = fixture.registry()?.address();
    let (image, tree) = (dir.join("image"), dir.join("tree"));
    for place in [image.join("bin"), tree.join("bin"), tree.join("manifests")] {
        fs::create_dir_all(place)?;
    }
    demo::random_file(&image.join("bin/tool"), PROGRAM_BYTES)?;
    demo::random_file(&image.join("bin/own"), PROGRAM_BYTES)?;
    fs::copy(image.join("bin/tool"), tree.join("bin/tool"))?;
    let layer = dir.join("image.tar");
    gnu_tar::pack(&image, &layer)?;
    let asked =
        oci_layout::push(registry, "cluster-shared-tool", &layer, &["/bin/tool"], &dir.join("layout"))?;
    fs::write(tree.join("manifests/imageList"), format!("{asked}\n"))?;
    let packed = dir.join("tree.tar");
    gnu_tar::pack(&tree, &packed)?;
    let context = demo::one_layer(&packed, &dir.join("context"))?;
    for (number, keys) in ["", ",also-oci=true", ",merge-manifest=true"].into_iter().enumerate() {
        let name = format!("{registry}/cluster-shared-{number}:v1");
        if keys.contains("merge-manifest") {
            let plain = format!("type=image,name={name},push=true,registry.insecure=true");
            fixture.buildctl()?.build(&context, &[&plain])?;
        }
        let output = format!("type=nydus-cluster,name={name},images=embed{keys}");
        fixture.buildctl()?.build(&context, &[&output])?;
        let elsewhere = format!("{registry}/cluster-shared-elsewhere-{number}:v1");
        let mut save = Command::new(peers::nydus_cluster()?);
        process::run(save.args(["cluster", "save", &name, "--to", &elsewhere]))?;
        let (embedded, apart) = (stored(&[&name, &format!("{name}-images")])?, stored(&[&name, &elsewhere])?);
        eprintln!("{embedded} bytes are stored{keys}, {apart} if the images are saved apart");
        ensure!(embedded + PROGRAM_BYTES < apart + SMALL_BYTES, "{embedded} bytes{keys}, apart {apart}");
        // It can be read: the images name the blobs of the root file system that they use.
        let repository = name.trim_end_matches(":v1");
        for entry in manifest(&format!("{name}-images"))?["manifests"].as_array().context("manifests")? {
            if entry["artifactType"].as_str().is_some_and(|kind| kind.contains("nydus.image")) {
                let digest = entry["digest"].as_str().context("a digest")?;
                let check = ["image", "check", &format!("{repository}@{digest}")];
                process::run(Command::new(peers::nydus_cluster()?).args(check))?;
            }
        }
    }
    Ok(())
}

/// The bytes of all blobs that these names lead to, each counted once.
fn stored(names: &[&str]) -> Result<u64> {
    let mut blobs = BTreeMap::new();
    for name in names {
        let (repository, _) = name.rsplit_once(':').context("a tag")?;
        let mut left = vec![manifest(name)?];
        while let Some(found) = left.pop() {
            for entry in found["manifests"].as_array().into_iter().flatten() {
                let digest = entry["digest"].as_str().context("a digest")?;
                left.push(manifest(&format!("{repository}@{digest}"))?);
            }
            for blob in found["layers"].as_array().into_iter().flatten().chain([&found["config"]]) {
                let size = blob["size"].as_u64().unwrap_or_default();
                blobs.insert(blob["digest"].as_str().unwrap_or_default().to_owned(), size);
            }
        }
    }
    Ok(blobs.values().sum())
}
