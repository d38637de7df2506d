//! The manifests that a source's name leads to: one, or an index's with all that is in it.

use std::collections::HashSet;

use crate::platform::{PlatformName, chosen, listed};
use crate::source::{Document, Source, SourceError};
use bytes::Bytes;
use registry::client::Descriptor;
use registry::digest::{self, Digest};
use registry::media_types::OCI_LAYER;
use serde_json::json;

use super::error::ConversionError;
use crate::document::{
    DEPTH_LIMIT, DocumentError, ImageConfig, Index, Manifest, OCI_CONFIG, OCI_MANIFEST, Parsed,
};

/// The most that all documents of a source may take in memory: manifests and configs.
const DOCUMENTS_LIMIT_BYTES: usize = 48 << 20;

/// What a name leads to.
pub(super) enum Tree {
    /// An image to convert.
    Image(Box<ImageNode>),
    /// An attestation or artifact, kept as it is.
    Kept(Box<KeptNode>),
    /// Several of these.
    Index(IndexNode),
}

/// An image to convert.
pub(super) struct ImageNode {
    pub(super) document: Document,
    pub(super) config_descriptor: Descriptor,
    pub(super) config: Bytes,
    pub(super) layers: Vec<Descriptor>,
    pub(super) platform: PlatformName,
}

/// What is kept as it is.
pub(super) struct KeptNode {
    pub(super) document: Document,
    /// What it is, for messages.
    what: String,
    /// What it consists of.
    pub(super) blobs: Vec<Descriptor>,
}

/// An index, without what was not asked for.
pub(super) struct IndexNode {
    pub(super) index: Index,
    pub(super) children: Vec<(Digest, Tree)>,
}

impl Tree {
    /// Reads all manifests of `source` and the configs of its images for the platforms `wanted`, all if that is empty.
    pub(super) async fn load(source: &Source, wanted: &[PlatformName]) -> Result<Self, ConversionError> {
        let mut loader = Loader { source, wanted, bytes: 0, there: Vec::new() };
        let root = source.root().await?;
        let mut tree = Box::pin(loader.load(root, 0)).await?;
        let images = tree.images();
        let platforms: Vec<&PlatformName> = images.iter().map(|image| &image.platform).collect();
        if images.is_empty() && loader.there.iter().all(PlatformName::is_unknown) {
            return Err(ConversionError::NoImage { name: source.name(), what: tree.what() });
        }
        let chosen = chosen(wanted, &platforms).map_err(|wanted| {
            let found = listed(loader.there.iter().chain(platforms.iter().copied()));
            let (source_name, wanted) = (source.name(), wanted.to_string());
            SourceError::NoSuchPlatform { source_name, wanted, found }
        })?;
        if images.is_empty() {
            return Err(ConversionError::NoImage { name: source.name(), what: tree.what() });
        }
        let left_out: HashSet<Digest> = images
            .iter()
            .zip(chosen)
            .filter(|(_, chosen)| !chosen)
            .map(|(image, _)| image.document.descriptor.digest().clone())
            .collect();
        tree.leave_out(&left_out);
        Ok(tree)
    }

    /// Takes the images with these digests out of the indexes that name them.
    fn leave_out(&mut self, left_out: &HashSet<Digest>) {
        let Self::Index(IndexNode { index, children }) = self else { return };
        if left_out.is_empty() {
            return;
        }
        let mut gone = HashSet::new();
        for (digest, child) in children.iter_mut() {
            let had_images = !child.images().is_empty();
            child.leave_out(left_out);
            // An index that has lost its last image goes as well.
            let empty = matches!(child, Self::Index(_)) && had_images && child.images().is_empty();
            if empty || left_out.contains(digest) {
                gone.insert(digest.clone());
            }
        }
        let numbers: Vec<bool> = index.manifests.iter().map(|entry| !gone.contains(entry.digest())).collect();
        index.retain(|number| numbers.get(number) == Some(&true));
        children.retain(|(digest, _)| index.names(digest));
    }

    /// What it is where it holds no image, for messages: what the first of it is.
    fn what(&self) -> String {
        match self {
            Self::Image(_) => "an image".to_owned(),
            Self::Kept(kept) => kept.what.clone(),
            Self::Index(index) => match index.children.first() {
                Some((digest, child)) => format!("an index, in which {digest} is {}", child.what()),
                None => "an empty index".to_owned(),
            },
        }
    }

    /// All images in it.
    pub(super) fn images(&self) -> Vec<&ImageNode> {
        match self {
            Self::Image(image) => vec![image],
            Self::Kept(_) => Vec::new(),
            Self::Index(index) => index.children.iter().flat_map(|(_, child)| child.images()).collect(),
        }
    }
}

/// Every layer of these images once, in the order in which they are first named.
pub(super) fn distinct_layers(images: &[&ImageNode]) -> Vec<Descriptor> {
    let mut seen = HashSet::new();
    let layers = images.iter().flat_map(|image| &image.layers);
    layers.filter(|layer| seen.insert(layer.digest().clone())).cloned().collect()
}

struct Loader<'a> {
    source: &'a Source,
    wanted: &'a [PlatformName],
    /// Of all documents so far.
    bytes: usize,
    /// The platforms that indexes name, those that nobody asked for as well.
    there: Vec<PlatformName>,
}

impl Loader<'_> {
    async fn load(&mut self, document: Document, depth: usize) -> Result<Tree, ConversionError> {
        self.count(&document.content)?;
        let parsed = Parsed::parse(&document.content).map_err(|error| self.wrong(&document, error))?;
        let what = parsed.what();
        match parsed {
            Parsed::Index(_) if depth == DEPTH_LIMIT => {
                Err(SourceError::TooDeep { source_name: self.source.name(), limit: DEPTH_LIMIT }.into())
            }
            Parsed::Index(index) => Box::pin(self.load_index(index, depth)).await,
            Parsed::Artifact(artifact) => {
                Ok(Tree::Kept(Box::new(KeptNode { document, what, blobs: artifact.blobs })))
            }
            Parsed::Manifest(manifest) => self.load_manifest(document, manifest, what).await,
        }
    }

    async fn load_manifest(
        &mut self,
        document: Document,
        manifest: Manifest,
        what: String,
    ) -> Result<Tree, ConversionError> {
        if let Some(layer) = manifest.nydus_layer() {
            let layer = format!(", as its layer {} shows", layer.digest());
            return Err(self.already_nydus(&document.descriptor, layer));
        }
        if !manifest.is_image() {
            let blobs = manifest.blobs().cloned().collect();
            return Ok(Tree::Kept(Box::new(KeptNode { document, what, blobs })));
        }
        let config = self.source.document(&manifest.config).await?;
        self.count(&config)?;
        let platform = match document.descriptor.platform() {
            Some(platform) => PlatformName::of(platform),
            None => {
                let platform = ImageConfig::parse(&config).and_then(|config| config.platform());
                platform.map_err(|error| self.wrong(&document, error))?
            }
        };
        let Manifest { config: config_descriptor, layers, .. } = manifest;
        Ok(Tree::Image(Box::new(ImageNode { document, config_descriptor, config, layers, platform })))
    }

    async fn load_index(&mut self, mut index: Index, depth: usize) -> Result<Tree, ConversionError> {
        let mut children = Vec::with_capacity(index.manifests.len());
        let mut kept = vec![false; index.manifests.len()];
        for (number, (entry, is_nydus)) in index.marked().enumerate() {
            let named = entry.platform().as_ref().map(PlatformName::of);
            if named.as_ref().is_some_and(|named| !named.is_unknown() && !self.wants(named)) {
                self.there.extend(named);
                continue;
            }
            if is_nydus {
                return Err(self.already_nydus(entry, ", as its index says".to_owned()));
            }
            let Some(child) = self.source.manifest_if_there(entry).await? else { continue };
            self.there.extend(named);
            let child = Box::pin(self.load(child, depth + 1)).await?;
            // A nested index of which nothing was asked for, or an image whose config alone names the platform.
            let images = child.images();
            kept[number] = match &child {
                Tree::Image(image) => self.wants(&image.platform),
                Tree::Index(_) => !images.is_empty() || self.wanted.is_empty(),
                Tree::Kept(_) => true,
            };
            children.push((entry.digest().clone(), child));
        }
        index.retain(|number| kept.get(number) == Some(&true));
        children.retain(|(digest, _)| index.names(digest));
        Ok(Tree::Index(IndexNode { index, children }))
    }

    fn wants(&self, platform: &PlatformName) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted.matches(platform))
    }

    fn count(&mut self, content: &Bytes) -> Result<(), ConversionError> {
        self.bytes += content.len();
        if self.bytes > DOCUMENTS_LIMIT_BYTES {
            let (name, limit) = (self.source.name(), DOCUMENTS_LIMIT_BYTES);
            return Err(ConversionError::Documents { name, limit });
        }
        Ok(())
    }

    fn wrong(&self, document: &Document, error: DocumentError) -> ConversionError {
        let (name, document) = (self.source.name(), document.descriptor.digest().clone());
        ConversionError::Document { name, document, error }
    }

    fn already_nydus(&self, manifest: &Descriptor, layer: String) -> ConversionError {
        ConversionError::AlreadyNydus { name: self.source.name(), manifest: manifest.digest().clone(), layer }
    }
}

impl ImageNode {
    /// The digest of its manifest.
    pub(super) fn digest(&self) -> &Digest {
        self.document.descriptor.digest()
    }

    /// The image of a directory whose files are the layer `layer`: a manifest and a config that say just that.
    pub(super) fn of_directory(platform: &PlatformName, layer: &Digest) -> Result<Self, ConversionError> {
        let mut config = json!({
            "architecture": platform.architecture(),
            "os": platform.os(),
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer.as_ref()] },
        });
        if let Some(variant) = platform.variant() {
            config["variant"] = json!(variant);
        }
        let config = Bytes::from(config.to_string());
        let descriptor = |media_type: &str, size: usize, digest: Digest| {
            Descriptor::new(media_type.into(), size as u64, digest)
        };
        let config_descriptor = descriptor(OCI_CONFIG, config.len(), digest::sha256(&config));
        let layers = vec![descriptor(OCI_LAYER, 0, layer.clone())];
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config_descriptor,
            "layers": layers,
        });
        let content = Bytes::from(manifest.to_string());
        let descriptor = descriptor(OCI_MANIFEST, content.len(), digest::sha256(&content));
        let document = Document { descriptor, content };
        Ok(Self { document, config_descriptor, config, layers, platform: platform.clone() })
    }
}
