//! `merge-manifest=true`: the nydus image beside the plain one that its name has, in one index.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use exporter::ExporterConfig;
use registry::client::ClientConfig;
use registry::nydus;
use serde_json::Value;
use test_support::noise;

use crate::support::gate::Gate;
use crate::support::{Stack, entries, interrupt, is_oldest, run, wait_for};

const PLATFORMS: &str = "platform=linux/amd64,linux/arm64";

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

/// A plain image for two platforms in the registry, and its context.
async fn plain_for_two(stack: &Stack, name: &str) -> PathBuf {
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(3, 1 << 20)), ("app", b"one")]);
    let plain = format!("type=image,name={}/{name},push=true,registry.insecure=true", stack.registry);
    stack.build(&context, &["--opt", PLATFORMS, "--output", &plain]).await.success();
    context
}

/// The architectures of the nydus images of an index, of which each is made of a plain one there.
fn nydus_architectures(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().unwrap();
    let nydus = entries.iter().filter(|entry| nydus::is_nydus_entry(entry));
    nydus
        .map(|entry| {
            let source = &entry["annotations"][nydus::ANNOTATION_SOURCE_DIGEST];
            let plain = entries.iter().find(|plain| plain["digest"] == *source).unwrap();
            assert_eq!(plain["platform"]["architecture"], entry["platform"]["architecture"]);
            entry["platform"]["architecture"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_of_one_platform_each_leave_the_others_nydus_image_where_it_is() {
    let Some(stack) = Stack::start().await else { return };
    let context = plain_for_two(&stack, "turns:v1").await;
    let merged = format!("{},merge-manifest=true", stack.output("turns:v1"));
    let args = |platform| ["--opt", platform, "--opt=attest:provenance=mode=max", "--output", &merged];
    stack.build(&context, &args("platform=linux/arm64")).await.success();
    stack.build(&context, &args("platform=linux/amd64")).await.success();
    let (digest, index) = stack.manifest("turns:v1").await;
    let kinds: Vec<_> = entries(&index).into_iter().map(|(kind, _)| kind).collect();
    let of_nydus = kinds.iter().position(|kind| *kind == "nydus").unwrap();
    assert_eq!(kinds[of_nydus..], ["nydus", "nydus", "attestation", "attestation"]);
    assert_eq!(nydus_architectures(&index), ["amd64", "arm64"]);
    // Once more for one of them, with nothing new: provenance says when it was built, and is left out.
    stack.build(&context, &["--opt=platform=linux/arm64", "--output", &merged]).await.success();
    let (again, index) = stack.manifest("turns:v1").await;
    assert_ne!(again, digest);
    assert_eq!(nydus_architectures(&index), ["amd64", "arm64"]);
    stack.build(&context, &["--opt=platform=linux/arm64", "--output", &merged]).await.success();
    assert_eq!(stack.manifest("turns:v1").await.0, again);

    // The plain image for one of them is another's by now: the nydus image that was made of the old one goes.
    let old = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["platform"]["architecture"] == "arm64");
    let old = old.unwrap()["digest"].as_str().unwrap();
    let other = stack.context("other", TWO_LAYERS, &[("base", b"base"), ("app", b"two")]);
    let plain = format!("type=image,name={}/turns:other,push=true,registry.insecure=true", stack.registry);
    stack
        .build(
            &other,
            &["--opt=platform=linux/arm64", "--opt=attest:provenance=disabled=true", "--output", &plain],
        )
        .await
        .success();
    let (_, other) = stack.manifest("turns:other").await;
    let other = entries(&other).remove(0).1;
    stack.put_index("turns:v1", &index.to_string().replacen(old, &other, 1)).await;
    let text = stack.build(&context, &["--opt=platform=linux/amd64", "--output", &merged]).await.success();
    assert!(text.contains(&format!("made of {old}, which is not there any more")), "{text}");
    assert_eq!(nydus_architectures(&stack.manifest("turns:v1").await.1), ["amd64"]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_at_once_both_stand_in_the_index() {
    let Some(stack) = Stack::start().await else { return };
    let context = plain_for_two(&stack, "once:v1").await;
    let other = stack.path("other.sock");
    stack.serve_exporter(&stack.path("buildkitd.sock"), &other, ClientConfig::default());
    wait_for("the other exporter", || other.exists()).await;
    let own = stack.path("exporter.sock");
    // Through one exporter nobody writes what another has read; through two, what was lost is written again.
    for (sockets, patience, written) in [([&own, &own], 5, 2), ([&own, &other], 60, 3)] {
        let gate =
            Gate::meeting(&stack.registry, "/v2/once/manifests/v1", Duration::from_secs(patience)).await;
        let merged = format!("type=nydus-cluster,name={}/once:v1,merge-manifest=true", gate.host);
        let build = |socket: &Path, platform| {
            run(stack.buildctl(socket, &context, &["--opt", platform, "--output", &merged]))
        };
        let (one, two) = tokio::join!(
            build(sockets[0], "platform=linux/amd64"),
            build(sockets[1], "platform=linux/arm64")
        );
        one.success();
        two.success();
        assert_eq!(nydus_architectures(&stack.manifest("once:v1").await.1), ["amd64", "arm64"]);
        assert_eq!(gate.written(), written);
        // The next ones begin with plain images alone.
        plain_for_two(&stack, "once:v1").await;
    }
    stack.stop().await;
}

/// Cancels a build that waits with `method` at the index of `name`, and builds again.
async fn cancelled_at(stack: &Stack, exporter: &Path, method: &'static str, name: &str) {
    let context = plain_for_two(stack, &format!("{name}:v1")).await;
    let before = stack.manifest(&format!("{name}:v1")).await;
    let gate = Gate::shut(&stack.registry, method, &format!("/v2/{name}/manifests/v1")).await;
    let merged = format!("type=nydus-cluster,name={}/{name}:v1,merge-manifest=true", gate.host);
    let args = ["--opt", "platform=linux/amd64", "--output", &merged];
    let log = stack.path(&format!("{name}.log"));
    let mut command = stack.buildctl(exporter, &context, &args);
    let file = std::fs::File::create(&log).unwrap();
    let mut buildctl = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    wait_for("the merge", || gate.come() > 0).await;
    let begin = Instant::now();
    interrupt(&mut buildctl).await;
    wait_for("the end of the merge", || gate.left() == gate.come()).await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{method}: {:?}", begin.elapsed());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("cancel"), "{method}: {text}");
    assert_eq!(stack.manifest(&format!("{name}:v1")).await, before, "{method}");
    assert_eq!(stack.tags(name), ["v1"], "{method}");

    // It holds none of the exporter's conversions, of which there is one.
    let other =
        stack.context(&format!("{name}-other"), TWO_LAYERS, &[("base", method.as_bytes()), ("app", b"")]);
    let output = stack.output(&format!("{name}-other:v1"));
    run(stack.buildctl(exporter, &other, &["--output", &output])).await.success();

    // The next one has its turn at the name, and comes once.
    gate.open();
    run(stack.buildctl(exporter, &context, &args)).await.success();
    assert_eq!(gate.come(), 1, "{method}");
    let (_, index) = stack.manifest(&format!("{name}:v1")).await;
    assert_eq!(nydus_architectures(&index), ["amd64"], "{method}");
    assert_eq!(entries(&index)[..2], entries(&before.1)[..2], "{method}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_while_it_merges_ends_at_once_and_leaves_the_index_as_it_was() {
    let Some(stack) = Stack::start().await else { return };
    let listen = stack.path("merging.sock");
    // Nothing but the merge asks for what is at the name.
    let config = ExporterConfig { conversions: 1, reuse_from_registry: false, ..ExporterConfig::default() };
    stack.serve(&stack.path("buildkitd.sock"), &listen, config);
    wait_for("exporter", || listen.exists()).await;
    cancelled_at(&stack, &listen, "GET", "reading").await;
    cancelled_at(&stack, &listen, "PUT", "writing").await;
    stack.stop().await;
}
