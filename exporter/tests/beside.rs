//! `merge-manifest=true`: the nydus image beside the plain one that its name has, in one index.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::path::Path;

use registry::nydus;
use support::{Stack, entries, is_oldest};
use test_support::noise;

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\n";

/// Builds `context` with its plain image under `name` and, by `merged`, the nydus image beside that: in one build, where BuildKit
/// takes several outputs.
async fn both(stack: &Stack, context: &Path, name: &str, merged: &str, args: &[&str]) {
    let plain = format!("type=image,name={}/{name},push=true,registry.insecure=true", stack.registry);
    if is_oldest() {
        stack.build(context, &[args, &["--output", &plain]].concat()).await.success();
        stack.build(context, &[args, &["--output", merged]].concat()).await.success();
    } else {
        stack.build(context, &[args, &["--output", &plain, "--output", merged]].concat()).await.success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nydus_image_stands_beside_the_plain_one_of_its_build() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(1, 2 << 20)), ("app", b"one")]);
    let merged = format!("{},merge-manifest=true", stack.output("both:v1"));
    both(&stack, &context, "both:v1", &merged, &[]).await;
    let (_, index) = stack.manifest("both:v1").await;
    let first = entries(&index);
    assert_eq!(first.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["plain", "nydus"]);
    let (_, nydus) = stack.manifest(&format!("both@{}", first[1].1)).await;
    assert_eq!(nydus["config"]["mediaType"], nydus::MEDIA_TYPE_CONFIG);
    assert_eq!(index["manifests"][1]["annotations"][nydus::ANNOTATION_SOURCE_DIGEST], first[0].1.as_str());

    // The plain image of another build is not this one's.
    let changed = stack.context("context", TWO_LAYERS, &[("app", b"two")]);
    let text = stack.build(&changed, &["--output", &merged]).await.failure();
    assert!(text.contains("has other layers than this build's") && text.contains("type=image"), "{text}");
    assert_eq!(entries(&stack.manifest("both:v1").await.1), first);

    // Both again, with attestations of both, for two platforms; what stood there before gives way.
    let args = ["--opt=platform=linux/amd64,linux/arm64", "--opt=attest:provenance=mode=max"];
    both(&stack, &changed, "both:v1", &merged, &args).await;
    let (_, index) = stack.manifest("both:v1").await;
    let kinds: Vec<_> = entries(&index).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(
        kinds,
        ["plain", "plain", "attestation", "attestation", "nydus", "nydus", "attestation", "attestation"]
    );
    for entry in index["manifests"].as_array().unwrap() {
        if let Some(about) = entry["annotations"]["vnd.docker.reference.digest"].as_str() {
            let subject =
                index["manifests"].as_array().unwrap().iter().find(|other| other["digest"] == about);
            assert!(subject.is_some(), "{entry}");
        }
    }
    // Without attestations, once more: those of the nydus images go with what they were about.
    stack.build(&changed, &["--opt=platform=linux/amd64,linux/arm64", "--output", &merged]).await.success();
    let after = entries(&stack.manifest("both:v1").await.1);
    assert_eq!(after.iter().filter(|(kind, _)| *kind == "nydus").count(), 2);
    assert_eq!(after.iter().filter(|(kind, _)| *kind == "attestation").count(), 2);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_a_plain_image_is_said() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(2, 1 << 20)), ("app", b"one")]);
    let merged = format!("{},merge-manifest=true", stack.output("none:v1"));
    let text = stack.build(&context, &["--output", &merged]).await.failure();
    assert!(text.contains("there is no image at") && text.contains("type=image,push=true"), "{text}");
    // A nydus image alone is no plain one.
    stack.build(&context, &["--output", &stack.output("none:v1")]).await.success();
    let text = stack.build(&context, &["--output", &merged]).await.failure();
    assert!(text.contains("merge-manifest"), "{text}");
    stack.stop().await;
}
