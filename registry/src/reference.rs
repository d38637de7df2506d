//! Image references as people type them, normalised as containerd and Docker do.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, DigestAlgorithm};

/// The host that short names such as `busybox` stand for.
const DOCKER_HUB: &str = "docker.io";

/// What it was called once.
const LEGACY_DOCKER_HUB: &str = "index.docker.io";

/// What a reference without tag and digest means.
const DEFAULT_TAG: &str = "latest";

/// A text that is no image reference.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("image reference {text:?}: {reason}; expected [HOST[:PORT]/]NAME[:TAG][@DIGEST]")]
pub struct InvalidReference {
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A repository: a registry and a name in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: String,
    name: String,
}

impl Repository {
    /// The repository that `text` (`HOST[:PORT]/NAME`, or a Docker short name) means; a tag or digest in it is an error.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let (reference, given) = parse(text)?;
        if given || reference.digest.is_some() {
            let reason = "a repository has no tag or digest".to_owned();
            return Err(InvalidReference { text: text.to_owned(), reason });
        }
        Ok(reference.repository)
    }

    /// The registry as named in references: `docker.io`, `127.0.0.1:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The name within the registry: `library/busybox`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same registry's repository `name`.
    pub fn sibling(&self, name: &str) -> Result<Self, InvalidReference> {
        Self::parse(&format!("{}/{name}", self.host))
    }

    /// The reference to `tag` in this repository.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, InvalidReference> {
        Reference::parse(&format!("{self}:{tag}"))
    }

    /// The reference to `digest` in this repository.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// A manifest in a repository: by tag, by digest, or by both (then the digest counts).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// What `text` means: `busybox` is `docker.io/library/busybox:latest`.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        Ok(parse(text)?.0)
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The registry as named in references.
    pub fn host(&self) -> &str {
        &self.repository.host
    }

    /// The tag, unless the reference is by digest alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What stands in a manifest's URL: the digest if there is one, else the tag.
    pub fn identifier(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_ref(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same repository's manifest `digest`.
    pub fn at_digest(&self, digest: Digest) -> Self {
        self.repository.with_digest(digest)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        Self::parse(text)
    }
}

/// The reference, and whether its tag was written out. By hand: the grammar's regular expression takes 4 MB compiled, and
/// more for each thread that uses it, in processes that are to be small.
fn parse(text: &str) -> Result<(Reference, bool), InvalidReference> {
    let invalid = |reason: String| InvalidReference { text: text.to_owned(), reason };
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(parse_digest(digest).map_err(invalid)?)),
        None => (text, None),
    };
    // What is behind the last colon is a port, if a name follows.
    let (full_name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(invalid(format!(
            "{tag:?} is no tag: up to 128 letters, digits, _ . -, not . or - first"
        )));
    }
    let (host, name) = split_host(full_name);
    if !is_host(host) {
        return Err(invalid(format!("{host:?} is no host")));
    }
    let host = if host == LEGACY_DOCKER_HUB { DOCKER_HUB } else { host };
    let is_official = host == DOCKER_HUB && !name.contains('/');
    let name = if is_official { format!("library/{name}") } else { name.to_owned() };
    if !is_name(&name) {
        return Err(invalid(format!(
            "{name:?} is no repository name: lower-case letters and digits, parts joined by . _ - /"
        )));
    }
    let given = tag.is_some();
    let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
    Ok((Reference { repository: Repository { host: host.to_owned(), name }, tag, digest }, given))
}

/// A digest by an algorithm that registries know, with as many digits as it has.
fn parse_digest(text: &str) -> Result<Digest, String> {
    let digest = Digest::from_str(text).map_err(|error| error.to_string())?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512 => Ok(digest),
        other => Err(format!("digests by {other} are not known")),
    }
}

/// The host of a full name and the name there. What is before the first slash is a host if it can be nothing else.
fn split_host(full_name: &str) -> (&str, &str) {
    match full_name.split_once('/') {
        Some((host, name)) if host.contains(['.', ':', ']']) || host == "localhost" => (host, name),
        _ => (DOCKER_HUB, full_name),
    }
}

/// Whether `host` can be one: an IPv6 address in brackets, or names of letters, digits, dashes and, as parts of
/// repositories' names have them, underscores; and a port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let label = |label: &str| {
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        let inner = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
        ends(bytes.first()) && ends(bytes.last()) && inner
    };
    name.split('.').all(label) || (port.is_none() && is_name(name))
}

/// Whether `name` is a repository's: `[a-z0-9]+` joined by `.`, `_`, `__` or dashes, in parts joined by `/`. Such a name
/// is also a safe relative path.
pub(crate) fn is_name(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = bytes.first().is_some_and(&alphanumeric) && bytes.last().is_some_and(&alphanumeric);
        let separators = bytes.split(&alphanumeric).filter(|separator| !separator.is_empty());
        ends && separators
            .into_iter()
            .all(|s| matches!(s, b"." | b"_" | b"__") || s.iter().all(|byte| *byte == b'-'))
    };
    // The limit of CNCF distribution.
    name.len() <= 255 && name.split('/').all(part)
}

/// Whether `tag` is one: up to 128 word characters, dots and dashes, the first a word character.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|byte| word(*byte))
        && bytes.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-'))
}

/// Whether `host` (`HOST[:PORT]`) is this machine: such registries speak plain HTTP unless told otherwise.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host that serves the registry `host`: Docker Hub's API is not under the name its references have.
pub(crate) fn api_host(host: &str) -> &str {
    if host == DOCKER_HUB { "registry-1.docker.io" } else { host }
}

#[cfg(test)]
mod tests {
    use oci_spec::distribution::Reference as Parsed;
    use proptest::prelude::*;

    use super::*;

    /// What the grammar of the specification's crate makes of it: host, name, tag and digest.
    fn by_the_grammar(text: &str) -> Option<(String, String, Option<String>, Option<Digest>)> {
        let parsed = Parsed::try_from(text).ok()?;
        let digest = parsed.digest().map(Digest::from_str).transpose().ok()?;
        let name = parsed.repository().to_owned();
        let tag = parsed.tag().map(str::to_owned);
        is_name(&name).then(|| (parsed.registry().to_owned(), name, tag, digest))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn references_are_what_the_grammar_says(
            text in "(localhost|index\\.docker\\.io|[aA0._:/-]{0,5}|[a-z]{0,3})?[aA0._:/-]{0,8}(@(sha256|SHA256|md5|a_b):([a0A]{64}|[a0]{0,3}))?@?"
        ) {
            let ours = Reference::parse(&text).ok();
            let ours = ours.map(|Reference { repository: Repository { host, name }, tag, digest }| (host, name, tag, digest));
            prop_assert_eq!(ours, by_the_grammar(&text));
        }
    }

    #[test]
    fn docker_short_names_are_completed() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("library/busybox:1.36", "docker.io/library/busybox:1.36"),
            ("index.docker.io/user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("127.0.0.1:5000/demo:v1", "127.0.0.1:5000/demo:v1"),
            ("[::1]:5000/team/demo:v1", "[::1]:5000/team/demo:v1"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full);
        }
    }

    #[test]
    fn a_digest_stands_alone_or_with_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let both = Reference::parse(&format!("host:1/app:v1@{digest}")).unwrap();
        assert_eq!((both.tag(), both.identifier()), (Some("v1"), digest.as_str()));
        let alone = Reference::parse(&format!("host:1/app@{digest}")).unwrap();
        assert_eq!((alone.tag(), alone.identifier()), (None, digest.as_str()));
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_text_and_the_expected_form() {
        for text in ["", "UPPER/case", "host:1/app:", "host/app@sha256:short", "a b", "[::z]:1/app", "../x"] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn names_and_tags_that_could_leave_their_folder_are_refused() {
        for name in ["a", "a/b", "a0.b_c__d--e/f", &"a".repeat(255)] {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.b", "_a", "a___b", "a..b", "A", "a\0", "é"]
        {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_tag("v1.2-rc_3") && is_tag("_x") && is_tag(&"a".repeat(128)));
        for tag in ["", ".", "..", "-a", "a/b", "a:b", &"a".repeat(129)] {
            assert!(!is_tag(tag), "{tag}");
        }
    }

    #[test]
    fn a_repository_takes_neither_tag_nor_digest() {
        assert_eq!(Repository::parse("127.0.0.1:5000/demo").unwrap().name(), "demo");
        assert!(Repository::parse("127.0.0.1:5000/demo:v1").is_err());
        assert!(Repository::parse("127.0.0.1:5000/demo:latest").is_err());
    }

    #[test]
    fn loopback_hosts_are_recognised_with_and_without_port() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1:5000", "localhost.example.org"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
