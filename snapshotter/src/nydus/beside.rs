//! Nydus images that stand beside plain ones in an index.
//!
//! containerd knows plain images alone and pulls the index's plain one. Its content store has the index then, and that names
//! the nydus image of the same files. So the plain layers need not be fetched: the nydus image's bootstrap takes the place
//! of the uppermost one, and those below are names alone, as the data layers of a nydus image are.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::MultiGzDecoder;
use registry::client::Client;
use registry::digest::Digest;
use registry::nydus::{
    ANNOTATION_BOOTSTRAP, ANNOTATION_SOURCE_DIGEST, LABEL_CRI_IMAGE_REF, LABEL_CRI_MANIFEST_DIGEST, TRUE,
};
use registry::reference::Reference;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tracing::{debug, info, warn};

use super::bootstrap_in;
use crate::broker::Broker;
use crate::containerd::{self, Caller};
use crate::daemon::describe;
use crate::state::Labels;

/// Images whose layers are being prepared, remembered between them.
const REMEMBERED: usize = 64;
/// A bootstrap may have this many bytes: some 200 for each of 20 million files.
const BOOTSTRAP_LIMIT_BYTES: u64 = 4 << 30;
/// Where bootstraps are before a layer takes them, below the root.
const FOLDER: &str = "beside";

/// What is known of the plain images that were pulled last, by their manifests' digests.
pub(crate) struct BesidePlain {
    broker: Arc<Broker>,
    client: Client,
    containerd: PathBuf,
    folder: PathBuf,
    known: Mutex<HashMap<String, Arc<KnownPlain>>>,
}

/// What is known of one plain image, once it is: whoever asks first finds out, others that ask meanwhile wait for that.
type KnownPlain = OnceCell<Option<Arc<Fetched>>>;

/// The bootstrap of a nydus image that stands beside a plain one.
#[derive(Debug)]
pub(crate) struct Fetched {
    folder: TempDir,
}

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Registry(#[from] registry::client::Error),
    #[error("manifest {manifest}: {reason}")]
    Manifest { manifest: Digest, reason: String },
    #[error("cannot unpack the bootstrap layer: {0}")]
    Unpack(#[from] io::Error),
}

impl BesidePlain {
    /// Nothing is known yet. What an earlier process left below `root` is deleted.
    pub(crate) fn new(broker: Arc<Broker>, containerd: PathBuf, root: &Path) -> io::Result<Self> {
        let folder = root.join(FOLDER);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&folder)?;
        let client = broker.reader();
        Ok(Self { broker, client, containerd, folder, known: Mutex::default() })
    }

    /// The nydus image beside the plain one that a layer with these labels is of, its bootstrap fetched. Without an answer
    /// the layer is as plain as its labels say.
    pub(crate) async fn find(&self, caller: &Caller, labels: &Labels) -> Option<Arc<Fetched>> {
        let manifest = labels.get(LABEL_CRI_MANIFEST_DIGEST)?;
        let reference = Reference::parse(labels.get(LABEL_CRI_IMAGE_REF)?).ok()?;
        let known = {
            let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= REMEMBERED && !all.contains_key(manifest) {
                all.clear();
            }
            Arc::clone(all.entry(manifest.clone()).or_default())
        };
        // What failed is tried again with the next layer.
        known.get_or_try_init(|| self.find_out(caller, &reference, manifest)).await.ok()?.clone()
    }

    async fn find_out(
        &self,
        caller: &Caller,
        reference: &Reference,
        manifest: &str,
    ) -> Result<Option<Arc<Fetched>>, ()> {
        let indexes = containerd::indexes_of(&self.containerd, caller, manifest).await.map_err(|error| {
            warn!(
                manifest,
                error = describe(&error),
                "containerd does not say what stands next to a plain image"
            );
        })?;
        let Some(nydus) = indexes.iter().find_map(|index| nydus_of(index, manifest)) else { return Ok(None) };
        self.broker.find_out(reference.repository(), None).await;
        let fetched = self.fetch(reference, &nydus).await.map_err(|error| {
            warn!(image = %reference, %nydus, error = describe(&error), "the nydus image next to the plain one cannot be fetched");
        })?;
        info!(image = %reference, %nydus, "a nydus image stands next to the plain one");
        Ok(Some(Arc::new(fetched)))
    }

    async fn fetch(&self, reference: &Reference, nydus: &Digest) -> Result<Fetched, FetchError> {
        let (_, content) = self.client.manifest(&reference.at_digest(nydus.clone())).await?;
        let wrong = |reason: String| FetchError::Manifest { manifest: nydus.clone(), reason };
        let manifest: Value = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
        let is_bootstrap = |layer: &&Value| layer["annotations"][ANNOTATION_BOOTSTRAP] == TRUE;
        let layer = manifest["layers"].as_array().into_iter().flatten().find(is_bootstrap);
        let digest = layer.and_then(|layer| layer["digest"].as_str()?.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| wrong("it has no bootstrap layer".to_owned()))?;
        let folder = TempDir::new_in(&self.folder)?;
        let mut packed =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("layer"))?;
        let mut reader = self.client.blob(reference.repository(), &digest)?;
        let mut size = 0;
        while let Some(bytes) = reader.next().await? {
            size += bytes.len() as u64;
            if size > BOOTSTRAP_LIMIT_BYTES {
                return Err(wrong(format!("its bootstrap layer is over {BOOTSTRAP_LIMIT_BYTES} bytes")));
            }
            packed.write_all(&bytes)?;
        }
        let target = folder.path().to_owned();
        blocking_io(move || unpack(packed, &target)).await?;
        debug!(layer = %digest, "bootstrap fetched");
        Ok(Fetched { folder })
    }
}

impl Fetched {
    /// Puts the bootstrap where an unpacked bootstrap layer has it.
    pub(crate) fn place(&self, upper: &Path) -> io::Result<()> {
        let target = bootstrap_in(upper);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // Not moved: another namespace may be about to need it.
        fs::copy(self.folder.path().join("image.boot"), target).map(drop)
    }
}

async fn blocking_io(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Unpacks `image/image.boot` into `target`.
fn unpack(mut packed: File, target: &Path) -> io::Result<()> {
    packed.rewind()?;
    let plain = MultiGzDecoder::new(io::BufReader::new(packed)).take(2 * BOOTSTRAP_LIMIT_BYTES);
    let mut archive = tar::Archive::new(plain);
    // Raw: what describes the next entry at length is not read into memory, and names here are short.
    for entry in archive.entries()?.raw(true) {
        let entry = entry?;
        if entry.path_bytes().as_ref() == b"image/image.boot" {
            let mut file = File::create_new(target.join("image.boot"))?;
            let copied = io::copy(&mut entry.take(BOOTSTRAP_LIMIT_BYTES), &mut file)?;
            if copied == BOOTSTRAP_LIMIT_BYTES {
                return Err(io::Error::other(format!(
                    "image/image.boot is over {BOOTSTRAP_LIMIT_BYTES} bytes"
                )));
            }
            return fs::remove_file(target.join("layer"));
        }
    }
    Err(io::Error::other("the layer has no image/image.boot"))
}

/// The nydus image that an index names beside `manifest`: the one that says to be made of it, else the first one for its
/// platform that does not say what it was made of. One that was made of another manifest has other files.
fn nydus_of(index: &[u8], manifest: &str) -> Option<Digest> {
    let marks = registry::nydus::nydus_entries(index).ok()?;
    let index: Value = serde_json::from_slice(index).ok()?;
    let entries = index["manifests"].as_array()?;
    let plain = entries.iter().find(|entry| entry["digest"] == manifest)?;
    let platform =
        |entry: &Value| ["os", "architecture", "variant"].map(|key| entry["platform"][key].clone());
    let nydus = || entries.iter().zip(&marks).filter(|(_, is_nydus)| **is_nydus).map(|(entry, _)| entry);
    let source = |entry: &Value| entry["annotations"][ANNOTATION_SOURCE_DIGEST].clone();
    let found = nydus()
        .find(|entry| source(entry) == manifest)
        .or_else(|| nydus().find(|entry| source(entry).is_null() && platform(entry) == platform(plain)));
    found?["digest"].as_str()?.parse().ok().filter(|digest: &Digest| digest.as_ref() != manifest)
}

#[cfg(test)]
mod tests {
    use registry::nydus::{ARTIFACT_TYPE_MANIFEST, OS_FEATURE};
    use serde_json::json;

    use super::*;

    fn digest(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    #[test]
    fn the_nydus_image_is_found_by_its_source_or_else_by_its_platform() {
        let amd64 = json!({"os": "linux", "architecture": "amd64"});
        let arm64 = json!({"os": "linux", "architecture": "arm64", "os.features": [OS_FEATURE]});
        let index = json!({"manifests": [
            {"digest": digest("a"), "platform": amd64},
            {"digest": digest("b"), "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": digest("c"), "platform": arm64},
            {"digest": digest("d"), "artifactType": ARTIFACT_TYPE_MANIFEST, "platform": arm64,
             "annotations": {ANNOTATION_SOURCE_DIGEST: digest("a")}},
        ]})
        .to_string();
        let of = |manifest: &str| nydus_of(index.as_bytes(), manifest).map(|digest| digest.to_string());
        assert_eq!(of(&digest("a")), Some(digest("d")));
        assert_eq!(of(&digest("b")), Some(digest("c")));
        assert_eq!(of(&digest("e")), None);
        assert_eq!(nydus_of(b"{}", &digest("a")), None);
        // Somebody put another plain image there.
        let stale = json!({"manifests": [
            {"digest": digest("e"), "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": digest("d"), "platform": arm64, "annotations": {ANNOTATION_SOURCE_DIGEST: digest("b")}},
        ]});
        assert_eq!(nydus_of(stale.to_string().as_bytes(), &digest("e")), None);
    }
}
