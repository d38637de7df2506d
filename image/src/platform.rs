//! Platforms as people type them and indexes name them, matched as containerd matches them.
//!
//! | asked for | is | and where that is missing |
//! |---|---|---|
//! | `linux/amd64` | the baseline, `v1` | |
//! | `linux/arm64` | `v8` | |
//! | `linux/arm` | `v7` | `v6`, then `v5`: what a machine of today runs |
//! | `linux/arm/v6`, or any other with its variant | exactly this | |
//!
//! Another architecture that the machine happens to run as well (`386` on amd64) is never taken for what was asked for.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Os, Platform};
use thiserror::Error;

/// Operating systems, as Go names them.
const OPERATING_SYSTEMS: [&str; 18] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
    "zos",
];

/// Architectures, as Go names them.
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "arm64be",
    "armbe",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// A text that is no platform.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidPlatform {
    /// It has another form.
    #[error("platform {0:?}: expected OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64 or linux/arm/v7")]
    Form(String),
    /// Nobody knows the operating system.
    #[error(
        "platform {text:?}: unknown operating system {os:?}; expected one such as linux, windows, darwin"
    )]
    OperatingSystem {
        /// The text as given.
        text: String,
        /// Its operating system.
        os: String,
    },
    /// Nobody knows the architecture.
    #[error(
        "platform {text:?}: unknown architecture {architecture:?}; expected one such as amd64, arm64, arm, riscv64, \
         s390x, ppc64le"
    )]
    Architecture {
        /// The text as given.
        text: String,
        /// Its architecture.
        architecture: String,
    },
}

/// A platform asked for, or one that something is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlatformName {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A platform by the one name that all its spellings have.
#[derive(PartialEq, Eq)]
struct Canonical {
    os: String,
    architecture: String,
    /// `None`: the architecture's baseline.
    variant: Option<String>,
}

impl PlatformName {
    /// This machine's.
    pub fn host() -> Self {
        Self { os: Os::default().to_string(), architecture: Arch::default().to_string(), variant: None }
    }

    /// The platform that an index's entry states, in its own words.
    pub fn of(platform: &Platform) -> Self {
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        Self::stated(&os, &architecture, platform.variant().as_deref())
    }

    /// The platform that an image config states, in its own words.
    pub(crate) fn stated(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_owned);
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
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

    /// The platform as an index's entry says it.
    pub fn to_json(&self) -> serde_json::Value {
        let mut platform = serde_json::json!({ "architecture": self.architecture(), "os": self.os() });
        if let Some(variant) = self.variant() {
            platform["variant"] = serde_json::json!(variant);
        }
        platform
    }

    /// Whether this is what builders call what is for no platform, such as attestations: `unknown/unknown`.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether `found` is what this asks for, or serves instead of it.
    pub fn matches(&self, found: &Self) -> bool {
        self.rank(found).is_some()
    }

    /// How well `found` is what this asks for: 0 is exactly it, more serves instead of what ranks lower.
    pub fn rank(&self, found: &Self) -> Option<usize> {
        let (wanted, found) = (self.canonical(), found.canonical());
        if wanted == found {
            return Some(0);
        }
        let same = (&wanted.os, &wanted.architecture) == (&found.os, &found.architecture);
        if !same || self.variant.is_some() || wanted.architecture != "arm" {
            return None;
        }
        match found.variant.as_deref() {
            Some("v6") => Some(1),
            Some("v5") => Some(2),
            _ => None,
        }
    }

    fn canonical(&self) -> Canonical {
        let (architecture, implied) = match self.architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "i386" => ("386".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            other => (other.to_owned(), None),
        };
        let stated = self.variant.as_deref().map(str::to_ascii_lowercase);
        let variant = stated.as_deref().or(implied);
        let variant = match (architecture.as_str(), variant) {
            ("amd64", Some("v1" | "1")) | ("arm64", Some("v8" | "8" | "v8.0" | "8.0")) => None,
            ("arm64", Some("9" | "9.0" | "v9.0")) => Some("v9".to_owned()),
            ("arm", None) => Some("v7".to_owned()),
            ("arm", Some(number @ ("5" | "6" | "7" | "8"))) => Some(format!("v{number}")),
            (_, variant) => variant.map(str::to_owned),
        };
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        Canonical { os, architecture, variant }
    }
}

impl FromStr for PlatformName {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let form = || InvalidPlatform::Form(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(form()),
        };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if parts.iter().any(|part| part.is_empty() || !part.bytes().all(word)) {
            return Err(form());
        }
        let given = Self { os: os.to_owned(), architecture: architecture.to_owned(), variant };
        let Canonical { os, architecture, variant } = given.canonical();
        if !OPERATING_SYSTEMS.contains(&os.as_str()) {
            return Err(InvalidPlatform::OperatingSystem { text: text.to_owned(), os: given.os });
        }
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            let architecture = given.architecture;
            return Err(InvalidPlatform::Architecture { text: text.to_owned(), architecture });
        }
        // What was left open stays open, and what was stated as the baseline stays stated.
        let implied = given.architecture.eq_ignore_ascii_case("armhf")
            || given.architecture.eq_ignore_ascii_case("armel");
        let variant = if given.variant.is_some() || implied { variant.or(given.variant) } else { None };
        Ok(Self { os, architecture, variant })
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Which of `found` serve the platforms `wanted`, all where that is empty: for each wanted one what serves it best.
///
/// # Errors
///
/// The wanted one that nothing serves.
pub fn chosen<'a>(
    wanted: &'a [PlatformName],
    found: &[&PlatformName],
) -> Result<Vec<bool>, &'a PlatformName> {
    let mut chosen = vec![wanted.is_empty(); found.len()];
    for platform in wanted {
        let ranks: Vec<Option<usize>> = found.iter().map(|found| platform.rank(found)).collect();
        let best = ranks.iter().flatten().min().ok_or(platform)?;
        for (chosen, rank) in chosen.iter_mut().zip(&ranks) {
            *chosen |= rank.as_ref() == Some(best);
        }
    }
    Ok(chosen)
}

/// `linux/amd64, linux/arm/v7`, each once: what there is, for messages about what there is not.
pub fn listed<'a>(platforms: impl IntoIterator<Item = &'a PlatformName>) -> String {
    let mut names: Vec<String> = Vec::new();
    for platform in platforms {
        let name = platform.to_string();
        if !platform.is_unknown() && !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> PlatformName {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As an index may state it: not parsed, so not corrected.
    fn stated(text: &str) -> PlatformName {
        let mut parts = text.split('/').map(str::to_owned);
        PlatformName { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    #[test]
    fn a_platform_ranks_what_serves_it() {
        for (wanted, found, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/x86_64", Some(0)),
            ("linux/amd64", "linux/amd64/v1", Some(0)),
            ("linux/amd64/v1", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v3", "linux/amd64/v3", Some(0)),
            ("linux/amd64/v3", "linux/amd64", None),
            ("linux/amd64", "linux/386", None),
            ("linux/amd64", "windows/amd64", None),
            ("linux/x86_64", "linux/amd64", Some(0)),
            ("linux/arm", "linux/arm/v7", Some(0)),
            ("linux/arm", "linux/arm", Some(0)),
            ("linux/arm", "linux/arm/v6", Some(1)),
            ("linux/arm", "linux/arm/v5", Some(2)),
            ("linux/arm", "linux/arm/v8", None),
            ("linux/arm/v7", "linux/arm/v7", Some(0)),
            ("linux/arm/v7", "linux/arm/7", Some(0)),
            ("linux/arm/v7", "linux/arm", Some(0)),
            ("linux/arm/v7", "linux/arm/v6", None),
            ("linux/arm/v6", "linux/arm/v6", Some(0)),
            ("linux/arm/v6", "linux/armel", Some(0)),
            ("linux/armhf", "linux/arm/v7", Some(0)),
            ("linux/armhf", "linux/arm/v6", None),
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/arm64", "linux/aarch64", Some(0)),
            ("linux/arm64", "linux/arm64/v9", None),
            ("linux/arm64/v9", "linux/arm64/v9.0", Some(0)),
            ("linux/arm64", "linux/arm/v7", None),
            ("macos/arm64", "darwin/arm64", Some(0)),
            ("linux/riscv64", "linux/riscv64", Some(0)),
        ] {
            assert_eq!(platform(wanted).rank(&stated(found)), rank, "{wanted} and {found}");
        }
    }

    #[test]
    fn the_best_is_chosen_whatever_the_order() {
        let choose = |wanted: &[&str], found: &[&str]| {
            let wanted: Vec<PlatformName> = wanted.iter().map(|text| platform(text)).collect();
            let index: Vec<PlatformName> = found.iter().map(|text| stated(text)).collect();
            let chosen = chosen(&wanted, &index.iter().collect::<Vec<_>>()).map_err(ToString::to_string)?;
            let names = chosen.iter().zip(&index).filter(|(chosen, _)| **chosen).map(|(_, name)| name);
            Ok::<_, String>(listed(names))
        };
        let arms = ["linux/arm/v6", "linux/arm64/v8", "linux/arm/v7"];
        assert_eq!(choose(&["linux/arm"], &arms).as_deref(), Ok("linux/arm/v7"));
        assert_eq!(choose(&["linux/arm"], &["linux/arm/v5", "linux/arm/v6"]).as_deref(), Ok("linux/arm/v6"));
        assert_eq!(
            choose(&["linux/arm64", "linux/arm/v6"], &arms).as_deref(),
            Ok("linux/arm/v6, linux/arm64/v8")
        );
        assert_eq!(choose(&[], &arms).as_deref(), Ok("linux/arm/v6, linux/arm64/v8, linux/arm/v7"));
        assert_eq!(choose(&["linux/arm", "linux/amd64"], &arms), Err("linux/amd64".to_owned()));
    }

    #[test]
    fn what_is_no_platform_is_refused_by_its_wrong_part() {
        for (text, word) in [
            ("", "OS/ARCH"),
            ("linux", "OS/ARCH"),
            ("linux/", "OS/ARCH"),
            ("/amd64", "OS/ARCH"),
            ("linux/amd64/v1/x", "OS/ARCH"),
            ("linux/amd 64", "OS/ARCH"),
            ("linux/bogus", "unknown architecture \"bogus\""),
            ("linus/amd64", "unknown operating system \"linus\""),
            ("unknown/unknown", "unknown operating system"),
        ] {
            let error = text.parse::<PlatformName>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn a_list_names_each_once_and_leaves_out_what_is_for_none() {
        let names = ["linux/arm/v7", "unknown/unknown", "linux/amd64", "linux/arm/v7"].map(stated);
        assert_eq!(listed(&names), "linux/arm/v7, linux/amd64");
        assert_eq!(listed(&[]), "none");
    }

    #[test]
    fn spellings_are_corrected_and_what_is_left_open_stays_open() {
        for (text, name) in [
            ("Linux/AArch64", "linux/arm64"),
            ("linux/x86-64", "linux/amd64"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm", "linux/arm"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(platform(text).to_string(), name);
        }
    }
}
