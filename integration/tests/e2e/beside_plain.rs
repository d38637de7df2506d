//! A nydus image next to a plain one, under one name: whoever knows nothing of nydus runs the plain one.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::node::{Node, NodeOptions};
use integration::servers::{EmbeddedRegistry, UpstreamMode};
use integration::tree::content_digest;
use integration::{demo, oci_layout, peers, process};

use crate::convert::{COMMAND, convert, demo_layout, oci, small_layout};
use crate::fixture::{Fixture, manifest, nydus_layers};

pub(crate) fn plain_client(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-beside")?;
    let layout = small_layout(fixture, &dir, &[oci_layout::architecture()])?;
    let registry = fixture.registry()?;
    let plain = format!("{}/beside-plain:v1", registry.address());
    oci_layout::copy(&oci(&layout), &format!("docker://{plain}"))?;
    let name = format!("{}/beside:v1", registry.address());
    let start = registry.access_log().mark()?;
    process::run(convert(&plain, &name)?.arg("--also-oci"))?;
    let index = manifest(&name)?;
    let entries = index["manifests"].as_array().context("an index")?;
    ensure!(entries.len() == 2, "{index}");
    ensure!(entries[1]["artifactType"] == "application/vnd.nydus.image.manifest.v1+json", "{index}");
    ensure!(entries[1]["platform"]["os.features"][0] == "nydus.remoteimage.v1", "{index}");
    // The plain image is the untouched one, and its layers were not sent again.
    let digest = entries[0]["digest"].as_str().context("a digest")?;
    let original = process::run(
        Command::new(peers::system("skopeo")?)
            .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
            .arg(format!("docker://{plain}")),
    )?;
    ensure!(original.stdout.trim() == digest, "{} is not {digest}", original.stdout);
    let layer = manifest(&plain)?["layers"][0]["digest"].as_str().context("a layer")?.to_owned();
    let read = registry.access_log().since(start)?;
    let reads = read.iter().filter(|request| request.reads_blob(&layer)).count();
    ensure!(reads == 1, "the layer was read {reads} times: {read:#?}");
    // Nor read twice where it has to be sent.
    let (start, both) = (registry.access_log().mark()?, dir.join("both"));
    process::run(convert(&plain, &oci(&both))?.arg("--also-oci"))?;
    let read = registry.access_log().since(start)?;
    let reads = read.iter().filter(|request| request.reads_blob(&layer)).count();
    ensure!(reads == 1, "the layer was read {reads} times: {read:#?}");
    ensure!(both.join("blobs").join(layer.replace(':', "/")).is_file(), "the plain layer is missing");

    // Ours finds the nydus image in the index, another client runs the plain one.
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    let node = Node::overlayfs(fixture.peers(), &dir.join("node"), fixture.pause()?, fixture.containerd())?;
    node.cri().pull(&name)?;
    let pod = node.pod("beside")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("beside", &name, &[]))?;
    node.cri().exec(&container, &["/bin/busybox", "true"])?.success()?;
    node.cri().remove_pod(&pod.id)?;
    Ok(())
}

/// Images of builds, cluster images at that, each with the plain one next to it: that of the build, and the one that its name had.
pub(crate) fn of_builds(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("beside-builds")?;
    let registry = fixture.registry()?;
    let mut images = Vec::new();
    for (way, size) in [("also-oci", 2 << 20), ("merge-manifest", 3 << 20)] {
        let context = demo::random_files(fixture.peers(), &dir.join(way), &[("data", size)])?;
        fs::write(context.join("imageList"), format!("{}\n", fixture.pause()?))?;
        let dockerfile = context.join("Dockerfile");
        fs::write(&dockerfile, fs::read_to_string(&dockerfile)? + "COPY imageList /imageList\n")?;
        let name = format!("{}/beside-builds/{way}-{}:v1", registry.address(), fixture.containerd());
        if way == "merge-manifest" {
            // Layers of the build before are zstd: with Docker's media types, BuildKit 0.12 calls them what containerd 1.7 takes for none.
            let plain =
                format!("type=image,name={name},push=true,registry.insecure=true,oci-mediatypes=true");
            fixture.buildctl()?.build(&context, &[&plain])?;
        }
        let output = format!("type=nydus-cluster,name={name},{way}=true,images=ref");
        fixture.buildctl()?.build(&context, &[&output])?;
        images.push(Both::of(&name, content_digest(&context.join("data"))?)?);
    }
    let stock = dir.join("stock");
    let stock = Node::overlayfs(fixture.peers(), &stock, fixture.pause()?, fixture.containerd())?;
    let options =
        NodeOptions { snapshotter: "nydus_beside_plain = true".to_owned(), ..NodeOptions::default() };
    let ours = fixture.new_node_with("beside-builds-node", options)?;
    for image in &images {
        let read = image.run_on(&stock, registry)?;
        ensure!(read == (true, false), "stock containerd read plain layers, nydus blobs: {read:?}");
        let read = image.run_on(&ours, registry)?;
        ensure!(read == (false, true), "our snapshotter read plain layers, nydus blobs: {read:?}");
    }
    Ok(())
}

/// Upstream's newest nydus-snapshotter, told to look for them, runs the nydus images of our indexes too.
pub(crate) fn upstream_snapshotter(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("beside-upstream")?;
    let registry = fixture.registry()?;
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &[("data", 2 << 20)])?;
    let name = format!("{}/beside-upstream:v1", registry.address());
    fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name},also-oci=true")])?;
    let image = Both::of(&name, content_digest(&context.join("data"))?)?;
    let node = dir.join("node");
    let node = Node::upstream(fixture.peers(), &node, fixture.pause()?, UpstreamMode::BesidePlain)?;
    let read = image.run_on(&node, registry)?;
    ensure!(read == (false, true), "nydus-snapshotter read plain layers, nydus blobs: {read:?}");
    Ok(())
}

/// An image in both forms.
struct Both {
    name: String,
    /// The digest of its file `/data`.
    data: String,
    plain_layers: Vec<String>,
    nydus_blobs: Vec<String>,
}

impl Both {
    fn of(name: &str, data: String) -> Result<Self> {
        let index = manifest(name)?;
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        let entry = |number: usize| {
            let digest = index["manifests"][number]["digest"].as_str().context("an entry")?;
            manifest(&format!("{repository}@{digest}"))
        };
        let digest = |layer: &serde_json::Value| layer["digest"].as_str().map(str::to_owned);
        let plain = entry(0)?;
        let plain_layers = plain["layers"].as_array().context("layers")?.iter().filter_map(digest).collect();
        let nydus_blobs = nydus_layers(&entry(1)?)?.0;
        Ok(Self { name: name.to_owned(), data, plain_layers, nydus_blobs })
    }

    /// Pulls it on `node` and reads its file there; whether plain layers, and nydus blobs, were read for that.
    fn run_on(&self, node: &Node, registry: &EmbeddedRegistry) -> Result<(bool, bool)> {
        let start = registry.access_log().mark()?;
        node.cri().pull(&self.name)?;
        let pod = node.pod("beside-builds")?;
        let spec = ContainerSpec::new("beside-builds", &self.name, &[]);
        let container = node.cri().run_container(&pod, &spec)?;
        let said = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
        ensure!(said.starts_with(&self.data), "{said}, expected {}", self.data);
        node.cri().remove_pod(&pod.id)?;
        let requests = registry.access_log().since(start)?;
        let read = |blobs: &[String]| {
            blobs.iter().any(|blob| requests.iter().any(|request| request.reads_blob(blob)))
        };
        Ok((read(&self.plain_layers), read(&self.nydus_blobs)))
    }
}

pub(crate) fn lazily(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-lazily")?;
    let layout = demo_layout(fixture, &dir)?;
    let registry = fixture.registry()?;
    let name = format!("{}/lazily:v1", registry.address());
    process::run(convert(&oci(&layout), &name)?.arg("--also-oci"))?;
    let options =
        NodeOptions { snapshotter: "nydus_beside_plain = true".to_owned(), ..NodeOptions::default() };
    let node = fixture.new_node_with("lazily-node", options)?;
    let pod = node.pod("lazily")?;
    let start = registry.access_log().mark()?;
    node.cri().pull(&name)?;
    let spec = ContainerSpec::new("lazily", &name, COMMAND);
    let container = node.cri().run_container(&pod, &spec)?;
    let said = node.cri().exec(&container, &["python3", "-c", "import numpy; print(numpy.eye(2).sum())"])?;
    ensure!(said.clone().success()? == "2.0\n", "{said:?}");
    let requests = registry.access_log().since(start)?;
    for layer in ["base", "numpy"] {
        let digest = format!("sha256:{}", content_digest(&fixture.peers().demo_layer(layer)?)?);
        let read = requests.iter().any(|request| request.reads_blob(&digest));
        ensure!(!read, "the plain layer {layer} was read: {requests:#?}");
    }
    let nydus = &manifest(&name)?["manifests"][1]["digest"];
    let nydus = manifest(&format!("{}/lazily@{}", registry.address(), nydus.as_str().unwrap_or_default()))?;
    let blobs = nydus_layers(&nydus)?.0;
    let ranged =
        |blob: &String| requests.iter().any(|request| request.reads_blob(blob) && request.range.is_some());
    ensure!(blobs.iter().all(ranged), "the nydus blobs {blobs:?} were not read by ranges: {requests:#?}");
    node.cri().remove_pod(&pod.id)?;
    // A plain image on the same lowest layer cannot have that, and says so.
    let plain = dir.join("plain");
    oci_layout::write(
        &plain,
        &[&fixture.peers().demo_layer("base")?, &fixture.peers().pause_rootfs()?],
        COMMAND,
        &[oci_layout::architecture()],
    )?;
    let plain_name = format!("{}/lazily-plain:v1", registry.address());
    // Not compressed: the layers have to be the same.
    process::run(
        Command::new(peers::system("skopeo")?)
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--preserve-digests"])
            .args([oci(&plain), format!("docker://{plain_name}")]),
    )?;
    let error = format!("{:#}", node.cri().pull(&plain_name).err().context("the pull succeeded")?);
    ensure!(error.contains("nydus data layers without a bootstrap"), "{error}");
    node.cri().remove_image(&name)?;
    Ok(fs::remove_dir_all(&layout)?)
}
