use std::fs;
use std::path::PathBuf;

use registry::digest::sha256;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A tree with one small image under each of `names`, repository and tag, in the folder `registry` of it.
fn tree(names: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (repository, tag) in names {
        let blob = sha256(b"blob");
        let described = json!({"digest": blob.as_ref(), "size": 4, "mediaType": "application/octet-stream"});
        let manifest =
            json!({"schemaVersion": 2, "config": described, "layers": [], "annotations": {"of": repository}});
        let manifest = manifest.to_string();
        let digest = sha256(manifest.as_bytes());
        let root = dir.path().join("registry").join(TREE);
        let write = |path: PathBuf, content: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for (digest, content) in [(&blob, "blob"), (&digest, &*manifest)] {
            let hex = digest.digest();
            write(root.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2])), content);
        }
        let repository = root.join("repositories").join(repository);
        let link = |path: String, digest: &Digest| write(repository.join(path), digest.as_ref());
        link(format!("_layers/sha256/{}/link", blob.digest()), &blob);
        link(format!("_manifests/revisions/sha256/{}/link", digest.digest()), &digest);
        link(format!("_manifests/tags/{tag}/current/link"), &digest);
    }
    dir
}

fn open(dir: &TempDir) -> StoredImages {
    StoredImages::open(dir.path(), Path::new("/tmp")).unwrap()
}

#[test]
fn names_are_found_with_and_without_host() {
    let dir = tree(&[("library/nginx", "1"), ("quay.io/team/app", "v1"), ("k8s", "v1")]);
    let images = open(&dir);
    for (wanted, repository) in [
        ("docker.io/library/nginx:1", "library/nginx"),
        ("nginx:1", "library/nginx"),
        ("library/nginx:1", "library/nginx"),
        ("quay.io/team/app:v1", "quay.io/team/app"),
        ("k8s:v1", "k8s"),
        ("127.0.0.1:5000/k8s:v1", "k8s"),
    ] {
        let (found, digest) = images.image(Some(wanted)).unwrap();
        assert_eq!(found, repository, "{wanted}");
        let by_digest = format!("{}@{digest}", wanted.rsplit_once(':').unwrap().0);
        assert_eq!(images.image(Some(&by_digest)).unwrap(), (found, digest));
    }
    for wanted in ["team/app:v1", "nginx:2", "nginx", "../k8s:v1"] {
        let error = images.image(Some(wanted)).unwrap_err().to_string();
        assert!(error.contains("k8s:v1") || error.contains("reference"), "{error}");
    }
    let error = images.image(None).unwrap_err().to_string();
    assert!(error.contains("holds 3 images: choose one of k8s:v1, library/nginx:1"), "{error}");
}

#[tokio::test]
async fn a_tar_is_read_whatever_folder_it_has_the_tree_in() {
    let dir = tree(&[("k8s", "v1"), ("library/nginx", "1")]);
    let (_, digest) = open(&dir).image(Some("k8s:v1")).unwrap();
    let head = json!({"nydus-cluster.package": 1, "image": {"repository": "k8s", "digest": digest.as_ref()}});
    fs::write(dir.path().join(PACKAGE_FILE), head.to_string()).unwrap();
    let archives = tempfile::tempdir().unwrap();
    for (file, folder, from) in [
        ("plain.tar", "", dir.path().to_owned()),
        ("dot.tar", ".", dir.path().to_owned()),
        ("rootfs.tar", "a/rootfs", dir.path().to_owned()),
        ("bare.tar", "", dir.path().join("registry")),
    ] {
        let path = archives.path().join(file);
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        tar.append_dir_all(folder, from).unwrap();
        tar.finish().unwrap();
        let image = if file == "bare.tar" { ":k8s:v1" } else { "" };
        let location = format!("package:{}{image}", path.display()).parse().unwrap();
        let client = registry::client::Client::new(Default::default()).unwrap();
        let source = super::super::Source::open(&location, &client).await.unwrap();
        let root = source.root().await.unwrap();
        assert_eq!(*root.descriptor.digest(), digest, "{file}");
        assert_eq!(root.descriptor.media_type().as_ref(), OCI_MANIFEST);
        let manifest = crate::document::Manifest::parse(&root.content).unwrap();
        assert_eq!(source.document(&manifest.config).await.unwrap(), "blob");
        assert_eq!(source.blob_file(manifest.config.digest()).unwrap().read(1..3).unwrap(), b"lo");
    }
}

#[test]
fn what_holds_no_registry_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Path::new("/tmp");
    let error = StoredImages::open(dir.path(), spool).unwrap_err().to_string();
    assert!(error.contains("registry/docker/registry/v2"), "{error}");
    let path = dir.path().join("x.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let two = tree(&[("a", "1")]);
    for folder in ["one", "other"] {
        tar.append_dir_all(folder, two.path()).unwrap();
    }
    tar.finish().unwrap();
    let error = StoredImages::open(&path, spool).unwrap_err().to_string();
    assert!(error.contains("x.tar") && error.contains("one folder"), "{error}");
}

#[tokio::test]
async fn content_that_is_not_what_its_name_says_is_an_error() {
    let dir = tree(&[("app", "v1")]);
    let hex = sha256(b"blob").digest().to_owned();
    let data = format!("registry/{TREE}blobs/sha256/{}/{hex}/data", &hex[..2]);
    fs::write(dir.path().join(data), "BLOB").unwrap();
    let image = StoredImage::open("x".to_owned(), open(&dir), None).unwrap();
    let root = image.root().unwrap();
    let manifest = crate::document::Manifest::parse(&root.content).unwrap();
    let error = image.document(&manifest.config).unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error}");
}
