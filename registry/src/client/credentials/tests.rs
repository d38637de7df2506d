use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn store(config: &str) -> (tempfile::TempDir, CredentialStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    (dir, CredentialStore::new(Some(path), Duration::from_secs(5)))
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
}

#[tokio::test]
async fn the_entry_with_the_longest_matching_path_wins() {
    let entry = |text: &str| STANDARD.encode(text);
    let (_dir, store) = store(&format!(
        r#"{{"auths": {{"host:1": {{"auth": "{}"}}, "https://host:1/team": {{"auth": "{}"}},
            "https://index.docker.io/v1/": {{"auth": "{}"}}, "host:1/te": {{"auth": "{}"}} }} }}"#,
        entry("all:a:b"),
        entry("team:t"),
        entry("hub:h"),
        entry("wrong:w"),
    ));
    for (host, repository, expected) in [
        ("host:1", "other", basic("all", "a:b")),
        ("host:1", "team/app", basic("team", "t")),
        ("docker.io", "library/x", basic("hub", "h")),
        ("host:2", "team", Credentials::Anonymous),
    ] {
        assert!(store.find(host, repository).await.unwrap().credentials == expected, "{host}/{repository}");
    }
}

#[tokio::test]
async fn tokens_and_plain_fields_are_understood() {
    let (_dir, store) = store(
        r#"{"auths": {"a": {"identitytoken": "i", "auth": "eDp5"}, "b": {"registrytoken": "r"},
            "c": {"username": "u", "password": "p"}, "d": {} } }"#,
    );
    for (host, expected) in [
        ("a", Credentials::IdentityToken("i".to_owned())),
        ("b", Credentials::RegistryToken("r".to_owned())),
        ("c", basic("u", "p")),
        ("d", Credentials::Anonymous),
    ] {
        assert!(store.find(host, "x").await.unwrap().credentials == expected, "{host}");
    }
}

#[tokio::test]
async fn a_missing_file_is_anonymous_and_a_broken_one_an_error_with_its_path() {
    let (dir, store) = store(r#"{"auths": {"a": {"auth": "%%%"}}}"#);
    let error = store.find("a", "x").await.unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("base64"), "{error}");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let found = store.find("a", "x").await.unwrap();
    assert!(found.credentials == Credentials::Anonymous);
    assert!(found.origin.contains("config.json does not exist"), "{}", found.origin);
}

/// A helper program, by its absolute path.
fn helper(dir: &Path, name: &str, script: &str) -> String {
    let path = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_helper_answers_for_its_host_and_a_silent_one_runs_into_the_deadline() {
    let (dir, mut store) = store("{}");
    let path = dir.path().join("config.json");
    let run = async |store: &CredentialStore, program: &str| store.ask_helper(&path, program, "host:1").await;

    let good =
        helper(dir.path(), "good", r#"read host; echo "{\"Username\":\"u\",\"Secret\":\"for $host\"}""#);
    assert!(run(&store, &good).await.unwrap().unwrap().credentials == basic("u", "for host:1"));

    let token = helper(dir.path(), "token", r#"echo '{"Username":"<token>","Secret":"i"}'"#);
    let found = run(&store, &token).await.unwrap().unwrap();
    assert!(found.credentials == Credentials::IdentityToken("i".to_owned()));

    let none = helper(dir.path(), "none", "echo credentials not found in native keychain; exit 1");
    assert!(run(&store, &none).await.unwrap().is_none());

    let bad = helper(dir.path(), "bad", "echo keychain locked >&2; exit 3");
    let error = run(&store, &bad).await.unwrap_err().to_string();
    assert!(error.contains("keychain locked") && error.contains("host:1"), "{error}");

    store.helper_deadline = Duration::from_millis(100);
    let slow = helper(dir.path(), "slow", "exec sleep 60");
    let error = run(&store, &slow).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 100ms"), "{error}");
}
