//! The files of a cluster image in a registry, plain and nydus: the same, and what they ask for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cluster::discover::{self, Options};
use image::convert;
use image::files::{FilesError, extract};
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::location::Location;
use image::platform::PlatformName;
use image::progress::Progress;
use registry::Reference;
use registry::client::Client;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Registry};

const POD: &str = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: 'NAME'}]}\n";

enum File<'a> {
    Text(&'a str),
    Symlink(&'a str),
    HardLink(&'a str),
}

fn layer(files: &[(&str, File<'_>)], gzip: bool) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match file {
            File::Text(text) => {
                header.set_size(text.len() as u64);
                tar.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
            File::Symlink(target) | File::HardLink(target) => {
                let symlink = matches!(file, File::Symlink(_));
                header.set_entry_type(if symlink { tar::EntryType::Symlink } else { tar::EntryType::Link });
                tar.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    let plain = tar.into_inner().unwrap();
    if gzip { test_support::gzip(&plain) } else { plain }
}

/// Every file and link in `dir`, with what it holds.
fn listed(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else {
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

async fn files(client: &Client, name: &str) -> Result<tempfile::TempDir, FilesError> {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Registry(Reference::parse(name).unwrap());
    let platform: PlatformName = "linux/amd64".parse().unwrap();
    extract(&location, client, &platform, discover::matters, dir.path()).await?;
    Ok(dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_and_nydus_give_the_same_files() {
    let registry = Registry::start().await;
    let client = Client::new(support::config()).unwrap();
    let (a, b, c) = (POD.replace("NAME", "a:1"), POD.replace("NAME", "b:1"), POD.replace("NAME", "c:1"));
    let large = "x".repeat(3 << 20);
    let first = layer(
        &[
            ("manifests/a.yaml", File::Text(&a)),
            ("manifests/old/b.yaml", File::Text(&b)),
            ("charts/gone/Chart.yaml", File::Text("name: gone\n")),
            ("manifests/hard.yaml", File::HardLink("manifests/a.yaml")),
            ("usr/bin/kubelet", File::Text(&large)),
            ("imageList", File::Text("d:1\n")),
        ],
        false,
    );
    let second = layer(
        &[
            ("./manifests/.wh.old", File::Text("")),
            ("charts/new/values.yaml", File::Text("v: 1\n")),
            ("charts/.wh..wh..opq", File::Text("")),
            ("manifests/c.yaml", File::Text(&c)),
            ("manifests/soft.yaml", File::Symlink("../../../etc/passwd")),
        ],
        false,
    );
    let image = registry.image("cluster", "linux/amd64", &[&first, &second]).await;
    registry.tag("cluster", "v1", image.content.clone()).await;
    let plain_name = format!("{}/cluster:v1", registry.host());
    let plain = files(&client, &plain_name).await.unwrap();
    let names: Vec<_> = listed(plain.path()).into_keys().collect();
    let expected = [
        "charts/new/values.yaml",
        "imageList",
        "manifests/a.yaml",
        "manifests/c.yaml",
        "manifests/hard.yaml",
        "manifests/soft.yaml",
    ];
    assert_eq!(names, expected);
    let found = discover::discover(plain.path(), &Options::default()).await.unwrap();
    let names: Vec<_> = found.images.iter().map(|image| image.reference.repository().name()).collect();
    assert_eq!(names, ["library/a", "library/c", "library/d"]);

    let nydus_name = format!("{}/cluster:v1-nydus", registry.host());
    convert::convert(
        &plain_name.parse().unwrap(),
        &nydus_name.parse().unwrap(),
        convert::Conversion {
            converter: &Converter::new(Default::default(), 1, LayerCache::new(0)),
            client: &client,
            scratch_space: &ScratchSpace::new(&std::env::temp_dir(), 0),
            reuse_present: false,
            progress: &Progress::new(),
            cancel: &CancellationToken::new(),
        },
    )
    .await
    .unwrap();
    let nydus = files(&client, &nydus_name).await.unwrap();
    assert_eq!(listed(nydus.path()), listed(plain.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_layers_are_read_and_broken_ones_are_named() {
    let registry = Registry::start().await;
    let client = Client::new(support::config()).unwrap();
    let packed = layer(&[("imageList", File::Text("a:1\n"))], true);
    let image = registry.image("cluster", "linux/amd64", &[&packed]).await;
    registry.tag("cluster", "v1", image.content.clone()).await;
    let dir = files(&client, &format!("{}/cluster:v1", registry.host())).await.unwrap();
    assert_eq!(listed(dir.path())["imageList"], "a:1\n");
    let broken = registry.image("cluster", "linux/amd64", &[&packed[..packed.len() / 2]]).await;
    registry.tag("cluster", "v2", broken.content.clone()).await;
    let error = files(&client, &format!("{}/cluster:v2", registry.host())).await.unwrap_err().to_string();
    assert!(error.starts_with("layer sha256:"), "{error}");
    let other = registry.image("cluster", "linux/arm64", &[&packed]).await;
    registry.tag("cluster", "v3", other.content.clone()).await;
    let error = files(&client, &format!("{}/cluster:v3", registry.host())).await.unwrap_err().to_string();
    assert!(error.contains("linux/amd64"), "{error}");
}
