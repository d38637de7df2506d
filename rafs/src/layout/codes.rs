//! The numbers by which the format names compressors and digest algorithms.

use super::flags::{compressor, digest};
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;

impl Compressor {
    /// The number in blob table and chunk-info header.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::None => compressor::NONE,
            Self::Lz4 => compressor::LZ4_BLOCK,
            Self::Zstd { .. } => compressor::ZSTD,
        }
    }

    /// The compressor of this number, or why there is none.
    pub(crate) fn from_number(number: u32) -> Result<Self, &'static str> {
        match number {
            compressor::NONE => Ok(Self::None),
            compressor::LZ4_BLOCK => Ok(Self::Lz4),
            compressor::ZSTD => Ok(Self::Zstd { level: 0 }),
            compressor::GZIP => Err("gzip compression is not supported"),
            _ => Err("unknown compressor"),
        }
    }
}

impl DigestAlgorithm {
    /// The number in the blob table.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Blake3 => digest::BLAKE3,
            Self::Sha256 => digest::SHA256,
        }
    }

    /// The algorithm of this number.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            digest::BLAKE3 => Some(Self::Blake3),
            digest::SHA256 => Some(Self::Sha256),
            _ => None,
        }
    }
}
