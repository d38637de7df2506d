use std::fs;
use std::path::{Path, PathBuf};

use crate::options::Recipe;
use crate::source::blob_path;
use registry::client::ClientConfig;
use registry::digest::sha256;
use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use serde_json::{Value, json};
use test_support::{gzip, tar_of};

use super::*;
use crate::layer::LayerCache;
use crate::test_layout::TestLayout;

/// A layout to convert, and room for the result.
struct Bench {
    layout: TestLayout,
}

impl Bench {
    fn new() -> Self {
        Self { layout: TestLayout::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.layout.folder.path().join(name)
    }

    fn image(&self, architecture: &str, layers: &[Value]) -> Value {
        let config = self.layout.document(OCI_CONFIG, &json!({"architecture": architecture, "os": "linux"}));
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        let mut image = self.layout.document(OCI_MANIFEST, &manifest);
        image["platform"] = json!({"architecture": architecture, "os": "linux"});
        image
    }

    /// Images for two architectures with the same layer, and an attestation of the first.
    fn two_platforms(&self) -> Value {
        let layer = self.layout.blob(OCI_LAYER, &tar_of(&[("file", b"content")]));
        let (amd64, arm64) =
            (self.image("amd64", std::slice::from_ref(&layer)), self.image("arm64", &[layer]));
        let statement = self.layout.blob("application/vnd.in-toto+json", b"{\"statement\":true}");
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": self.layout.document(OCI_CONFIG, &json!({"architecture": "unknown", "os": "unknown"})),
            "layers": [statement]});
        let mut attestation = self.layout.document(OCI_MANIFEST, &manifest);
        attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        attestation["annotations"] = json!({"vnd.docker.reference.digest": amd64["digest"],
            "vnd.docker.reference.type": "attestation-manifest"});
        let index =
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [amd64, arm64, attestation]});
        self.layout.index(&[self.layout.document(OCI_INDEX, &index)]);
        index
    }

    async fn convert(&self, options: Options) -> Result<Converted, ConversionError> {
        self.convert_from(&format!("oci:{}", self.path("in").display()), options, &CancellationToken::new())
            .await
    }

    async fn convert_from(
        &self,
        from: &str,
        options: Options,
        cancel: &CancellationToken,
    ) -> Result<Converted, ConversionError> {
        self.convert_by(&converter(options, 0), from, cancel).await
    }

    async fn convert_by(
        &self,
        converter: &Converter,
        from: &str,
        cancel: &CancellationToken,
    ) -> Result<Converted, ConversionError> {
        let to = format!("oci:{}", self.path("out").display()).parse().unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let how = Conversion {
            converter,
            client: &client,
            scratch_space: &ScratchSpace::new(self.layout.folder.path(), 1 << 20),
            reuse_present: false,
            progress: &Progress::new(),
            cancel,
        };
        convert(&from.parse().unwrap(), &to, how).await
    }

    /// A document of the result.
    fn result(&self, digest: &str) -> Value {
        let path = self.path("out").join(blob_path(&digest.parse().unwrap()));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.layout.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn options(platforms: &[&str], also_oci: bool) -> Options {
    let platforms = platforms.iter().map(|text| text.parse().unwrap()).collect();
    Options { platforms, also_oci, ..Options::default() }
}

/// One that remembers what takes up to `cached` bytes of memory.
fn converter(options: Options, cached: usize) -> Converter {
    Converter::new(Recipe::new(options, None, Vec::new(), 1).unwrap(), 2, LayerCache::new(cached))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn of_several_variants_the_best_is_converted_and_a_missing_platform_names_those_that_there_are() {
    let bench = Bench::new();
    let layer = bench.layout.blob(OCI_LAYER, &tar_of(&[("file", b"content")]));
    let of = |variant: &str| {
        let config = json!({"architecture": "arm", "os": "linux", "variant": variant});
        let config = bench.layout.document(OCI_CONFIG, &config);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        let mut image = bench.layout.document(OCI_MANIFEST, &manifest);
        image["platform"] = json!({"architecture": "arm", "os": "linux", "variant": variant});
        image
    };
    // One in an index of its own, which goes with it.
    let nested = bench.layout.document(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [of("v5")]}));
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [of("v6"), nested, of("v7")]});
    bench.layout.index(&[bench.layout.document(OCI_INDEX, &index)]);
    let error = Box::pin(bench.convert(options(&["linux/amd64"], false))).await.unwrap_err().to_string();
    let there = "no image for linux/amd64; it has linux/arm/v6, linux/arm/v5, linux/arm/v7";
    assert!(error.contains(there), "{error}");
    for (wanted, variant) in [("linux/arm/v5", "v5"), ("linux/arm/v6", "v6"), ("linux/arm", "v7")] {
        let _ = fs::remove_dir_all(bench.path("out"));
        let converted = Box::pin(bench.convert(options(&[wanted], false))).await.unwrap();
        let platforms: Vec<String> = converted.platforms.iter().map(ToString::to_string).collect();
        assert_eq!(platforms, [format!("linux/arm/{variant}")], "{wanted}");
        let index = bench.result(converted.digest.unwrap().as_ref());
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "{index}");
    }
}

#[tokio::test]
async fn all_platforms_are_converted_and_attestations_kept() {
    let bench = Bench::new();
    let source = bench.two_platforms();
    let converted = bench.convert(options(&[], false)).await.unwrap();
    assert_eq!((converted.platforms.len(), converted.layers), (2, 1));
    let index = bench.result(converted.digest.unwrap().as_ref());
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    for (number, architecture) in [(0, "amd64"), (1, "arm64")] {
        assert_eq!(entries[number]["platform"]["architecture"], architecture);
        let manifest = bench.result(text(&entries[number]["digest"]));
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        let annotations = &manifest["annotations"];
        assert_eq!(
            annotations[registry::nydus::ANNOTATION_SOURCE_DIGEST],
            source["manifests"][number]["digest"]
        );
        assert_eq!(bench.result(text(&manifest["config"]["digest"]))["architecture"], architecture);
    }
    assert_eq!(entries[2]["digest"], source["manifests"][2]["digest"]);
    assert_eq!(entries[2]["annotations"]["vnd.docker.reference.digest"], entries[0]["digest"]);
    let statement = bench.result(text(&entries[2]["digest"]))["layers"][0]["digest"].clone();
    assert_eq!(bench.result(text(&statement)), json!({"statement": true}));
}

#[tokio::test]
async fn a_blob_says_what_it_was_made_of_and_how() {
    let bench = Bench::new();
    let plain = tar_of(&[("a/file", b"content")]);
    let gzip = gzip(&plain);
    let layers = [
        bench.layout.blob(&format!("{OCI_LAYER}+gzip"), &gzip),
        bench.layout.blob(OCI_LAYER, &tar_of(&[("b", b"")])),
    ];
    bench.layout.index(&[bench.image("amd64", &layers)]);
    let converted = bench.convert(options(&[], false)).await.unwrap();
    let manifest = bench.result(converted.digest.unwrap().as_ref());
    let annotation = |number: usize, name: &str| {
        text(&manifest["layers"][number]["annotations"][format!("vnd.nydus-cluster.layer.{name}")]).to_owned()
    };
    assert_eq!(annotation(0, "source"), sha256(&gzip).as_ref());
    assert_eq!(annotation(0, "diff-id"), sha256(&plain).as_ref());
    assert_eq!(annotation(0, "implied"), r#"["","a"]"#);
    assert_eq!(annotation(0, "fingerprint"), Recipe::default().fingerprint().as_str());
    assert_eq!(annotation(1, "diff-id"), annotation(1, "source"));
    // The table of contents is what the blob ends with.
    let path = bench.path("out").join(blob_path(&text(&manifest["layers"][0]["digest"]).parse().unwrap()));
    let blob = fs::read(path).unwrap();
    let toc = rafs::blob::stream::Toc::parse(
        &blob[usize::try_from(rafs::blob::stream::Toc::range(blob.len() as u64).start).unwrap()..],
        blob.len() as u64,
        None,
    );
    assert_eq!(annotation(0, "toc"), format!("sha256:{}", toc.unwrap().digest));
}

#[tokio::test]
async fn what_a_layout_has_already_is_not_made_again() {
    let from_layers = |bench: &Bench| {
        let layers = ["one", "two"].map(|name| bench.layout.blob(OCI_LAYER, &tar_of(&[(name, name)])));
        bench.layout.index(&[bench.image("amd64", &layers)]);
    };
    for flatten in [false, true] {
        let bench = Bench::new();
        from_layers(&bench);
        let converter = converter(Options { flatten, ..options(&[], false) }, 1 << 20);
        let from = format!("oci:{}", bench.path("in").display());
        let run = async || bench.convert_by(&converter, &from, &CancellationToken::new()).await.unwrap();
        let first = run().await;
        assert_eq!((first.layers, first.reused_layers), (2, 0));
        let again = run().await;
        assert_eq!(
            (again.digest.clone(), again.reused_layers),
            (first.digest.clone(), 2),
            "flatten={flatten}"
        );

        // What is known is not enough: the blob has to be there.
        let manifest = bench.result(first.digest.clone().unwrap().as_ref());
        let blob =
            bench.path("out").join(blob_path(&text(&manifest["layers"][0]["digest"]).parse().unwrap()));
        let content = fs::read(&blob).unwrap();
        fs::remove_file(&blob).unwrap();
        let made = run().await;
        assert_eq!((made.digest, made.reused_layers), (first.digest, usize::from(!flatten)));
        assert_eq!(fs::read(&blob).unwrap(), content);
    }
}

#[tokio::test]
async fn a_platform_is_chosen_with_what_belongs_to_it() {
    let bench = Bench::new();
    bench.two_platforms();
    let error = bench.convert(options(&["linux/riscv64"], false)).await.unwrap_err().to_string();
    assert!(error.contains("linux/riscv64"), "{error}");
    let converted = bench.convert(options(&["linux/arm64"], false)).await.unwrap();
    let index = bench.result(converted.digest.unwrap().as_ref());
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 1, "the attestation is of the other: {index}");
    assert_eq!(entries[0]["platform"]["architecture"], "arm64");
}

#[tokio::test]
async fn plain_images_are_kept_byte_for_byte_before_the_nydus_images() {
    let bench = Bench::new();
    let source = bench.two_platforms();
    let converted = bench.convert(options(&[], true)).await.unwrap();
    let index = bench.result(converted.digest.unwrap().as_ref());
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries[..3], source["manifests"].as_array().unwrap()[..]);
    assert_eq!(entries.len(), 5);
    for (plain, nydus) in entries[..2].iter().zip(&entries[3..]) {
        assert_eq!(nydus["platform"]["architecture"], plain["platform"]["architecture"]);
        let manifest = bench.result(text(&plain["digest"]));
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            assert!(bench.path("out").join(blob_path(&text(&blob["digest"]).parse().unwrap())).exists());
        }
        let manifest = bench.result(text(&nydus["digest"]));
        assert_eq!(manifest["config"]["mediaType"], registry::nydus::MEDIA_TYPE_CONFIG);
    }
    // What was made is no source for another conversion.
    let from = format!("oci:{}", bench.path("out").display());
    fs::rename(bench.path("out"), bench.path("made")).unwrap();
    let from = from.replace("/out", "/made");
    let error = bench.convert_from(&from, options(&[], false), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ConversionError::AlreadyNydus { .. }), "{error}");
}

#[tokio::test]
async fn a_single_manifest_gets_an_index_only_to_stand_next_to_its_nydus_image() {
    let bench = Bench::new();
    let layer = bench.layout.blob(OCI_LAYER, &tar_of(&[("file", b"content")]));
    let image = bench.image("amd64", &[layer]);
    bench.layout.index(std::slice::from_ref(&image));
    let converted = bench.convert(options(&[], false)).await.unwrap();
    assert!(bench.result(converted.digest.unwrap().as_ref())["layers"].is_array());
    let converted = bench.convert(options(&[], true)).await.unwrap();
    let index = bench.result(converted.digest.unwrap().as_ref());
    assert_eq!(index["manifests"][0]["digest"], image["digest"]);
}

#[tokio::test]
async fn a_layer_that_is_wrong_is_named_and_nothing_is_left() {
    let bench = Bench::new();
    let good = bench.layout.blob(OCI_LAYER, &tar_of(&[("file", b"content")]));
    let no_tar = bench.layout.blob(OCI_LAYER, &[7; 2000]);
    let changed = tar_of(&[("other", b"content")]);
    let mut wrong = bench.layout.blob(OCI_LAYER, &changed);
    wrong["digest"] = json!(sha256(b"something else").as_ref());
    let path = bench.path("in").join(blob_path(&sha256(b"something else")));
    fs::write(path, changed).unwrap();
    for (layer, word) in [(no_tar, "byte 0"), (wrong, "expected sha256:")] {
        bench.layout.index(&[bench.image("amd64", &[good.clone(), layer.clone()])]);
        let error = bench.convert(options(&[], false)).await.unwrap_err().to_string();
        assert!(error.contains(text(&layer["digest"])) && error.contains(word), "{error}");
        assert_eq!(bench.names(), ["in"]);
    }
}

#[tokio::test]
async fn what_is_cancelled_leaves_nothing() {
    let bench = Bench::new();
    bench.two_platforms();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let from = format!("oci:{}", bench.path("in").display());
    let error = bench.convert_from(&from, options(&[], false), &cancel).await.unwrap_err();
    assert!(matches!(error, ConversionError::Cancelled), "{error}");
    assert_eq!(bench.names(), ["in"]);
}

#[tokio::test]
async fn a_directory_is_an_image_for_the_platform_that_it_is_said_to_be_for() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    let from = format!("directory:{}", tree.display());
    let run = async |platforms: &[&str], also_oci| {
        bench.convert_from(&from, options(platforms, also_oci), &CancellationToken::new()).await
    };
    assert!(matches!(run(&[], true).await, Err(ConversionError::NoPlainImage { .. })));
    let both = ["linux/amd64", "linux/arm64"];
    assert!(matches!(run(&both, false).await, Err(ConversionError::DirectoryPlatforms { .. })));
    let converted = run(&["linux/arm/v7"], false).await.unwrap();
    let manifest = bench.result(converted.digest.unwrap().as_ref());
    let config = bench.result(text(&manifest["config"]["digest"]));
    assert_eq!((&config["architecture"], &config["variant"]), (&json!("arm"), &json!("v7")));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
}

#[test]
fn a_destination_that_is_only_read_is_refused() {
    let client = Client::new(ClientConfig::default()).unwrap();
    let digest = format!("host:1/app@sha256:{}", "a".repeat(64));
    for (to, word) in
        [("docker-archive:x", "oci-archive:"), ("directory:x", "files:"), (digest.as_str(), "digest")]
    {
        let error = Target::new(&to.parse().unwrap(), &client).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(!Path::new("x").exists());
}
