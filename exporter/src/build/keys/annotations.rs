//! `annotation.KEY`, `annotation-manifest.KEY`, `annotation[PLATFORM].KEY` and so on: BuildKit's as well, which puts them on what it
//! makes. What names the whole image is not BuildKit's.

use std::collections::BTreeMap;

use crate::client::disk::RootAnnotations;

/// What all such keys begin with.
const ANNOTATION: &str = "annotation";

/// What an annotation may be put on, where that is not said to be the manifest.
const MANIFEST: &str = "manifest";
const MANIFEST_DESCRIPTOR: &str = "manifest-descriptor";
const INDEX_DESCRIPTOR: &str = "index-descriptor";
const ANNOTATED: [&str; 4] = [MANIFEST, MANIFEST_DESCRIPTOR, "index", INDEX_DESCRIPTOR];

/// What such a key names: what the annotation is put on, and the annotation.
pub(super) fn annotation(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(ANNOTATION)?;
    let (on, rest) = match rest.strip_prefix('-') {
        None => (MANIFEST, rest),
        Some(typed) => typed.split_at(typed.find(['[', '.']).unwrap_or(typed.len())),
    };
    let rest = match rest.strip_prefix('[') {
        None => rest,
        Some(platform) => platform.split_once(']')?.1,
    };
    let name = rest.strip_prefix('.').filter(|name| !name.is_empty())?;
    ANNOTATED.contains(&on).then_some((on, name))
}

/// Those among `keys` that are for what names the whole image. An image that is not an index has one platform, whichever a key names.
pub(super) fn root_annotations(keys: &BTreeMap<String, String>) -> RootAnnotations {
    let of = |place: &str| -> BTreeMap<String, String> {
        let found = keys.iter().filter_map(|(key, value)| Some((annotation(key)?, value)));
        let there = found.filter(|((on, _), _)| *on == place);
        there.map(|((_, name), value)| (name.to_owned(), value.clone())).collect()
    };
    RootAnnotations { manifest: of(MANIFEST_DESCRIPTOR), index: of(INDEX_DESCRIPTOR) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_the_image_has_the_annotations_that_are_meant_for_it() {
        let keys = [
            ("annotation.a", "manifest"),
            ("annotation-index.b", "index"),
            ("annotation-manifest-descriptor.c", "one"),
            ("annotation-manifest-descriptor[linux/amd64].d.e", "two"),
            ("annotation-index-descriptor.f", "three"),
        ];
        let keys = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let found = root_annotations(&keys);
        let text = |found: &BTreeMap<String, String>| format!("{found:?}");
        assert_eq!(text(&found.manifest), r#"{"c": "one", "d.e": "two"}"#);
        assert_eq!(text(&found.index), r#"{"f": "three"}"#);
        for unknown in
            ["annotation", "annotationa.b", "annotation-other.a", "annotation[linux.a", "annotation."]
        {
            assert_eq!(annotation(unknown), None, "{unknown}");
        }
    }
}
