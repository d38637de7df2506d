//! The table of saved images: what a node needs to run them as RAFS, by the chain ids that containerd asks for.
//!
//! A text of lines, each a JSON object: the first says what it is, every other one is a blob, a layer, a chain or an image, in
//! this order of kinds and within a kind in the order of what its first member says. The same images give the same text.
//!
//! ```text
//! {"images.rafs":1,"chunk_size":1048576,"digester":"blake3"}
//! {"blob":"sha256:…","size":71303168,"toc":"sha256:…"}
//! {"layer":"sha256:…","blob":"sha256:…","tree":{"offset":71200000,"size":90112,"digest":"sha256:…","uncompressed_size":401408},"foreign":["sha256:…"]}
//! {"chain":"sha256:…","parent":"sha256:…","layer":"sha256:…","bootstrap":{"digest":"sha256:…","size":51200,"diff_id":"sha256:…"}}
//! {"image":"sha256:…","platform":"linux/amd64","chain":"sha256:…","manifest":"sha256:…","size":1609,"blobs":["sha256:…"]}
//! ```

use std::collections::HashMap;
use std::fmt;

use image::platform::PlatformName;
use registry::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Why a text is no such table.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TableError {
    /// It is something else.
    #[error("it is no table of saved images: {0}")]
    NoTable(serde_json::Error),
    /// It is of another version.
    #[error("it has version {0} of the table of saved images: expected {VERSION}")]
    Version(u32),
    /// A line is wrong.
    #[error("line {line} of the table of saved images: {reason}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A line names something that no line describes.
    #[error("the table of saved images: {user} names {what} {digest}, which it does not describe")]
    Missing {
        /// Who names it.
        user: Digest,
        /// Blob, layer or chain.
        what: &'static str,
        /// What is named.
        digest: Digest,
    },
}

/// A blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its table of contents with the tar header of that, which ends the blob.
    pub toc: Digest,
}

/// Where a layer's own tree is in its blob: a bootstrap, zstd.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TreeEntry {
    /// Where its stored bytes begin.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
    /// SHA-256 of the bootstrap.
    pub digest: Digest,
    /// Size in bytes of the bootstrap.
    pub uncompressed_size: u64,
}

/// A layer, by its diff id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// Its blob.
    pub blob: Digest,
    /// Its tree.
    pub tree: TreeEntry,
    /// Other blobs that its files have chunks in.
    pub foreign: Vec<Digest>,
}

/// A merged bootstrap, as the layer of an image: a gzip tar with `image/image.boot`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapEntry {
    /// Digest of the gzip tar.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of the tar.
    pub diff_id: Digest,
}

/// A chain of layers, by its chain id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    /// The chain below its top layer; none for a lowest layer.
    pub parent: Option<Digest>,
    /// Diff id of its top layer.
    pub layer: Digest,
    /// What is made of the whole chain, if it is an image's.
    pub bootstrap: Option<BootstrapEntry>,
}

/// An image, by the digest of its own manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// What it is for.
    pub platform: PlatformName,
    /// Its chain.
    pub chain: Digest,
    /// Digest of the nydus image's manifest.
    pub manifest: Digest,
    /// Size in bytes of that.
    pub size: u64,
    /// The blobs that the nydus image names, its layers' own first.
    pub blobs: Vec<Digest>,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Chunk size of all blobs in bytes.
    pub chunk_size: u32,
    /// What chunk digests are made with: `blake3` or `sha256`.
    pub digester: String,
    /// All blobs that layers use.
    pub blobs: HashMap<Digest, BlobEntry>,
    /// All layers, by diff id.
    pub layers: HashMap<Digest, LayerEntry>,
    /// All chains, by chain id: of every image, its lowest layer, its two lowest, and so on.
    pub chains: HashMap<Digest, ChainEntry>,
    /// All images that there is a nydus image of, by the digest of their manifest.
    pub images: HashMap<Digest, ImageEntry>,
}

#[derive(Deserialize, Serialize)]
struct TableVersion {
    #[serde(rename = "images.rafs")]
    version: u32,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TableHead {
    #[serde(rename = "images.rafs")]
    version: u32,
    chunk_size: u32,
    digester: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct BlobLine {
    blob: Digest,
    size: u64,
    toc: Digest,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LayerLine {
    layer: Digest,
    blob: Digest,
    tree: TreeEntry,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    foreign: Vec<Digest>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ChainLine {
    chain: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Digest>,
    layer: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap: Option<BootstrapEntry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ImageLine {
    image: Digest,
    platform: String,
    chain: Digest,
    manifest: Digest,
    size: u64,
    blobs: Vec<Digest>,
}

impl Table {
    /// Reads the text of a table.
    ///
    /// # Errors
    ///
    /// When it is none of this version, a line is wrong, or one names what none describes.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        // Another version may have other members.
        let version = serde_json::from_str::<TableVersion>(first).map_err(TableError::NoTable)?.version;
        if version != VERSION {
            return Err(TableError::Version(version));
        }
        let TableHead { chunk_size, digester, .. } =
            serde_json::from_str(first).map_err(TableError::NoTable)?;
        let mut table = Self { chunk_size, digester, ..Self::default() };
        for (index, line) in lines.enumerate() {
            table.add(line).map_err(|reason| TableError::Line { line: index + 2, reason })?;
        }
        table.check()?;
        Ok(table)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let has = |member: &str| value.get(member).is_some();
        let (is_image, is_chain, is_layer) = (has("image"), has("chain"), has("layer"));
        let wrong = |error: serde_json::Error| error.to_string();
        let is_new = if is_image {
            let line: ImageLine = serde_json::from_value(value).map_err(wrong)?;
            let platform = line.platform.parse().map_err(|error| format!("{error}"))?;
            let ImageLine { image, chain, manifest, size, blobs, .. } = line;
            self.images.insert(image, ImageEntry { platform, chain, manifest, size, blobs }).is_none()
        } else if is_chain {
            let ChainLine { chain, parent, layer, bootstrap } =
                serde_json::from_value(value).map_err(wrong)?;
            self.chains.insert(chain, ChainEntry { parent, layer, bootstrap }).is_none()
        } else if is_layer {
            let LayerLine { layer, blob, tree, foreign } = serde_json::from_value(value).map_err(wrong)?;
            self.layers.insert(layer, LayerEntry { blob, tree, foreign }).is_none()
        } else {
            let BlobLine { blob, size, toc } = serde_json::from_value(value).map_err(wrong)?;
            self.blobs.insert(blob, BlobEntry { size, toc }).is_none()
        };
        if is_new { Ok(()) } else { Err("it is there twice".to_owned()) }
    }

    fn check(&self) -> Result<(), TableError> {
        let missing = |user: &Digest, what, digest: &Digest| {
            Err(TableError::Missing { user: user.clone(), what, digest: digest.clone() })
        };
        for (id, layer) in &self.layers {
            for blob in layer.foreign.iter().chain([&layer.blob]) {
                if !self.blobs.contains_key(blob) {
                    return missing(id, "blob", blob);
                }
            }
        }
        for (id, chain) in &self.chains {
            if !self.layers.contains_key(&chain.layer) {
                return missing(id, "layer", &chain.layer);
            }
            if let Some(parent) = chain.parent.as_ref().filter(|parent| !self.chains.contains_key(parent)) {
                return missing(id, "chain", parent);
            }
        }
        for (id, image) in &self.images {
            if self.chains.get(&image.chain).is_none_or(|chain| chain.bootstrap.is_none()) {
                return missing(id, "chain", &image.chain);
            }
            if let Some(blob) = image.blobs.iter().find(|blob| !self.blobs.contains_key(blob)) {
                return missing(id, "blob", blob);
            }
        }
        Ok(())
    }

    /// The layers of a chain, the lowest first; `None` if the table does not have all of them.
    pub fn layers_of(&self, chain: &Digest) -> Option<Vec<&LayerEntry>> {
        let mut layers = Vec::new();
        let mut at = Some(chain);
        while let Some(id) = at {
            // A chain that leads back to itself has no end.
            if layers.len() > self.chains.len() {
                return None;
            }
            let entry = self.chains.get(id)?;
            layers.push(self.layers.get(&entry.layer)?);
            at = entry.parent.as_ref();
        }
        layers.reverse();
        Some(layers)
    }
}

impl fmt::Display for Table {
    /// The text of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            TableHead { version: VERSION, chunk_size: self.chunk_size, digester: self.digester.clone() };
        write_line(f, &head)?;
        for (blob, BlobEntry { size, toc }) in sorted(&self.blobs) {
            write_line(f, &BlobLine { blob: blob.clone(), size: *size, toc: toc.clone() })?;
        }
        for (layer, LayerEntry { blob, tree, foreign }) in sorted(&self.layers) {
            let (layer, blob) = (layer.clone(), blob.clone());
            write_line(f, &LayerLine { layer, blob, tree: tree.clone(), foreign: foreign.clone() })?;
        }
        for (chain, ChainEntry { parent, layer, bootstrap }) in sorted(&self.chains) {
            let (chain, parent, layer) = (chain.clone(), parent.clone(), layer.clone());
            write_line(f, &ChainLine { chain, parent, layer, bootstrap: bootstrap.clone() })?;
        }
        for (image, entry) in sorted(&self.images) {
            let ImageEntry { platform, chain, manifest, size, blobs } = entry.clone();
            let (image, platform) = (image.clone(), platform.to_string());
            write_line(f, &ImageLine { image, platform, chain, manifest, size, blobs })?;
        }
        Ok(())
    }
}

fn sorted<T>(entries: &HashMap<Digest, T>) -> Vec<(&Digest, &T)> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by(|(one, _), (other, _)| one.as_ref().cmp(other.as_ref()));
    entries
}

fn write_line(f: &mut fmt::Formatter<'_>, line: &impl Serialize) -> fmt::Result {
    writeln!(f, "{}", serde_json::to_string(line).map_err(|_| fmt::Error)?)
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    fn table() -> Table {
        let id = |text: &str| sha256(text.as_bytes());
        let mut table = Table { chunk_size: 4096, digester: "blake3".to_owned(), ..Table::default() };
        for blob in ["own", "shared"] {
            table.blobs.insert(id(blob), BlobEntry { size: 10, toc: id("toc") });
        }
        let tree = TreeEntry { offset: 1, size: 2, digest: id("tree"), uncompressed_size: 3 };
        table.layers.insert(id("diff"), LayerEntry { blob: id("own"), tree, foreign: vec![id("shared")] });
        let bootstrap = BootstrapEntry { digest: id("gz"), size: 4, diff_id: id("tar") };
        let lowest = ChainEntry { parent: None, layer: id("diff"), bootstrap: None };
        table.chains.insert(id("diff"), lowest.clone());
        let top = ChainEntry { parent: Some(id("diff")), bootstrap: Some(bootstrap), ..lowest };
        table.chains.insert(id("top"), top);
        let image = ImageEntry {
            platform: "linux/arm/v7".parse().unwrap(),
            chain: id("top"),
            manifest: id("nydus"),
            size: 5,
            blobs: vec![id("own"), id("own"), id("shared")],
        };
        table.images.insert(id("manifest"), image);
        table
    }

    #[test]
    fn what_is_written_is_read() {
        let text = table().to_string();
        assert_eq!(text.lines().count(), 7);
        assert_eq!(Table::parse(&text).unwrap(), table());
        assert_eq!(table().layers_of(&sha256(b"top")).unwrap().len(), 2);
        assert!(table().layers_of(&sha256(b"nowhere")).is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = table().to_string();
        let gone = |kind: &str| -> String {
            let kept = text.lines().filter(|line| !line.starts_with(&format!("{{\"{kind}\"")));
            kept.map(|line| format!("{line}\n")).collect()
        };
        for (text, expected) in [
            (String::new(), "no table"),
            (text.replace("rafs\":1", "rafs\":2"), "version 2"),
            (text.replace("\"toc\"", "\"tok\""), "line 2"),
            (
                format!("{text}{}", text.lines().last().unwrap()),
                "line 8 of the table of saved images: it is there twice",
            ),
            (gone("blob"), "names blob"),
            (gone("layer"), "names layer"),
            (gone("chain"), "names chain"),
        ] {
            let error = Table::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}: expected {expected}");
        }
    }

    #[test]
    fn a_chain_that_leads_back_to_itself_has_no_layers() {
        let mut table = table();
        let top = sha256(b"top");
        table.chains.get_mut(&top).unwrap().parent = Some(top.clone());
        assert!(table.layers_of(&top).is_none());
    }
}
