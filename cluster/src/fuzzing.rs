//! What fuzz targets call: readers of text and bytes that anybody may have written. Errors are fine, panics are bugs.

use std::io::Write as _;
use std::path::Path;

use crate::discover::chart::{archive, metadata::Metadata};
use crate::discover::list::{self, List};
use crate::discover::manifest::kustomize::{self, Kustomization};
use crate::discover::manifest::{self, Context};
use crate::discover::{Way, ask::Requests};
use crate::package::Package;

/// Reads `text` as every kind of manifest.
pub fn manifest(text: &str) {
    for (file, way) in [("x.yaml", Way::Chart), ("kustomization.yaml", Way::Manifest)] {
        let context = Context { file: file.to_owned(), way, values: None };
        let _ = manifest::read(&context, text).finish(None);
    }
    let one = |file| Kustomization::read(Path::new(file), text);
    let both = [one("a/kustomization.yaml"), one("kustomization.yaml")];
    kustomize::apply(&both, &mut Requests::default());
}

/// Reads `bytes` as a chart's archive, as the tar in one, and as its `Chart.yaml`.
pub fn chart(bytes: &[u8]) {
    let _ = archive::read(bytes);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    if gzip.write_all(bytes).is_ok()
        && let Ok(packed) = gzip.finish()
    {
        let _ = archive::read(&packed);
    }
    if let Ok(mut metadata) = Metadata::read(&String::from_utf8_lossy(bytes)) {
        metadata.add_requirements(&String::from_utf8_lossy(bytes));
        let _ = metadata.release();
    }
}

/// Reads `text` as every kind of list.
pub fn list(text: &str) {
    for list in [List::References, List::Shim, List::Archives] {
        let _ = list::read(list, "file", text).finish(None);
    }
}

/// Opens `bytes` as a package, and reads all that it says is in it.
pub fn package(bytes: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { return };
    let path = directory.path().join("package.tar");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let Ok(package) = Package::open(&path, directory.path()) else { return };
    let layout = package.images().layout();
    for repository in layout.repositories().unwrap_or_default() {
        let _ = layout.tags(&repository);
        for digest in layout.revisions(&repository).unwrap_or_default() {
            let _ = layout.manifest(&repository, &digest);
            let _ = layout.blob(&repository, &digest);
            let _ = package.blob(&digest);
        }
    }
    for (repository, tag) in package.images().names().unwrap_or_default() {
        let _ = package.images().image(Some(&format!("{repository}:{tag}")));
    }
    let _ = package.images().image(None);
}
