//! Nydus images next to the plain ones of an index.

use std::collections::HashMap;
use std::fmt;

use oci_spec::image::Platform;
use registry::digest::Digest;
use registry::nydus;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::index::{ATTESTATION_MANIFEST, ATTESTATION_TYPE, ATTESTED, attestation, digest_of};
use super::{Index, OCI_INDEX, Stored};
use crate::platform::PlatformName;

/// A nydus image, and the plain one that it stands next to.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Digest of the plain manifest.
    pub plain: Digest,
    /// The nydus manifest.
    pub nydus: Stored,
    /// What both are for, as an index's entry says it.
    pub platform: Value,
    /// Attestations about the nydus manifest.
    pub attested: Vec<Stored>,
}

/// A nydus image that is no longer next to a plain one, though no other comes in its place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StaleNydus {
    /// Its manifest.
    pub nydus: Digest,
    /// The plain manifest that it says to be made of.
    pub source: Option<Digest>,
}

impl fmt::Display for StaleNydus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nydus = &self.nydus;
        match &self.source {
            Some(source) => {
                write!(
                    f,
                    "nydus image {nydus} is left out: it was made of {source}, which is not there any more"
                )
            }
            None => write!(
                f,
                "nydus image {nydus} is left out: its entry says neither what it was made of nor for which platform it is"
            ),
        }
    }
}

impl Index {
    /// Takes out the nydus images in whose places those of `pairs` come, which are for the same platforms, and returns those that have
    /// to go with them: made of plain images that are not among `plain`, the ones of the whole index. An image of which nothing tells
    /// that it is stale stays. Attestations go with what they are about.
    pub fn make_way(&mut self, pairs: &[Beside], plain: &[&Digest]) -> Vec<StaleNydus> {
        let platforms: Vec<PlatformName> = pairs.iter().filter_map(|pair| platform(&pair.platform)).collect();
        let mut stale = Vec::new();
        let mut keeps = Vec::with_capacity(self.manifests.len());
        for (entry, (descriptor, is_nydus)) in self.entries().zip(self.marked()) {
            let source = source_of(entry);
            let named = descriptor.platform().as_ref().map(PlatformName::of);
            let is_replaced =
                source.as_ref().is_some_and(|source| pairs.iter().any(|pair| pair.plain == *source))
                    || named
                        .as_ref()
                        .is_some_and(|named| platforms.iter().any(|built| built.rank(named) == Some(0)));
            let is_stale = match &source {
                Some(source) => !plain.contains(&source),
                None => named.is_none(),
            };
            keeps.push(!is_nydus || !is_replaced && !is_stale);
            if is_nydus && is_stale && !is_replaced {
                stale.push(StaleNydus { nydus: descriptor.digest().clone(), source });
            }
        }
        self.retain(|number| keeps.get(number) != Some(&false));
        stale
    }

    /// The index with the nydus images of its plain ones behind those, so that clients that take the first for their
    /// platform take a plain one; nested indexes, and attestations of plain images, are replaced. The nydus images are in the order
    /// of the plain ones, whichever came first.
    pub fn with_nydus(&self, nydus: &[Beside], replaced: &HashMap<Digest, Stored>) -> Stored {
        let mut index = self.replaced(replaced);
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            entries.extend(nydus.iter().map(nydus_entry));
            entries.extend(nydus.iter().flat_map(attestations_of));
            sort(entries);
        }
        Stored::index(index, OCI_INDEX)
    }
}

/// Plain images and all that is with them, then nydus images, then what attests those.
fn sort(entries: &mut [Value]) {
    let places: HashMap<Digest, usize> = entries
        .iter()
        .zip(0..)
        .filter_map(|(entry, at)| Some((digest_of(entry.get("digest"))?, at)))
        .collect();
    let place =
        |digest: Option<Digest>| digest.and_then(|digest| places.get(&digest)).copied().unwrap_or(usize::MAX);
    let nydus: HashMap<Digest, usize> = entries
        .iter()
        .filter(|entry| nydus::is_nydus_entry(entry))
        .filter_map(|entry| Some((digest_of(entry.get("digest"))?, place(source_of(entry)))))
        .collect();
    let key = |entry: &Value| {
        if nydus::is_nydus_entry(entry) {
            return (1, place(source_of(entry)));
        }
        let about = entry.as_object().and_then(attestation).and_then(|(_, about)| nydus.get(&about));
        about.map_or((0, 0), |place| (2, *place))
    };
    // Stable: what has no order of its own stays as it was.
    entries.sort_by_cached_key(key);
}

/// What a nydus image's entry says that it was made of.
fn source_of(entry: &Value) -> Option<Digest> {
    digest_of(entry.get("annotations")?.get(nydus::ANNOTATION_SOURCE_DIGEST))
}

fn platform(stated: &Value) -> Option<PlatformName> {
    Platform::deserialize(stated).ok().as_ref().map(PlatformName::of)
}

/// The entry of a nydus image next to a plain one: marked for those who know artifact types, and for those who do not.
fn nydus_entry(image: &Beside) -> Value {
    let mut platform = image.platform.clone();
    if let Some(platform) = platform.as_object_mut() {
        let features = platform.entry("os.features").or_insert_with(|| json!([]));
        if let Some(features) = features.as_array_mut() {
            features.push(json!(nydus::OS_FEATURE));
        }
    }
    json!({
        "mediaType": image.nydus.media_type,
        "artifactType": nydus::ARTIFACT_TYPE_MANIFEST,
        "digest": image.nydus.digest.as_ref(),
        "size": image.nydus.content.len(),
        "platform": platform,
        "annotations": { nydus::ANNOTATION_SOURCE_DIGEST: image.plain.as_ref() },
    })
}

/// The entries of the attestations of a nydus image next to a plain one.
fn attestations_of(image: &Beside) -> impl Iterator<Item = Value> + '_ {
    image.attested.iter().map(|attestation| {
        let mut entry = attestation.descriptor();
        entry["annotations"] =
            json!({ ATTESTED: image.nydus.digest.as_ref(), ATTESTATION_TYPE: ATTESTATION_MANIFEST });
        entry["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
        entry
    })
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    #[test]
    fn nydus_images_stand_behind_the_plain_ones_marked_in_both_ways() {
        let plain = json!({"mediaType": "plain", "digest": sha256(b"plain").as_ref(), "size": 1,
            "platform": {"os": "linux", "architecture": "amd64"}});
        let content = bytes::Bytes::from_static(b"nydus");
        let nydus = Stored { media_type: "m".to_owned(), digest: sha256(&content), content };
        let attested = vec![Stored { digest: sha256(b"about nydus"), ..nydus.clone() }];
        let platform = plain["platform"].clone();
        let pair = Beside { plain: sha256(b"plain"), nydus, platform, attested };
        let stored = Index::of(&plain).with_nydus(&[pair], &HashMap::new());
        let index: Value = serde_json::from_slice(&stored.content).unwrap();
        assert_eq!(index["manifests"][2]["annotations"][ATTESTED], index["manifests"][1]["digest"]);
        assert_eq!(index["manifests"][0], plain);
        let entry = &index["manifests"][1];
        assert_eq!(entry["platform"]["os.features"], json!([nydus::OS_FEATURE]));
        assert_eq!(entry["platform"]["architecture"], "amd64");
        assert_eq!(entry["artifactType"], nydus::ARTIFACT_TYPE_MANIFEST);
    }
    const AMD64: &str = "amd64";
    const ARM64: &str = "arm64";

    /// A plain image, and the nydus image next to it.
    fn pair(architecture: &str, plain: &str, nydus: &str) -> Beside {
        let content = bytes::Bytes::from(nydus.to_owned());
        let stored =
            |content: bytes::Bytes| Stored { media_type: "m".to_owned(), digest: sha256(&content), content };
        Beside {
            plain: sha256(plain.as_bytes()),
            nydus: stored(content),
            platform: json!({"os": "linux", "architecture": architecture}),
            attested: vec![stored(format!("about {nydus}").into())],
        }
    }

    fn plain_index(images: &[(&str, &str)]) -> Index {
        let entry = |(architecture, plain): &(&str, &str)| {
            json!({"mediaType": "m", "digest": sha256(plain.as_bytes()).as_ref(), "size": 1,
                   "platform": {"os": "linux", "architecture": architecture}})
        };
        let index = json!({"schemaVersion": 2, "manifests": images.iter().map(entry).collect::<Vec<_>>()});
        Index::parse(index.to_string().as_bytes()).unwrap()
    }

    /// Puts `pairs` into the index, whose plain images are `plain`.
    fn merged(index: &Stored, pairs: &[Beside], plain: &[&str]) -> (Stored, Vec<StaleNydus>) {
        let plain: Vec<Digest> = plain.iter().map(|plain| sha256(plain.as_bytes())).collect();
        let mut index = Index::parse(&index.content).unwrap();
        let stale = index.make_way(pairs, &plain.iter().collect::<Vec<_>>());
        (index.with_nydus(pairs, &HashMap::new()), stale)
    }

    fn digests(index: &Stored) -> Vec<Digest> {
        Index::parse(&index.content).unwrap().manifests.iter().map(|entry| entry.digest().clone()).collect()
    }

    fn named(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| sha256(name.as_bytes())).collect()
    }

    #[test]
    fn images_of_other_platforms_stay_with_what_attests_them_whichever_came_first() {
        let plain = plain_index(&[(AMD64, "a"), (ARM64, "b")]).with_nydus(&[], &HashMap::new());
        let [of_a, of_b] = [pair(AMD64, "a", "na"), pair(ARM64, "b", "nb")].map(|pair| [pair]);
        let (first, _) = merged(&plain, &of_b, &["a", "b"]);
        let (both, stale) = merged(&first, &of_a, &["a", "b"]);
        assert_eq!(digests(&both), named(&["a", "b", "na", "nb", "about na", "about nb"]));
        assert_eq!(stale, []);
        let (first, _) = merged(&plain, &of_a, &["a", "b"]);
        assert_eq!(merged(&first, &of_b, &["a", "b"]).0.digest, both.digest);
        // Nothing is new: nothing changes.
        assert_eq!(merged(&both, &of_b, &["a", "b"]).0.digest, both.digest);
        let (again, _) = merged(&both, &[pair(ARM64, "b", "other")], &["a", "b"]);
        assert_eq!(digests(&again), named(&["a", "b", "na", "other", "about na", "about other"]));
    }

    #[test]
    fn an_image_made_of_what_is_not_there_any_more_goes_and_is_named() {
        let before = plain_index(&[(AMD64, "a"), (ARM64, "b")])
            .with_nydus(&[pair(AMD64, "a", "na"), pair(ARM64, "b", "nb")], &HashMap::new());
        let mut entries: Vec<Value> = Index::parse(&before.content).unwrap().entries().cloned().collect();
        entries[1]["digest"] = json!(sha256(b"new b").as_ref());
        let before = Index::of_all(entries).with_nydus(&[], &HashMap::new());
        let (after, stale) = merged(&before, &[pair(AMD64, "a", "newer")], &["a", "new b"]);
        assert_eq!(digests(&after), named(&["a", "new b", "newer", "about newer"]));
        assert_eq!(stale, [StaleNydus { nydus: sha256(b"nb"), source: Some(sha256(b"b")) }]);
    }

    #[test]
    fn an_image_that_does_not_say_what_it_was_made_of_stays_if_it_says_for_which_platform() {
        let foreign = |name: &str, platform: Value| {
            json!({"mediaType": "m", "digest": sha256(name.as_bytes()).as_ref(), "size": 1, "platform": platform,
                   "artifactType": nydus::ARTIFACT_TYPE_MANIFEST})
        };
        let platform = |architecture: &str| json!({"os": "linux", "architecture": architecture});
        let mut entries: Vec<Value> = plain_index(&[(AMD64, "a"), (ARM64, "b")]).entries().cloned().collect();
        entries.push(foreign("old", platform("x86_64")));
        entries.push(foreign("stays", platform(ARM64)));
        entries.push(foreign("nowhere", Value::Null));
        entries[4].as_object_mut().unwrap().remove("platform");
        let before = Index::of_all(entries).with_nydus(&[], &HashMap::new());
        let (after, stale) = merged(&before, &[pair(AMD64, "a", "na")], &["a", "b"]);
        assert_eq!(digests(&after), named(&["a", "b", "na", "stays", "about na"]));
        assert_eq!(stale, [StaleNydus { nydus: sha256(b"nowhere"), source: None }]);
        assert!(stale[0].to_string().contains("neither what it was made of"));
    }
}
