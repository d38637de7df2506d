//! Content digests (`sha256:…`, `sha512:…`) and hashing of data while it flows.

use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

pub use oci_spec::image::{Digest, DigestAlgorithm};

/// A digest whose algorithm nothing here can compute.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("digest {0}: only sha256 and sha512 can be computed here")]
pub struct UnsupportedAlgorithm(pub String);

/// A running hash.
#[derive(Clone, Debug)]
pub struct Hasher(Hashing);

#[derive(Clone, Debug)]
enum Hashing {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A SHA-256 hash of nothing so far: what registries address content by.
    pub fn sha256() -> Self {
        Self(Hashing::Sha256(Sha256::new()))
    }

    /// A hash of the algorithm that `digest` uses, to verify data against it.
    pub fn like(digest: &Digest) -> Result<Self, UnsupportedAlgorithm> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::sha256()),
            DigestAlgorithm::Sha512 => Ok(Self(Hashing::Sha512(Sha512::new()))),
            _ => Err(UnsupportedAlgorithm(digest.to_string())),
        }
    }

    /// Adds `data` to the hash.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Hashing::Sha256(hash) => hash.update(data),
            Hashing::Sha512(hash) => hash.update(data),
        }
    }

    /// The digest of all data added.
    pub fn finish(self) -> Digest {
        let text = match self.0 {
            Hashing::Sha256(hash) => format!("sha256:{}", hex::encode(hash.finalize())),
            Hashing::Sha512(hash) => format!("sha512:{}", hex::encode(hash.finalize())),
        };
        Digest::try_from(text).expect("a known algorithm and its full hexadecimal value are a valid digest")
    }
}

/// The SHA-256 digest of `data`.
pub fn sha256(data: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(data);
    hasher.finish()
}

/// Whether `data` has `digest`.
pub fn matches(digest: &Digest, data: &[u8]) -> Result<bool, UnsupportedAlgorithm> {
    let mut hasher = Hasher::like(digest)?;
    hasher.update(data);
    Ok(hasher.finish() == *digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_string_has_its_published_digests() {
        assert_eq!(
            sha256(b"").as_ref(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let sha512 = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                      47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
        assert!(matches(&sha512.parse().unwrap(), b"").unwrap());
        assert!(!matches(&sha512.parse().unwrap(), b"x").unwrap());
    }

    #[test]
    fn an_algorithm_that_cannot_be_computed_is_named() {
        let digest: Digest = "md5:d41d8cd98f00b204e9800998ecf8427e".parse().unwrap();
        assert!(Hasher::like(&digest).unwrap_err().to_string().contains("md5:"));
    }
}
