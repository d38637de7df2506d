//! What a user writes behind `--output type=nydus-cluster,…`: our own keys, checked here because BuildKit's exporter in
//! whose place we stand accepts unknown ones silently.

mod annotations;

use std::collections::BTreeMap;

use image::options::{Options, OptionsError, Used, Word, boolean};
use registry::digest::Digest;
use registry::reference::{InvalidReference, Reference, Repository};
use serde_json::Value;

use crate::client::disk::RootAnnotations;
use annotations::{annotation, root_annotations};

/// The exporter type that is ours.
pub(crate) const EXPORTER_TYPE: &str = "nydus-cluster";

/// The key by which an output `type=oci` is ours: buildctl and buildx open files and directories of their users for types
/// that they know, and for no others.
pub(crate) const CLIENT_KEY: &str = "nydus-cluster";

mod key {
    pub(super) const DEST: &str = "dest";
    pub(super) const TAR: &str = "tar";
    pub(super) const NAME: &str = "name";
    pub(super) const PUSH: &str = "push";
    pub(super) const PUSH_BY_DIGEST: &str = "push-by-digest";
    pub(super) const NAME_CANONICAL: &str = "name-canonical";
    pub(super) const INSECURE: &str = "registry.insecure";
    pub(super) const OCI_MEDIA_TYPES: &str = "oci-mediatypes";
    pub(super) const LAYER_COMPRESSION: &str = "layer-compression";
    pub(super) const MERGE_MANIFEST: &str = "merge-manifest";
    pub(super) const IMAGES: &str = "images";
}

/// The keys that are about the output. Those about the image that is made are [`image::options::WORDS`].
const OWN_KEYS: [&str; 9] = [
    key::NAME,
    key::PUSH,
    key::PUSH_BY_DIGEST,
    key::NAME_CANONICAL,
    key::INSECURE,
    key::OCI_MEDIA_TYPES,
    key::LAYER_COMPRESSION,
    key::MERGE_MANIFEST,
    key::IMAGES,
];

/// Keys that BuildKit itself acts on while it makes the image that we convert.
const PASSED_KEYS: [&str; 6] = [
    "attestation-inline",
    "force-compression",
    "oci-artifact",
    "prefer-nondist-layers",
    "rewrite-timestamp",
    "source-date-epoch",
];

/// Keys that mean nothing on the client's disk.
const PUSH_KEYS: [&str; 5] =
    [key::PUSH, key::PUSH_BY_DIGEST, key::NAME_CANONICAL, key::INSECURE, key::MERGE_MANIFEST];

/// What takes an output's image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Receiver {
    /// A registry, or nothing.
    Registry,
    /// A file of the client's.
    ClientArchive,
    /// A directory of the client's.
    ClientStore,
}

/// What is wrong with an output's keys.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum AttrError {
    #[error(
        "type={EXPORTER_TYPE}: unknown key {key:?}; known are {} and annotation.* keys",
        known_keys().collect::<Vec<_>>().join(", ")
    )]
    UnknownKey { key: String },
    #[error("type={EXPORTER_TYPE}: {0}")]
    Value(#[from] OptionsError),
    #[error(
        "type={EXPORTER_TYPE}: it has the key {key:?}, and pushes to a registry; for the client's disk write \
         type=oci,{CLIENT_KEY}=true,dest=FILE, or type=oci,{CLIENT_KEY}=true,tar=false,dest=DIRECTORY"
    )]
    Disk { key: &'static str },
    #[error("type=oci,{CLIENT_KEY}=true: {key} is of type={EXPORTER_TYPE}, which pushes to a registry")]
    Push { key: &'static str },
    #[error(
        "type={kind}: the key {CLIENT_KEY} is of type=oci; write type=oci, or type={EXPORTER_TYPE} to push"
    )]
    NotOfType { kind: String },
    #[error(
        "type={EXPORTER_TYPE}: merge-manifest=true puts the image into the index that its name has, so it goes with \
         push=true, without push-by-digest, and with OCI's media types"
    )]
    Merge,
    #[error(
        "type={EXPORTER_TYPE}: also-oci=true makes an index of OCI's media types: write it without oci-mediatypes=false"
    )]
    AlsoOci,
    #[error("type={EXPORTER_TYPE}: name: {0}")]
    Name(#[from] InvalidReference),
    #[error(
        "type={EXPORTER_TYPE}: name={name} has a digest; a name to push to has a tag or nothing after it"
    )]
    NameWithDigest { name: String },
    #[error(
        "type={EXPORTER_TYPE}: name={name} has a tag, and push-by-digest=true pushes none: write the name without"
    )]
    TagByDigest { name: String },
    #[error(
        "type={EXPORTER_TYPE}: images=ref and images=embed need a registry to push to: write images=none or push=true"
    )]
    ImagesWithoutPush,
    #[error("type={EXPORTER_TYPE}: images=embed needs a tag, and push-by-digest=true pushes none")]
    ImagesByDigest,
    #[error("type={EXPORTER_TYPE}: a name is needed to push to: name=HOST[:PORT]/NAME[:TAG], or push=false")]
    NoName,
    #[error(
        "type={EXPORTER_TYPE}: {first} and {other} are different repositories, and with merge-manifest, images=ref or images=embed \
         all names of an output are in one: write one --output for each repository"
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

/// What becomes of the container images that a cluster image asks for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Images {
    /// Nothing.
    #[default]
    None,
    /// They are locked in it.
    Ref,
    /// They are locked, and saved in its repository.
    Embed,
}

/// Which plain image the nydus image stands beside, in one index.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Beside {
    /// None.
    #[default]
    Nothing,
    /// The one that its name has.
    Named,
    /// The one that the build made, which goes where it goes.
    Own,
}

/// An output's keys, checked.
#[derive(Clone, Debug)]
pub(crate) struct Attrs {
    /// Where the image goes: to the repository of the first, and from there to those of the others. Empty only without push.
    pub(crate) names: Vec<Reference>,
    /// Whether anything leaves this machine.
    pub(crate) push: bool,
    /// Whether it is pushed under its digest alone.
    pub(crate) push_by_digest: bool,
    /// Whether the name with the digest is reported as well.
    pub(crate) name_canonical: bool,
    /// Whether the registry may be spoken to without TLS or with any certificate.
    pub(crate) insecure: bool,
    /// Which plain image it stands beside.
    pub(crate) beside: Beside,
    /// OCI's media types, or Docker's.
    pub(crate) oci_media_types: bool,
    /// The user's choice; none: what goes best with the other outputs.
    pub(crate) layer_compression: Option<LayerCompression>,
    /// What becomes of the container images that the image asks for.
    pub(crate) images: Images,
    /// What can be chosen about the image.
    pub(crate) options: Options,
    /// What takes the image.
    pub(crate) receiver: Receiver,
    /// What BuildKit is to see.
    pub(crate) passed: BTreeMap<String, String>,
}

/// Whether an output of type `kind` is ours.
pub(crate) fn is_ours(kind: &str, attrs: &BTreeMap<String, String>) -> Result<bool, AttrError> {
    match (kind, attrs.get(CLIENT_KEY)) {
        (EXPORTER_TYPE, _) => Ok(true),
        (_, None) => Ok(false),
        ("oci", Some(value)) => Ok(switch(CLIENT_KEY, value)?),
        (kind, Some(_)) => Err(AttrError::NotOfType { kind: kind.to_owned() }),
    }
}

impl Attrs {
    /// Checks the keys of one output of ours, whose type is `kind`. What they do not choose about the image is as `defaults` say.
    pub(crate) fn of(
        kind: &str,
        attrs: &BTreeMap<String, String>,
        defaults: &Options,
    ) -> Result<Self, AttrError> {
        if kind == EXPORTER_TYPE {
            return Self::parse(attrs, defaults);
        }
        if let Some(key) = PUSH_KEYS.into_iter().find(|key| attrs.contains_key(*key)) {
            return Err(AttrError::Push { key });
        }
        let mut own = attrs.clone();
        own.remove(CLIENT_KEY);
        own.insert(key::PUSH.to_owned(), false.to_string());
        let as_tar = own.remove(key::TAR).map_or(Ok(true), |value| switch(key::TAR, &value))?;
        let receiver = if as_tar { Receiver::ClientArchive } else { Receiver::ClientStore };
        Ok(Self { receiver, ..Self::parse(&own, defaults)? })
    }

    /// Checks the keys of one output.
    fn parse(attrs: &BTreeMap<String, String>, defaults: &Options) -> Result<Self, AttrError> {
        let mut parsed = Self {
            names: Vec::new(),
            push: true,
            push_by_digest: false,
            name_canonical: false,
            insecure: false,
            beside: Beside::Nothing,
            oci_media_types: true,
            layer_compression: None,
            images: Images::None,
            options: defaults.clone(),
            receiver: Receiver::Registry,
            passed: BTreeMap::new(),
        };
        let mut merge_manifest = false;
        for (name, value) in attrs {
            match name.as_str() {
                key::NAME => parsed.names = names(value)?,
                key::PUSH => parsed.push = switch(key::PUSH, value)?,
                key::PUSH_BY_DIGEST => parsed.push_by_digest = switch(key::PUSH_BY_DIGEST, value)?,
                key::NAME_CANONICAL => parsed.name_canonical = switch(key::NAME_CANONICAL, value)?,
                key::INSECURE => parsed.insecure = switch(key::INSECURE, value)?,
                key::OCI_MEDIA_TYPES => parsed.oci_media_types = switch(key::OCI_MEDIA_TYPES, value)?,
                key::MERGE_MANIFEST => merge_manifest = switch(key::MERGE_MANIFEST, value)?,
                key::LAYER_COMPRESSION => parsed.layer_compression = Some(compression(value)?),
                key::IMAGES => parsed.images = images(value)?,
                key::DEST => return Err(AttrError::Disk { key: key::DEST }),
                key::TAR => return Err(AttrError::Disk { key: key::TAR }),
                passed if PASSED_KEYS.contains(&passed) || annotation(passed).is_some() => {
                    parsed.passed.insert(name.clone(), value.clone());
                }
                word if parsed.options.set(Used::Build, word, value)? => {}
                _ => return Err(AttrError::UnknownKey { key: name.clone() }),
            }
        }
        parsed.beside = match (parsed.options.also_oci, merge_manifest) {
            // The plain image of the build is newer than whatever its name has.
            (true, _) => Beside::Own,
            (false, true) => Beside::Named,
            (false, false) => Beside::Nothing,
        };
        parsed.check(attrs.get(key::NAME).map(String::as_str).unwrap_or_default())?;
        Ok(parsed)
    }

    /// Checks that the keys go together; `names` is what was written for the name.
    fn check(&self, names: &str) -> Result<(), AttrError> {
        self.options.check()?;
        if self.push && self.names.is_empty() {
            return Err(AttrError::NoName);
        }
        match self.beside {
            Beside::Named if !self.push || self.push_by_digest || !self.oci_media_types => {
                return Err(AttrError::Merge);
            }
            Beside::Own if !self.oci_media_types => return Err(AttrError::AlsoOci),
            Beside::Nothing | Beside::Named | Beside::Own => {}
        }
        // What was built is read where it is pushed to.
        if self.images != Images::None && !self.push {
            return Err(AttrError::ImagesWithoutPush);
        }
        if self.images == Images::Embed && self.push_by_digest {
            return Err(AttrError::ImagesByDigest);
        }
        // What was saved or is there already is one repository's.
        let needs_one = self.beside == Beside::Named || self.images != Images::None;
        if let [(first, _), (other, _), ..] = &self.by_repository()[..]
            && needs_one
        {
            let [first, other] = [first, other].map(ToString::to_string);
            return Err(AttrError::Repositories { first, other });
        }
        match names.split(',').find(|name| self.push_by_digest && has_tag(name)) {
            Some(name) => Err(AttrError::TagByDigest { name: name.to_owned() }),
            None => Ok(()),
        }
    }

    /// The names of the image `digest`, as they are reported.
    pub(crate) fn names_of(&self, digest: &Digest) -> Vec<String> {
        let mut names: Vec<String> = match self.push_by_digest {
            true => Vec::new(),
            false => self.names.iter().map(ToString::to_string).collect(),
        };
        if self.name_canonical || self.push_by_digest {
            let repositories = self.by_repository().into_iter();
            names.extend(
                repositories.map(|(repository, _)| repository.with_digest(digest.clone()).to_string()),
            );
        }
        names
    }

    /// The repositories, the first name's first, each with the names in it.
    pub(crate) fn by_repository(&self) -> Vec<(&Repository, &[Reference])> {
        let by_repository = self.names.chunk_by(|one, other| one.repository() == other.repository());
        by_repository.filter_map(|names| Some((names.first()?.repository(), names))).collect()
    }

    /// The names as package URLs, by which attestations call what they are about; `platform` is as an index says it.
    pub(crate) fn package_urls(&self, platform: Option<&Value>) -> Vec<String> {
        let part = |name: &str| platform.and_then(|platform| platform.get(name)).and_then(Value::as_str);
        let platform: Vec<&str> =
            ["os", "architecture", "variant"].iter().filter_map(|name| part(name)).collect();
        let qualifier = match &platform[..] {
            [] => String::new(),
            platform => format!("?platform={}", platform.join("%2F")),
        };
        let url = |name: &Reference| {
            let full = format!("{}/{}", name.repository().host(), name.repository().name());
            // As Docker shows names, and so BuildKit.
            let short = full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/"));
            let tag = name.tag().map(|tag| format!("@{tag}")).unwrap_or_default();
            format!("pkg:docker/{}{tag}{qualifier}", short.unwrap_or(&full))
        };
        self.names.iter().map(url).collect()
    }

    /// The annotations of what names the image on the client's disk.
    pub(crate) fn root_annotations(&self) -> RootAnnotations {
        root_annotations(&self.passed)
    }

    /// The name that stands for the image in progress output.
    pub(crate) fn title(&self) -> String {
        self.names.first().map_or_else(|| "unnamed image".to_owned(), ToString::to_string)
    }
}

/// Whether a name as people write it has a tag.
fn has_tag(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// Names separated by commas, as BuildKit's image exporter takes them. Those in one repository follow each other, in the order in which
/// they were written.
fn names(value: &str) -> Result<Vec<Reference>, AttrError> {
    let mut names: Vec<Reference> = Vec::new();
    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            return Err(AttrError::NameWithDigest { name: name.to_owned() });
        }
        let same = names.iter().rposition(|name| name.repository() == reference.repository());
        names.insert(same.map_or(names.len(), |last| last + 1), reference);
    }
    Ok(names)
}

/// All keys that are known by name, as errors list them.
fn known_keys() -> impl Iterator<Item = &'static str> {
    OWN_KEYS.into_iter().chain(Word::all(Used::Build).map(|word| word.name)).chain(PASSED_KEYS)
}

fn wrong(word: &'static str, value: &str, reason: impl Into<String>) -> OptionsError {
    OptionsError::Value { word, value: value.to_owned(), reason: reason.into() }
}

fn switch(key: &'static str, value: &str) -> Result<bool, OptionsError> {
    boolean(value).map_err(|reason| wrong(key, value, reason))
}

fn images(value: &str) -> Result<Images, OptionsError> {
    match value {
        "none" => Ok(Images::None),
        "ref" => Ok(Images::Ref),
        "embed" => Ok(Images::Embed),
        _ => Err(wrong(key::IMAGES, value, "expected none, ref or embed")),
    }
}

fn compression(value: &str) -> Result<LayerCompression, OptionsError> {
    match value {
        "uncompressed" => Ok(LayerCompression::Uncompressed),
        "gzip" => Ok(LayerCompression::Gzip),
        "zstd" => Ok(LayerCompression::Zstd),
        _ => Err(wrong(key::LAYER_COMPRESSION, value, "expected uncompressed, gzip or zstd")),
    }
}

#[cfg(test)]
mod tests;
