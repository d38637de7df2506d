//! What tells whether a converted layer is what these options would make of its source again.

use std::fmt;

use rafs::compress::Compressor;
use registry::digest::{Digest, sha256};

use super::Options;

/// The version of what a layer becomes. It rises when the same options make something else of the same layer that must not
/// be mixed up with what was made before.
const VERSION: u32 = 1;

/// Hexadecimal digits of the hash that are kept: 128 bits, so that nobody finds two options with the same.
const DIGITS: usize = 32;

/// Names all that decides what a layer becomes: `VERSION-HASH`, the hash being 32 hexadecimal digits. Equal fingerprints
/// and equal sources give equal layers; the name may be stored and compared later, on other machines too.
///
/// | enters | because |
/// |---|---|
/// | `compressor`, `compression-level` (3 where none is given) | chunks are stored so |
/// | `chunk-size`, `batch-size`, `digester` | chunks are cut, packed and named so |
/// | `chunk-dict`: a digest over the ids of its blobs | its chunks are referred to |
/// | the version of the conversion itself, which comes first in the name | what it makes may change |
///
/// All other options concern the image and not its layers: `prefetch`, `inline-chunk-info`, `flatten`, `also-oci`, `platform`. Threads
/// change nothing.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// That of `options`, with a dictionary of this digest.
    pub(super) fn of(options: &Options, dictionary: Option<&Digest>) -> Self {
        let (compressor, level) = match options.compressor() {
            Compressor::Zstd { level } => ("zstd", level),
            compressor => (compressor.word(), 0),
        };
        let text = format!(
            "compressor={compressor}\ncompression-level={level}\nchunk-size={}\nbatch-size={}\ndigester={}\nchunk-dict={}\n",
            options.chunk_size,
            options.batch_size.unwrap_or(0),
            options.digester.word(),
            dictionary.map_or("", AsRef::as_ref),
        );
        Self(format!("{VERSION}-{}", &sha256(text.as_bytes()).digest()[..DIGITS]))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
