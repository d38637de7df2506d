//! What a converted layer is known by: what it was made of, and how.

use registry::digest::{Digest, sha256};
use registry::reference::Repository;

use super::conversion::ConvertedLayer;
use crate::options::Fingerprint;

/// What a converted layer is known by.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    fingerprint: Fingerprint,
    source: Digest,
    /// The repository whose manifest alone says that it is this layer: it is believed for images that go there, and for no
    /// others.
    within: Option<Repository>,
}

impl Key {
    /// The key of what is made of the layer `source`, which may be its digest or its diff id.
    pub(super) fn new(fingerprint: &Fingerprint, source: &Digest) -> Self {
        Self { fingerprint: fingerprint.clone(), source: source.clone(), within: None }
    }

    /// The same for images in `repository`, whose manifest says so.
    pub(super) fn within(&self, repository: &Repository) -> Self {
        Self { within: Some(repository.clone()), ..self.clone() }
    }

    /// The key of the same kind of another source, or by a diff id.
    pub(super) fn with(&self, source: &Digest) -> Self {
        Self { source: source.clone(), ..self.clone() }
    }

    /// The key of a layer by its source, where this may be that by its diff id.
    pub(super) fn of_layer(&self, layer: &ConvertedLayer) -> Self {
        self.with(layer.source.as_ref().unwrap_or(&self.source))
    }

    /// The options that the layer is made with.
    pub(super) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The repository that it is for, if it is for one alone.
    pub(super) fn repository(&self) -> Option<&Repository> {
        self.within.as_ref()
    }

    /// The layer's digest or diff id.
    pub(super) fn source(&self) -> &Digest {
        &self.source
    }

    /// A file name for it.
    pub(super) fn file_name(&self) -> String {
        let Self { fingerprint, source, within } = self;
        let within = within.as_ref().map(ToString::to_string).unwrap_or_default();
        sha256(format!("{fingerprint}\n{source}\n{within}").as_bytes()).digest().to_owned()
    }
}
