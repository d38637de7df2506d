//! Real builds: unmodified buildctl and buildkitd, the exporter between them, the embedded registry behind it.

use std::collections::BTreeSet;
use std::path::Path;

use registry::client::{Client, ClientConfig};
use registry::nydus;
use registry::reference::Reference;
use serde_json::Value;
use test_support::noise;

use crate::support::{Stack, is_oldest, run};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\nCMD [\"/app\"]\n";

fn layers(manifest: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| (text(&layer["mediaType"]), text(&layer["digest"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_becomes_a_nydus_image_and_a_rebuild_moves_only_new_layers() {
    let Some(stack) = Stack::start().await else { return };
    let base = noise(1, 3 << 20);
    let context = stack.context("context", TWO_LAYERS, &[("base", &base), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let text = stack.build(&context, &["--output", &stack.output("demo:v1"), &file]).await.success();
    assert!(text.contains("exporting to nydus image") && text.contains("converting sha256:"), "{text}");

    let (digest, manifest) = stack.manifest("demo:v1").await;
    assert!(text.contains(&digest), "{text}");
    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(reported["containerimage.digest"], digest.as_str());
    assert_eq!(reported["containerimage.config.digest"], manifest["config"]["digest"]);
    assert_eq!(reported["containerimage.descriptor"]["digest"], digest.as_str());
    let found = layers(&manifest);
    let types: Vec<&str> = found.iter().map(|(media_type, _)| media_type.as_str()).collect();
    assert_eq!(types, [nydus::MEDIA_TYPE_BLOB, nydus::MEDIA_TYPE_BLOB, nydus::MEDIA_TYPE_BOOTSTRAP]);
    let config = stack.blob("demo:v1", manifest["config"]["digest"].as_str().unwrap()).await;
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    assert_eq!(config["config"]["Cmd"][0], "/app");

    let before = stack.access_log().len();
    let context = stack.context("context", TWO_LAYERS, &[("app", b"two")]);
    stack.build(&context, &["--output", &stack.output("demo:v2")]).await.success();
    let (_, second) = stack.manifest("demo:v2").await;
    let second = layers(&second);
    assert_eq!(second[0], found[0]);
    assert!(second[1] != found[1] && second[2] != found[2]);
    let received: u64 =
        stack.access_log()[before..].iter().map(|line| line["bytes_received"].as_u64().unwrap()).sum();
    assert!(received < (base.len() / 10) as u64, "{received} bytes were pushed again");
    stack.stop().await;
}

/// Every path below `root` with its content.
fn files(root: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// The names in a tar.
fn archived(path: &Path) -> BTreeSet<String> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_outputs_are_as_without_us() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(2, 1 << 20)), ("app", b"one")]);
    let mut found = Vec::new();
    for way in ["through", "past"] {
        let dest = |kind: &str| stack.path(&format!("{way}-{kind}"));
        let outputs = [
            format!("type=local,dest={}", dest("local").display()),
            format!("type=oci,dest={}", dest("oci.tar").display()),
            format!("type=oci,tar=false,dest={}", dest("store").display()),
            format!("type=tar,dest={}", dest("tar.tar").display()),
            format!("type=docker,name=other:v1,dest={}", dest("docker.tar").display()),
        ];
        let args: Vec<&str> = outputs.iter().flat_map(|output| ["--output", output.as_str()]).collect();
        for args in args.chunks(if is_oldest() { 2 } else { args.len() }) {
            let outcome = match way {
                "through" => stack.build(&context, args).await,
                _ => stack.build_directly(&context, args).await,
            };
            outcome.success();
        }
        let blobs = files(&dest("store").join("blobs"));
        let archives = ["oci.tar", "tar.tar", "docker.tar"].map(|kind| archived(&dest(kind)));
        found.push((files(&dest("local")), blobs, archives));
    }
    assert_eq!(found[0].0.len(), 2);
    assert_eq!(found[0].2[1], ["app", "base"].map(str::to_owned).into());
    assert!(found[0].2[2].contains("manifest.json"), "{:?}", found[0].2[2]);
    assert!(found[0] == found[1]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_outputs_of_one_build_and_several_builds_go_side_by_side() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(3, 2 << 20)), ("app", b"one")]);
    if !is_oldest() {
        // Two of ours and a content store of the client's: ours come as tar streams.
        let store = stack.path("store");
        let local = format!("type=oci,tar=false,dest={}", store.display());
        let (first, second) = (stack.output("many:a"), stack.output("other:b"));
        stack.build(&context, &["--output", &first, "--output", &local, "--output", &second]).await.success();
        let (a, _) = stack.manifest("many:a").await;
        assert_eq!(a, stack.manifest("other:b").await.0);
        assert!(store.join("index.json").exists());
    }

    let single = stack.context("single", TWO_LAYERS, &[("base", &noise(4, 2 << 20)), ("app", b"two")]);
    let outputs = ["at-once:1", "at-once:2", "at-once:3"].map(|name| stack.output(name));
    let builds = outputs.iter().map(|output| {
        let args = ["--output", output.as_str()];
        let command = stack.buildctl(&stack.path("exporter.sock"), &single, &args);
        run(command)
    });
    for outcome in futures::future::join_all(builds).await {
        outcome.success();
    }
    assert_eq!(stack.manifest("at-once:1").await.0, stack.manifest("at-once:3").await.0);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_and_attestations_become_an_index() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", b"base"), ("app", b"one")]);
    for artifact in [false, true] {
        if artifact && is_oldest() {
            continue;
        }
        check_attestations(&stack, &context, artifact).await;
    }
    stack.stop().await;
}

async fn check_attestations(stack: &Stack, context: &Path, artifact: bool) {
    let args = ["--opt=platform=linux/amd64,linux/arm64", "--opt=attest:provenance=mode=min"];
    let output = format!("{},oci-artifact={artifact}", stack.output("index:v1"));
    stack.build(context, &[&args[..], &["--output", &output]].concat()).await.success();
    let (_, index) = stack.manifest("index:v1").await;
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 4, "{index}");
    let (attestations, images): (Vec<&Value>, Vec<&Value>) =
        entries.iter().partition(|entry| entry["platform"]["os"] == "unknown");
    assert_eq!(attestations.len(), 2);
    for (attestation, image) in attestations.iter().zip(&images) {
        assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
        let (_, kept) = stack.manifest(&format!("index@{}", attestation["digest"].as_str().unwrap())).await;
        assert_eq!(kept["layers"][0]["mediaType"], "application/vnd.in-toto+json");
        let statement = stack.blob("index:v1", kept["layers"][0]["digest"].as_str().unwrap()).await;
        let statement: Value = serde_json::from_slice(&statement).unwrap();
        let hex = image["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert_eq!(statement["subject"][0]["digest"]["sha256"], hex, "{statement}");
        let architecture = image["platform"]["architecture"].as_str().unwrap();
        let name = format!("pkg:docker/{}/index@v1?platform=linux%2F{architecture}", stack.registry);
        assert_eq!(statement["subject"][0]["name"], name);
        assert_eq!(
            kept.get("subject").map(|subject| &subject["digest"]),
            artifact.then_some(&image["digest"])
        );
        let (_, converted) = stack.manifest(&format!("index@{}", image["digest"].as_str().unwrap())).await;
        assert_eq!(layers(&converted).last().unwrap().0, nydus::MEDIA_TYPE_BOOTSTRAP);
        if artifact {
            let reference = Reference::parse(&format!("{}/index:v1", stack.registry)).unwrap();
            let digest = image["digest"].as_str().unwrap().parse().unwrap();
            let client = Client::new(ClientConfig::default()).unwrap();
            let found = client.referrers(reference.repository(), &digest, None).await.unwrap();
            assert_eq!(found.len(), 1);
        }
    }
    // No tag stands for a manifest that is not there.
    assert_eq!(stack.tags("index"), ["v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_export_beside_ours_is_compressed_as_without_us() {
    let Some(stack) = Stack::start().await else { return };
    for (attrs, expected) in [("", "tar+gzip"), (",compression=zstd", "tar+zstd")] {
        // A layer keeps the form in which it was handed over first.
        let base = expected.repeat(10_000);
        let context = stack.context("context", TWO_LAYERS, &[("base", base.as_bytes()), ("app", b"one")]);
        let cache = stack.path(&format!("cache{}", attrs.len()));
        let export = format!("type=local,mode=max,dest={}{attrs}", cache.display());
        let output = stack.output("cached:v1");
        stack.build(&context, &["--output", &output, "--export-cache", &export]).await.success();
        let index: Value = serde_json::from_slice(&std::fs::read(cache.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest: Value = serde_json::from_slice(&std::fs::read(cache.join(digest)).unwrap()).unwrap();
        let text = manifest.to_string();
        assert!(text.contains(expected), "{text}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_by_digest_leaves_no_tag() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", b"base"), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let output = stack.output("by-digest") + ",push-by-digest=true";
    stack.build(&context, &["--output", &output, &file]).await.success();
    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    let digest = reported["containerimage.digest"].as_str().unwrap();
    let name = format!("by-digest@{digest}");
    assert_eq!(reported["image.name"], format!("{}/{name}", stack.registry));
    assert_eq!(stack.manifest(&name).await.0, digest);
    assert_eq!(stack.tags("by-digest"), [""; 0]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_checked_before_anything_is_built_and_do_what_they_say() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", "FROM scratch\nCOPY app /app\n", &[("app", b"one")]);
    let unknown = format!("{},compresion=zstd", stack.output("demo:v1"));
    let text = stack.build(&context, &["--output", &unknown]).await.failure();
    assert!(text.contains("unknown key \"compresion\"") && text.contains("layer-compression"), "{text}");
    let text = stack.build(&context, &["--output", "type=nydus-cluster"]).await.failure();
    assert!(text.contains("a name is needed"), "{text}");

    // The registry speaks no TLS, which is tried first.
    let insecure = stack.output("insecure:v1") + ",registry.insecure=true";
    stack.build(&context, &["--output", &insecure]).await.success();
    stack.manifest("insecure:v1").await;

    let before = stack.access_log().len();
    let silent = stack.output("demo:v1") + ",push=false";
    let text = stack.build(&context, &["--output", &silent]).await.success();
    assert!(text.contains("pushing bootstrap") || text.contains("converting"), "{text}");
    assert_eq!(stack.access_log().len(), before);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_counts_bytes_up_to_all_of_them() {
    let Some(stack) = Stack::start().await else { return };
    if is_oldest() {
        println!("left out: this buildctl does not write its progress as JSON");
        return stack.stop().await;
    }
    let base = noise(8, 3 << 20);
    let context = stack.context("context", TWO_LAYERS, &[("base", &base), ("app", b"one")]);
    let output = stack.output("counted:v1");
    let args = ["--progress=rawjson", "--output", &output];
    let text = stack.build(&context, &args).await.success();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let statuses = lines.flat_map(|line| line["statuses"].as_array().cloned().unwrap_or_default());
    let of_layers: Vec<Value> = statuses
        .filter(|status| status["id"].as_str().is_some_and(|id| id.starts_with("converting sha256:")))
        .collect();
    let number = |status: &Value, name: &str| status[name].as_u64().unwrap_or_default();
    let is_all = |status: &&Value| {
        number(status, "total") >= base.len() as u64 && number(status, "current") == number(status, "total")
    };
    assert!(of_layers.iter().any(|status| is_all(&status)), "{of_layers:#?}");
    stack.stop().await;
}
