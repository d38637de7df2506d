//! What a converted layer is known by: what it was made of, and how.

use registry::digest::{Digest, sha256};

use super::conversion::ConvertedLayer;
use crate::options::Fingerprint;

/// What a converted layer is known by.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    fingerprint: Fingerprint,
    source: Digest,
}

impl Key {
    /// The key of what is made of the layer `source`, which may be its digest or its diff id.
    pub(super) fn new(fingerprint: &Fingerprint, source: &Digest) -> Self {
        Self { fingerprint: fingerprint.clone(), source: source.clone() }
    }

    /// The key of a layer by its source, where this may be that by its diff id.
    pub(super) fn of_layer(&self, layer: &ConvertedLayer) -> Self {
        let source = layer.source.as_ref().unwrap_or(&self.source);
        Self::new(&self.fingerprint, source)
    }

    /// The options that the layer is made with.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Whether it is that of a layer with this source or diff id, made with options of this fingerprint.
    pub(super) fn is_of(&self, fingerprint: &str, source: &Digest, diff_id: Option<&Digest>) -> bool {
        self.fingerprint.as_str() == fingerprint && (self.source == *source || Some(&self.source) == diff_id)
    }

    /// A file name for it.
    pub(super) fn file_name(&self) -> String {
        let Self { fingerprint, source } = self;
        sha256(format!("{fingerprint}\n{source}").as_bytes()).digest().to_owned()
    }
}
