//! An exporter that may read buildkitd's content store makes the images that one makes that may not, whatever it finds there.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::access_log::{Mark, Request};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::held_download::HeldDownload;
use integration::servers::{Buildctl, EmbeddedRegistry, Exporter, ExporterOptions};
use integration::tree::content_digest;
use integration::{peers, process, wait};
use serde_json::Value;

use crate::build_cancelled;
use crate::build_lab::{BuildLab, output};
use crate::fixture::{Fixture, manifest, nydus_layers, through};

/// How long a step of another party may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the exporter says of a layer that it converted before it was announced.
const AHEAD: &str = "ahead=true";
/// What it says of a layer whose blob was complete.
const COMPLETE: &str = "ahead=false";

/// What it says of each layer that it converts.
const CONVERTED: &str = "layer converted";

/// Where it warns of a content store.
const WARNING: &str = "WARN exporter::follow";

/// Layers of a context's image: the base's, an archive, and two files.
const LAYERS: usize = 4;

/// What contexts have in addition to a base and an archive.
const FILES: [(&str, u64); 2] = [("data", 64 << 20), ("more", 3 << 20)];

/// The image of `context` as it comes over the session, from buildkitd's cache.
fn over_the_session(lab: &BuildLab<'_>, context: &Path, repository: &str) -> Result<Value> {
    let exporter = lab.exporter(&repository.replace('/', "-"), &ExporterOptions::default())?;
    lab.build(&exporter, context, &lab.name(repository)?)?;
    manifest(&lab.name(repository)?)
}

fn count(log: &str, line: &str) -> usize {
    log.matches(line).count()
}

pub(crate) fn ahead(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs1")?;
    let exporter = lab.exporter_on_store("x")?;
    let context = lab.context("c", &FILES)?;
    lab.build(&exporter, &context, &lab.name("content-store/ahead")?)?;
    let log = exporter.log();
    // A layer that is small may be complete before anyone sees it begin; none may come over the session.
    ensure!(count(&log, AHEAD) >= 1, "no new layer was converted ahead:\n{log}");
    ensure!(count(&log, AHEAD) + count(&log, COMPLETE) == LAYERS, "layers came over the session:\n{log}");
    ensure!(!log.contains(WARNING), "something went wrong:\n{log}");
    let image = manifest(&lab.name("content-store/ahead")?)?;

    // Now all blobs are complete.
    let again = lab.exporter_on_store("y")?;
    lab.build(&again, &context, &lab.name("content-store/complete")?)?;
    let log = again.log();
    ensure!(count(&log, COMPLETE) == LAYERS, "layers did not come from complete blobs:\n{log}");
    let complete = manifest(&lab.name("content-store/complete")?)?;
    let session = over_the_session(&lab, &context, "content-store/session")?;
    ensure!(image == session && complete == session, "the images differ: {image} {complete} {session}");
    Ok(())
}

/// The exporter is killed while what it made of layers is being stored, and the next one with the same directories makes the image that
/// one makes that knows nothing.
pub(crate) fn killed(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs-killed")?;
    let spool = lab.dir.join("spool");
    fs::create_dir(&spool)?;
    let options = ExporterOptions {
        content_store: Some(lab.buildkitd.content_store().to_owned()),
        config: format!("[registry.upload]\nspool_dir = {spool:?}\n"),
        ..ExporterOptions::default()
    };
    let context = lab.context("c", &FILES)?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let name = lab.name("content-store/killed")?;
    let output = output(&through(&name, proxy.address()));
    // Some blobs are stored when it dies, and some are on their way.
    let stored =
        Rule { times: 1, ..Rule::always("/blobs/uploads/", Failure::Delay(Duration::ZERO)).method("PUT") };
    let stands_still = Rule::always("/blobs/uploads/", Failure::Stall).method("PUT");
    proxy.set_rules(vec![stored, stands_still]);
    let mut exporter = lab.exporter("x", &options)?;
    let mut command = lab.buildctl(&exporter)?.build_command(&context, &[&output]);
    let mut build = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let held = wait::until_true("a blob is being stored", DEADLINE, || proxy.held_requests() > 0);
    exporter.server().kill()?;
    let ended = wait::until("the build ends", DEADLINE, || Ok(build.try_wait()?));
    if ended.is_err() {
        build.kill()?;
        build.wait()?;
    }
    held?;
    ensure!(!ended?.success(), "a build succeeded whose exporter was killed");
    ensure!(manifest(&name).is_err(), "it left an image");

    proxy.set_rules(Vec::new());
    let next = lab.exporter("x", &options)?;
    lab.buildctl(&next)?.build(&context, &[&output])?;
    let image = manifest(&name)?;
    let session = over_the_session(&lab, &context, "content-store/killed-session")?;
    ensure!(image == session, "the images differ: {image} {session}");
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &name]))?;
    drop(next);
    let left: Vec<_> = fs::read_dir(&spool)?.collect();
    ensure!(left.is_empty(), "{left:?} is left on the disk");
    Ok(())
}

pub(crate) fn side_by_side(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs2")?;
    let exporter = lab.exporter_on_store("x")?;
    let buildctl = lab.buildctl(&exporter)?;
    let names = ["one", "two", "three"];
    let mut contexts = Vec::new();
    for name in names {
        contexts.push(lab.context(name, &FILES)?);
    }
    let mut running = Vec::new();
    for (name, context) in names.iter().zip(&contexts) {
        let output = output(&lab.name(&format!("side-by-side/{name}"))?);
        let buildctl = buildctl.clone();
        let context = context.clone();
        running.push((name, context.clone(), thread::spawn(move || buildctl.build(&context, &[&output]))));
    }
    let mut images = BTreeSet::new();
    for (name, context, build) in running {
        build.join().map_err(|_| anyhow!("a build panicked"))??;
        let image = manifest(&lab.name(&format!("side-by-side/{name}"))?)?;
        let session = over_the_session(&lab, &context, &format!("side-by-side/{name}-session"))?;
        ensure!(image == session, "the images of {name} differ: {image} {session}");
        images.insert(image.to_string());
    }
    ensure!(images.len() == names.len(), "different contexts made the same image");
    Ok(())
}

/// While a build of ours waits for a download, another client has buildkitd write a layer.
pub(crate) fn of_another_build(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs5")?;
    let exporter = lab.exporter_on_store("x")?;
    let download = HeldDownload::start(Ipv4Addr::LOCALHOST.into())?;
    let waiting = lab.dir.join("waiting");
    fs::create_dir(&waiting)?;
    let dockerfile = format!("FROM scratch\nADD {} /file\n", download.url());
    fs::write(waiting.join("Dockerfile"), dockerfile)?;
    let (ours, output) = (lab.buildctl(&exporter)?, output(&lab.name("content-store/waiting")?));
    let build = thread::spawn(move || ours.build(&waiting, &[&output]));
    wait::until_true("the export began", DEADLINE, || exporter.log().contains("export begins"))?;

    let other = lab.context("other", &FILES)?;
    let tar = format!("type=oci,compression=uncompressed,dest={}", lab.dir.join("other.tar").display());
    Buildctl::new(fixture.peers(), lab.buildkitd.address())?.build(&other, &[&tar])?;
    let uploads = || -> Result<Vec<Request>> {
        let mut requests = fixture.registry()?.access_log().since(Mark::default())?;
        requests.retain(|request| request.path.starts_with("/v2/content-store/waiting/blobs/uploads/"));
        Ok(requests)
    };
    wait::until_true("the other build's layer was followed", DEADLINE, || {
        exporter.log().contains("converting ahead what buildkitd writes")
    })?;
    ensure!(uploads()?.is_empty(), "something of the other build was sent");
    download.release();
    build.join().map_err(|_| anyhow!("the build panicked"))??;

    ensure!(
        !uploads()?.iter().any(|request| request.method == "DELETE"),
        "something was sent and deleted again"
    );
    let image = over_the_session(&lab, &other, "content-store/other")?;
    let (blobs, _) = nydus_layers(&image)?;
    for blob in &blobs {
        let hex = blob.trim_start_matches("sha256:");
        let link = format!("docker/registry/v2/repositories/content-store/waiting/_layers/sha256/{hex}");
        ensure!(!fixture.registry()?.root().join(link).exists(), "{blob} of another build was stored");
    }
    Ok(())
}

/// Layers are stored as they are, too: read once for both forms, and for the plain one alone where the other is there already.
pub(crate) fn also_oci(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs7")?;
    let exporter = lab.exporter_on_store("x")?;
    let context = lab.context("c", &FILES)?;
    let (registry, other) = (fixture.registry()?, EmbeddedRegistry::start(&lab.dir.join("registry"))?);
    let build = |exporter: &Exporter, registry: &EmbeddedRegistry, repository: &str| -> Result<Value> {
        let repository = format!("{}/also-oci/{repository}", registry.address());
        let output = output(&format!("{repository}:v1")) + ",also-oci=true";
        lab.buildctl(exporter)?.build(&context, &[&output])?;
        let index = manifest(&format!("{repository}:v1"))?;
        for entry in index["manifests"].as_array().context("an index")? {
            let digest = entry["digest"].as_str().context("an entry")?;
            let image = manifest(&format!("{repository}@{digest}"))?;
            for layer in image["layers"].as_array().context("layers")? {
                let blob = layer["digest"].as_str().context("a layer")?;
                let digest = content_digest(&registry.blob_file(blob))?;
                ensure!(blob == format!("sha256:{digest}"), "{blob} is {digest}");
            }
        }
        Ok(index)
    };
    let read_and_converted = |expected: (usize, usize)| -> Result<()> {
        let log = exporter.log();
        let found = (count(&log, COMPLETE), count(&log, CONVERTED));
        ensure!(found == expected, "read and converted {found:?}, expected {expected:?}:\n{log}");
        ensure!(count(&log, AHEAD) == 0 && !log.contains(WARNING), "something went wrong:\n{log}");
        Ok(())
    };
    let image = build(&exporter, registry, "one")?;
    read_and_converted((LAYERS, LAYERS))?;
    ensure!(build(&exporter, registry, "mounted")? == image, "another repository has another image");
    read_and_converted((LAYERS, LAYERS))?;
    // To another registry the blobs are copied, and the plain layers come from their files.
    ensure!(build(&exporter, &other, "one")? == image, "another registry has another image");
    read_and_converted((2 * LAYERS, LAYERS))?;
    build(&exporter, &other, "one")?;
    read_and_converted((2 * LAYERS, LAYERS))?;

    let session = lab.exporter("session", &ExporterOptions::default())?;
    ensure!(build(&session, registry, "session")? == image, "over the session it is another image");
    ensure!(count(&session.log(), CONVERTED) == LAYERS, "not each was converted once:\n{}", session.log());
    Ok(())
}

/// They come as tar streams.
pub(crate) fn several_outputs(fixture: &Fixture) -> Result<()> {
    if fixture.has_oldest_buildkit() {
        println!("left out: this BuildKit takes one output a build");
        return Ok(());
    }
    let lab = BuildLab::new(fixture, "cs6")?;
    let exporter = lab.exporter_on_store("x")?;
    let context = lab.context("c", &FILES)?;
    let names = ["several-outputs/one", "several-outputs/two"];
    let outputs = [output(&lab.name(names[0])?), output(&lab.name(names[1])?)];
    lab.buildctl(&exporter)?.build(&context, &[&outputs[0], &outputs[1]])?;
    let log = exporter.log();
    ensure!(count(&log, AHEAD) + count(&log, COMPLETE) == 0, "layers were read from files:\n{log}");
    let converted = count(&log, CONVERTED);
    ensure!(converted == LAYERS, "{converted} conversions of {LAYERS} layers:\n{log}");
    let session = over_the_session(&lab, &context, "several-outputs/session")?;
    for name in names {
        ensure!(manifest(&lab.name(name)?)? == session, "{name} is another image");
    }
    Ok(())
}

pub(crate) fn wrong(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs3")?;
    let context = lab.context("c", &FILES)?;
    let session = over_the_session(&lab, &context, "wrong-store/session")?;
    // Under every blob's name something else of its size: another tar.
    let (wrong, blobs) = (lab.dir.join("w"), lab.buildkitd.content_store().join("blobs/sha256"));
    fs::create_dir_all(wrong.join("blobs/sha256"))?;
    let tar = fs::read(context.join("busybox.tar"))?;
    for blob in fs::read_dir(&blobs).with_context(|| format!("reading {}", blobs.display()))? {
        let blob = blob?;
        let mut content = tar.clone();
        content.resize(usize::try_from(blob.metadata()?.len())?, 0);
        fs::write(wrong.join("blobs/sha256").join(blob.file_name()), content)?;
    }
    let absent = lab.dir.join("absent");
    for (store, name, warning) in [
        (&wrong, "wrong-store/wrong", "cannot convert from"),
        (&absent, "wrong-store/absent", "cannot watch"),
    ] {
        let options = ExporterOptions { content_store: Some(store.clone()), ..ExporterOptions::default() };
        let exporter = lab.exporter(&name.replace('/', "-"), &options)?;
        lab.build(&exporter, &context, &lab.name(name)?)?;
        ensure!(manifest(&lab.name(name)?)? == session, "{name} is another image");
        let log = exporter.log();
        ensure!(log.contains(warning), "{name}: nothing was said of it:\n{log}");
    }
    Ok(())
}

/// The same as with any exporter: here the registry hangs while buildkitd still makes the layer, or just after.
pub(crate) fn interrupted(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "cs4")?;
    let exporter = lab.exporter_on_store("x")?;
    build_cancelled::ends_at_once(fixture, &lab.buildctl(&exporter)?, "cancelled-ahead")
}
