//! An OCI image layout that a test writes, blob by blob.

use std::fs;
use std::path::PathBuf;

use registry::digest::sha256;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::source::blob_path;

/// A layout, `in` a folder of its own.
pub(crate) struct TestLayout {
    /// The folder, which has room for more.
    pub(crate) folder: TempDir,
    /// The layout.
    pub(crate) dir: PathBuf,
}

impl TestLayout {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("in");
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        Self { folder, dir }
    }

    /// Adds a blob; gives its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        fs::write(self.dir.join(blob_path(&digest)), content).unwrap();
        json!({"mediaType": media_type, "digest": digest.as_ref(), "size": content.len()})
    }

    /// Adds a blob of JSON; gives its descriptor.
    pub(crate) fn document(&self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string().as_bytes())
    }

    /// Says which manifests the layout has.
    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }
}
