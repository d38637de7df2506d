//! Images on the disk of whoever builds: `type=oci,nydus-cluster=true`, as a file and as a directory.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use registry::digest::sha256;
use serde_json::Value;
use support::{Stack, entries, is_oldest, run};
use test_support::noise;

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\n";

/// An OCI layout: its index, and its blobs by their digests.
struct Layout {
    index: Value,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    fn of(files: BTreeMap<String, Vec<u8>>) -> Self {
        let index = serde_json::from_slice(&files["index.json"]).unwrap();
        assert!(files.contains_key("oci-layout"));
        let blobs = files.into_iter().filter_map(|(name, content)| {
            Some((format!("sha256:{}", name.strip_prefix("blobs/sha256/")?), content))
        });
        Self { index, blobs: blobs.collect() }
    }

    fn of_tar(path: &Path) -> Self {
        let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            files.insert(name, content);
        }
        Self::of(files)
    }

    fn of_directory(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        for folder in ["", "blobs/sha256"] {
            for entry in fs::read_dir(root.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        Self::of(files)
    }

    /// Checks that all of the image `digest` is here, each blob under its digest, and returns the number of blobs.
    fn holds(&self, digest: &str) -> usize {
        for (name, content) in &self.blobs {
            assert_eq!(sha256(content).as_ref(), name);
        }
        let manifest: Value = serde_json::from_slice(&self.blobs[digest]).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        for part in layers.iter().chain([&manifest["config"]]) {
            let content = &self.blobs[part["digest"].as_str().unwrap()];
            assert_eq!(content.len() as u64, part["size"].as_u64().unwrap());
        }
        layers.len() + 2
    }

    fn entries(&self) -> Vec<(&str, Option<&str>)> {
        let entries = self.index["manifests"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| {
                let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str();
                (entry["digest"].as_str().unwrap(), name)
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_on_the_client_s_disk_is_the_one_that_would_be_pushed() {
    let Some(stack) = Stack::start().await else { return };
    let base = noise(1, 3 << 20);
    let context = stack.context("context", TWO_LAYERS, &[("base", &base), ("app", b"one")]);
    // Pushed first: what is known of the layers then says nothing of the client's disk.
    stack.build(&context, &["--output", &stack.output("disk:v1")]).await.success();
    let (digest, _) = stack.manifest("disk:v1").await;

    let (file, metadata) = (stack.path("image.tar"), stack.path("metadata.json"));
    let output = format!("type=oci,nydus-cluster=true,\"name=demo:v1,demo:v2\",dest={}", file.display());
    let metadata_file = format!("--metadata-file={}", metadata.display());
    let text = stack.build(&context, &["--output", &output, &metadata_file]).await.success();
    assert!(text.contains("to the client"), "{text}");
    let reported: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(reported["containerimage.digest"], digest.as_str());
    let layout = Layout::of_tar(&file);
    assert_eq!(layout.blobs.len(), layout.holds(&digest));
    assert_eq!(layout.entries(), [(digest.as_str(), Some("v1")), (digest.as_str(), Some("v2"))]);

    // A directory takes what is new in it.
    let directory = stack.path("layout");
    let output = format!("type=oci,nydus-cluster=true,tar=false,name=demo:v1,dest={}", directory.display());
    stack.build(&context, &["--output", &output]).await.success();
    let first = Layout::of_directory(&directory);
    assert_eq!(first.blobs.len(), first.holds(&digest));
    // The client writes that: old ones the whole name.
    let (found, name) = first.entries()[0];
    assert!(found == digest && name.is_some_and(|name| name.ends_with("v1")), "{name:?}");
    let blobs = || fs::read_dir(directory.join("blobs/sha256")).unwrap().count();
    let before = blobs();
    let context = stack.context("context", TWO_LAYERS, &[("app", b"two")]);
    let output = format!("type=oci,nydus-cluster=true,tar=false,name=demo:v2,dest={}", directory.display());
    stack.build(&context, &["--output", &output]).await.success();
    // A blob, a bootstrap, a config and a manifest.
    assert_eq!(blobs(), before + 4);
    assert_eq!(Layout::of_directory(&directory).entries().len(), 2);
    assert!(
        !directory.join("ingest").exists() || fs::read_dir(directory.join("ingest")).unwrap().count() == 0
    );
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_an_image_in_a_file_is_annotated_as_in_buildkit_s_own() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(5, 1 << 20)), ("app", b"one")]);
    // BuildKit refuses annotations of an index for an image that has none.
    let (of_manifest, of_index) =
        ("annotation-manifest-descriptor.a=one", "annotation-index-descriptor.b=two");
    let of_both = format!("{of_manifest},{of_index}");
    let platforms = "--opt=platform=linux/amd64,linux/arm64";
    for (keys, more, expected) in [
        (of_manifest, &[][..], [Some("one"), None]),
        (of_both.as_str(), &[platforms][..], [None, Some("two")]),
    ] {
        for ours in ["", ",nydus-cluster=true"] {
            let file = stack.path("annotated.tar");
            let output = format!("type=oci{ours},name=demo:v1,{keys},dest={}", file.display());
            stack.build(&context, &[&["--output", &output], more].concat()).await.success();
            let annotations = &Layout::of_tar(&file).index["manifests"][0]["annotations"];
            let found = ["a", "b"].map(|name| annotations[name].as_str());
            assert_eq!(found, expected, "{output}: {annotations}");
            assert!(annotations["org.opencontainers.image.ref.name"].is_string(), "{annotations}");
        }
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_image_comes_along_to_the_client_s_disk() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(4, 2 << 20)), ("app", b"one")]);
    let pushed = format!("{},also-oci=true", stack.output("beside:v1"));
    stack.build(&context, &["--output", &pushed]).await.success();
    let (digest, index) = stack.manifest("beside:v1").await;
    let dest = |name: &str| format!("dest={}", stack.path(name).display());
    for output in [
        format!("type=oci,nydus-cluster=true,also-oci=true,name=demo:v1,{}", dest("both.tar")),
        format!("type=oci,nydus-cluster=true,also-oci=true,tar=false,name=demo:v1,{}", dest("both")),
    ] {
        stack.build(&context, &["--output", &output]).await.success();
    }
    for layout in [Layout::of_tar(&stack.path("both.tar")), Layout::of_directory(&stack.path("both"))] {
        assert_eq!(layout.entries()[0].0, digest);
        let parts: usize = entries(&index).iter().map(|(_, digest)| layout.holds(digest)).sum();
        // And the index.
        assert_eq!(layout.blobs.len(), parts + 1);
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_s_disk_is_one_output_among_others() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(2, 2 << 20)), ("app", b"one")]);
    let dest = |name: &str| format!("dest={}", stack.path(name).display());
    let outputs = [
        format!("type=oci,nydus-cluster=true,{}", dest("nydus.tar")),
        format!("type=oci,{}", dest("plain.tar")),
        stack.output("among:v1"),
        format!("type=oci,nydus-cluster=true,tar=false,{}", dest("nydus")),
        format!("type=local,{}", dest("files")),
    ];
    let args: Vec<&str> = outputs.iter().flat_map(|output| ["--output", output.as_str()]).collect();
    for args in args.chunks(if is_oldest() { 2 } else { args.len() }) {
        stack.build(&context, args).await.success();
    }
    let (digest, _) = stack.manifest("among:v1").await;
    for layout in [Layout::of_tar(&stack.path("nydus.tar")), Layout::of_directory(&stack.path("nydus"))] {
        assert_eq!(layout.blobs.len(), layout.holds(&digest));
        assert_eq!(layout.entries()[0].0, digest);
    }
    let plain = Layout::of_tar(&stack.path("plain.tar"));
    let other = plain.entries()[0].0.to_owned();
    assert!(other != digest && plain.holds(&other) == 4);
    assert_eq!(fs::read(stack.path("files/app")).unwrap(), b"one");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_take_the_image_fails_the_build_with_its_reason() {
    let Some(stack) = Stack::start().await else { return };
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(3, 1 << 20)), ("app", b"one")]);
    let output = "type=oci,nydus-cluster=true,dest=/dev/full";
    let text = stack.build(&context, &["--output", output]).await.failure();
    assert!(text.contains("no space left on device"), "{text}");

    // A program that opens nothing, and one that means our own type; there is none for the oldest.
    if is_oldest() {
        return stack.stop().await;
    }
    let one = stack.context("one", "FROM scratch AS one\nCOPY app /app\n", &[("app", b"one")]);
    let absent = ["one:type=oci,nydus-cluster=true".to_owned()];
    let text = run(stack.shared_session(&one, &absent)).await.failure();
    assert!(
        text.contains(
            "the BuildKit client's session did not take it: unknown service moby.filesync.v1.FileSend"
        ),
        "{text}"
    );
    let ours = [format!("one:{},dest=image.tar", stack.output("own:v1"))];
    let text = run(stack.shared_session(&one, &ours)).await.failure();
    assert!(text.contains("write type=oci,nydus-cluster=true,dest=FILE"), "{text}");
    stack.stop().await;
}
