//! What a manifest says of its blobs, so that whoever builds the same layers again need not convert them.
//!
//! | annotation of a blob's layer | is |
//! |---|---|
//! | `vnd.nydus-cluster.layer.source` | digest of the layer that the blob was made of |
//! | `vnd.nydus-cluster.layer.diff-id` | its digest without compression; a layer that many were flattened to has none |
//! | `vnd.nydus-cluster.layer.fingerprint` | the options that it was made with |
//! | `vnd.nydus-cluster.layer.toc` | digest of the table of contents at the blob's end, which has those of the layer's tree |
//! | `vnd.nydus-cluster.layer.implied` | JSON list of the directories that the layer has no entry for; the root is `""` |

use registry::client::Descriptor;
use registry::digest::Digest;
use serde_json::json;

use super::conversion::ConvertedLayer;
use super::implied::implied;
use crate::document::Manifest;
use crate::options::Fingerprint;

/// Digest of the layer that the blob was made of.
const SOURCE: &str = "vnd.nydus-cluster.layer.source";
/// Digest of that layer without its compression.
const DIFF_ID: &str = "vnd.nydus-cluster.layer.diff-id";
/// The options that it was made with.
const FINGERPRINT: &str = "vnd.nydus-cluster.layer.fingerprint";
/// Digest of the blob's table of contents.
const TOC: &str = "vnd.nydus-cluster.layer.toc";
/// Directories that have no entry of their own: a blob's own bootstrap does not tell them from others.
const IMPLIED: &str = "vnd.nydus-cluster.layer.implied";

/// A layer with more bytes of such directories is not announced: manifests are to stay small.
const IMPLIED_LIMIT_BYTES: usize = 4096;

/// The annotations of the blob of `layer`, which was built with options of this fingerprint; none where it could not be
/// used again by them.
pub(crate) fn announcement(layer: &ConvertedLayer, fingerprint: &Fingerprint) -> Vec<(&'static str, String)> {
    let implied = text(&implied(&layer.layer.tree));
    let (Some(source), Some(toc), Some(implied)) = (&layer.source, &layer.toc, implied) else {
        return Vec::new();
    };
    let mut said = vec![(SOURCE, source.to_string())];
    said.extend(layer.diff_id.as_ref().map(|diff_id| (DIFF_ID, diff_id.to_string())));
    said.push((FINGERPRINT, fingerprint.as_str().to_owned()));
    said.push((TOC, toc.to_string()));
    said.push((IMPLIED, implied));
    said
}

/// Paths as an annotation, if they are text and not too long.
fn text(paths: &[Vec<u8>]) -> Option<String> {
    let paths: Vec<&str> =
        paths.iter().map(|path| std::str::from_utf8(path)).collect::<Result<_, _>>().ok()?;
    let text = json!(paths).to_string();
    (text.len() <= IMPLIED_LIMIT_BYTES).then_some(text)
}

/// What a manifest says of a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Announcement {
    pub(super) blob: Digest,
    /// Size of the blob in bytes.
    pub(super) size: u64,
    pub(super) source: Digest,
    pub(super) diff_id: Option<Digest>,
    pub(super) toc: Digest,
    pub(super) implied: Vec<String>,
}

/// What a manifest says of its blobs, as far as they were made with options of this fingerprint.
pub(super) fn announcements(manifest: &Manifest, fingerprint: &Fingerprint) -> Vec<Announcement> {
    manifest.layers.iter().filter_map(|layer| read(layer, fingerprint)).collect()
}

fn read(layer: &Descriptor, fingerprint: &Fingerprint) -> Option<Announcement> {
    let annotations = layer.annotations().as_ref()?;
    let annotation = |name: &str| annotations.get(name).map(String::as_str);
    if annotation(FINGERPRINT)? != fingerprint.as_str() {
        return None;
    }
    let digest = |name: &str| annotation(name)?.parse().ok();
    Some(Announcement {
        blob: layer.digest().clone(),
        size: layer.size(),
        source: digest(SOURCE)?,
        diff_id: digest(DIFF_ID),
        toc: digest(TOC)?,
        implied: serde_json::from_str(annotation(IMPLIED)?).ok()?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The annotations of a blob that was made of the layer `source`.
    pub(in crate::layer) fn announced(source: &Digest, fingerprint: &Fingerprint) -> serde_json::Value {
        json!({
            SOURCE: source.as_ref(), FINGERPRINT: fingerprint.as_str(), TOC: source.as_ref(), IMPLIED: "[]",
        })
    }
}
