//! Credentials of somebody else: asked first, never mixed with those of files.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use registry::client::{Client, ClientConfig, Credentials, CredentialsError, Keyring, Token, TokenRequest};
use registry::digest::sha256;

use crate::support::fake::{Fake, answer};
use crate::support::{config, folder};

/// A user with or without a password, who fetches tokens or does not.
struct User {
    password: Option<&'static str>,
    token: Option<&'static str>,
    asked: Mutex<Vec<TokenRequest>>,
}

impl Keyring for User {
    fn credentials<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        let credentials = self.password.map_or(Credentials::Anonymous, |password| Credentials::Basic {
            user: "user".to_owned(),
            password: password.to_owned(),
        });
        async { Ok(credentials) }.boxed()
    }

    fn token(&self, request: TokenRequest) -> BoxFuture<'_, Result<Option<Token>, CredentialsError>> {
        self.asked.lock().unwrap().push(request);
        let token = self.token.map(|token| Token { token: token.to_owned(), life: Duration::from_secs(60) });
        async { Ok(token) }.boxed()
    }

    fn name(&self) -> String {
        "the user".to_owned()
    }
}

fn user(password: Option<&'static str>, token: Option<&'static str>) -> Arc<User> {
    Arc::new(User { password, token, asked: Mutex::default() })
}

/// A client whose own file has the password `service`.
fn client(dir: &std::path::Path, host: &str) -> Client {
    let path = dir.join("config.json");
    let auth = STANDARD.encode("service:service");
    std::fs::write(&path, serde_json::json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    Client::new(ClientConfig { docker_config: Some(path), ..config() }).unwrap()
}

fn basic(password: &str) -> String {
    let (user, password) = if password == "service" { ("service", password) } else { ("user", password) };
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn a_password_of_the_user_is_used_and_the_file_s_only_if_there_is_none_and_it_may_be() {
    for (password, fall_back, expected) in [
        (Some("mine"), true, Some("mine")),
        (Some("wrong"), true, None),
        (None, true, Some("service")),
        (None, false, None),
    ] {
        let fake = Fake::start(|seen, _| match seen.header("authorization") {
            Some(header) if header == basic("mine") || header == basic("service") => answer(200, &[], ""),
            _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        })
        .await;
        let dir = folder();
        let client = client(dir.path(), &fake.host).with_keyring(user(password, None), fall_back);
        let found = client.has_blob(&fake.repository("app"), &sha256(b"")).await;
        match expected {
            Some(expected) => {
                assert!(found.unwrap());
                let last = fake.seen().last().unwrap().header("authorization").unwrap().to_owned();
                assert_eq!(last, basic(expected));
            }
            None => {
                let error = found.unwrap_err();
                assert!(error.is_denied() && error.to_string().contains("the user"), "{error}");
                let shown = |seen: &crate::support::fake::Seen| {
                    seen.header("authorization") == Some(&basic("service"))
                };
                assert!(!fake.seen().iter().any(shown), "the file's password was shown");
            }
        }
    }
}

#[tokio::test]
async fn a_token_that_the_user_fetches_keeps_the_password_with_the_user() {
    for (token, password, fall_back, good) in [
        ("good", None, true, true),
        // The user has a password, and what it brings is not enough: nobody else's is used.
        ("weak", Some("mine"), true, false),
        // The user has none: the file's password goes to the token service.
        ("weak", None, true, true),
        ("weak", None, false, false),
    ] {
        let fake = Fake::start(|seen, _| {
            if seen.path.starts_with("/token") {
                let service = seen.header("authorization") == Some(&basic("service"));
                return answer(200, &[], if service { r#"{"token":"good"}"# } else { r#"{"token":"weak"}"# });
            }
            let realm =
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host").unwrap());
            match seen.header("authorization") {
                Some("Bearer good") => answer(200, &[], ""),
                _ => answer(401, &[("www-authenticate", &realm)], ""),
            }
        })
        .await;
        let dir = folder();
        let holder = user(password, Some(token));
        let client = client(dir.path(), &fake.host).with_keyring(holder.clone(), fall_back);
        let found = client.has_blob(&fake.repository("app"), &sha256(b"")).await;
        assert_eq!(found.is_ok(), good, "{token} {password:?} {fall_back}: {found:?}");
        let asked = holder.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].realm, format!("http://{}/token", fake.host));
        assert_eq!(
            (asked[0].service.as_str(), &asked[0].scopes[..]),
            ("s", &["repository:app:pull,push".to_owned()][..])
        );
        let to_service = fake.seen().iter().filter(|seen| seen.path.starts_with("/token")).count();
        assert_eq!(to_service, usize::from(token == "weak" && password.is_none() && fall_back));
    }
}

#[tokio::test]
async fn a_blob_s_place_that_one_user_was_sent_to_is_no_other_user_s() {
    let store = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
    let location = format!("http://{}/object?signed", store.host);
    let fake = Fake::start(move |seen, _| match seen.header("authorization") {
        Some(header) if header == basic("mine") => answer(307, &[("location", &location)], ""),
        Some(_) => answer(403, &[], ""),
        None => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let dir = folder();
    let shared = client(dir.path(), &fake.host);
    let of = |password| shared.with_keyring(user(Some(password), None), false);
    let (mine, other) = (of("mine"), of("other"));
    let digest = sha256(b"ok");
    let read = async |client: &Client| client.blob_range(&fake.repository("app"), &digest, 0, 2).await;
    assert_eq!(read(&mine).await.unwrap().as_ref(), b"ok");
    let asked = fake.seen().len();
    read(&mine).await.unwrap();
    assert_eq!(fake.seen().len(), asked, "whoever was sent there is not asked again");
    for client in [&other, &shared] {
        assert!(read(client).await.unwrap_err().is_denied());
    }
    assert_eq!(store.seen().len(), 2);
}
