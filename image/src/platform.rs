//! Platforms as people type them and indexes name them.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Os, Platform};
use thiserror::Error;

/// A text that is no platform.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("platform {0:?}: expected OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64 or linux/arm/v7")]
pub struct InvalidPlatform(String);

/// A platform asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlatformName {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl PlatformName {
    /// This machine's.
    pub fn host() -> Self {
        Self { os: Os::default().to_string(), architecture: Arch::default().to_string(), variant: None }
    }

    /// The platform that an index or an image config states.
    pub fn of(platform: &Platform) -> Self {
        let variant = platform.variant().clone().filter(|variant| !variant.is_empty());
        Self { os: platform.os().to_string(), architecture: platform.architecture().to_string(), variant }
    }

    /// The operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor's architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The architecture's variant.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Whether this is what builders call what is for no platform, such as attestations: `unknown/unknown`.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether `found` is what this asks for: without a variant any variant is.
    pub fn matches(&self, found: &Self) -> bool {
        let variant = self.variant.is_none() || effective_variant(self) == effective_variant(found);
        (&self.os, &self.architecture) == (&found.os, &found.architecture) && variant
    }
}

/// The variant, or what its absence means.
fn effective_variant(platform: &PlatformName) -> Option<&str> {
    let implied = match platform.architecture.as_str() {
        "arm64" => Some("v8"),
        "arm" => Some("v7"),
        _ => None,
    };
    platform.variant.as_deref().or(implied)
}

impl FromStr for PlatformName {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(InvalidPlatform(text.to_owned())),
        };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if parts.iter().any(|part| part.is_empty() || !part.bytes().all(word)) {
            return Err(InvalidPlatform(text.to_owned()));
        }
        // The kernel's names of what OCI names as Go does.
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> PlatformName {
        text.parse().unwrap()
    }

    #[test]
    fn a_variant_counts_if_it_is_asked_for() {
        assert!(platform("linux/arm").matches(&platform("linux/arm/v6")));
        assert!(platform("linux/arm64/v8").matches(&platform("linux/arm64")));
        assert!(!platform("linux/arm/v7").matches(&platform("linux/arm/v6")));
        assert!(!platform("linux/amd64").matches(&platform("windows/amd64")));
        assert_eq!(platform("linux/x86_64"), platform("linux/amd64"));
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/amd 64"] {
            assert!(text.parse::<PlatformName>().is_err(), "{text}");
        }
    }
}
