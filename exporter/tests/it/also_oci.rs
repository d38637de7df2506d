//! `also-oci=true`: the build's own plain image is pushed with the nydus image, in one index.

use registry::digest::sha256;
use registry::nydus;
use serde_json::Value;
use test_support::noise;

use crate::support::{Stack, entries, is_oldest};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\nCMD [\"/app\"]\n";

const ATTESTED: &str = "vnd.docker.reference.digest";

fn kinds(index: &Value) -> Vec<&'static str> {
    entries(index).into_iter().map(|(kind, _)| kind).collect()
}

/// Media types and digests of a manifest's layers.
fn layers(manifest: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| (text(&layer["mediaType"]), text(&layer["digest"]))).collect()
}

/// Bytes that the registry received since its log had `before` lines.
fn received(stack: &Stack, before: usize) -> u64 {
    stack.access_log()[before..].iter().map(|line| line["bytes_received"].as_u64().unwrap()).sum()
}

/// Checks that every blob of the manifest `name` is in its repository, and is what it is called.
async fn is_whole(stack: &Stack, name: &str) {
    let (_, manifest) = stack.manifest(name).await;
    for part in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = part["digest"].as_str().unwrap();
        let content = stack.blob(name, digest).await;
        assert_eq!(sha256(&content).as_ref(), digest);
        assert_eq!(content.len() as u64, part["size"].as_u64().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_image_is_the_one_that_buildkit_makes_and_nothing_is_pushed_twice() {
    let Some(stack) = Stack::start().await else { return };
    let base = noise(31, 2 << 20);
    let context = stack.context("context", TWO_LAYERS, &[("base", &base), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let both = |name: &str| format!("{},also-oci=true", stack.output(name));
    stack.build(&context, &["--output", &both("own:v1"), &file]).await.success();

    let (digest, index) = stack.manifest("own:v1").await;
    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(reported["containerimage.digest"], digest.as_str());
    let found = entries(&index);
    assert_eq!(kinds(&index), ["plain", "nydus"]);
    assert_eq!(index["manifests"][1]["annotations"][nydus::ANNOTATION_SOURCE_DIGEST], found[0].1.as_str());
    for (_, digest) in &found {
        is_whole(&stack, &format!("own@{digest}")).await;
    }
    let (_, plain) = stack.manifest(&format!("own@{}", found[0].1)).await;
    for (media_type, _) in layers(&plain) {
        assert_eq!(media_type, "application/vnd.oci.image.layer.v1.tar+zstd");
    }
    let (_, nydus) = stack.manifest(&format!("own@{}", found[1].1)).await;
    assert_eq!(layers(&nydus).last().unwrap().0, nydus::MEDIA_TYPE_BOOTSTRAP);
    assert_eq!(nydus["config"]["mediaType"], nydus::MEDIA_TYPE_CONFIG);
    let theirs = format!(
        "type=image,name={}/theirs:v1,push=true,registry.insecure=true,oci-mediatypes=true,compression=zstd",
        stack.registry
    );
    stack.build_directly(&context, &["--output", &theirs]).await.success();
    assert_eq!(stack.manifest("theirs:v1").await.0, found[0].1);

    // Of an unchanged layer neither form is sent again.
    let before = stack.access_log().len();
    let changed = stack.context("context", TWO_LAYERS, &[("app", b"two")]);
    stack.build(&changed, &["--output", &both("own:v2")]).await.success();
    let (_, second) = stack.manifest("own:v2").await;
    assert_eq!(kinds(&second), ["plain", "nydus"]);
    assert!(received(&stack, before) < (base.len() / 10) as u64);
    // Nor for another repository.
    let before = stack.access_log().len();
    stack.build(&changed, &["--output", &both("other:v2")]).await.success();
    assert_eq!(stack.manifest("other:v2").await.1, second);
    assert!(received(&stack, before) < (base.len() / 10) as u64);
    for (_, digest) in entries(&second) {
        is_whole(&stack, &format!("other@{digest}")).await;
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_attested_is_in_the_registry_for_all_platforms() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(32, 1 << 20)), ("app", b"one")]);
    for artifact in [false, true] {
        if artifact && is_oldest() {
            continue;
        }
        check_attestations(&stack, &context, artifact).await;
    }
    stack.stop().await;
}

async fn check_attestations(stack: &Stack, context: &std::path::Path, artifact: bool) {
    let args = ["--opt=platform=linux/amd64,linux/arm64", "--opt=attest:provenance=mode=min"];
    let output = format!("{},also-oci=true,oci-artifact={artifact}", stack.output("attested:v1"));
    stack.build(context, &[&args[..], &["--output", &output]].concat()).await.success();
    let (_, index) = stack.manifest("attested:v1").await;
    assert_eq!(
        kinds(&index),
        ["plain", "plain", "attestation", "attestation", "nydus", "nydus", "attestation", "attestation"]
    );
    let all = index["manifests"].as_array().unwrap();
    let mut attested = Vec::new();
    for entry in all {
        let Some(about) = entry["annotations"][ATTESTED].as_str() else { continue };
        let image = all.iter().find(|other| other["digest"] == about).unwrap();
        let name = format!("attested@{}", entry["digest"].as_str().unwrap());
        is_whole(stack, &name).await;
        let (_, attestation) = stack.manifest(&name).await;
        let statement = stack.blob(&name, attestation["layers"][0]["digest"].as_str().unwrap()).await;
        let statement: Value = serde_json::from_slice(&statement).unwrap();
        let subject = &statement["subject"][0];
        assert_eq!(format!("sha256:{}", subject["digest"]["sha256"].as_str().unwrap()), about, "{statement}");
        let architecture = image["platform"]["architecture"].as_str().unwrap();
        let url = format!("pkg:docker/{}/attested@v1?platform=linux%2F{architecture}", stack.registry);
        assert_eq!(subject["name"], url);
        let subject = attestation.get("subject").map(|subject| subject["digest"].as_str().unwrap());
        assert_eq!(subject, artifact.then_some(about));
        attested.push(about);
    }
    let images = entries(&index).into_iter().filter(|(kind, _)| *kind != "attestation");
    assert_eq!(attested, images.map(|(_, digest)| digest).collect::<Vec<_>>());
    for (_, digest) in entries(&index) {
        is_whole(stack, &format!("attested@{digest}")).await;
    }
    assert_eq!(stack.tags("attested"), ["v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_by_digest_without_a_push_and_in_the_compression_that_is_asked_for() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(33, 1 << 20)), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let digest = || -> String {
        let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
        reported["containerimage.digest"].as_str().unwrap().to_owned()
    };
    let before = stack.access_log().len();
    let silent = format!("{},also-oci=true,push=false", stack.output("none"));
    stack.build(&context, &["--output", &silent, &file]).await.success();
    let made = digest();
    assert_eq!(stack.access_log().len(), before);
    let output = format!("{},also-oci=true,push-by-digest=true", stack.output("digest"));
    stack.build(&context, &["--output", &output, &file]).await.success();
    assert_eq!(digest(), made);
    assert_eq!(kinds(&stack.manifest(&format!("digest@{made}")).await.1), ["plain", "nydus"]);
    assert_eq!(stack.tags("digest"), [""; 0]);

    let types = async |name: &str| -> Vec<String> {
        let plain = entries(&stack.manifest(&format!("{name}:v1")).await.1)[0].1.clone();
        let (_, plain) = stack.manifest(&format!("{name}@{plain}")).await;
        layers(&plain)
            .into_iter()
            .map(|(media_type, _)| media_type.rsplit('.').next().unwrap().to_owned())
            .collect()
    };
    // A layer that buildkitd has in one form stays so, unless it is to have another.
    let context = stack.context("other", TWO_LAYERS, &[("base", &noise(34, 1 << 20)), ("app", b"one")]);
    let output = format!("{},also-oci=true,layer-compression=gzip", stack.output("gzip:v1"));
    stack.build(&context, &["--output", &output]).await.success();
    assert_eq!(types("gzip").await, ["tar+gzip", "tar+gzip"]);
    for (name, more, expected) in
        [("kept", "", "tar+gzip"), ("forced", ",force-compression=true", "tar+zstd")]
    {
        let output = format!("{},also-oci=true{more}", stack.output(&format!("{name}:v1")));
        stack.build(&context, &["--output", &output]).await.success();
        assert_eq!(types(name).await, [expected, expected]);
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_outputs_has_it_and_the_others_get_the_same_layers() {
    let Some(stack) = Stack::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit takes one output a build");
        return stack.stop().await;
    }
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(35, 1 << 20)), ("app", b"one")]);
    let both = format!("{},also-oci=true", stack.output("both:v1"));
    let alone = stack.output("alone:v1");
    stack.build(&context, &["--output", &alone, "--output", &both]).await.success();
    let (_, index) = stack.manifest("both:v1").await;
    assert_eq!(kinds(&index), ["plain", "nydus"]);
    for (_, digest) in entries(&index) {
        is_whole(&stack, &format!("both@{digest}")).await;
    }
    let (_, plain) = stack.manifest(&format!("both@{}", entries(&index)[0].1)).await;
    assert!(layers(&plain).iter().all(|(media_type, _)| media_type.ends_with("+zstd")), "{plain}");
    let (_, nydus) = stack.manifest(&format!("both@{}", entries(&index)[1].1)).await;
    assert_eq!(stack.manifest("alone:v1").await.1["layers"], nydus["layers"]);
    stack.stop().await;
}
