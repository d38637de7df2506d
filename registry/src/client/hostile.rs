//! What registries, users and files send the client: errors are fine, panics are bugs.

use http::header::{LINK, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::challenge::{Challenge, Scopes};
use super::credentials::DockerConfig;
use super::error::RegistryMessage;
use super::manifests::next_query;
use super::reader::content_range;
use super::upload::received_bytes;
use crate::arbitrary;
use crate::reference::{Reference, Repository, is_name};

/// Text with many of the characters that mean something to these parsers.
fn text() -> impl Strategy<Value = String> {
    let words = &[
        "\"",
        "\\",
        "=",
        ",",
        " ",
        "/",
        ":",
        "@",
        "[",
        "]",
        ".",
        "_",
        "__",
        "-",
        "%",
        "?",
        "*",
        "bytes",
        "bytes ",
        "Bearer ",
        "Basic ",
        "realm",
        "scope",
        "sha256",
        "localhost",
        "latest",
        "<",
        ">",
        "rel=next",
        "0",
        "18446744073709551615",
        "é",
        "\u{0}",
    ];
    prop_oneof![arbitrary::text(words, 24), any::<String>()]
}

/// JSON of any shape, with the keys of Docker's configuration.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let keys = &[
        "auths",
        "credHelpers",
        "credsStore",
        "auth",
        "username",
        "password",
        "identitytoken",
        "host",
        "host/a",
        "https://index.docker.io/v1/",
        "errors",
        "code",
        "message",
    ];
    arbitrary::json(text(), keys)
}

fn headers(name: http::HeaderName, values: &[String]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value.as_bytes()).ok()) {
        headers.append(&name, value);
    }
    headers
}

proptest! {
    #[test]
    fn a_reference_that_is_taken_means_the_same_when_it_is_written_out(text in text()) {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert!(is_name(reference.repository().name()), "{}", reference);
            let again = Reference::parse(&reference.to_string());
            prop_assert_eq!(again.as_ref(), Ok(&reference), "{}", text);
        }
        if let Ok(repository) = Repository::parse(&text) {
            prop_assert_eq!(Repository::parse(&repository.to_string()), Ok(repository));
        }
    }

    #[test]
    fn challenges_and_scopes_are_parsed_whatever_comes(values in prop::collection::vec(text(), 0..3)) {
        let _ = Challenge::from_headers(&headers(WWW_AUTHENTICATE, &values));
        let scopes = Scopes::parse(&values.concat());
        prop_assert_eq!(Scopes::parse(&scopes.to_string()), scopes);
    }

    #[test]
    fn a_quoted_realm_comes_back(realm in "[ -~]{0,40}", service in "[a-z]{1,8}") {
        let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let value = format!("Bearer realm=\"{quoted}\", service={service}");
        let challenge = Challenge::from_headers(&headers(WWW_AUTHENTICATE, &[value]));
        let expected = Challenge::Bearer { realm, service: Some(service), scopes: Scopes::default() };
        prop_assert_eq!(challenge, Some(expected));
    }

    #[test]
    fn dockers_configuration_is_read_or_refused(json in json(), bytes in any::<Vec<u8>>()) {
        for text in [json.to_string().into_bytes(), bytes] {
            if let Ok(config) = DockerConfig::parse(&text) {
                let _ = config.helper("host", "a/b");
                let _ = config.entry("host", "a/b");
            }
            let _ = RegistryMessage::parse(&text).to_string();
        }
    }

    #[test]
    fn ranges_of_answers_are_parsed_or_refused(text in text(), first: u64, last: u64, total: u64) {
        let _ = (content_range(&text), received_bytes(&text));
        let range = content_range(&format!("bytes {first}-{last}/{total}"));
        prop_assert_eq!(range, Some((first, last, Some(total))));
        prop_assert_eq!(received_bytes(&format!("0-{last}")), last.checked_add(1));
        let _ = next_query(&headers(LINK, &[text]));
    }
}
