//! A tree for a test, and what is found in it.

use std::fs;
use std::path::{Path, PathBuf};

use cluster::discover::{self, Discovery, Options};
use tempfile::TempDir;
use test_support::Need;

/// A directory with these files.
pub(crate) fn tree(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        write(dir.path(), path, content.as_bytes());
    }
    dir
}

pub(crate) fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The helm that `scripts/deps` built, or that of the system. Without one the test says what it needs; in CI it fails.
pub(crate) fn helm() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("NYDUS_CLUSTER_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("nydus-cluster")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/nydus-cluster")));
    let built = cache.map(|cache| cache.join("peers/helm/bin/helm"));
    let of_system = std::env::var_os("PATH").unwrap_or_default();
    let of_system = std::env::split_paths(&of_system).map(|folder| folder.join("helm")).collect::<Vec<_>>();
    let found = built.into_iter().chain(of_system).find(|path| path.is_file());
    test_support::has(&[Need::Other("helm (run scripts/deps helm)", found.is_some())]);
    found
}

/// What is found with `options`.
pub(crate) async fn discover(dir: &TempDir, options: Options) -> Discovery {
    discover::discover(dir.path(), &options).await.unwrap()
}

/// Each image with who asks for it, `?` after candidates.
pub(crate) fn images(discovery: &Discovery) -> Vec<String> {
    let image = |image: &cluster::discover::AskedImage| {
        let origins: Vec<_> = image.origins.iter().map(|origin| origin.to_string()).collect();
        format!("{}{} {}", image.reference, if image.certain { "" } else { "?" }, origins.join(", "))
    };
    discovery.images.iter().map(image).collect()
}

/// All problems, as a person sees them.
pub(crate) fn problems(discovery: &Discovery) -> Vec<String> {
    discovery.problems.iter().map(|problem| problem.to_string()).collect()
}

/// A gzipped tar of `files` in the folder `name`.
pub(crate) fn tgz(name: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{name}/{path}"), *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}
