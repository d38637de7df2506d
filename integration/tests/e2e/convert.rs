//! `nydus-cluster image convert`: from every kind of source to every kind of destination, the same image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::process::{self, Server};
use integration::tree::{Listing, content_digest};
use integration::{gnu_tar, oci_layout, peers, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::fixture::{Fixture, manifest, nydus_layers};
use crate::same_tree::list_image_tree;

/// For an interrupted command to end, or a conversion to have begun.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the images run.
pub(crate) const COMMAND: &[&str] = &["/bin/sleep", "infinity"];

/// `nydus-cluster image convert FROM TO` of all layers, to be completed.
pub(crate) fn convert(from: &str, to: &str) -> Result<Command> {
    let mut program = Command::new(peers::nydus_cluster()?);
    // Whatever this machine's user converted before.
    program.args(["image", "convert", "--fresh", from, to]);
    Ok(program)
}

pub(crate) fn oci(dir: &Path) -> String {
    format!("oci:{}", dir.display())
}

fn files(dir: &Path) -> String {
    format!("files:{}", dir.display())
}

/// A plain OCI layout of the demonstration's two layers, Debian and Python with numpy.
pub(crate) fn demo_layout(fixture: &Fixture, dir: &Path) -> Result<PathBuf> {
    let layers = [fixture.peers().demo_layer("base")?, fixture.peers().demo_layer("numpy")?];
    layout(dir, &layers, &[oci_layout::architecture()])
}

/// Two layers of real packages, one over the other: Python with numpy, and busybox.
fn two_layers(fixture: &Fixture) -> Result<[PathBuf; 2]> {
    Ok([fixture.peers().demo_layer("numpy")?, fixture.peers().pause_rootfs()?])
}

fn layout(dir: &Path, layers: &[PathBuf], architectures: &[&str]) -> Result<PathBuf> {
    let layout = dir.join("layout");
    let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
    oci_layout::write(&layout, &layers, COMMAND, architectures)?;
    Ok(layout)
}

/// A plain OCI layout of busybox alone.
pub(crate) fn small_layout(fixture: &Fixture, dir: &Path, architectures: &[&str]) -> Result<PathBuf> {
    layout(dir, &[fixture.peers().pause_rootfs()?], architectures)
}

/// What tar makes of layers, one over the other.
fn extracted(layers: &[PathBuf], dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("extracted");
    layers.iter().try_for_each(|layer| gnu_tar::extract(layer, &tree))?;
    Ok(tree)
}

/// A listing of what [`extracted`] made. Times of directories that two layers have are those of the unpacking, so none
/// are compared.
fn extracted_tree(layers: &[PathBuf], dir: &Path) -> Result<Listing> {
    Ok(list_image_tree(&extracted(layers, dir)?)?.without_mtimes())
}

/// The tree of the nydus image whose parts are in `dir`.
fn tree_of_files(dir: &Path) -> Result<Listing> {
    let unpacked = dir.with_extension("unpacked");
    process::run(
        Command::new(peers::nydus_cluster()?)
            .args(["image", "unpack", "--directory"])
            .arg(dir.join("image.boot"))
            .arg("--blobs")
            .arg(dir.join("blobs"))
            .arg(&unpacked),
    )?;
    let listing = list_image_tree(&unpacked);
    fs::remove_dir_all(&unpacked)?;
    listing
}

/// Upstream's check and ours of the nydus image whose parts are in `dir`.
fn check_files(fixture: &Fixture, dir: &Path) -> Result<()> {
    process::run(
        Command::new(fixture.peers().nydus("nydus-image")?)
            .args(["check", "--bootstrap"])
            .arg(dir.join("image.boot"))
            .arg("--blob-dir")
            .arg(dir.join("blobs")),
    )?;
    check_by_ours(dir)
}

fn check_by_ours(dir: &Path) -> Result<()> {
    let mut check = Command::new(peers::nydus_cluster()?);
    check.args(["image", "check"]).arg(dir.join("image.boot")).arg("--blobs").arg(dir.join("blobs"));
    process::run(&mut check)?;
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

pub(crate) fn sources(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-sources")?;
    let layers = two_layers(fixture)?;
    let layout = layout(&dir, &layers, &[oci_layout::architecture()])?;
    let name = format!("{}/plain-demo:v1", fixture.registry()?.address());
    let (oci_tar, docker_tar) = (dir.join("oci.tar"), dir.join("docker.tar"));
    // skopeo compresses what it pushes: other bytes of the same layers.
    for target in [
        format!("docker://{name}"),
        format!("oci-archive:{}:v1", oci_tar.display()),
        format!("docker-archive:{}:demo:v1", docker_tar.display()),
    ] {
        oci_layout::copy(&oci(&layout), &target)?;
    }
    process::run(Command::new("gzip").args(["--fast", "--keep"]).arg(&docker_tar))?;
    let expected = extracted_tree(&layers, &dir)?;
    let mut first: Option<(String, Vec<String>)> = None;
    for (number, source) in [
        oci(&layout),
        name,
        format!("oci-archive:{}:v1", oci_tar.display()),
        format!("docker-archive:{}", docker_tar.display()),
        format!("docker-archive:{}.gz:demo:v1", docker_tar.display()),
    ]
    .iter()
    .enumerate()
    {
        let out = dir.join(format!("out-{number}"));
        process::run(&mut convert(source, &files(&out))?)?;
        let made = (content_digest(&out.join("image.boot"))?, names(&out.join("blobs"))?);
        match &first {
            None => {
                check_files(fixture, &out)?;
                tree_of_files(&out)?.without_mtimes().expect_same("the nydus image", &expected, "tar")?;
                first = Some(made);
            }
            Some(first) => ensure!(*first == made, "{source} gives {made:?}, the layout {first:?}"),
        }
    }

    let out = dir.join("out-directory");
    let tree = dir.join("extracted");
    process::run(&mut convert(&format!("directory:{}", tree.display()), &files(&out))?)?;
    check_files(fixture, &out)?;
    tree_of_files(&out)?.expect_same("the nydus image of a directory", &list_image_tree(&tree)?, "it")?;
    Ok(fs::remove_dir_all(dir)?)
}

pub(crate) fn destinations(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-destinations")?;
    let layout = small_layout(fixture, &dir, &[oci_layout::architecture()])?;
    let registry = fixture.registry()?.address();
    let direct = format!("{registry}/converted:v1");
    let digest = process::run(&mut convert(&oci(&layout), &direct)?)?.stdout;
    let made = manifest(&direct)?;
    for (key, value) in [("fs-version", "6"), ("builder-version", "nydus-cluster")] {
        let annotation = &made["annotations"][format!("containerd.io/snapshot/nydus-{key}")];
        ensure!(annotation.as_str().is_some_and(|text| text.starts_with(value)), "{key}: {annotation}");
    }
    let source = &made["annotations"]["containerd.io/snapshot/nydus-source-digest"];
    let source = source.as_str().unwrap_or_default().replace(':', "/");
    ensure!(layout.join("blobs").join(&source).is_file(), "the source is not {source}");
    let source = oci(&layout);
    process::run(
        Command::new(peers::nydus_cluster()?).args(["image", "check", "--source", &source, &direct]),
    )?;

    // Twice into one layout: under two names, and then the first again.
    let (out, tar) = (dir.join("out"), dir.join("out.tar"));
    for target in [
        format!("{}:v1", oci(&out)),
        format!("{}:v2", oci(&out)),
        format!("{}:v1", oci(&out)),
        format!("oci-archive:{}:v1", tar.display()),
    ] {
        let said = process::run(&mut convert(&oci(&layout), &target)?)?.stdout;
        ensure!(said == digest, "{target} has digest {said}, the registry {digest}");
    }
    let index: Value = serde_json::from_str(&fs::read_to_string(out.join("index.json"))?)?;
    ensure!(index["manifests"].as_array().map_or(0, Vec::len) == 2, "two names: {index}");
    // What skopeo takes out of them is the same image.
    for (source, name) in [
        (format!("{}:v2", oci(&out)), "from-layout:v1"),
        (format!("oci-archive:{}:v1", tar.display()), "from-tar:v1"),
    ] {
        let name = format!("{registry}/{name}");
        oci_layout::copy(&source, &format!("docker://{name}"))?;
        ensure!(manifest(&name)? == made, "skopeo pushed another image from {source}");
        process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    }
    ensure!(names(&dir)? == ["layout", "out", "out.tar"], "leftovers: {:?}", names(&dir)?);

    // A node runs what was converted.
    let node = fixture.node()?;
    node.cri().pull(&direct)?;
    let pod = node.pod("converted")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("converted", &direct, &[]))?;
    node.cri().exec(&container, &["/bin/busybox", "true"])?.success()?;
    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_image(&direct)
}

pub(crate) fn platforms(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-platforms")?;
    let layout = small_layout(fixture, &dir, &["amd64", "arm64"])?;
    let name = format!("{}/platforms:v1", fixture.registry()?.address());
    let architectures = |index: &Value| -> Vec<String> {
        let entries = index["manifests"].as_array().into_iter().flatten();
        entries
            .map(|entry| entry["platform"]["architecture"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let said = process::run(&mut convert(&oci(&layout), &name)?)?.stderr;
    ensure!(architectures(&manifest(&name)?) == ["amd64", "arm64"], "{}", manifest(&name)?);
    let count = |word: &str| said.lines().filter(|line| line.starts_with(word)).count();
    ensure!((count("layer "), count("image ")) == (1, 2), "one layer, two images: {said}");
    process::run(Command::new(peers::nydus_cluster()?).args([
        "image",
        "check",
        "--platform",
        "linux/arm64",
        &name,
    ]))?;

    process::run(convert(&oci(&layout), &name)?.args(["--platform", "linux/arm64"]))?;
    ensure!(architectures(&manifest(&name)?) == ["arm64"], "{}", manifest(&name)?);
    let said =
        process::run_failing(convert(&oci(&layout), &name)?.args(["--platform", "linux/s390x"]))?.stderr;
    ensure!(said.contains("no image for linux/s390x; it has linux/amd64, linux/arm64"), "{said}");

    let out = dir.join("out");
    let said = process::run_failing(&mut convert(&oci(&layout), &files(&out))?)?.stderr;
    ensure!(said.contains("linux/amd64, linux/arm64") && said.contains("--platform"), "{said}");
    process::run(convert(&oci(&layout), &files(&out))?.args(["--platform", "linux/amd64"]))?;
    check_files(fixture, &out)
}

pub(crate) fn options(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-options")?;
    let layers = two_layers(fixture)?;
    let layout = layout(&dir, &layers, &[oci_layout::architecture()])?;
    let expected = extracted_tree(&layers, &dir)?;
    let list = dir.join("prefetch");
    fs::write(&list, "/usr/bin/python3\n\n/etc\n")?;
    let list = list.display().to_string();
    let sets: [&[&str]; 3] = [
        &["--compressor", "lz4", "--digester", "sha256", "--chunk-size", "64K", "--prefetch", "/bin/sh"],
        &["--compression-level", "1", "--batch-size", "0x40000", "--inline-chunk-info"],
        &["--compressor", "none", "--prefetch-list", &list],
    ];
    for (number, set) in sets.iter().enumerate() {
        let out = dir.join(format!("out-{number}"));
        process::run(convert(&oci(&layout), &files(&out))?.args(*set))?;
        // nydus-image 2.2 knows no batches.
        let checked =
            if set.contains(&"--batch-size") { check_by_ours(&out) } else { check_files(fixture, &out) };
        checked.with_context(|| format!("{set:?}"))?;
        tree_of_files(&out)?.without_mtimes().expect_same(&format!("{set:?}"), &expected, "tar")?;
        let metas = names(&out)?.iter().filter(|name| name.ends_with(".blob.meta")).count();
        ensure!(metas == if set.contains(&"--inline-chunk-info") { 2 } else { 0 }, "{metas} blob.meta");
    }
    Ok(fs::remove_dir_all(dir)?)
}

pub(crate) fn dictionary(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-dictionary")?;
    let registry = fixture.registry()?.address();
    let base = fixture.peers().pause_rootfs()?;
    fs::create_dir(dir.join("tree"))?;
    fs::write(dir.join("tree/data"), vec![7; 1 << 20])?;
    process::run(
        Command::new("tar").arg("-C").arg(dir.join("tree")).arg("-cf").arg(dir.join("data.tar")).arg("data"),
    )?;
    let (first, second) = (dir.join("first"), dir.join("second"));
    oci_layout::write(&first, &[&base], COMMAND, &[oci_layout::architecture()])?;
    oci_layout::write(&second, &[&base, &dir.join("data.tar")], COMMAND, &[oci_layout::architecture()])?;
    let known = format!("{registry}/dictionary:v1");
    process::run(&mut convert(&oci(&first), &known)?)?;
    let known_blob = nydus_layers(&manifest(&known)?)?.0.remove(0);

    // In another repository: the blob is mounted, and named behind the layers' own.
    let name = format!("{registry}/with-dictionary:v1");
    process::run(convert(&oci(&second), &name)?.args(["--chunk-dict", &known]))?;
    let made = manifest(&name)?;
    let (blobs, _) = nydus_layers(&made)?;
    ensure!(blobs.len() == 3 && blobs[2] == known_blob, "{blobs:?} with {known_blob}");
    let size = |layer: usize| made["layers"][layer]["size"].as_u64().unwrap_or_default();
    ensure!(size(0) < size(2) / 2, "what the dictionary has is stored again: {made}");
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;

    // As files, with the dictionary's parts as files too.
    let (known_files, out) = (dir.join("known"), dir.join("out"));
    process::run(&mut convert(&oci(&first), &files(&known_files))?)?;
    let bootstrap = known_files.join("image.boot");
    process::run(convert(&oci(&second), &files(&out))?.arg("--chunk-dict").arg(bootstrap))?;
    ensure!(names(&out.join("blobs"))?.len() == 3, "{:?}", names(&out.join("blobs"))?);
    check_files(fixture, &out)
}

pub(crate) fn interrupted(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-interrupted")?;
    let layout = demo_layout(fixture, &dir)?;
    let registry = fixture.registry()?;
    let name = format!("{}/convert-interrupted:v1", registry.address());
    let uploads = registry.root().join("docker/registry/v2/repositories/convert-interrupted/_uploads");
    let is_staging = |name: &String| name.starts_with('.');
    for target in [
        oci(&dir.join("out")),
        files(&dir.join("out")),
        format!("oci-archive:{}", dir.join("out").display()),
        name.clone(),
    ] {
        let log = dir.join("convert.log");
        let mut command = Server::spawn("image convert", convert(&oci(&layout), &target)?, log)?;
        wait::until_true("the conversion writes", DEADLINE, || {
            let uploading = names(&uploads).is_ok_and(|uploads| !uploads.is_empty());
            uploading || names(&dir).is_ok_and(|names| names.iter().any(is_staging))
        })?;
        kill(command.pid()?, Signal::SIGINT)?;
        let status = wait::until("the command ended", DEADLINE, || command.exited())?;
        ensure!(!status.success(), "{target}: an interrupted conversion reports {status}");
        let left = names(&dir)?;
        ensure!(left == ["convert.log", "layout"], "{target}: {left:?} are left");
    }
    ensure!(manifest(&name).is_err(), "an interrupted conversion left an image");
    let left = names(&uploads)?;
    ensure!(left.is_empty(), "uploads {left:?} are left");
    Ok(fs::remove_dir_all(dir)?)
}

pub(crate) fn refused(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-refused")?;
    let layout = small_layout(fixture, &dir, &[oci_layout::architecture()])?;
    let name = format!("{}/once:v1", fixture.registry()?.address());
    process::run(&mut convert(&oci(&layout), &name)?)?;
    let out = dir.join("out");
    let said = process::run_failing(&mut convert(&name, &oci(&out))?)?.stderr;
    ensure!(said.contains("already a nydus image"), "{said}");

    // One byte of the layer, which is the largest blob.
    let layer = content_digest(&fixture.peers().pause_rootfs()?)?;
    let path = layout.join("blobs/sha256").join(&layer);
    let mut content = fs::read(&path)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&path, &content)?;
    let said = process::run_failing(&mut convert(&oci(&layout), &oci(&out))?)?.stderr;
    ensure!(said.contains(&format!("layer sha256:{layer}")) && said.contains("expected sha256:"), "{said}");
    fs::write(&path, &content[..middle])?;
    let said = process::run_failing(&mut convert(&oci(&layout), &oci(&out))?)?.stderr;
    ensure!(said.contains(&layer) && said.contains(&format!("{middle} bytes")), "{said}");
    fs::remove_file(&path)?;
    let said = process::run_failing(&mut convert(&oci(&layout), &oci(&out))?)?.stderr;
    ensure!(said.contains(&layer) && said.contains("does not exist"), "{said}");

    let said = process::run_failing(&mut convert(&oci(&layout), "./out")?)?.stderr;
    ensure!(said.contains("oci:"), "{said}");
    let said = process::run_failing(&mut convert(&oci(&dir.join("absent")), &oci(&out))?)?.stderr;
    ensure!(said.contains("absent"), "{said}");
    ensure!(names(&dir)? == ["layout"], "{:?} are left", names(&dir)?);
    Ok(())
}

pub(crate) fn inline_chunk_info(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("convert-inline")?;
    let layout = demo_layout(fixture, &dir)?;
    let registry = fixture.registry()?;
    let node = fixture.node()?;
    // How often blobs are read for a mount alone: a node has to know what is in batches before.
    let reads = |tag: &str, options: &[&str]| -> Result<usize> {
        let name = format!("{}/inline:{tag}", registry.address());
        process::run(convert(&oci(&layout), &name)?.args(["--batch-size", "256K"]).args(options))?;
        node.cri().pull(&name)?;
        let start = registry.access_log().mark()?;
        let mounted = dir.join(format!("mounted-{tag}"));
        let guard = node.mount(&name, &mounted)?;
        let blobs = nydus_layers(&manifest(&name)?)?.0;
        let requests = registry.access_log().since(start)?;
        let seen = content_digest(&mounted.join("usr/bin/env"))?;
        drop(guard);
        node.cri().remove_image(&name)?;
        let expected = Command::new("tar")
            .arg("-xOf")
            .arg(fixture.peers().demo_layer("base")?)
            .arg("./usr/bin/env")
            .output()?;
        let file = dir.join(format!("env-{tag}"));
        fs::write(&file, expected.stdout)?;
        ensure!(seen == content_digest(&file)?, "{tag}: /usr/bin/env is another");
        Ok(requests.iter().filter(|request| blobs.iter().any(|blob| request.reads_blob(blob))).count())
    };
    let (without, with) = (reads("without", &[])?, reads("with", &["--inline-chunk-info"])?);
    ensure!(
        without >= 2 && with == 0,
        "{without} reads without and {with} with chunk information next to the bootstrap"
    );
    Ok(fs::remove_dir_all(layout)?)
}
