//! Clients of BuildKit other than `buildctl build`: buildx with its remote driver, programs that use BuildKit's client as a
//! library, and buildctl's other commands.

use serde_json::{Value, json};
use test_support::noise;

use crate::support::{Stack, entries, is_oldest, run};

const TWO_TARGETS: &str = "FROM scratch AS one\nCOPY base /base\n\
    FROM one AS two\nCOPY app /app\n";

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_share_a_session_keep_their_outputs_apart() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(1, 2 << 20)), ("app", b"one")]);
    let builds = [
        format!("one:{}", stack.output("shared:one")),
        format!("two:{}", stack.output("shared:two")),
        // In a repository of its own and without a push.
        format!("two:{}", stack.output("other:two")),
        format!("one:{},push=false", stack.output("shared:nothing")),
    ];
    let text = run(stack.shared_session(&context, &builds)).await.success();
    let (one, two, other) = (
        stack.manifest("shared:one").await,
        stack.manifest("shared:two").await,
        stack.manifest("other:two").await,
    );
    let layers = |manifest: &Value| manifest["layers"].as_array().unwrap().len();
    assert_eq!((layers(&one.1), layers(&two.1)), (2, 3));
    assert_eq!(two.0, other.0);
    for line in [format!("one {}", one.0), format!("two {}", two.0)] {
        assert_eq!(text.matches(&line).count(), 2, "{line} in {text}");
    }
    assert_eq!(stack.tags("shared"), ["one", "two"]);

    // One that fails before it has a result, or as it is pushed, leaves the others of its session alone.
    let changed = stack.context("context", TWO_TARGETS, &[("app", &noise(9, 4 << 20))]);
    let builds = [
        format!("absent:{}", stack.output("shared:absent")),
        "one:type=nydus-cluster,name=127.0.0.1:1/nowhere:v1".to_owned(),
        format!("two:{}", stack.output("shared:again")),
        format!("two:{}", stack.output("other:again")),
    ];
    let text = run(stack.shared_session(&changed, &builds)).await.failure();
    let (again, _) = stack.manifest("shared:again").await;
    assert_ne!(again, two.0);
    assert_eq!(stack.manifest("other:again").await.0, again);
    assert_eq!(text.matches(&format!("two {again}")).count(), 2, "{text}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_bakes_several_targets_for_several_platforms_with_attestations() {
    let Some(stack) = Stack::start().await else { return };
    let Some(buildx) = stack.buildx().await else { return stack.stop().await };
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(2, 2 << 20)), ("app", b"one")]);
    let target = |name: &str| {
        json!({
            "context": context, "target": name, "output": [stack.output(&format!("baked:{name}"))],
            "platforms": ["linux/amd64", "linux/arm64"], "attest": ["type=provenance,mode=max"],
        })
    };
    let file = stack.path("docker-bake.json");
    let bake = json!({
        "group": {"default": {"targets": ["one", "two"]}},
        "target": {"one": target("one"), "two": target("two")},
    });
    std::fs::write(&file, bake.to_string()).unwrap();
    let metadata = stack.path("metadata.json");
    let metadata_file = format!("--metadata-file={}", metadata.display());
    let bake = ["bake", "--progress=plain", &metadata_file, "--allow=fs=*", "--file", file.to_str().unwrap()];
    run(buildx(&bake)).await.success();

    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    for name in ["one", "two"] {
        let (digest, index) = stack.manifest(&format!("baked:{name}")).await;
        assert_eq!(reported[name]["containerimage.digest"], digest.as_str());
        assert_eq!(index["manifests"].as_array().unwrap().len(), 4);
        let image = format!("{}/baked:{name}", stack.registry);
        let shown = run(buildx(&["imagetools", "inspect", &image])).await.success();
        for word in [&digest, "linux/amd64", "linux/arm64", "attestation-manifest"] {
            assert!(shown.contains(word), "{word} in {shown}");
        }
        let format = "--format={{json .Provenance}}";
        let shown = run(buildx(&["imagetools", "inspect", &image, format])).await.success();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert!(
            shown["linux/amd64"]["SLSA"].is_object() && shown["linux/arm64"]["SLSA"].is_object(),
            "{shown}"
        );
    }
    for command in [&["inspect"][..], &["du"], &["ls"], &["history", "ls"]] {
        run(buildx(command)).await.success();
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_that_buildx_writes_is_that_of_our_image() {
    let Some(stack) = Stack::start().await else { return };
    let Some(buildx) = stack.buildx().await else { return stack.stop().await };
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(4, 1 << 20)), ("app", b"one")]);
    let (id, metadata) = (stack.path("id"), stack.path("metadata.json"));
    let files = [format!("--iidfile={}", id.display()), format!("--metadata-file={}", metadata.display())];
    let output = format!("--output={}", stack.output("written:v1"));
    let context = context.to_str().unwrap();
    let build = ["build", "--progress=plain", "--provenance=false", &files[0], &files[1], &output, context];
    run(buildx(&build)).await.success();
    let (digest, manifest) = stack.manifest("written:v1").await;
    assert_eq!(std::fs::read_to_string(&id).unwrap(), manifest["config"]["digest"].as_str().unwrap());
    let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(reported["containerimage.digest"], digest.as_str());
    assert_eq!(reported["containerimage.config.digest"], manifest["config"]["digest"]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_image_of_a_build_is_the_one_that_is_reported() {
    let Some(stack) = Stack::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit takes one output a build");
        return stack.stop().await;
    }
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(6, 1 << 20)), ("app", b"one")]);
    let metadata = stack.path("metadata.json");
    let file = format!("--metadata-file={}", metadata.display());
    let plain = format!("type=image,name={}/plain:v1,push=true,registry.insecure=true", stack.registry);
    let files = format!("type=local,dest={}", stack.path("files").display());
    let ours = stack.output("nydus:v1");
    for (outputs, last) in [
        ([&plain, &ours], "nydus:v1"),
        ([&ours, &plain], "plain:v1"),
        // Files have no digest.
        ([&ours, &files], "nydus:v1"),
        ([&files, &ours], "nydus:v1"),
    ] {
        let outputs = outputs.map(|output| ["--output", output.as_str()]).concat();
        stack.build(&context, &[outputs.as_slice(), &[&file]].concat()).await.success();
        let (digest, manifest) = stack.manifest(last).await;
        let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
        assert_eq!(reported["containerimage.digest"], digest.as_str(), "{outputs:?}");
        assert_eq!(reported["containerimage.config.digest"], manifest["config"]["digest"]);
        assert_eq!(reported["containerimage.descriptor"]["digest"], digest.as_str());
        assert_eq!(reported["image.name"], format!("{}/{last}", stack.registry));
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_writes_our_image_to_the_disk_as_a_file_and_as_a_directory() {
    let Some(stack) = Stack::start().await else { return };
    let Some(buildx) = stack.buildx().await else { return stack.stop().await };
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(6, 1 << 20)), ("app", b"one")]);
    let context = context.to_str().unwrap();
    let build = ["build", "--progress=plain", "--provenance=false"];
    let pushed = format!("--output={}", stack.output("disk:v1"));
    run(buildx(&[&build[..], &[&pushed, context]].concat())).await.success();
    let (digest, _) = stack.manifest("disk:v1").await;
    let (file, directory) = (stack.path("image.tar"), stack.path("layout"));
    for dest in [format!("dest={}", file.display()), format!("tar=false,dest={}", directory.display())] {
        let metadata = stack.path("metadata.json");
        let output = format!("--output=type=oci,nydus-cluster=true,{dest}");
        let metadata_file = format!("--metadata-file={}", metadata.display());
        run(buildx(&[&build[..], &[&output, &metadata_file, context]].concat())).await.success();
        let reported: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
        assert_eq!(reported["containerimage.digest"], digest.as_str());
    }
    let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
    let index = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap().ends_with("index.json"));
    let from_file: Value = serde_json::from_reader(index.unwrap()).unwrap();
    let from_directory: Value =
        serde_json::from_slice(&std::fs::read(directory.join("index.json")).unwrap()).unwrap();
    for index in [from_file, from_directory] {
        assert_eq!(index["manifests"][0]["digest"], digest.as_str(), "{index}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_discovers_what_attests_our_image() {
    let Some(stack) = Stack::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit makes no attestations as artifacts");
        return stack.stop().await;
    }
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(5, 1 << 20)), ("app", b"one")]);
    let output = format!("{},oci-artifact=true", stack.output("discovered:v1"));
    stack.build(&context, &["--opt=attest:provenance=mode=min", "--output", &output]).await.success();
    let (_, index) = stack.manifest("discovered:v1").await;
    let [(_, image), (kind, attestation)] = &entries(&index)[..] else { panic!("{index}") };
    assert_eq!(*kind, "attestation");
    let name = format!("{}/discovered@{image}", stack.registry);
    let Some(oras) = stack.oras(&["discover", "--format=json", &name]) else { return stack.stop().await };
    let found = run(oras).await.success();
    assert!(found.contains(attestation.as_str()), "{found}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_commands_of_buildctl_say_what_they_say_to_buildkitd() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_TARGETS, &[("base", &noise(3, 1 << 20)), ("app", b"one")]);
    stack.build(&context, &["--output", &stack.output("any:v1")]).await.success();
    for command in
        [&["debug", "workers"][..], &["debug", "info"], &["du", "--verbose"], &["debug", "histories"]]
    {
        let look = async |socket| run(stack.buildctl_command(socket, command)).await.success();
        let mut past = look("buildkitd.sock").await;
        loop {
            let through = look("exporter.sock").await;
            let before = std::mem::replace(&mut past, look("buildkitd.sock").await);
            // Some seconds after a build buildkitd saves what it traced, and has other answers from then on.
            if before == past {
                assert_eq!(through, past, "{command:?}");
                break;
            }
        }
    }
    let pruned = run(stack.buildctl_command("exporter.sock", &["prune", "--all"])).await.success();
    assert!(pruned.contains("Total"), "{pruned}");
    let left = run(stack.buildctl_command("buildkitd.sock", &["du"])).await.success();
    assert!(left.contains("Total:\t0B") || left.contains("Total:\t\t0B"), "{left}");
    stack.stop().await;
}
