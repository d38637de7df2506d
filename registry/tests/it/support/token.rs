//! A token service for CNCF distribution's registry: users, scopes, signed tokens.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::fake::{Fake, answer};

const SERVICE: &str = "test registry";
const ISSUER: &str = "test issuer";

/// A key and a certificate of it, made with openssl.
pub(crate) struct Key {
    key: PathBuf,
    pub(crate) certificate: PathBuf,
}

impl Key {
    pub(crate) fn make(dir: &Path) -> Self {
        let (key, certificate) = (dir.join("token.key"), dir.join("token.crt"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=token"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stderr(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        Self { key, certificate }
    }

    fn sign(&self, message: &str) -> Vec<u8> {
        let input = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&input, message).unwrap();
        let output = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .arg(input.path())
            .output();
        let output = output.unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// A token that allows `scopes` (`repository:NAME:ACTIONS`, separated by spaces).
    fn token(&self, user: &str, scopes: &[String]) -> String {
        let pem = std::fs::read_to_string(&self.certificate).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let access: Vec<Value> = scopes
            .iter()
            .map(|scope| {
                let parts: Vec<&str> = scope.split(':').collect();
                json!({"type": parts[0], "name": parts[1], "actions": parts[2].split(',').collect::<Vec<_>>()})
            })
            .collect();
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now - 10,
            "jti": now.to_string(), "access": access
        });
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(&message));
        format!("{message}.{signature}")
    }
}

/// The part of a registry's configuration with which it wants tokens of the service on `host`.
pub(crate) fn configuration(host: &str, certificate: &Path) -> String {
    format!(
        "auth:\n  token: {{ realm: \"http://{host}/token\", service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {} }}",
        certificate.display()
    )
}

/// A service that gives the user `alice`, password `secret`, every scope, and others only `pull`.
pub(crate) async fn service(key: Key) -> Fake {
    let key = Arc::new(key);
    let right = format!("Basic {}", STANDARD.encode("alice:secret"));
    Fake::start(move |request, _| {
        let known = request.header("authorization");
        if known.is_some_and(|header| header != right) {
            return answer(401, &[], r#"{"details":"incorrect username or password"}"#);
        }
        let url = reqwest::Url::parse(&format!("http://x{}", request.path)).unwrap();
        let asked = url.query_pairs().filter(|(name, _)| name == "scope");
        let asked = asked.flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let given: Vec<String> = asked
            .map(|scope| match (known, scope.rsplit_once(':')) {
                (None, Some((resource, _))) => format!("{resource}:pull"),
                _ => scope,
            })
            .collect();
        let token = key.token("alice", &given);
        answer(
            200,
            &[("content-type", "application/json")],
            json!({"token": token, "expires_in": 300}).to_string(),
        )
    })
    .await
}
