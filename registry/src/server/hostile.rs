//! What clients send the server: refusals are fine, panics are bugs, and no name leads out of the storage.

use http::Request;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use proptest::prelude::*;

use super::blobs::{AskedRange, part};
use super::manifests::parse;
use super::request::Head;
use super::routes::{ManifestName, Route};
use super::uploads::check_range;
use crate::arbitrary;

fn head(path: &str, headers: &[(http::HeaderName, String)]) -> Option<Head> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    Some(Head::new(request.body(()).ok()?.into_parts().0))
}

/// Text with many of the characters that mean something in paths and ranges.
fn text() -> impl Strategy<Value = String> {
    let words = &[
        "/",
        "..",
        ".",
        "%2e",
        "%2F",
        "%00",
        "%",
        "_",
        "-",
        ":",
        "bytes=",
        "bytes ",
        ",",
        "sha256:",
        "manifests",
        "blobs",
        "uploads",
        "tags/list",
        "referrers",
        "_catalog",
        "0",
        "18446744073709551615",
        "?",
        "=",
        "&",
    ];
    arbitrary::text(words, 16)
}

/// JSON of any shape, with the keys of manifests.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let keys = &[
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "blobs",
        "manifests",
        "subject",
        "artifactType",
        "annotations",
        "digest",
        "size",
        "urls",
    ];
    arbitrary::json(text(), keys)
}

#[test]
fn a_piece_up_to_the_last_number_there_is_has_a_length_that_is_none() {
    let headers = [(CONTENT_RANGE, format!("0-{}", u64::MAX)), (CONTENT_LENGTH, "0".to_owned())];
    assert!(check_range(&head("/v2/", &headers).unwrap(), 0).is_err());
}

proptest! {
    #[test]
    fn no_path_names_anything_outside_of_the_storage(text in text(), any in any::<String>()) {
        for path in [format!("/v2/{text}"), text, any] {
            let Ok(route) = Route::parse(&path) else { continue };
            let mut names = Vec::new();
            match &route {
                Route::Tags { name } | Route::Uploads { name } => names.push(name.clone()),
                Route::Upload { name, id } => names.extend([name.clone(), id.clone()]),
                Route::Blob { name, digest } | Route::Referrers { name, digest } => {
                    names.extend([name.clone(), digest.digest().to_owned()]);
                }
                Route::Manifest { name, reference: ManifestName::Tag(tag) } => names.extend([name.clone(), tag.clone()]),
                Route::Manifest { name, .. } => names.push(name.clone()),
                Route::Base | Route::Catalog => {}
            }
            for name in names {
                let safe = name.split('/').all(|part| !matches!(part, "" | "." | "..")) && !name.contains('\0');
                prop_assert!(safe, "{} of {}", name, path);
            }
        }
    }

    #[test]
    fn a_range_lies_within_the_blob(text in text(), first: u64, last: u64, size: u64) {
        for text in [text.clone(), format!("bytes={text}"), format!("bytes={first}-{last}"), format!("bytes=-{last}")] {
            if let AskedRange::Range { first, last } = part(&text, size) {
                prop_assert!(first <= last && last < size, "{} of {}: {}-{}", text, size, first, last);
            }
        }
    }

    #[test]
    fn a_piece_follows_on_what_is_there_and_is_as_long_as_it_says(text in text(), first: u64, last: u64, size: u64) {
        for text in [text, format!("{first}-{last}"), format!("{size}-{last}"), format!("bytes {size}-{last}/*"), format!("0-{last}")] {
            let headers = [(CONTENT_RANGE, text.clone()), (CONTENT_LENGTH, "1".to_owned())];
            let Some(head) = head("/v2/", &headers) else { continue };
            if check_range(&head, size).is_ok() {
                prop_assert!(text.contains(&format!("{size}-{size}")), "{} after {}", text, size);
            }
        }
    }

    #[test]
    fn queries_are_decoded_whatever_comes(text in text()) {
        if let Some(head) = head(&format!("/v2/?{}", text.replace(['%', '?', ' '], "%25")), &[]) {
            let _ = (head.parameter("digest"), head.is_read());
        }
    }

    #[test]
    fn manifests_are_taken_or_refused(json in json(), bytes in any::<Vec<u8>>(), kind in text()) {
        for content in [json.to_string().into_bytes(), bytes] {
            let _ = parse(&content, Some(&kind));
            if let Ok(manifest) = parse(&content, None) {
                prop_assert!(!manifest.kind().is_empty());
            }
        }
    }
}
