//! Options with what they name at hand, so that layers can be converted and put together.

use std::sync::Arc;

use rafs::bootstrap::WriteOptions;
use rafs::build::BuildOptions;
use rafs::tree::Tree;

use super::{Algorithm, Fingerprint, Options, OptionsError, Pattern, expand};
use crate::layer::ChunkDict;

/// Options with what they name at hand: the dictionary loaded, the list read.
#[derive(Clone, Debug)]
pub struct Recipe {
    options: Options,
    build: BuildOptions,
    dictionary: Option<ChunkDict>,
    fingerprint: Fingerprint,
}

impl Recipe {
    /// The recipe of `options`, with the dictionary that they name, the paths of the list that they name, and so many
    /// workers a conversion (0: one a core).
    ///
    /// # Errors
    ///
    /// When the options do not go together, or not with the dictionary.
    pub fn new(
        mut options: Options,
        dictionary: Option<ChunkDict>,
        listed: Vec<Pattern>,
        threads: usize,
    ) -> Result<Self, OptionsError> {
        options.check()?;
        options.prefetch.extend(listed);
        let mut build = options.build_options(threads);
        build.dictionary = dictionary.as_ref().map(|dictionary| Arc::clone(&dictionary.chunks));
        build.check().map_err(|error| OptionsError::Together(error.to_string()))?;
        let digest = dictionary.as_ref().map(|dictionary| &dictionary.digest);
        let fingerprint = Fingerprint::of(&options, digest);
        Ok(Self { options, build, dictionary, fingerprint })
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How layers are built.
    pub fn build(&self) -> &BuildOptions {
        &self.build
    }

    /// The chunk dictionary.
    pub fn dictionary(&self) -> Option<&ChunkDict> {
        self.dictionary.as_ref()
    }

    /// What decides how a layer is converted, in a word.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// How layers are built that are to be flattened: they are read once more, and then stored as this recipe says. They
    /// have no dictionary, whose blobs are elsewhere.
    pub(crate) fn for_scratch(&self) -> Self {
        let options = Options {
            compressor: Algorithm::Lz4,
            compression_level: None,
            batch_size: None,
            ..self.options.clone()
        };
        let fingerprint = Fingerprint::of(&options, None);
        let build = options.build_options(self.build.threads);
        Self { options, build, dictionary: None, fingerprint }
    }

    /// How the bootstrap of `tree` is written.
    pub(crate) fn write_options(&self, tree: &Tree) -> WriteOptions {
        WriteOptions {
            prefetch: expand(&self.options.prefetch, tree),
            chunk_size: self.build.chunk_size,
            compressor: self.build.compressor,
            digester: self.build.digester,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        let options = Options::default();
        let fingerprint = Fingerprint::of(&options, None);
        Self { build: options.build_options(0), options, dictionary: None, fingerprint }
    }
}
