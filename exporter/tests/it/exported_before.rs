//! Layers that BuildKit has in some form already, because they were exported in it before: it hands them over so.

use std::path::{Path, PathBuf};

use exporter::ExporterConfig;
use image::files::extract;
use image::platform::PlatformName;
use registry::client::{Client, ClientConfig};
use registry::reference::Reference;
use serde_json::Value;
use test_support::noise;

use crate::support::{Outcome, Stack, is_oldest, run, wait_for};

const TWO_LAYERS: &str = "FROM scratch\nCOPY base /base\nCOPY app /app\n";

/// How an output of ours gets its layers.
const WAYS: [&str; 3] = ["store", "tar", "content-store"];

struct Rig {
    stack: Stack,
    /// An exporter that reads buildkitd's content store.
    reading: PathBuf,
}

impl Rig {
    async fn start() -> Option<Self> {
        let stack = Stack::start().await?;
        let reading = stack.path("reading.sock");
        let config =
            ExporterConfig { content_store: Some(stack.content_store()), ..ExporterConfig::default() };
        stack.serve(&stack.path("buildkitd.sock"), &reading, config);
        wait_for("exporter", || reading.exists()).await;
        Some(Self { stack, reading })
    }

    /// Exports `context` as an image in the form `compression`, past us.
    async fn export_before(&self, context: &Path, compression: &str) {
        let output = format!(
            "type=image,name={}/before-{compression}:v1,push=true,registry.insecure=true,oci-mediatypes=true,\
             compression={compression},force-compression={}",
            self.stack.registry,
            // So BuildKit's own documentation has it.
            compression == "nydus",
        );
        self.stack.build_directly(context, &["--output", &output]).await.success();
    }

    /// Builds the image `name`, its layers coming in this way.
    async fn build(&self, context: &Path, way: &str, name: &str, keys: &str) -> Outcome {
        let output = format!("{}{keys}", self.stack.output(name));
        let outputs = match way {
            // Two of ours come as tar streams.
            "tar" if !is_oldest() => vec![format!("{}{keys}", self.stack.output("twin:v1")), output],
            _ => vec![output],
        };
        let args: Vec<&str> = outputs.iter().flat_map(|output| ["--output", output.as_str()]).collect();
        let socket = if way == "content-store" { &self.reading } else { &self.stack.path("exporter.sock") };
        run(self.stack.buildctl(socket, context, &args)).await
    }

    /// Checks that the image `name` has the files of `context`.
    async fn holds(&self, name: &str, context: &Path) {
        let client = Client::new(ClientConfig::default()).unwrap();
        let image = Reference::parse(&format!("{}/{name}", self.stack.registry)).unwrap();
        let to = tempfile::tempdir().unwrap();
        let (location, platform) = (image::location::Location::Registry(image), PlatformName::host());
        extract(&location, &client, &platform, |_| true, to.path()).await.unwrap();
        for file in ["base", "app"] {
            assert!(
                std::fs::read(to.path().join(file)).unwrap() == std::fs::read(context.join(file)).unwrap(),
                "{name}: {file}"
            );
        }
    }

    fn context(&self, seed: u64) -> PathBuf {
        let files: &[(&str, &[u8])] = &[("base", &noise(seed, 1 << 20)), ("app", &seed.to_le_bytes())];
        self.stack.context(&format!("context-{seed}"), TWO_LAYERS, files)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_taken_in_every_form_of_a_tar() {
    let Some(rig) = Rig::start().await else { return };
    for (seed, compression) in [(61, "uncompressed"), (63, "gzip"), (65, "estargz"), (67, "zstd")] {
        let context = rig.context(seed);
        rig.export_before(&context, compression).await;
        let mut made: Vec<Value> = Vec::new();
        for way in WAYS {
            let name = format!("{compression}-{way}:v1");
            rig.build(&context, way, &name, "").await.success();
            rig.holds(&name, &context).await;
            made.push(rig.stack.manifest(&name).await.1);
        }
        assert!(made.iter().all(|manifest| *manifest == made[0]), "{compression}");
    }
    rig.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_nydus_s_own_form_is_refused_with_what_to_do_and_taken_when_that_is_done() {
    let Some(rig) = Rig::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit was built without nydus");
        return rig.stack.stop().await;
    }
    for (number, way) in WAYS.into_iter().enumerate() {
        let context = rig.context(71 + 2 * number as u64);
        rig.export_before(&context, "nydus").await;
        let name = format!("nydus-{way}:v1");
        let text = rig.build(&context, way, &name, "").await.failure();
        assert!(text.contains("is no tar: ") && text.contains("force-compression=true"), "{way}: {text}");
        rig.build(&context, way, &name, ",force-compression=true").await.success();
        rig.holds(&name, &context).await;
    }
    rig.stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_beside_ours_may_have_nydus_s_own_form() {
    let Some(rig) = Rig::start().await else { return };
    if is_oldest() {
        println!("left out: this BuildKit takes one output a build");
        return rig.stack.stop().await;
    }
    let context = rig.context(81);
    let theirs = format!(
        "type=image,name={}/theirs:v1,push=true,registry.insecure=true,oci-mediatypes=true,compression=nydus,\
         force-compression=true",
        rig.stack.registry
    );
    let ours = rig.stack.output("ours:v1");
    rig.stack.build(&context, &["--output", &theirs, "--output", &ours]).await.success();
    rig.holds("ours:v1", &context).await;
    rig.stack.stop().await;
}
