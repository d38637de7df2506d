//! `WWW-Authenticate` headers, and the scopes of token authentication.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// How a registry wants to be authenticated with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of a token service.
    Bearer { realm: String, service: Option<String>, scopes: Scopes },
}

impl Challenge {
    /// The strongest challenge in a 401's headers: Bearer before Basic.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            for (scheme, parameters) in parse(text) {
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameters.get("realm")
                {
                    let scopes = parameters.get("scope").map(|s| Scopes::parse(s)).unwrap_or_default();
                    let service = parameters.get("service").cloned();
                    return Some(Self::Bearer { realm: realm.clone(), service, scopes });
                }
                basic |= scheme.eq_ignore_ascii_case("basic");
            }
        }
        basic.then_some(Self::Basic)
    }
}

/// Splits `Scheme key="value", key=value, Scheme2 …` into schemes with their parameters.
fn parse(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut challenges: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches(' ');
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, remaining) = parameter(value);
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = remaining;
            }
            None => {
                challenges.push((word.to_owned(), BTreeMap::new()));
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    challenges
}

/// A parameter's value, quoted or plain, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

/// What a token is to allow: actions by resource, `repository:demo` → `pull`, `push`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading `repository`.
    pub(super) fn pull(repository: &str) -> Self {
        Self::parse(&format!("repository:{repository}:pull"))
    }

    /// Reading and writing `repository`.
    pub(super) fn push(repository: &str) -> Self {
        Self::parse(&format!("repository:{repository}:pull,push"))
    }

    /// Reading and deleting in `repository`.
    pub(super) fn delete(repository: &str) -> Self {
        Self::parse(&format!("repository:{repository}:delete,pull"))
    }

    /// Scopes separated by spaces, as in a challenge.
    pub(super) fn parse(text: &str) -> Self {
        let mut scopes = BTreeMap::<String, BTreeSet<String>>::new();
        for scope in text.split_whitespace() {
            let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
            let set = scopes.entry(resource.to_owned()).or_default();
            set.extend(actions.split(',').filter(|action| !action.is_empty()).map(str::to_owned));
        }
        Self(scopes)
    }

    /// These and `other`.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for (resource, actions) in &other.0 {
            self.0.entry(resource.clone()).or_default().extend(actions.iter().cloned());
        }
        self
    }

    /// Each scope as a token service takes it.
    pub(super) fn iter(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(resource, actions)| {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::from_headers(&headers)
    }

    #[test]
    fn a_bearer_challenge_names_realm_service_and_scope() {
        let value =
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("reg".to_owned()),
            scopes: Scopes::push("a/b"),
        };
        assert_eq!(challenge(&[value]), Some(expected));
    }

    #[test]
    fn bearer_is_chosen_over_basic_in_one_header_or_two() {
        for values in
            [&[r#"Basic realm="x", Bearer realm="y""#][..], &[r#"Basic realm="x\"quoted""#, "bearer realm=y"]]
        {
            assert!(matches!(challenge(values), Some(Challenge::Bearer { realm, .. }) if realm == "y"));
        }
        assert_eq!(challenge(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate abc=="]), None);
    }

    #[test]
    fn broken_headers_end_and_do_not_panic() {
        for value in
            ["", ",,,", "Bearer", "Bearer realm", "Bearer realm=\"", "Bearer realm=\"a\\", "=\"x\"", "a=b=c"]
        {
            let _ = challenge(&[value]);
        }
    }

    #[test]
    fn scopes_of_one_resource_are_merged() {
        let scopes = Scopes::pull("a").and(&Scopes::push("a")).and(&Scopes::pull("b"));
        assert_eq!(scopes.to_string(), "repository:a:pull,push repository:b:pull");
    }
}
