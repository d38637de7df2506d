//! What was converted once is not sent, converted or pushed again: after a restart, for other names and registries, and in
//! builds side by side.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::access_log::Request;
use integration::servers::{EmbeddedRegistry, Exporter, ExporterOptions};
use integration::{demo, peers, process, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::build_lab::{BuildLab, output};
use crate::fixture::{Fixture, manifest, nydus_layers};

/// How long a step of another party may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the exporter says of each layer that it converts.
const CONVERTED: &str = "layer converted";

/// The memory that eight builds at once may take.
const MEMORY_KIB: u64 = 200 << 10;

/// What contexts have in addition to a base and an archive.
const FILES: [(&str, u64); 2] = [("data", 8 << 20), ("more", 1 << 20)];

/// One of the exporters of a machine, which share what they know of layers.
fn sharing_exporter(lab: &BuildLab<'_>, name: &str, content_store: bool) -> Result<Exporter> {
    let options = ExporterOptions {
        content_store: content_store.then(|| lab.buildkitd.content_store().to_owned()),
        layer_cache: Some(lab.dir.join("layers")),
        ..ExporterOptions::default()
    };
    lab.exporter(name, &options)
}

/// Those of `requests` that change something and are not for manifests.
fn uploads(requests: Vec<Request>) -> Vec<Request> {
    let changes = |request: &Request| !matches!(request.method.as_str(), "GET" | "HEAD");
    requests.into_iter().filter(|request| changes(request) && !request.path.contains("/manifests/")).collect()
}

fn conversions(exporter: &Exporter) -> usize {
    exporter.log().matches(CONVERTED).count()
}

pub(crate) fn restarted(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc1")?;
    let registry = fixture.registry()?;
    let context = lab.context("c", &FILES)?;
    for (way, content_store) in [("session", false), ("store", true)] {
        let name = format!("{}/layer-cache/{way}:v1", registry.address());
        let mut first = sharing_exporter(&lab, &format!("{way}-1"), content_store)?;
        lab.build(&first, &context, &name)?;
        let made = manifest(&name)?;
        first.server().stop()?;

        let again = sharing_exporter(&lab, &format!("{way}-2"), content_store)?;
        let start = registry.access_log().mark()?;
        lab.build(&again, &context, &name)?;
        let sent = uploads(registry.access_log().since(start)?);
        ensure!(sent.is_empty(), "something was pushed again: {sent:#?}");
        ensure!(conversions(&again) == 0, "a layer was converted again:\n{}", again.log());
        ensure!(manifest(&name)? == made, "the image is another one");

        // A new layer alone is converted and pushed.
        fs::write(context.join("more"), way)?;
        let start = registry.access_log().mark()?;
        lab.build(&again, &context, &name)?;
        ensure!(conversions(&again) == 1, "not one layer was converted:\n{}", again.log());
        let sent = uploads(registry.access_log().since(start)?);
        let stored = sent.iter().filter(|request| request.method == "PUT").count();
        ensure!(stored == 3, "not just a blob, a bootstrap and a config were stored: {sent:#?}");
        process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    }
    Ok(())
}

pub(crate) fn elsewhere(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc2")?;
    let registry = fixture.registry()?;
    let other = EmbeddedRegistry::start(&lab.dir.join("registry"))?;
    let context = lab.context("c", &FILES)?;
    let first = format!("{}/layer-cache/first:v1", registry.address());
    sharing_exporter(&lab, "x1", false).and_then(|mut exporter| {
        lab.build(&exporter, &context, &first)?;
        exporter.server().stop()
    })?;
    let made = manifest(&first)?;
    let (blobs, _) = nydus_layers(&made)?;

    let exporter = sharing_exporter(&lab, "x2", false)?;
    let start = registry.access_log().mark()?;
    let mounted = format!("{}/layer-cache/mounted:v1", registry.address());
    lab.build(&exporter, &context, &mounted)?;
    ensure!(manifest(&mounted)? == made, "the image is another one");
    let requests = registry.access_log().since(start)?;
    // A mount is a POST that is answered as done.
    let mounts = requests.iter().filter(|request| request.method == "POST" && request.status == 201).count();
    ensure!(mounts == blobs.len(), "{mounts} of {} blobs were mounted: {requests:#?}", blobs.len());

    let start = registry.access_log().mark()?;
    let copied = format!("{}/layer-cache/copied:v1", other.address());
    lab.build(&exporter, &context, &copied)?;
    ensure!(manifest(&copied)? == made, "the image is another one");
    let requests = registry.access_log().since(start)?;
    let read = |blob: &String| requests.iter().filter(|request| request.reads_blob(blob)).count();
    ensure!(blobs.iter().all(|blob| read(blob) == 1), "not each blob was copied once: {requests:#?}");
    ensure!(conversions(&exporter) == 0, "a layer was converted again:\n{}", exporter.log());

    // One is nowhere any more: that one is made again.
    let hex = blobs[1].trim_start_matches("sha256:");
    for registry in [registry, &other] {
        let repositories = registry.root().join("docker/registry/v2/repositories/layer-cache");
        for repository in fs::read_dir(&repositories)? {
            let link = repository?.path().join("_layers/sha256").join(hex);
            if link.exists() {
                fs::remove_dir_all(link)?;
            }
        }
    }
    let again = format!("{}/layer-cache/again:v1", registry.address());
    lab.build(&exporter, &context, &again)?;
    ensure!(manifest(&again)? == made, "the image is another one");
    ensure!(conversions(&exporter) == 1, "not one layer was converted again:\n{}", exporter.log());
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &again]))?;
    Ok(())
}

pub(crate) fn side_by_side(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc3")?;
    let exporter = sharing_exporter(&lab, "x", true)?;
    let registry = fixture.registry()?.address();
    let shared = lab.context("shared", &FILES)?;
    let mut builds = Vec::new();
    for number in 0..8 {
        let context = lab.dir.join(format!("c{number}"));
        fs::create_dir(&context)?;
        for file in ["busybox.tar", "data", "more"] {
            fs::hard_link(shared.join(file), context.join(file))?;
        }
        fs::write(context.join("own"), format!("of build {number}"))?;
        let dockerfile = fs::read_to_string(shared.join("Dockerfile"))?;
        fs::write(context.join("Dockerfile"), format!("{dockerfile}COPY own /own\n"))?;
        let output = output(&format!("{registry}/layer-cache/build-{number}:v1"));
        let buildctl = lab.buildctl(&exporter)?;
        builds.push(thread::spawn(move || buildctl.build(&context, &[&output])));
    }
    for build in builds {
        build.join().map_err(|_| anyhow!("a build panicked"))??;
    }
    let log = exporter.log();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for line in log.lines().filter(|line| line.contains(CONVERTED)) {
        let layer = line.split("layer=").nth(1).and_then(|rest| rest.split(' ').next());
        *counts.entry(layer.context("a line without a layer")?).or_default() += 1;
    }
    ensure!(counts.len() == 4 + 8, "{} layers were converted:\n{log}", counts.len());
    ensure!(counts.values().all(|count| *count == 1), "a layer was converted twice: {counts:#?}\n{log}");
    for number in 0..8 {
        let name = format!("{registry}/layer-cache/build-{number}:v1");
        process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", exporter.pid()?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    ensure!(peak <= MEMORY_KIB, "eight builds took {peak} KiB of memory");
    Ok(())
}

pub(crate) fn killed(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc4")?;
    let registry = fixture.registry()?;
    let context =
        demo::random_files(fixture.peers(), &lab.dir.join("c"), &[("a", 64 << 20), ("b", 64 << 20)])?;
    let name = format!("{}/layer-cache/killed:v1", registry.address());
    for round in 0..3 {
        let mut exporter = sharing_exporter(&lab, &format!("x{round}"), false)?;
        let start = registry.access_log().mark()?;
        let buildctl = lab.buildctl(&exporter)?;
        let (context, output) = (context.clone(), output(&name));
        let build = thread::spawn(move || buildctl.build(&context, &[&output]));
        // Each time a little later: a layer more is stored.
        wait::until_true("something was pushed", DEADLINE, || {
            let sent = registry.access_log().since(start).map(uploads).unwrap_or_default();
            sent.iter().filter(|request| request.method == "PATCH").count() > round || build.is_finished()
        })?;
        exporter.server().kill()?;
        // What was cut off fails; what was through before is there.
        let _ = build.join().map_err(|_| anyhow!("the build panicked"))?;
    }
    let exporter = sharing_exporter(&lab, "last", false)?;
    lab.build(&exporter, &context, &name)?;
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    let unknown = lab.exporter("unknown", &ExporterOptions::default())?;
    let fresh = format!("{}/layer-cache/fresh:v1", registry.address());
    lab.build(&unknown, &context, &fresh)?;
    ensure!(manifest(&name)? == manifest(&fresh)?, "the image is not what a new exporter makes");
    Ok(())
}

/// Each exporter is a machine of its own: nothing is known but what is at the image's name.
pub(crate) fn announced(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc6")?;
    let registry = fixture.registry()?;
    let machine = |name: &str, reuse_from_registry| {
        let options = ExporterOptions { reuse_from_registry, ..ExporterOptions::default() };
        lab.exporter(name, &options)
    };
    let context = lab.context("c", &FILES)?;

    let name = format!("{}/layer-cache/announced:v1", registry.address());
    lab.build(&machine("m1", true)?, &context, &name)?;
    let made = manifest(&name)?;
    let (blobs, _) = nydus_layers(&made)?;
    let size = |blob: &str| Ok::<_, anyhow::Error>(fs::metadata(registry.blob_file(blob))?.len());
    let stored: u64 = blobs.iter().map(|blob| size(blob)).sum::<Result<_>>()?;

    let second = machine("m2", true)?;
    let start = registry.access_log().mark()?;
    lab.build(&second, &context, &name)?;
    let requests = registry.access_log().since(start)?;
    ensure!(conversions(&second) == 0, "a layer was converted again:\n{}", second.log());
    ensure!(manifest(&name)? == made, "the image is another one");
    let read: Vec<&Request> =
        requests.iter().filter(|request| blobs.iter().any(|blob| request.reads_blob(blob))).collect();
    ensure!(read.iter().all(|request| request.range.is_some()), "a blob was read as a whole: {read:#?}");
    let bytes: u64 = read.iter().map(|request| request.bytes_sent).sum();
    ensure!(bytes < stored / 10, "{bytes} of {stored} bytes were read");
    ensure!(uploads(requests).is_empty(), "something was pushed again");

    // What one repository says is not believed of another, nor where that is turned off.
    let other = format!("{}/layer-cache/not-announced:v1", registry.address());
    lab.build(&second, &context, &other)?;
    ensure!(conversions(&second) == blobs.len(), "layers were taken from elsewhere:\n{}", second.log());
    let third = machine("m3", false)?;
    lab.build(&third, &context, &name)?;
    ensure!(conversions(&third) == blobs.len(), "the manifest was believed:\n{}", third.log());

    // With the plain image next to it, the same.
    let both = format!("{}/layer-cache/both-announced", registry.address());
    let output = output(&format!("{both}:v1")) + ",also-oci=true";
    let build = |exporter: &Exporter| {
        lab.buildctl(exporter)?.build(&context, &[&output])?;
        manifest(&format!("{both}:v1"))
    };
    let index = build(&machine("m5", true)?)?;
    let sixth = machine("m6", true)?;
    let start = registry.access_log().mark()?;
    ensure!(build(&sixth)? == index, "the index is another one");
    ensure!(conversions(&sixth) == 0, "a layer was converted again:\n{}", sixth.log());
    let sent = uploads(registry.access_log().since(start)?);
    ensure!(sent.is_empty(), "something was pushed again: {sent:#?}");

    // A blob that is not what the manifest says: its layer is converted.
    let mut file = fs::OpenOptions::new().read(true).write(true).open(registry.blob_file(&blobs[1]))?;
    let at = file.seek(SeekFrom::End(-600))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1])?;
    let fourth = machine("m4", true)?;
    lab.build(&fourth, &context, &name)?;
    ensure!(conversions(&fourth) == 1, "not one layer was converted:\n{}", fourth.log());
    ensure!(fourth.log().contains("a blob is not what the manifest says"), "{}", fourth.log());
    Ok(())
}

/// The same for an image of one layer: which it is shows only when all layers have been announced, and then none of them is needed.
pub(crate) fn announced_flattened(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc7")?;
    let registry = fixture.registry()?;
    let machine = |name: &str, content_store: bool| {
        let options = ExporterOptions {
            content_store: content_store.then(|| lab.buildkitd.content_store().to_owned()),
            reuse_from_registry: true,
            ..ExporterOptions::default()
        };
        lab.exporter(name, &options)
    };
    let build = |exporter: &Exporter, context: &Path, names: &[&str]| {
        let output = |name: &&str| {
            format!("type=nydus-cluster,name={}/layer-cache/{name}:v1,flatten=true", registry.address())
        };
        let outputs: Vec<String> = names.iter().map(output).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        lab.buildctl(exporter)?.build(context, &outputs)
    };
    let made = |name: &str| manifest(&format!("{}/layer-cache/{name}:v1", registry.address()));
    let context = lab.context("c", &FILES)?;
    let first = machine("m1", false)?;
    build(&first, &context, &["flat"])?;
    let image = made("flat")?;
    let layers = conversions(&first);
    ensure!(layers == 4, "{layers} layers were converted:\n{}", first.log());

    let mut ways = vec![("session", false, &["flat"][..]), ("store", true, &["flat"])];
    if !fixture.has_oldest_buildkit() {
        // Several come as tar streams.
        build(&first, &context, &["flat-two"])?;
        ways.push(("tar", false, &["flat", "flat-two"]));
    }
    for (way, content_store, names) in ways {
        let again = machine(&format!("m2-{way}"), content_store)?;
        let start = registry.access_log().mark()?;
        build(&again, &context, names)?;
        ensure!(made("flat")? == image, "{way}: the image is another one");
        ensure!(conversions(&again) == 0, "{way}: a layer was converted again:\n{}", again.log());
        let sent = uploads(registry.access_log().since(start)?);
        ensure!(sent.is_empty(), "{way}: something was pushed again: {sent:#?}");
    }

    // With a layer that is another, all of them are needed, and buildkitd has them.
    fs::write(context.join("more"), "another")?;
    let changed = machine("m3", false)?;
    build(&changed, &context, &["flat"])?;
    ensure!(conversions(&changed) == layers, "not all layers were converted:\n{}", changed.log());
    let unknown = machine("m4", true)?;
    build(&unknown, &context, &["flat-unknown"])?;
    ensure!(made("flat")? == made("flat-unknown")?, "the ways make two images");
    ensure!(made("flat")? != image, "the image is that of before");
    let name = format!("{}/layer-cache/flat:v1", registry.address());
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    Ok(())
}

pub(crate) fn full_disk(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "lc5")?;
    let cache = lab.dir.join("layers");
    fs::create_dir(&cache)?;
    mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some("size=16k"))?;
    let built = (|| {
        let exporter = sharing_exporter(&lab, "x", false)?;
        let context = lab.context("c", &FILES)?;
        let name = format!("{}/layer-cache/full:v1", fixture.registry()?.address());
        lab.build(&exporter, &context, &name)?;
        process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
        wait::until_true("the full disk was told of", DEADLINE, || {
            exporter.log().contains("the layer cache")
        })?;
        let told = exporter.log().matches("WARN image::layer").count();
        ensure!(told == 1, "it was told {told} times:\n{}", exporter.log());
        Ok(())
    })();
    umount2(&cache, MntFlags::MNT_DETACH)?;
    built
}
