//! Keys of an output that are about its names and documents, and those that BuildKit itself evaluates. Those about the image are
//! tested end to end.

use bytes::Bytes;
use registry::client::{Client, ClientConfig};
use registry::nydus;
use registry::reference::Reference;
use registry::server::ServerConfig;
use serde_json::{Value, json};
use test_support::{noise, text};
use tokio_util::sync::CancellationToken;

use crate::support::{Stack, entries, is_oldest};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\n";

fn layer_types(manifest: &Value) -> Vec<&str> {
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_names_are_pushed_and_reported_with_the_digest_if_asked_for() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(41, 1 << 20)), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let registry = &stack.registry;
    let output =
        format!("type=nydus-cluster,\"name={registry}/names:v1,{registry}/names:v2\",name-canonical=true");
    stack.build(&context, &["--output", &output, &file]).await.success();
    let (digest, _) = stack.manifest("names:v1").await;
    assert_eq!(stack.manifest("names:v2").await.0, digest);
    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    let expected = format!("{registry}/names:v1,{registry}/names:v2,{registry}/names@{digest}");
    assert_eq!(reported["image.name"], expected);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_other_repositories_and_registries_get_the_same_image() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(43, 1 << 20)), ("app", b"one")]);
    let stop = CancellationToken::new();
    let mut config = ServerConfig::new(stack.path("other"));
    config.listen.set_port(0);
    let other = registry::server::serve(config, stop.clone()).await.unwrap();
    let (registry, elsewhere) = (&stack.registry, other.address());
    let names = [
        format!("{registry}/first:v1"),
        format!("{registry}/second:v1"),
        format!("{elsewhere}/third:v1"),
        format!("{registry}/first:v2"),
    ];
    let output = format!("type=nydus-cluster,\"name={}\"", names.join(","));
    let text =
        stack.build(&context, &["--output", &output, "--opt", "attest:provenance=mode=min"]).await.success();
    let (digest, index) = stack.manifest("first:v1").await;
    assert_eq!(entries(&index).len(), 2, "the image, and what attests it: {index}");
    assert_eq!(stack.manifest("first:v2").await.0, digest);
    assert_eq!(stack.manifest("second:v1").await.0, digest);
    // The registry has the blobs already.
    let sent = stack.access_log();
    let sent = sent
        .iter()
        .filter(|line| line["path"].as_str().is_some_and(|path| path.contains("/second/blobs/uploads/")));
    let sent: u64 = sent.filter_map(|line| line["bytes_received"].as_u64()).sum();
    assert_eq!(sent, 0);
    let client = Client::new(ClientConfig::default()).unwrap();
    let third = Reference::parse(&format!("{elsewhere}/third:v1")).unwrap();
    let (descriptor, _) = client.manifest(&third).await.unwrap();
    assert_eq!(descriptor.digest().to_string(), digest, "{text}");

    // What is there is not pushed again; a registry that has gone is named.
    stop.cancel();
    other.stopped().await;
    let text = stack.build(&context, &["--output", &output]).await.failure();
    assert!(text.contains(&format!("{elsewhere}")), "{text}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_are_docker_s_if_asked_for() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(42, 1 << 20)), ("app", b"one")]);
    let output = format!("{},oci-mediatypes=false", stack.output("docker:v1"));
    stack.build(&context, &["--output", &output]).await.success();
    let (_, manifest) = stack.manifest("docker:v1").await;
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    assert_eq!(layer_types(&manifest).last(), Some(&nydus::MEDIA_TYPE_BOOTSTRAP_DOCKER));

    // Of several platforms, down from their list, which has an entry for each.
    let output = format!("{},oci-mediatypes=false", stack.output("docker:all"));
    let platforms = "--opt=platform=linux/amd64,linux/arm64";
    stack.build(&context, &[platforms, "--output", &output]).await.success();
    let (_, list) = stack.manifest("docker:all").await;
    assert_eq!(list["mediaType"], "application/vnd.docker.distribution.manifest.list.v2+json");
    let platforms: Vec<&Value> = list["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["platform"]["architecture"])
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
    for entry in list["manifests"].as_array().unwrap() {
        assert_eq!(entry["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
        let (_, manifest) = stack.manifest(&format!("docker@{}", entry["digest"].as_str().unwrap())).await;
        assert_eq!(manifest["mediaType"], entry["mediaType"]);
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
        assert_eq!(layer_types(&manifest).last(), Some(&nydus::MEDIA_TYPE_BOOTSTRAP_DOCKER));
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_at_most_four_outputs_of_ours_and_is_told_so() {
    let Some(stack) = Stack::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit takes one output a build");
        return stack.stop().await;
    }
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(43, 1 << 20)), ("app", b"one")]);
    let outputs: Vec<String> =
        (1..=5).map(|number| format!("--output={}", stack.output(&format!("many:v{number}")))).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let text = stack.build(&context, &outputs).await.failure();
    assert!(text.contains("5 outputs type=nydus-cluster in one build: expected at most 4"), "{text}");
    assert_eq!(stack.tags("many"), Vec::<String>::new());
    stack.build(&context, &outputs[..4]).await.success();
    assert_eq!(stack.tags("many").len(), 4);
    stack.stop().await;
}

/// The key's side effect shows it: a layer keeps the form in which it was handed over first.
#[tokio::test(flavor = "multi_thread")]
async fn layers_are_handed_over_in_the_compression_that_is_asked_for() {
    let Some(stack) = Stack::start().await else { return };
    for (seed, keys, expected) in [
        (51, "", "tar"),
        (53, ",layer-compression=uncompressed", "tar"),
        (55, ",layer-compression=gzip", "tar+gzip"),
        (57, ",layer-compression=zstd", "tar+zstd"),
    ] {
        let files: &[(&str, &[u8])] = &[("base", &noise(seed, 1 << 20)), ("app", expected.as_bytes())];
        let context = stack.context("context", TWO_LAYERS, files);
        let output = stack.output(&format!("handed{seed}:v1")) + keys;
        stack.build(&context, &["--output", &output]).await.success();
        let plain = format!(
            "type=image,name={}/plain{seed}:v1,push=true,registry.insecure=true,oci-mediatypes=true",
            stack.registry
        );
        stack.build(&context, &["--output", &plain]).await.success();
        let (_, manifest) = stack.manifest(&format!("plain{seed}:v1")).await;
        let expected = format!("application/vnd.oci.image.layer.v1.{expected}");
        assert_eq!(layer_types(&manifest)[0], expected, "{manifest}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_compression_level_makes_a_smaller_blob() {
    let Some(stack) = Stack::start().await else { return };
    // Words of three to ten letters, some of them often, as in documents, in which a better compressor finds more.
    let (letters, drawn) = (text(45, 40_000), noise(46, 400_000));
    let mut words: Vec<&[u8]> = Vec::new();
    let mut rest = letters.as_slice();
    while let Some((word, behind)) = rest.split_at_checked(3 + words.len() % 8) {
        words.push(word);
        rest = behind;
    }
    let word =
        |pair: &[u8]| [words[usize::from(pair[0]) * usize::from(pair[1]) % words.len()], b" "].concat();
    let content: Vec<u8> = drawn.chunks(2).flat_map(word).collect();
    let files: &[(&str, &[u8])] = &[("base", &content), ("app", b"one")];
    let context = stack.context("context", TWO_LAYERS, files);
    let mut sizes = Vec::new();
    for (name, keys) in
        [("level:low", ",compression-level=1"), ("level:usual", ""), ("level:high", ",compression-level=19")]
    {
        stack.build(&context, &["--output", &(stack.output(name) + keys)]).await.success();
        let (_, manifest) = stack.manifest(name).await;
        sizes.push(manifest["layers"][0]["size"].as_u64().unwrap());
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attestations_that_are_only_for_images_are_kept_unless_unwanted() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(47, 1 << 20)), ("app", b"one")]);
    // As buildx asks for them by default.
    let attest = "--opt=attest:provenance=mode=min,inline-only=true";
    let theirs = format!("type=image,name={}/theirs:v1,push=true,registry.insecure=true", stack.registry);
    stack.build(&context, &[attest, "--output", &theirs]).await.success();
    let kinds = |manifest: &Value| entries(manifest).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds(&stack.manifest("theirs:v1").await.1), ["plain", "attestation"]);
    for (name, keys) in [("unsaid:v1", ""), ("wanted:v1", ",attestation-inline=true")] {
        stack.build(&context, &[attest, "--output", &(stack.output(name) + keys)]).await.success();
        assert_eq!(kinds(&stack.manifest(name).await.1), ["plain", "attestation"], "{name}");
    }
    let unwanted = stack.output("unwanted:v1") + ",attestation-inline=false";
    stack.build(&context, &[attest, "--output", &unwanted]).await.success();
    assert!(stack.manifest("unwanted:v1").await.1.get("manifests").is_none());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_to_be_distributed_are_called_so_if_asked_for() {
    const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let Some(stack) = Stack::start().await else { return };
    push_image_of(&stack, "foreign:v1", FOREIGN).await;
    let dockerfile = format!("FROM {}/foreign:v1\nCOPY app /app\n", stack.registry);
    let context = stack.context("context", &dockerfile, &[("app", b"one")]);
    for (prefer, expected) in [(true, FOREIGN), (false, "application/vnd.oci.image.layer.v1.tar")] {
        let name = format!("prefer-{prefer}");
        let output = stack.output(&format!("{name}:v1"));
        let keys = format!(",also-oci=true,prefer-nondist-layers={prefer}");
        stack.build(&context, &["--output", &(output + &keys)]).await.success();
        let (_, index) = stack.manifest(&format!("{name}:v1")).await;
        let (_, plain) = stack.manifest(&format!("{name}@{}", entries(&index)[0].1)).await;
        assert_eq!(layer_types(&plain)[0], expected);
    }
    stack.stop().await;
}

/// Pushes an image of one layer of this media type.
async fn push_image_of(stack: &Stack, name: &str, media_type: &str) {
    let reference = Reference::parse(&format!("{}/{name}", stack.registry)).unwrap();
    let client = Client::new(ClientConfig::default()).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let content = noise(48, 100_000);
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "foreign", content.as_slice()).unwrap();
    let layer = tar.into_inner().unwrap();
    let config = json!({
        "os": "linux", "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "config": {}, "rootfs": {"type": "layers", "diff_ids": [registry::digest::sha256(&layer).as_ref()]},
        "history": [{"created_by": "a test"}],
    });
    let described = async |media_type: &str, content: Vec<u8>| {
        let size = content.len();
        let digest = client.push_blob(reference.repository(), Bytes::from(content)).await.unwrap();
        json!({"mediaType": media_type, "digest": digest.as_ref(), "size": size})
    };
    let mut layer = described(media_type, layer).await;
    // What has no other place to come from is distributed.
    let digest = layer["digest"].as_str().unwrap().to_owned();
    let repository = reference.repository();
    layer["urls"] = json!([format!("http://{}/v2/{}/blobs/{digest}", repository.host(), repository.name())]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes()).await,
        "layers": [layer],
    });
    let content = Bytes::from(manifest.to_string());
    client.put_manifest(&reference, "application/vnd.oci.image.manifest.v1+json", content).await.unwrap();
}
