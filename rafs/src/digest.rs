//! Chunk and blob digests.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// The algorithm that chunk digests of an image are made with.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum DigestAlgorithm {
    /// BLAKE3, upstream's default.
    #[default]
    Blake3,
    /// SHA-256.
    Sha256,
}

impl DigestAlgorithm {
    /// The algorithm in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Digest {
        match self {
            Self::Blake3 => Digest(*blake3::hash(data).as_bytes()),
            Self::Sha256 => Digest(sha2::Sha256::digest(data).into()),
        }
    }
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A 32-byte digest; which algorithm made it is known from its place.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no digest: expected 64 hexadecimal digits")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseDigestError(text.to_owned()))?;
        Ok(Self(bytes))
    }
}
