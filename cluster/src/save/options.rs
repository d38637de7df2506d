//! Where images are saved to, and how.

use std::collections::HashMap;
use std::sync::Arc;

use image::layer::Slots;
use image::location::Location;
use image::options::Options;
use registry::Reference;

use super::LayerSpace;

/// Where images go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A directory that a registry can serve.
    Directory(std::path::PathBuf),
    /// One repository, under the tag of this reference.
    Repository(Reference),
}

/// As what images are saved. What is neither image nor for Linux is saved as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    /// As RAFS, chunks that several have stored once.
    pub rafs: bool,
    /// As they are.
    pub plain: bool,
}

impl Forms {
    /// As RAFS alone.
    pub const RAFS: Self = Self { rafs: true, plain: false };
    /// As they are alone.
    pub const PLAIN: Self = Self { rafs: false, plain: true };
}

/// zstd's level where nothing else is said. An image is saved once, and read by every node: what level 5 takes longer than level 3, with
/// which images are built, gives a thirtieth less to store and to fetch.
pub const COMPRESSION_LEVEL: i32 = 5;

/// How images are saved.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// As what. Default: as RAFS alone.
    pub forms: Forms,
    /// How many images are looked at at once. Default: 8.
    pub images: usize,
    /// How many blobs are on their way at once. Default: 6.
    pub blobs: usize,
    /// How many layers are converted at once. Default: 4.
    pub conversions: usize,
    /// What bounds that over all saves that are given the same. Default: 4.
    pub slots: Slots,
    /// How many threads convert a layer; 0: one a core. Default: 0.
    pub threads: usize,
    /// How images are converted. Batches and chunk dictionaries are left out, platforms are the lock's. Default: zstd at
    /// [`COMPRESSION_LEVEL`].
    pub image: Options,
    /// Room for layers that wait on this machine until it is known what they share. Default: 16 GiB.
    pub layer_space: Arc<LayerSpace>,
    /// Whether layers that were converted stay on this machine when not all is saved, for the next save to the same place, which must not be
    /// at the same time. Default: true.
    pub keeps_layers: bool,
    /// What was saved before, in the same repository under another tag: its blobs are used where they hold the same.
    pub base: Option<Reference>,
    /// Images that are read elsewhere than the lock says, by name.
    pub read_at: HashMap<Reference, Location>,
    /// The cluster image, or its manifests: chunks that its nydus images have are used there, where they are in the repository that
    /// images are saved to.
    pub cluster_image: Vec<Reference>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            forms: Forms::RAFS,
            images: 8,
            blobs: 6,
            conversions: 4,
            slots: Slots::new(4),
            threads: 0,
            image: Options { compression_level: Some(COMPRESSION_LEVEL), ..Options::default() },
            layer_space: LayerSpace::new(16 << 30),
            keeps_layers: true,
            base: None,
            read_at: HashMap::new(),
            cluster_image: Vec::new(),
        }
    }
}
