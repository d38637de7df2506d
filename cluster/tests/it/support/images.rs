//! Saved images, read.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;

use cluster::saved::SavedImages;
use rafs::blob::source::BlobDirectory;
use rafs::bootstrap::Bootstrap;
use registry::Digest;

/// Files of an image, by path.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The files of the image with this manifest, read from what was saved.
pub(crate) async fn files(saved: &SavedImages, manifest: &str) -> Files {
    let table = saved.table().unwrap();
    let image = &table.images[&manifest.parse::<Digest>().unwrap()];
    let dir = tempfile::tempdir().unwrap();
    for blob in &image.blobs {
        let mut stream = saved.blob(blob).await.unwrap();
        let mut content = Vec::new();
        while let Some(piece) = stream.next().await.unwrap() {
            content.extend_from_slice(&piece);
        }
        fs::write(dir.path().join(blob.digest()), content).unwrap();
    }
    let bootstrap = Bootstrap::from_bytes(saved.bootstrap(&image.chain).await.unwrap()).unwrap();
    let mut unpacked = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &BlobDirectory::new(dir.path()), &mut unpacked).unwrap();
    let mut files = Files::new();
    for entry in tar::Archive::new(unpacked.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
    }
    files
}
