//! The keys of an output that are about its image, and that one build gives one digest, however its result comes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use integration::servers::{Buildctl, EmbeddedRegistry, Exporter};
use integration::{demo, peers, process};
use serde_json::Value;

use crate::fixture::{Fixture, manifest, nydus_layers};

/// Builds `context` with `keys` behind the name, and returns the name.
fn build(fixture: &Fixture, buildctl: &Buildctl, context: &Path, name: &str, keys: &str) -> Result<String> {
    let name = format!("{}/{name}", fixture.registry()?.address());
    buildctl
        .build(context, &[&format!("type=nydus-cluster,\"name={name}\"{keys}")])
        .with_context(|| keys.to_owned())?;
    Ok(name)
}

/// `nydus-cluster image ARGUMENTS`, which has to succeed.
fn image(arguments: &[&str]) -> Result<String> {
    Ok(process::run(Command::new(peers::nydus_cluster()?).arg("image").args(arguments))?.stdout)
}

fn inspect(name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&image(&["inspect", "--json", name])?)?)
}

/// A context of three layers: what the first has is overwritten by the second and deleted by the third.
fn layered(fixture: &Fixture, dir: &Path) -> Result<PathBuf> {
    let files = [("gone", 3 << 20), ("old", 2 << 20), ("stays", 2 << 20), ("fetched", 1 << 20)];
    let context = demo::random_files(fixture.peers(), dir, &files)?;
    let path = context.join("Dockerfile");
    let more = "RUN [\"/bin/busybox\", \"ln\", \"/stays\", \"/linked\"]\nCOPY new /old\nRUN [\"/bin/busybox\", \"rm\", \"/gone\"]\n";
    fs::write(&path, fs::read_to_string(&path)? + more)?;
    fs::write(context.join("new"), "new")?;
    Ok(context)
}

pub(crate) fn shape(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-shape")?;
    let context = demo::random_files(fixture.peers(), &dir.join("c"), &[("data", 300_000)])?;
    let buildctl = fixture.buildctl()?;
    let plain = build(fixture, &buildctl, &context, "keys/plain:v1", "")?;
    let keys = ",compressor=lz4,chunk-size=64K,digester=sha256,\"prefetch=/bin/busyb*,/data\"";
    let name = build(fixture, &buildctl, &context, "keys/lz4:v1", keys)?;
    let found = inspect(&name)?;
    ensure!(found["chunk_size_bytes"] == 65_536, "{found}");
    ensure!(found["prefetch"] == serde_json::json!(["/bin/busybox", "/data"]), "{}", found["prefetch"]);
    for blob in found["blobs"].as_array().into_iter().flatten() {
        ensure!(blob["compressor"] == "lz4" && blob["digester"] == "sha256", "{blob}");
    }
    image(&["check", &name])?;
    image(&["diff", &plain, &name])?;

    let keys = ",compression-level=1,batch-size=256K,inline-chunk-info=true";
    let batched = build(fixture, &buildctl, &context, "keys/batched:v1", keys)?;
    image(&["check", &batched])?;
    image(&["diff", &plain, &batched])?;
    let size = |name: &str| -> Result<u64> {
        let made = manifest(name)?;
        let last = made["layers"].as_array().and_then(|layers| layers.last()).cloned().unwrap_or_default();
        last["size"].as_u64().context("the bootstrap layer has no size")
    };
    ensure!(size(&batched)? > size(&plain)?, "no chunk information is in the bootstrap layer");

    // The same build again, with the options of the first: what was made with others is not taken.
    let again = build(fixture, &buildctl, &context, "keys/again:v1", "")?;
    ensure!(manifest(&again)? == manifest(&plain)?, "options of one build changed another's image");
    Ok(())
}

pub(crate) fn refused(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-refused")?;
    let context = demo::random_files(fixture.peers(), &dir.join("c"), &[])?;
    let registry = fixture.registry()?.address();
    let buildctl = fixture.buildctl()?;
    for (keys, parts) in [
        ("chunk-size=5K", ["chunk-size=\"5K\"", "expected a power of two from 4K to 16M"]),
        ("compressor=gzip", ["compressor=\"gzip\"", "expected zstd, lz4 or none"]),
        ("compressor=lz4,compression-level=3", ["compression-level=3", "compressor=lz4"]),
        ("batch-size=64K,compressor=none", ["batch size", "no compressor"]),
        ("platform=linux/amd64", ["unknown key \"platform\"", "chunk-size"]),
        ("chunk-dict=oci:/etc", ["chunk-dict", "expected a nydus image in a registry"]),
        ("prefetch-list=../secret", ["prefetch-list=../secret", "relative"]),
        ("prefetch-list=absent", ["prefetch-list=absent", "no such regular file in the build context"]),
    ] {
        let output = format!("type=nydus-cluster,name={registry}/keys/refused:v1,{keys}");
        let said = process::run_failing(&mut buildctl.build_command(&context, &[&output]))?.stderr;
        ensure!(parts.iter().all(|part| said.contains(part)), "{keys}: {said}");
    }
    Ok(())
}

pub(crate) fn chunk_dict(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-dict")?;
    let files = [("data", 4 << 20)];
    let context = demo::random_files(fixture.peers(), &dir.join("c"), &files)?;
    let buildctl = fixture.buildctl()?;
    let known = build(fixture, &buildctl, &context, "keys/dict:v1", "")?;
    let (known_blobs, _) = nydus_layers(&manifest(&known)?)?;
    // The same content in another layer, with more in it.
    let path = context.join("Dockerfile");
    let text = fs::read_to_string(&path)?.replace("COPY data /data", "COPY data more /");
    fs::write(&path, text)?;
    demo::random_file(&context.join("more"), 1 << 20)?;
    let without = build(fixture, &buildctl, &context, "keys/without-dict:v1", "")?;
    let name = build(fixture, &buildctl, &context, "keys/with-dict:v1", &format!(",chunk-dict={known}"))?;
    let made = manifest(&name)?;
    let (blobs, _) = nydus_layers(&made)?;
    ensure!(blobs[2..].iter().all(|blob| known_blobs.contains(blob)) && blobs.len() > 2, "{blobs:?}");
    let size = |layer: usize| made["layers"][layer]["size"].as_u64().unwrap_or_default();
    ensure!(size(1) < 2 << 20, "what the dictionary has is stored again: {made}");
    image(&["check", &name])?;
    image(&["diff", &without, &name])?;
    Ok(())
}

pub(crate) fn flatten(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-flatten")?;
    let context = layered(fixture, &dir.join("c"))?;
    let buildctl = fixture.buildctl()?;
    let plain = build(fixture, &buildctl, &context, "keys/layered:v1", "")?;
    let keys = ",flatten=true,prefetch=/fetched";
    let name = build(fixture, &buildctl, &context, "keys/flat:v1", keys)?;
    let made = manifest(&name)?;
    let (blobs, _) = nydus_layers(&made)?;
    ensure!(blobs.len() == 1, "{made}");
    image(&["check", &name])?;
    image(&["diff", &plain, &name])?;
    let size = |made: &Value| -> u64 {
        made["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64()).sum()
    };
    let (layered, flat) = (size(&manifest(&plain)?), size(&made));
    // Five megabytes that nobody sees.
    ensure!(flat + (5 << 20) <= layered + (1 << 16), "{flat} bytes flattened, {layered} in layers");
    let chunks: Value = serde_json::from_str(&image(&["inspect", "--json", "--file", "/fetched", &name])?)?;
    ensure!(chunks[0]["stored_offset"] == 0, "what is fetched first is not in front: {chunks}");

    // Built again, the blob is neither made nor pushed.
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    build(fixture, &buildctl, &context, "keys/flat:v1", keys)?;
    ensure!(manifest(&name)? == made, "the second build gives another image");
    let requests = log.since(start)?;
    let sent = requests.iter().filter(|request| request.path.contains("/blobs/uploads/")).count();
    ensure!(sent == 0, "something was pushed again: {requests:#?}");

    // Out of buildkitd's content store, and as one of two outputs: the same.
    let store = fixture.buildkitd()?.content_store().to_owned();
    let exporter = Exporter::start_with_store(&dir.join("x"), &fixture.buildkitd()?.address(), &store)?;
    let by_store = Buildctl::new(fixture.peers(), exporter.address())?;
    let stored = build(fixture, &by_store, &context, "keys/flat-store:v1", keys)?;
    ensure!(manifest(&stored)? == made, "the content store gives another image");
    let registry = fixture.registry()?.address();
    if !fixture.has_oldest_buildkit() {
        let outputs =
            ["one", "two"].map(|one| format!("type=nydus-cluster,name={registry}/keys/flat-{one}:v1{keys}"));
        buildctl.build(&context, &[&outputs[0], &outputs[1]])?;
        for one in ["one", "two"] {
            ensure!(
                manifest(&format!("{registry}/keys/flat-{one}:v1"))? == made,
                "output {one} is another image"
            );
        }
    }
    // With the plain image next to it, of its layers as they are.
    let both = build(fixture, &by_store, &context, "keys/flat-both:v1", &format!("{keys},also-oci=true"))?;
    let index = manifest(&both)?;
    let layers = |number: usize| -> Result<usize> {
        let digest = index["manifests"][number]["digest"].as_str().context("an entry")?;
        let one = manifest(&format!("{registry}/keys/flat-both@{digest}"))?;
        Ok(one["layers"].as_array().map_or(0, Vec::len))
    };
    ensure!(layers(0)? == 8 && layers(1)? == 2, "{} plain layers, {} of nydus", layers(0)?, layers(1)?);

    // As `image convert` makes it of the plain layers.
    let tar = dir.join("plain.tar");
    buildctl.build(&context, &[&format!("type=oci,dest={}", tar.display())])?;
    let from = format!("oci-archive:{}", tar.display());
    let converted = format!("{registry}/keys/flat-converted:v1");
    image(&["convert", "--fresh", "--flatten", "--prefetch", "/fetched", &from, &converted])?;
    ensure!(nydus_layers(&manifest(&converted)?)?.0 == blobs, "image convert makes another blob");
    Ok(())
}

pub(crate) fn prefetch_list(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-list")?;
    let context = demo::random_files(fixture.peers(), &dir.join("c"), &[("data", 10_000)])?;
    fs::create_dir(context.join("traces"))?;
    let paths: String = (0..5000).map(|number| format!("/none/{number}\n")).collect();
    fs::write(context.join("traces/start"), format!("{paths}/data\n/bin/busybox\n"))?;
    let buildctl = fixture.buildctl()?;
    let keys = ",prefetch-list=traces/start";
    let name = build(fixture, &buildctl, &context, "keys/list:v1", keys)?;
    let prefetch = &inspect(&name)?["prefetch"];
    ensure!(*prefetch == serde_json::json!(["/data", "/bin/busybox"]), "{prefetch}");
    Ok(())
}

pub(crate) fn reproducible(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-reproducible")?;
    let context = layered(fixture, &dir.join("c"))?;
    let registry = fixture.registry()?.address();
    let buildctl = fixture.buildctl()?;
    let rewrite = if fixture.has_oldest_buildkit() {
        // It does not rewrite times, so there must be none but those of the context.
        let text = fs::read_to_string(context.join("Dockerfile"))?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("RUN")).collect();
        fs::write(context.join("Dockerfile"), kept.join("\n"))?;
        ""
    } else {
        ",rewrite-timestamp=true"
    };
    for more in ["", ",also-oci=true"] {
        let mut made = Vec::new();
        for number in 0..2 {
            let name = format!("{registry}/keys/reproducible-{number}:v1");
            let keys = format!("source-date-epoch=1700000000{rewrite},annotation.a=one{more}");
            let mut command =
                buildctl.build_command(&context, &[&format!("type=nydus-cluster,name={name},{keys}")]);
            command.arg("--no-cache").args(["--opt", "build-arg:SOURCE_DATE_EPOCH=1700000000"]);
            process::run(&mut command)?;
            made.push(manifest(&name)?);
        }
        ensure!(made[0] == made[1], "two builds differ: {} {}", made[0], made[1]);
        let annotations = &made[0]["annotations"];
        ensure!(annotations["a"] == "one" || !more.is_empty(), "{annotations}");
    }

    // For several platforms there is an index.
    let name = format!("{registry}/keys/annotated:v1");
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY new /new\n")?;
    let keys = [
        "annotation.a=one",
        "annotation-index.b=two",
        "annotation-manifest[linux/arm64].c=three",
        "annotation-manifest-descriptor.d=four",
    ];
    let output = format!("type=nydus-cluster,name={name},{}", keys.join(","));
    let mut command = buildctl.build_command(&context, &[&output]);
    process::run(command.args(["--opt", "platform=linux/amd64,linux/arm64"]))?;
    let index = manifest(&name)?;
    ensure!(index["annotations"]["b"] == "two", "{index}");
    for entry in index["manifests"].as_array().into_iter().flatten() {
        ensure!(entry["annotations"]["d"] == "four", "{entry}");
        let digest = entry["digest"].as_str().unwrap_or_default();
        let one = manifest(&format!("{registry}/keys/annotated@{digest}"))?;
        ensure!(one["annotations"]["a"] == "one", "{one}");
        let of_arm64 = one["annotations"]["c"] == "three";
        ensure!(of_arm64 == (entry["platform"]["architecture"] == "arm64"), "{entry}: {one}");
    }
    Ok(())
}

/// A scanner of ours, which describes every image at great length, in as many small objects as real ones write.
const SCANNER: &str = r#"set -e
{
    printf '{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"packages":['
    /bin/busybox yes '{"name":"package","versions":[{"value":"1.0"}]},' | /bin/busybox head -n 700000
    printf '{}]}}'
} >"$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
"#;

/// Each of its statements has more; the two of a build have more than all documents of a build once might.
const STATEMENT_BYTES: u64 = 30_000_000;

/// So many builds at once have such statements, of two platforms each.
const DESCRIBED_AT_ONCE: usize = 3;

/// What the exporter may take for all of them: of the objects in a single one, made into values, it would need more.
const MEMORY_BYTES: u64 = 256 << 20;

pub(crate) fn large_attestations(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("keys-sbom")?;
    let registry = fixture.registry()?;
    let buildctl = fixture.buildctl()?;
    let scanner = demo::random_files(fixture.peers(), &dir.join("scanner"), &[])?;
    fs::write(scanner.join("scan"), SCANNER)?;
    let dockerfile = scanner.join("Dockerfile");
    let more = "COPY scan /scan\nENTRYPOINT [\"/bin/busybox\", \"sh\", \"/scan\"]\nCMD []\n";
    fs::write(&dockerfile, fs::read_to_string(&dockerfile)? + more)?;
    let generator = format!("{}/keys/scanner:v1", registry.address());
    buildctl.build(&scanner, &[&format!("type=image,name={generator},push=true,registry.insecure=true")])?;

    let exporter = fixture.exporter()?.pid()?;
    process::reset_peak_memory(exporter)?;
    let mut builds = Vec::new();
    for number in 0..DESCRIBED_AT_ONCE {
        let context = dir.join(format!("c{number}"));
        let context = demo::random_files(fixture.peers(), &context, &[("data", 10_000)])?;
        let name = format!("{}/keys/described-{number}", registry.address());
        let mut command = buildctl.build_command(&context, &[&format!("type=nydus-cluster,name={name}:v1")]);
        command.args(["--opt", "platform=linux/amd64,linux/arm64"]);
        command.args(["--opt", &format!("attest:sbom=generator={generator}")]);
        let build = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        builds.push((name, build));
    }
    let mut names = Vec::new();
    for (name, build) in builds {
        let ended = build.wait_with_output()?;
        ensure!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
        names.push(name);
    }
    let peak = process::peak_memory_bytes(exporter)?;
    ensure!(peak < MEMORY_BYTES, "the exporter took {peak} bytes of memory");
    println!("the exporter took {} MiB at most", peak >> 20);
    names.iter().try_for_each(|name| is_described(registry, name))
}

/// Each image of the index `name` has a large statement that is about it.
fn is_described(registry: &EmbeddedRegistry, name: &str) -> Result<()> {
    let index = manifest(&format!("{name}:v1"))?;
    let entries = index["manifests"].as_array().context("an index")?;
    let digest = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
    let (attestations, images): (Vec<&Value>, Vec<&Value>) =
        entries.iter().partition(|entry| entry["platform"]["os"] == "unknown");
    ensure!((attestations.len(), images.len()) == (2, 2), "{index}");
    for (attestation, image) in attestations.iter().zip(images) {
        let statements = manifest(&format!("{name}@{}", digest(attestation)))?;
        let statement = &statements["layers"][0];
        ensure!(statement["size"].as_u64().unwrap_or_default() > STATEMENT_BYTES, "{statements}");
        let statement: Value = serde_json::from_slice(&fs::read(registry.blob_file(&digest(statement)))?)?;
        let about = statement["subject"][0]["digest"]["sha256"].as_str().unwrap_or_default();
        ensure!(format!("sha256:{about}") == digest(image), "it is about {about}: {index}");
    }
    Ok(())
}
