//! What a user writes behind `--output type=nydus-cluster,…`: our own keys, checked here because BuildKit's exporter in
//! whose place we stand accepts unknown ones silently.

use std::collections::BTreeMap;

use registry::reference::{InvalidReference, Reference};

/// The exporter type that is ours.
pub(crate) const EXPORTER_TYPE: &str = "nydus-cluster";

mod key {
    pub(super) const NAME: &str = "name";
    pub(super) const PUSH: &str = "push";
    pub(super) const INSECURE: &str = "registry.insecure";
    pub(super) const OCI_MEDIA_TYPES: &str = "oci-mediatypes";
    pub(super) const LAYER_COMPRESSION: &str = "layer-compression";
}

/// The keys that are ours, as errors list them.
const OWN_KEYS: [&str; 5] =
    [key::NAME, key::PUSH, key::INSECURE, key::OCI_MEDIA_TYPES, key::LAYER_COMPRESSION];

/// Keys that BuildKit itself acts on while it makes the image that we convert.
const PASSED_KEYS: [&str; 3] = ["oci-artifact", "rewrite-timestamp", "source-date-epoch"];

/// `annotation.KEY`, `annotation-manifest.KEY`, `annotation[PLATFORM].KEY` and so on: BuildKit's as well.
const PASSED_PREFIX: &str = "annotation";

/// What is wrong with an output's keys.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AttrError {
    #[error(
        "type={EXPORTER_TYPE}: unknown key {key:?}; known are {}, {} and annotation.* keys",
        OWN_KEYS.join(", "), PASSED_KEYS.join(", ")
    )]
    UnknownKey { key: String },
    #[error("type={EXPORTER_TYPE}: {key}={value:?} is no boolean; expected true or false")]
    NoBoolean { key: &'static str, value: String },
    #[error("type={EXPORTER_TYPE}: layer-compression={value:?}; expected uncompressed, gzip or zstd")]
    Compression { value: String },
    #[error("type={EXPORTER_TYPE}: name: {0}")]
    Name(#[from] InvalidReference),
    #[error(
        "type={EXPORTER_TYPE}: name={name} has a digest; a name to push to has a tag or nothing after it"
    )]
    NameWithDigest { name: String },
    #[error("type={EXPORTER_TYPE}: a name is needed to push to: name=HOST[:PORT]/NAME[:TAG], or push=false")]
    NoName,
    #[error(
        "type={EXPORTER_TYPE}: {first} and {other} are in different repositories; names of one output must share theirs, \
         so write one --output for each repository"
    )]
    Repositories { first: String, other: String },
}

/// How BuildKit compresses layers that have no compressed form yet, before it hands them to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LayerCompression {
    /// As plain tar: fastest, but what BuildKit keeps for this layer is plain from then on.
    Uncompressed,
    /// For builders that also push plain images.
    Gzip,
    /// For builders that also push plain images.
    Zstd,
}

impl LayerCompression {
    /// BuildKit's word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// An output's keys, checked.
#[derive(Clone, Debug)]
pub(crate) struct Attrs {
    /// Where the image goes: names in one repository. Empty only without push.
    pub(crate) names: Vec<Reference>,
    /// Whether anything leaves this machine.
    pub(crate) push: bool,
    /// Whether the registry may be spoken to without TLS or with any certificate.
    pub(crate) insecure: bool,
    /// OCI's media types, or Docker's.
    pub(crate) oci_media_types: bool,
    /// The user's choice; none: what goes best with the other outputs.
    pub(crate) layer_compression: Option<LayerCompression>,
    /// What BuildKit is to see.
    pub(crate) passed: BTreeMap<String, String>,
}

impl Attrs {
    /// Checks the keys of one output.
    pub(crate) fn parse(attrs: &BTreeMap<String, String>) -> Result<Self, AttrError> {
        let mut parsed = Self {
            names: Vec::new(),
            push: true,
            insecure: false,
            oci_media_types: true,
            layer_compression: None,
            passed: BTreeMap::new(),
        };
        for (name, value) in attrs {
            match name.as_str() {
                key::NAME => parsed.names = names(value)?,
                key::PUSH => parsed.push = boolean(key::PUSH, value)?,
                key::INSECURE => parsed.insecure = boolean(key::INSECURE, value)?,
                key::OCI_MEDIA_TYPES => parsed.oci_media_types = boolean(key::OCI_MEDIA_TYPES, value)?,
                key::LAYER_COMPRESSION => parsed.layer_compression = Some(compression(value)?),
                passed if PASSED_KEYS.contains(&passed) || passed.starts_with(PASSED_PREFIX) => {
                    parsed.passed.insert(name.clone(), value.clone());
                }
                _ => return Err(AttrError::UnknownKey { key: name.clone() }),
            }
        }
        if parsed.push && parsed.names.is_empty() {
            return Err(AttrError::NoName);
        }
        Ok(parsed)
    }

    /// The name that stands for the image in progress output.
    pub(crate) fn title(&self) -> String {
        self.names.first().map_or_else(|| "unnamed image".to_owned(), ToString::to_string)
    }
}

/// Names separated by commas, as BuildKit's image exporter takes them.
fn names(value: &str) -> Result<Vec<Reference>, AttrError> {
    let mut names: Vec<Reference> = Vec::new();
    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            return Err(AttrError::NameWithDigest { name: name.to_owned() });
        }
        if let Some(first) = names.first()
            && first.repository() != reference.repository()
        {
            return Err(AttrError::Repositories { first: first.to_string(), other: reference.to_string() });
        }
        names.push(reference);
    }
    Ok(names)
}

/// A boolean as Go's `strconv.ParseBool`, which BuildKit uses, takes it; an empty value is true as in BuildKit.
fn boolean(key: &'static str, value: &str) -> Result<bool, AttrError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(AttrError::NoBoolean { key, value: value.to_owned() }),
    }
}

fn compression(value: &str) -> Result<LayerCompression, AttrError> {
    match value {
        "uncompressed" => Ok(LayerCompression::Uncompressed),
        "gzip" => Ok(LayerCompression::Gzip),
        "zstd" => Ok(LayerCompression::Zstd),
        _ => Err(AttrError::Compression { value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(attrs: &[(&str, &str)]) -> Result<Attrs, AttrError> {
        Attrs::parse(&attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_name_is_pushed_to_by_default_with_oci_media_types() {
        let attrs = parse(&[("name", "127.0.0.1:5000/demo:v1")]).unwrap();
        assert!(attrs.push && attrs.oci_media_types && !attrs.insecure);
        assert_eq!(attrs.title(), "127.0.0.1:5000/demo:v1");
    }

    #[test]
    fn an_unknown_key_is_named_together_with_all_known_ones() {
        let error = parse(&[("name", "h:1/demo"), ("compresion", "zstd")]).unwrap_err().to_string();
        for word in OWN_KEYS.iter().chain(&PASSED_KEYS).chain(&["\"compresion\"", "annotation"]) {
            assert!(error.contains(word), "{word} in {error}");
        }
    }

    #[test]
    fn annotations_and_source_date_are_left_to_buildkit() {
        let attrs =
            parse(&[("name", "h:1/demo"), ("annotation.a", "b"), ("source-date-epoch", "0")]).unwrap();
        assert_eq!(attrs.passed.len(), 2);
    }

    #[test]
    fn a_push_needs_a_name_and_a_name_needs_no_digest() {
        assert_eq!(parse(&[]).unwrap_err(), AttrError::NoName);
        assert!(parse(&[("push", "false")]).is_ok());
        let digest = format!("h:1/demo@sha256:{}", "a".repeat(64));
        assert!(matches!(parse(&[("name", &digest)]), Err(AttrError::NameWithDigest { .. })));
    }

    #[test]
    fn several_names_share_a_repository() {
        assert_eq!(parse(&[("name", "h:1/demo:a,h:1/demo:b")]).unwrap().names.len(), 2);
        assert!(matches!(parse(&[("name", "h:1/demo:a,h:2/demo:a")]), Err(AttrError::Repositories { .. })));
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        for (key, value) in [("push", "yes"), ("oci-mediatypes", "2"), ("layer-compression", "lz4")] {
            let error = parse(&[("name", "h:1/demo"), (key, value)]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }
}
