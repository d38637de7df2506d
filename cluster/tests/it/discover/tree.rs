//! A tree for a test, and what is found in it.

use std::fs;
use std::path::Path;

use cluster::discover::{self, Discovery, Options};
use tempfile::TempDir;

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
