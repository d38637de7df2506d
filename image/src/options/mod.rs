//! What can be chosen about an image that is made. Every choice has one word, which is a key of the exporter's outputs
//! (`chunk-size=1M`) and a flag of commands (`--chunk-size 1M`); [`WORDS`] holds all of them, with what they take, what they
//! do and who has them. A new one is a field of [`Options`] and an entry there.
//!
//! - `words`: the words, and what their values mean.
//! - `value`: the values that are alike in several words.
//! - [`Pattern`]: paths and globs, as `prefetch` has them.
//! - [`Recipe`]: options with what they name at hand.
//! - [`Fingerprint`]: of what decides how a layer is converted.

mod fingerprint;
mod pattern;
mod recipe;
mod value;
mod words;

use rafs::build::BuildOptions;
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;

pub use self::fingerprint::Fingerprint;
pub use self::pattern::{Pattern, expand};
pub use self::recipe::Recipe;
pub use self::value::boolean;
pub use self::words::{Takes, Used, WORDS, Word};
use crate::platform::PlatformName;

/// What can be chosen about an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How chunks are compressed.
    pub compressor: Algorithm,
    /// The compressor's level; `None`: 3. Only zstd has any.
    pub compression_level: Option<i32>,
    /// What chunk digests are made with.
    pub digester: DigestAlgorithm,
    /// Size of a chunk in bytes.
    pub chunk_size: u32,
    /// Files smaller than half of this, in bytes, are compressed together.
    pub batch_size: Option<u32>,
    /// Whether the blobs' chunk information is in the bootstrap layer.
    pub inline_chunk_info: bool,
    /// The files that a daemon fetches first.
    pub prefetch: Vec<Pattern>,
    /// A file with more of them, a path a line.
    pub prefetch_list: Option<String>,
    /// A nydus image whose chunks are not stored again.
    pub chunk_dict: Option<String>,
    /// Whether all layers become one, of what the final file system shows.
    pub flatten: bool,
    /// Which images of an index; empty: all.
    pub platforms: Vec<PlatformName>,
    /// Whether the plain images are kept next to the nydus images.
    pub also_oci: bool,
}

/// A chunk compressor, whatever its level.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Algorithm {
    /// Zstandard.
    #[default]
    Zstd,
    /// LZ4.
    Lz4,
    /// Chunks are stored as they are.
    None,
}

/// Options that cannot be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OptionsError {
    /// A word's value means nothing.
    #[error("{word}={value:?}: {reason}")]
    Value {
        /// The word.
        word: &'static str,
        /// What it was given.
        value: String,
        /// What was expected.
        reason: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Together(String),
}

impl Default for Options {
    fn default() -> Self {
        let build = BuildOptions::default();
        Self {
            compressor: Algorithm::default(),
            compression_level: None,
            digester: build.digester,
            chunk_size: build.chunk_size,
            batch_size: build.batch_size,
            inline_chunk_info: false,
            prefetch: Vec::new(),
            prefetch_list: None,
            chunk_dict: None,
            flatten: false,
            platforms: Vec::new(),
            also_oci: false,
        }
    }
}

impl Options {
    /// Takes what stands behind `word`, if `used` has such a word: `Ok(false)` means that it has not.
    ///
    /// # Errors
    ///
    /// When the value means nothing.
    pub fn set(&mut self, used: Used, word: &str, value: &str) -> Result<bool, OptionsError> {
        match Word::all(used).find(|known| known.name == word) {
            Some(word) => word.set(self, value).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether the values go together.
    ///
    /// # Errors
    ///
    /// When they do not; it says which and why.
    pub fn check(&self) -> Result<(), OptionsError> {
        let together = |reason: String| Err(OptionsError::Together(reason));
        if let (Some(level), Algorithm::Lz4 | Algorithm::None) = (self.compression_level, self.compressor) {
            let compressor = self.compressor().word();
            return together(format!(
                "compression-level={level} with compressor={compressor}: only zstd has levels"
            ));
        }
        self.build_options(0).check().or_else(|error| together(error.to_string()))
    }

    fn compressor(&self) -> Compressor {
        match (self.compressor, self.compression_level) {
            (Algorithm::Zstd, Some(level)) => Compressor::Zstd { level },
            (Algorithm::Zstd, None) => Compressor::default(),
            (Algorithm::Lz4, _) => Compressor::Lz4,
            (Algorithm::None, _) => Compressor::None,
        }
    }

    /// How layers are built, with `threads` workers each, without a dictionary.
    fn build_options(&self, threads: usize) -> BuildOptions {
        BuildOptions {
            compressor: self.compressor(),
            digester: self.digester,
            chunk_size: self.chunk_size,
            batch_size: self.batch_size,
            threads,
            dictionary: None,
        }
    }
}

#[cfg(test)]
mod tests;
