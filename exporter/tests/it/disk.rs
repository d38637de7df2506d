//! Images on the disk of whoever builds: `type=oci,nydus-cluster=true`, as a file and as a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use exporter::ExporterConfig;
use registry::digest::sha256;
use serde_json::Value;
use test_support::noise;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Outcome, Stack, entries, interrupt, is_oldest, run, wait_for};

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

/// How soon what is interrupted has ended.
const END: Duration = Duration::from_secs(20);
/// Builds that may end before they are interrupted.
const ROUNDS_LIMIT: usize = 10;

/// An exporter with one conversion at once, and little room for tars.
struct Small<'a> {
    stack: &'a Stack,
    listen: PathBuf,
    /// Where it keeps what is on its way.
    spool: PathBuf,
    serving: JoinHandle<()>,
}

impl<'a> Small<'a> {
    async fn start(stack: &'a Stack, archive_bytes: u64) -> Self {
        let (listen, spool) = (stack.path("small.sock"), stack.path("spool"));
        fs::create_dir(&spool).unwrap();
        let mut config = ExporterConfig { conversions: 1, archive_bytes, ..ExporterConfig::default() };
        config.registry.upload.spool_dir.clone_from(&spool);
        let serving = stack.serve(&stack.path("buildkitd.sock"), &listen, config);
        wait_for("exporter", || listen.exists()).await;
        Self { stack, listen, spool, serving }
    }

    fn command(&self, context: &Path, keys: &str, dest: &Path) -> Command {
        let output = format!("type=oci,nydus-cluster=true{keys},name=demo:v1,dest={}", dest.display());
        self.stack.buildctl(&self.listen, context, &["--output", &output])
    }

    async fn build(&self, context: &Path, keys: &str, dest: &Path) -> Outcome {
        run(self.command(context, keys, dest)).await
    }

    fn spawn(&self, context: &Path, keys: &str, dest: &Path) -> Child {
        let mut command = self.command(context, keys, dest);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Waits until nothing is on its way here.
    async fn is_empty(&self) {
        wait_for("an empty spool", || fs::read_dir(&self.spool).unwrap().count() == 0).await;
    }
}

/// Whether a part of a blob is in a directory that a client writes.
fn has_begun(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory.join("ingest")) else { return false };
    let data = entries.filter_map(|entry| Some(entry.ok()?.path().join("data")));
    data.filter_map(|data| data.metadata().ok()).any(|data| data.len() > 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_interrupted_while_the_client_s_disk_takes_the_image_leaves_nothing_in_the_exporter()
{
    let Some(stack) = Stack::start().await else { return };
    // The tar that is given up and the next one do not fit at once.
    let exporter = Small::start(&stack, 48 << 20).await;
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(6, 32 << 20)), ("app", b"one")]);

    // A pipe from which nobody takes all of the tar.
    let file = stack.path("pipe");
    assert!(Command::new("mkfifo").arg(&file).status().await.unwrap().success());
    let mut received = pipe::OpenOptions::new().read_write(true).open_receiver(&file).unwrap();
    let mut buildctl = exporter.spawn(&context, "", &file);
    let mut begin = [0; 512];
    let begun = timeout(Duration::from_secs(60), received.read_exact(&mut begin)).await;
    begun.expect("the client takes the tar").unwrap();
    assert!(begin.starts_with(b"oci-layout"));
    interrupt(&mut buildctl).await;
    exporter.is_empty().await;

    let directory = stack.path("layout");
    let was_interrupted = async || {
        let mut buildctl = exporter.spawn(&context, ",tar=false", &directory);
        wait_for("a blob at the client", || has_begun(&directory) || directory.join("index.json").exists())
            .await;
        let id = buildctl.id().unwrap().to_string();
        Command::new("kill").args(["-INT", &id]).status().await.unwrap();
        !timeout(END, buildctl.wait()).await.expect("buildctl ends").unwrap().success()
    };
    // On a busy machine it may be done before somebody looks.
    let mut rounds = 0;
    while !was_interrupted().await {
        rounds += 1;
        assert!(rounds < ROUNDS_LIMIT, "it has ended before it is interrupted, each time");
        fs::remove_dir_all(&directory).unwrap();
    }
    assert!(!directory.join("index.json").exists());

    let file = stack.path("image.tar");
    exporter.build(&context, "", &file).await.success();
    exporter.build(&context, ",tar=false", &directory).await.success();
    let (tar, directory) = (Layout::of_tar(&file), Layout::of_directory(&directory));
    let digest = tar.entries()[0].0;
    assert_eq!(tar.blobs.len(), tar.holds(digest));
    assert_eq!(directory.entries()[0].0, digest);
    directory.holds(digest);
    exporter.is_empty().await;
    // It would wait for builds for 300 s.
    stack.stop_exporter();
    timeout(END, exporter.serving).await.expect("nothing is under way").unwrap();
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_that_the_exporter_has_no_room_for_fails_its_build_with_the_setting() {
    let Some(stack) = Stack::start().await else { return };
    let exporter = Small::start(&stack, 2 << 20).await;
    let context = stack.context("context", TWO_LAYERS, &[("base", &noise(7, 4 << 20)), ("app", b"one")]);
    let text = exporter.build(&context, "", &stack.path("large.tar")).await.failure();
    for words in ["more than 2097152 bytes", "raise exporter.archive_bytes", "tar=false,dest=DIRECTORY"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    exporter.is_empty().await;

    // As the message says, and what fits.
    let directory = stack.path("layout");
    exporter.build(&context, ",tar=false", &directory).await.success();
    let small = stack.context("small", TWO_LAYERS, &[("base", &noise(8, 1 << 20)), ("app", b"one")]);
    let file = stack.path("small.tar");
    exporter.build(&small, "", &file).await.success();
    for layout in [Layout::of_directory(&directory), Layout::of_tar(&file)] {
        assert_eq!(layout.blobs.len(), layout.holds(layout.entries()[0].0));
    }
    stack.stop().await;
}
