//! Cluster images merged, plain and nydus, in a registry of this process.

mod directories;
mod saved;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cluster::lock::Lock;
use cluster::merge::{MergedImage, NotMerged, merge};
use image::convert::{Conversion, convert};
use image::files;
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::location::Location;
use image::options::{Options, Recipe};
use image::progress::Progress;
use registry::Reference;
use registry::client::Client;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Registry, index};

const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

fn client() -> Client {
    Client::new(support::config()).unwrap()
}

/// A layer of these files.
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    test_support::tar_of(files)
}

/// The text of a lock that has `image` with some digest.
fn lock(image: &str, digest: char) -> String {
    let hex = digest.to_string().repeat(64);
    format!(
        "{{\"images.lock\":1,\"platforms\":[]}}\n{{\"image\":\"{image}\",\"digest\":\"sha256:{hex}\",\"media_type\":\"m\",\
         \"size\":1,\"platforms\":[],\"asked_by\":[\"list\"]}}\n"
    )
}

struct Site {
    registry: Registry,
}

impl Site {
    fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.registry.host())).unwrap()
    }

    fn location(&self, name: &str) -> Location {
        Location::Registry(self.reference(name))
    }

    /// A plain image for `platforms` of one layer each.
    async fn image(&self, name: &str, platforms: &[&str], files: &[(&str, &str)]) {
        let mut images = Vec::new();
        for platform in platforms {
            let files = [files, &[("platform", platform)]].concat();
            images.push(self.registry.image(name, platform, &[&layer(&files)]).await);
        }
        self.registry.tag(name, "v1", index(&images.iter().collect::<Vec<_>>())).await;
    }

    /// Converts it, to the same repository.
    async fn convert(&self, name: &str, to: &str, also_oci: bool) {
        let options = Options { also_oci, ..Options::default() };
        let converter =
            Converter::new(Recipe::new(options, None, Vec::new(), 1).unwrap(), 1, LayerCache::new(0));
        let (from, to) = (self.location(name), self.location(to));
        let how = Conversion {
            converter: &converter,
            client: &client(),
            scratch_space: &ScratchSpace::new(&std::env::temp_dir(), 0),
            reuse_present: false,
            progress: &Progress::new(),
            cancel: &CancellationToken::new(),
        };
        convert(&from, &to, how).await.unwrap();
    }

    async fn merge(&self, names: &[&str], to: &str) -> Result<MergedImage, NotMerged> {
        let locations: Vec<Location> = names.iter().map(|name| self.location(name)).collect();
        merge(&locations, &client(), &self.reference(to), &[]).await
    }

    /// The files of an image for a platform.
    async fn files(&self, name: &str, platform: &str) -> BTreeMap<PathBuf, String> {
        let dir = tempfile::tempdir().unwrap();
        let all = |_: &[u8]| true;
        files::extract(&self.location(name), &client(), &platform.parse().unwrap(), all, dir.path())
            .await
            .unwrap();
        let text = |(path, content)| (PathBuf::from(path), String::from_utf8(content).unwrap());
        files_below(dir.path()).into_iter().map(text).collect()
    }

    async fn root(&self, name: &str) -> Value {
        serde_json::from_slice(&client().manifest(&self.reference(name)).await.unwrap().1).unwrap()
    }
}

/// All files below `dir`, by path.
fn files_below(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// A cluster and an application, as plain images, nydus images, and both beside one another.
async fn site() -> Site {
    let site = Site { registry: Registry::start().await };
    let (one, other) = (lock("docker.io/library/pause:3", 'a'), lock("docker.io/library/db:1", 'b'));
    let base = [
        ("bin/kubeadm", "kubeadm"),
        ("etc/both", "of the cluster"),
        ("images.lock", &*one),
        ("registry/docker/registry/v2/repositories/pause/_manifests/tags/3/current/link", "sha256:1"),
    ];
    let app = [
        ("charts/db/values.yaml", "a: 1"),
        ("etc/both", "of the application"),
        ("images.lock", &*other),
        ("registry/docker/registry/v2/repositories/db/_manifests/tags/1/current/link", "sha256:2"),
    ];
    site.image("k8s", &PLATFORMS, &base).await;
    site.image("db", &PLATFORMS, &app).await;
    for name in ["k8s", "db"] {
        site.convert(&format!("{name}:v1"), &format!("{name}:nydus"), false).await;
        site.convert(&format!("{name}:v1"), &format!("{name}:both"), true).await;
    }
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_nydus_images_merge_to_the_same_files() {
    let site = site().await;
    for form in ["v1", "nydus", "both"] {
        let to = format!("merged:{form}");
        let merged = site.merge(&[&format!("k8s:{form}"), &format!("db:{form}")], &to).await.unwrap();
        assert_eq!(merged.platforms.len(), 2, "{form}");
        assert!(merged.left_out.is_empty());
        let root = site.root(&to).await;
        let entries = root["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), if form == "both" { 4 } else { 2 }, "{form}");
        for platform in PLATFORMS {
            let files = site.files(&to, platform).await;
            let text =
                |name: &str| files.get(Path::new(name)).unwrap_or_else(|| panic!("{form}: {name}")).as_str();
            assert_eq!(text("platform"), platform);
            assert_eq!(text("etc/both"), "of the application");
            assert_eq!((text("bin/kubeadm"), text("charts/db/values.yaml")), ("kubeadm", "a: 1"));
            let folder = "registry/docker/registry/v2/repositories";
            for (name, link) in
                [("pause/_manifests/tags/3", "sha256:1"), ("db/_manifests/tags/1", "sha256:2")]
            {
                assert_eq!(text(&format!("{folder}/{name}/current/link")), link);
            }
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("images.lock");
            fs::write(&path, text("images.lock")).unwrap();
            let names: Vec<_> =
                Lock::read(&path).unwrap().images.iter().map(|image| image.reference.to_string()).collect();
            assert_eq!(names, ["docker.io/library/db:1", "docker.io/library/pause:3"]);
        }
    }
    // The same again is the same.
    let again = site.merge(&["k8s:nydus", "db:nydus"], "again:v1").await.unwrap();
    assert_eq!(again.digest, site.merge(&["k8s:nydus", "db:nydus"], "merged:nydus").await.unwrap().digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_and_missing_forms_are_named() {
    let site = site().await;
    let link = "registry/docker/registry/v2/repositories/pause/_manifests/tags/3/current/link";
    let locked = lock("docker.io/library/pause:3", 'c');
    for (name, files, word) in [
        ("tagged", [(link, "sha256:3")], link),
        ("locked", [("images.lock", &*locked)], "docker.io/library/pause:3"),
    ] {
        site.image(name, &PLATFORMS, &files).await;
        let error =
            site.merge(&["k8s:v1", &format!("{name}:v1")], "merged:v1").await.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("/k8s:v1") && error.contains(name), "{error}");
        assert!(client().head_manifest(&site.reference("merged:v1")).await.unwrap().is_none());
    }
    let error = site.merge(&["k8s:v1", "db:nydus"], "merged:v1").await.unwrap_err().to_string();
    assert!(
        error.contains("/k8s:v1 is a plain image and") && error.contains("/db:nydus a nydus image"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_that_not_all_have_are_left_out() {
    let site = site().await;
    site.image("amd64", &PLATFORMS[..1], &[("only", "here")]).await;
    let merged = site.merge(&["k8s:v1", "amd64:v1"], "merged:v1").await.unwrap();
    assert_eq!((merged.platforms.len(), merged.left_out[0].to_string()), (1, "linux/arm64".to_owned()));
    // One image needs no index.
    assert!(site.root("merged:v1").await["layers"].is_array());
    let wanted = ["linux/arm64".parse().unwrap()];
    let locations = [site.location("k8s:v1"), site.location("amd64:v1")];
    let error = merge(&locations, &client(), &site.reference("x:v1"), &wanted).await.unwrap_err().to_string();
    assert!(error.contains("/amd64:v1 has no image for linux/arm64"), "{error}");
}
