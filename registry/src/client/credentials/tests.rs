use test_support::write_program;

use super::*;

fn store(config: &str) -> (tempfile::TempDir, CredentialStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    (dir, CredentialStore::new(Some(path), Duration::from_secs(60)))
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
    write_program(&path, format!("#!/bin/sh\n{script}\n").as_bytes());
    path.to_str().unwrap().to_owned()
}

fn found(asked: Result<Asked, CredentialsError>) -> Credentials {
    match asked {
        Ok(Asked::Found(found)) => found.credentials,
        Ok(_) => panic!("no credentials"),
        Err(error) => panic!("{error}"),
    }
}

fn refused(asked: Result<Asked, CredentialsError>) -> String {
    asked.err().expect("the helper failed").to_string()
}

#[tokio::test]
async fn what_is_null_or_empty_stands_for_nothing() {
    for config in [
        "",
        "\n",
        "null",
        "{}",
        r#"{"auths": null, "credHelpers": null, "credsStore": null}"#,
        r#"{"auths": {}, "credsStore": ""}"#,
        r#"{"auths": {"host:1": null}, "credHelpers": {"host:1": null}}"#,
        r#"{"auths": {"host:1": {"auth": null, "username": null, "identitytoken": null}}}"#,
        r#"{"auths": {"host:1": {"auth": ""}}, "credHelpers": {"host:1": ""}}"#,
        r#"{"auths": {"host:1": {"auth": "Og=="}}}"#,
    ] {
        let (_dir, store) = store(config);
        let found = store.find("host:1", "app").await.unwrap_or_else(|error| panic!("{config}: {error}"));
        assert!(found.credentials == Credentials::Anonymous, "{config}");
        assert!(found.origin.contains("no credentials for host:1"), "{config}: {}", found.origin);
    }
}

#[tokio::test]
async fn an_entry_of_the_file_serves_where_the_helper_does_not() {
    let auth = STANDARD.encode("u:p");
    for helper in [
        r#""credsStore": "of-nobody""#,
        r#""credHelpers": {"host:1": ""}, "credsStore": "of-nobody""#,
        r#""credHelpers": {"host:1": "of-nobody"}"#,
    ] {
        let (_dir, store) = store(&format!(r#"{{{helper}, "auths": {{"host:1": {{"auth": "{auth}"}}}}}}"#));
        assert!(store.find("host:1", "app").await.unwrap().credentials == basic("u", "p"), "{helper}");
    }
    // Without an entry a public image must still come, and a refusal must say what is missing.
    let (_dir, store) = store(r#"{"credsStore": "of-nobody"}"#);
    let found = store.find("host:1", "app").await.unwrap();
    assert!(found.credentials == Credentials::Anonymous);
    assert!(
        found.origin.contains("docker-credential-of-nobody, which it names, is not installed"),
        "{}",
        found.origin
    );
}

#[tokio::test]
async fn a_helper_answers_for_its_host_and_a_silent_one_runs_into_the_deadline() {
    let (dir, mut store) = store("{}");
    let path = dir.path().join("config.json");
    let run = async |store: &CredentialStore, program: &str| store.ask_helper(&path, program, "host:1").await;

    let good =
        helper(dir.path(), "good", r#"read host; echo "{\"Username\":\"u\",\"Secret\":\"for $host\"}""#);
    assert!(found(run(&store, &good).await) == basic("u", "for host:1"));

    let token = helper(dir.path(), "token", r#"echo '{"Username":"<token>","Secret":"i"}'"#);
    assert!(found(run(&store, &token).await) == Credentials::IdentityToken("i".to_owned()));

    for (name, script) in [
        ("none", "echo credentials not found in native keychain; exit 1"),
        ("no-user", "echo no credentials username; exit 1"),
        ("empty", r#"echo '{"ServerURL":"","Username":"","Secret":""}'"#),
        ("null", "echo null"),
        ("silent", "exit 0"),
    ] {
        let helper = helper(dir.path(), name, script);
        assert!(matches!(run(&store, &helper).await, Ok(Asked::Nothing)), "{name}");
    }
    assert!(matches!(run(&store, "docker-credential-of-nobody").await, Ok(Asked::Missing)));

    let bad = helper(dir.path(), "bad", "echo keychain locked >&2; exit 3");
    let error = refused(run(&store, &bad).await);
    assert!(error.contains("keychain locked") && error.contains("host:1"), "{error}");

    store.helper_deadline = Duration::from_millis(100);
    let slow = helper(dir.path(), "slow", "exec sleep 60");
    let error = refused(run(&store, &slow).await);
    assert!(error.contains("no answer within 100ms"), "{error}");
}
