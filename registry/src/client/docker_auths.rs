//! Credentials in the form of Docker's `config.json`, wherever it stands, matched as the kubelet does it.

use std::collections::BTreeMap;

use super::credentials::{Credentials, DockerAuth, DockerConfig, decode, normalised};

/// Credentials by registry, or part of one. Helpers that a text names are not asked: it comes from elsewhere.
pub struct DockerAuths(BTreeMap<String, Option<DockerAuth>>);

impl DockerAuths {
    /// Those of a `config.json`, `{"auths": {…}}`.
    ///
    /// # Errors
    ///
    /// The text is none.
    pub fn of_config(text: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self(DockerConfig::parse(text)?.auths))
    }

    /// Those of the older `.dockercfg`, which is the inner part alone.
    ///
    /// # Errors
    ///
    /// The text is none.
    pub fn of_dockercfg(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text).map(Self)
    }

    /// The credentials whose key names `host`, in which `*` stands for any part of a name between two dots, and no path or
    /// one that `repository` begins with: the most particular first. An entry that cannot be decoded is an error of its own.
    pub fn of(&self, host: &str, repository: &str) -> Vec<Result<Credentials, String>> {
        let mut found: Vec<_> = self
            .0
            .iter()
            .filter_map(|(key, auth)| Some((normalised(key), auth.as_ref()?)))
            .filter(|(key, _)| matches(key, host, repository))
            .collect();
        found.sort_by_key(|(key, _)| (key.contains('*'), usize::MAX - key.len()));
        let decoded = found.into_iter().map(|(_, auth)| decode(auth));
        decoded.filter(|credentials| *credentials != Ok(Credentials::Anonymous)).collect()
    }
}

fn matches(key: &str, host: &str, repository: &str) -> bool {
    let (pattern, path) = key.split_once('/').unwrap_or((key, ""));
    let within = |path: &str| repository == path || repository.starts_with(&format!("{path}/"));
    host_matches(pattern, host) && (path.is_empty() || within(path))
}

fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |text: &str| match text.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), port.to_owned()),
        None => (text.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (name, port)) = (split(pattern), split(host));
    let (patterns, names): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
    pattern_port == port
        && patterns.len() == names.len()
        && patterns.iter().zip(names).all(|(pattern, name)| part_matches(pattern, name))
}

/// Whether `name` is `pattern`, in which each `*` stands for any text.
fn part_matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(config: &str, host: &str, repository: &str) -> Vec<String> {
        let found = DockerAuths::of_config(config.as_bytes()).unwrap().of(host, repository);
        let user = |credentials| match credentials {
            Ok(Credentials::Basic { user, .. }) => user,
            other => panic!("{other:?}"),
        };
        found.into_iter().map(user).collect()
    }

    #[test]
    fn keys_match_hosts_with_stars_and_paths_and_the_most_particular_comes_first() {
        let entry = |key: &str| format!(r#""{key}": {{"username": "{key}", "password": "p"}}"#);
        let keys = [
            "*.example.com",
            "r.example.com",
            "https://r.example.com/team",
            "r.example.com:5000",
            "reg-*.io",
        ];
        let config = format!("{{\"auths\": {{{}}}}}", keys.map(entry).join(","));
        let expected = ["https://r.example.com/team", "r.example.com", "*.example.com"];
        assert_eq!(users(&config, "r.example.com", "team/app"), expected);
        assert_eq!(users(&config, "r.example.com", "teams/app"), expected[1..]);
        assert_eq!(users(&config, "r.example.com:5000", "app"), ["r.example.com:5000"]);
        assert_eq!(users(&config, "reg-7.io", "app"), ["reg-*.io"]);
        assert_eq!(users(&config, "a.b.example.com", "app"), [""; 0]);
        assert_eq!(users(&config, "example.com", "app"), [""; 0]);
    }

    #[test]
    fn the_older_form_is_the_inner_part_and_empty_entries_are_none() {
        let text = br#"{"r": {"auth": "dTpw"}, "s": {}, "t": null}"#;
        let auths = DockerAuths::of_dockercfg(text).unwrap();
        let basic = Credentials::Basic { user: "u".to_owned(), password: "p".to_owned() };
        assert_eq!(auths.of("r", "x"), [Ok(basic)]);
        assert!(auths.of("s", "x").is_empty() && auths.of("t", "x").is_empty());
        assert!(DockerAuths::of_config(b"[").is_err());
    }
}
