//! Chunk compressors.

/// How chunks are compressed, with the level where the algorithm has one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Compressor {
    /// Stored as they are.
    None,
    /// LZ4 block format, without a size prefix.
    Lz4,
    /// One zstd frame a chunk; the level is used when writing and unknown (0) when read from an image.
    Zstd {
        /// zstd's compression level.
        level: i32,
    },
}

impl Default for Compressor {
    fn default() -> Self {
        Self::Zstd { level: 3 }
    }
}
