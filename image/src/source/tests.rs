use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use test_support::gzip;

use super::*;
use crate::platform::PlatformName;
use crate::test_layout::TestLayout;
use registry::client::ClientConfig;
use registry::digest::sha256;
use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};

impl TestLayout {
    /// An image for `architecture` with one layer, and its descriptor.
    fn image(&self, architecture: &str, layer: &[u8]) -> Value {
        let config = self.document(OCI_CONFIG, &json!({"architecture": architecture, "os": "linux"}));
        let layer = self.blob(OCI_LAYER, layer);
        self.document(OCI_MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
    }

    async fn open(&self, image: Option<&str>) -> Result<Source, SourceError> {
        let image = image.map_or(String::new(), |image| format!(":{image}"));
        open(&format!("oci:{}{image}", self.dir.display())).await
    }

    /// The layout as a tar.
    fn archive(&self) -> PathBuf {
        let path = self.dir.with_extension("tar");
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        tar.append_dir_all(".", &self.dir).unwrap();
        tar.finish().unwrap();
        path
    }
}

async fn open(location: &str) -> Result<Source, SourceError> {
    let client = Client::new(ClientConfig::default()).unwrap();
    Source::open(&location.parse().unwrap(), &client).await
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ REF_NAME: name });
    descriptor
}

fn on(mut descriptor: Value, platform: &str) -> Value {
    let parts: Vec<&str> = platform.split('/').collect();
    descriptor["platform"] = json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2)});
    descriptor
}

async fn read(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
    let mut blob = source.blob(descriptor).await?;
    let mut content = Vec::new();
    while let Some(bytes) = blob.next().await? {
        content.extend_from_slice(&bytes);
    }
    Ok(content)
}

fn digest_of(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap()
}

#[tokio::test]
async fn the_only_image_of_a_layout_is_read_from_directory_and_tar() {
    let layout = TestLayout::new();
    // More than one piece.
    let layer: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    layout.index(&[layout.image("amd64", &layer)]);
    let tar = layout.archive();
    for source in [layout.open(None).await, open(&format!("oci-archive:{}", tar.display())).await] {
        let source = source.unwrap();
        let images = source.images(&[]).await.unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].platform.to_string(), "linux/amd64");
        assert_eq!(read(&source, &images[0].layers[0]).await.unwrap(), layer);
        let config = source.document(&images[0].config).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&config).unwrap()["os"], "linux");
    }
    fs::remove_file(tar).unwrap();
}

#[tokio::test]
async fn one_of_several_images_is_chosen_by_name_or_digest() {
    let layout = TestLayout::new();
    let (a, b) = (layout.image("amd64", b"a"), layout.image("amd64", b"b"));
    layout.index(&[named(a, "v1"), b.clone()]);
    let error = layout.open(None).await.unwrap_err().to_string();
    assert!(error.contains("2 images") && error.contains("v1") && error.contains(digest_of(&b)), "{error}");
    let error = layout.open(Some("v2")).await.unwrap_err().to_string();
    assert!(error.contains("\"v2\"") && error.contains("v1"), "{error}");
    let layer = async |image: &str| {
        let source = layout.open(Some(image)).await.unwrap();
        let image = source.images(&[]).await.unwrap().remove(0);
        read(&source, &image.layers[0]).await.unwrap()
    };
    assert_eq!(layer("v1").await, b"a");
    assert_eq!(layer(&format!("@{}", digest_of(&b))).await, b"b");
}

#[tokio::test]
async fn platforms_are_selected_and_attestations_and_nydus_images_are_no_images_to_convert() {
    let layout = TestLayout::new();
    let amd64 = on(layout.image("amd64", b"a"), "linux/amd64");
    // Without a platform in the index: its config has it.
    let arm64 = layout.image("arm64", b"b");
    let attestation = on(layout.image("none", b"c"), "unknown/unknown");
    let mut nydus = on(layout.image("amd64", b"d"), "linux/amd64");
    nydus["platform"]["os.features"] = json!([registry::nydus::OS_FEATURE]);
    let index = json!({"schemaVersion": 2, "manifests": [amd64, arm64, attestation, nydus]});
    layout.index(&[layout.document(OCI_INDEX, &index)]);
    let source = layout.open(None).await.unwrap();
    let platforms = async |wanted: &[&str]| {
        let wanted: Vec<PlatformName> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let images = source.images(&wanted).await;
        images.map(|images| images.iter().map(|image| image.platform.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(platforms(&[]).await.unwrap(), ["linux/amd64", "linux/arm64"]);
    assert_eq!(platforms(&["linux/arm64"]).await.unwrap(), ["linux/arm64"]);
    let error = platforms(&["linux/amd64", "linux/s390x"]).await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains("linux/amd64"), "{error}");
}

#[tokio::test]
async fn a_variant_left_open_is_the_best_there_is_and_a_stated_one_exact() {
    let layout = TestLayout::new();
    let index = ["linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"]
        .map(|platform| on(layout.image(platform.split('/').nth(1).unwrap(), platform.as_bytes()), platform));
    let index = json!({"schemaVersion": 2, "manifests": index});
    layout.index(&[layout.document(OCI_INDEX, &index)]);
    let source = layout.open(None).await.unwrap();
    for (wanted, found) in [
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64/v8"),
    ] {
        let images = source.images(&[wanted.parse().unwrap()]).await.unwrap();
        let images: Vec<String> = images.iter().map(|image| image.platform.to_string()).collect();
        assert_eq!(images, [found], "{wanted}");
    }
    for wanted in ["linux/arm/v5", "linux/amd64"] {
        let error = source.images(&[wanted.parse().unwrap()]).await.unwrap_err().to_string();
        let there = format!("no image for {wanted}; it has linux/arm/v6, linux/arm/v7, linux/arm64/v8");
        assert!(error.contains(&there), "{error}");
    }
}

#[tokio::test]
async fn what_a_layout_lacks_or_has_wrong_is_named() {
    let layout = TestLayout::new();
    assert!(layout.open(None).await.unwrap_err().to_string().contains("index.json"));
    let image = layout.image("amd64", b"layer");
    layout.index(&[image]);
    let source = layout.open(None).await.unwrap();
    let descriptor = source.images(&[]).await.unwrap().remove(0).layers.remove(0);
    let blob = layout.dir.join(blob_path(descriptor.digest()));

    fs::write(&blob, b"lAyer").unwrap();
    let error = read(&source, &descriptor).await.unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    assert!(error.to_string().contains(descriptor.digest().digest()), "{error}");
    fs::write(&blob, b"layer and more").unwrap();
    assert!(matches!(
        read(&source, &descriptor).await,
        Err(SourceError::Size { expected: 5, found: 14, .. })
    ));
    fs::remove_file(&blob).unwrap();
    assert!(matches!(read(&source, &descriptor).await, Err(SourceError::Missing { .. })));
    fs::create_dir(&blob).unwrap();
    assert!(matches!(read(&source, &descriptor).await, Err(SourceError::Document { .. })));
}

#[tokio::test]
async fn digests_that_are_paths_and_documents_without_end_are_refused() {
    let layout = TestLayout::new();
    let manifest = json!({"mediaType": OCI_MANIFEST, "digest": "sha256:../../../../etc/passwd", "size": 1});
    layout.index(&[manifest]);
    assert!(matches!(layout.open(None).await, Err(SourceError::Document { .. })));
    // Sparse: nothing of it is read.
    fs::File::create(layout.dir.join("index.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(layout.open(None).await, Err(SourceError::TooLarge { size, .. }) if size == 1 << 40));
    // An index that names itself, by a digest that cannot be right.
    let mut nested = layout.image("amd64", b"x");
    for _ in 0..6 {
        nested = layout.document(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": [nested]}));
    }
    layout.index(&[nested]);
    let error = layout.open(None).await.unwrap().images(&[]).await.unwrap_err();
    assert!(matches!(error, SourceError::TooDeep { .. }), "{error}");
}

/// A docker-archive of images, each of its tags, its config's name and its layers.
fn docker_archive(folder: &Path, layers: &[(&str, &[u8])], images: &[(&str, &str, &[&str])]) -> PathBuf {
    let path = folder.join("saved.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    let plain = |content: &[u8]| {
        let mut plain = Vec::new();
        match content.starts_with(&[0x1f, 0x8b]) {
            true => std::io::copy(&mut flate2::read::GzDecoder::new(content), &mut plain).map(drop).unwrap(),
            false => plain.extend_from_slice(content),
        }
        plain
    };
    for (name, content) in layers {
        add(name, content);
    }
    let mut manifest = Vec::new();
    for (tag, config_name, names) in images {
        let found = |name: &&str| layers.iter().find(|(layer, _)| layer == name).map(|(_, content)| *content);
        let diff_ids: Vec<_> =
            names.iter().map(|name| sha256(&plain(found(name).unwrap_or_default())).to_string()).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string();
        let config_name = match *config_name {
            "" => format!("{}.json", sha256(config.as_bytes()).digest()),
            name => name.to_owned(),
        };
        add(&config_name, config.as_bytes());
        manifest.push(json!({"Config": config_name, "RepoTags": [tag], "Layers": names}));
    }
    add("manifest.json", Value::Array(manifest).to_string().as_bytes());
    tar.finish().unwrap();
    path
}

#[tokio::test]
async fn an_image_of_a_docker_archive_has_its_layers_by_diff_id() {
    let folder = tempfile::tempdir().unwrap();
    let packed = gzip(b"second layer");
    let layers: [(&str, &[u8]); 2] = [("a/layer.tar", b"first layer"), ("b/layer.tar", &packed)];
    let images: [(&str, &str, &[&str]); 2] =
        [("app:v1", "", &["a/layer.tar", "b/layer.tar"]), ("other:v1", "x.json", &["a/layer.tar"])];
    let path = docker_archive(folder.path(), &layers, &images);
    let location = format!("docker-archive:{}", path.display());
    let error = open(&location).await.unwrap_err().to_string();
    assert!(error.contains("app:v1 (@0), other:v1 (@1)"), "{error}");
    for wanted in ["app:v1", "docker.io/library/app:v1", "@0"] {
        let source = open(&format!("{location}:{wanted}")).await.unwrap();
        let image = source.images(&["linux/amd64".parse().unwrap()]).await.unwrap().remove(0);
        assert_eq!(source.root().await.unwrap().content, image.manifest);
        assert_eq!(read(&source, &image.layers[0]).await.unwrap(), b"first layer");
        assert_eq!(read(&source, &image.layers[1]).await.unwrap(), b"second layer");
        source.document(&image.config).await.unwrap();
    }
    assert!(matches!(open(&format!("{location}:@2")).await, Err(SourceError::NoSuchImage { .. })));
}

#[tokio::test]
async fn what_a_docker_archive_lacks_or_has_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = async |layers: &[(&str, &[u8])], image: (&str, &str, &[&str])| {
        let path = docker_archive(folder.path(), layers, &[image]);
        let source = open(&format!("docker-archive:{}", path.display())).await?;
        let image = source.images(&[]).await?.remove(0);
        read(&source, &image.layers[0]).await.map(drop)
    };
    let error = wrong(&[], ("app:v1", "", &["../../etc/passwd"])).await.unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
    let misnamed = format!("{}.json", "0".repeat(64));
    let error = wrong(&[("a", b"x")], ("app:v1", &misnamed, &["a"])).await.unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    // The second of the name is the one that counts, as when unpacking.
    let error = wrong(&[("a", b"x"), ("a", b"y")], ("app:v1", "", &["a"])).await.unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
    let not_gzip: &[u8] = &[0x1f, 0x8b, 8, 0, 0];
    let plain_digest_of_broken_gzip = docker_archive_error(folder.path(), not_gzip).await;
    assert!(plain_digest_of_broken_gzip.contains("layer.tar"), "{plain_digest_of_broken_gzip}");
}

/// The error for a layer that is broken gzip.
async fn docker_archive_error(folder: &Path, layer: &[u8]) -> String {
    let path = folder.join("broken.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [sha256(b"x").as_ref()]}}).to_string();
    let manifest = json!([{"Config": "c", "Layers": ["layer.tar"]}]).to_string();
    for (name, content) in
        [("layer.tar", layer), ("c", config.as_bytes()), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.finish().unwrap();
    open(&format!("docker-archive:{}", path.display())).await.unwrap_err().to_string()
}

#[tokio::test]
async fn an_oci_archive_is_told_from_a_docker_archive() {
    let layout = TestLayout::new();
    layout.index(&[layout.image("amd64", b"layer")]);
    let tar = layout.archive();
    let error = open(&format!("docker-archive:{}", tar.display())).await.unwrap_err().to_string();
    assert!(error.contains("oci-archive:"), "{error}");
    fs::remove_file(tar).unwrap();
}

/// Adds the documents that `docker save` and `ctr export` write next to a layout: of all platforms they name the first.
fn saved_by_docker(layout: &TestLayout, image: &Value, name: &str) {
    let read = |digest: &str| -> Value {
        serde_json::from_slice(&fs::read(layout.dir.join(blob_path(&digest.parse().unwrap()))).unwrap())
            .unwrap()
    };
    let place = |described: &Value| blob_path(&digest_of(described).parse().unwrap());
    let first = read(digest_of(&read(digest_of(image))["manifests"][0]));
    let layers: Vec<_> = first["layers"].as_array().unwrap().iter().map(place).collect();
    let manifest = json!([{"Config": place(&first["config"]), "RepoTags": [name], "Layers": layers}]);
    fs::write(layout.dir.join("manifest.json"), manifest.to_string()).unwrap();
    let mut named = image.clone();
    named["annotations"] = json!({ REF_NAME: "v1", "io.containerd.image.name": format!("docker.io/{name}") });
    layout.index(&[named]);
}

async fn platforms_of(source: &Source) -> Vec<String> {
    let images = source.images(&[]).await.unwrap();
    images.iter().map(|image| image.platform.to_string()).collect()
}

#[tokio::test]
async fn all_platforms_that_an_archive_of_docker_holds_are_its_image() {
    let layout = TestLayout::new();
    let images = ["amd64", "arm64", "s390x"]
        .map(|name| on(layout.image(name, format!("layer for {name}").as_bytes()), &format!("linux/{name}")));
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images});
    let root = layout.document(OCI_INDEX, &index);
    saved_by_docker(&layout, &root, "team/app:v1");
    // What was never pulled is named and not there.
    fs::remove_file(layout.dir.join(blob_path(&digest_of(&images[2]).parse().unwrap()))).unwrap();
    let tar = layout.archive();
    for location in ["docker-archive", "oci-archive"] {
        for name in ["", ":team/app:v1", ":docker.io/team/app:v1"] {
            let source = open(&format!("{location}:{}{name}", tar.display())).await.unwrap();
            assert_eq!(source.root().await.unwrap().descriptor.digest().as_ref(), digest_of(&root));
            assert_eq!(platforms_of(&source).await, ["linux/amd64", "linux/arm64"], "{location} {name}");
            let arm64 = source.images(&["linux/arm64".parse().unwrap()]).await.unwrap().remove(0);
            assert_eq!(read(&source, &arm64.layers[0]).await.unwrap(), b"layer for arm64");
            let error = source.images(&["linux/s390x".parse().unwrap()]).await.unwrap_err().to_string();
            assert!(error.contains("for linux/s390x; it has linux/amd64, linux/arm64"), "{error}");
        }
    }
    fs::remove_file(tar).unwrap();
}

#[tokio::test]
async fn images_of_one_name_are_its_platforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    let mut files = Vec::new();
    let mut manifest = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let layer = format!("layer for {architecture}");
        let diff_ids = [sha256(layer.as_bytes()).to_string()];
        let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let [config_name, layer_name] = ["json", "tar"].map(|kind| format!("{architecture}-{kind}"));
        manifest.push(json!({"Config": config_name, "RepoTags": ["team/app:v1"], "Layers": [layer_name]}));
        files.extend([(config_name, config.to_string()), (layer_name, layer)]);
    }
    files.push(("manifest.json".to_owned(), Value::Array(manifest).to_string()));
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_bytes())).collect();
    fs::write(&path, test_support::tar_of(&files)).unwrap();
    for name in ["", ":team/app:v1"] {
        let source = open(&format!("docker-archive:{}{name}", path.display())).await.unwrap();
        assert_eq!(platforms_of(&source).await, ["linux/amd64", "linux/arm64"]);
        let images = source.images(&["linux/arm64".parse().unwrap()]).await.unwrap();
        assert_eq!(read(&source, &images[0].layers[0]).await.unwrap(), b"layer for arm64");
        // An index is what its digest says, as in a registry.
        let root = source.root().await.unwrap();
        assert_eq!(*root.descriptor.digest(), sha256(&root.content));
        assert_eq!(source.manifest(&root.descriptor).await.unwrap().content, root.content);
    }
    let first = open(&format!("docker-archive:{}:@1", path.display())).await.unwrap();
    assert_eq!(platforms_of(&first).await, ["linux/arm64"]);
}

#[tokio::test]
async fn directories_are_no_images_with_layers() {
    for location in ["directory:/", "files:/"] {
        assert!(matches!(open(location).await, Err(SourceError::NoImage { .. })));
    }
}
