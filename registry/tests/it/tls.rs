//! HTTPS: only certificates that are trusted, unless told otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use registry::client::{Client, ClientConfig, HostConfig};
use registry::server::{ServerConfig, TlsConfig};
use test_support::{SignedBy, make_certificate};

use crate::support::{Registry, config, folder, have, noise, push_image};

/// A key and a certificate `NAME.crt` for this machine.
pub(crate) fn certificate_of(dir: &Path, name: &str, by: SignedBy) -> PathBuf {
    make_certificate(dir, name, &format!("/CN={name}"), "subjectAltName=IP:127.0.0.1", by)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_only_when_named() {
    if !have("docker-registry") || !have("openssl") {
        return;
    }
    let dir = folder();
    let authority = certificate_of(dir.path(), "ca", SignedBy::Itself);
    let certificate = certificate_of(dir.path(), "tls", SignedBy::Authority);
    let key = dir.path().join("tls.key");
    let tls = format!(
        "http:\n  addr: 127.0.0.1:0\n  tls: {{ certificate: {}, key: {} }}",
        certificate.display(),
        key.display()
    );
    let registry = Registry::docker(dir.path(), &tls);
    let image = registry.reference("app:v1");
    let client = |ca_file: Option<PathBuf>, insecure_skip_verify| {
        let host = HostConfig { plain_http: Some(false), ca_file, insecure_skip_verify, mirrors: vec![] };
        Client::new(ClientConfig { hosts: BTreeMap::from([(registry.host(), host)]), ..config() }).unwrap()
    };
    let (digest, _) = push_image(&client(Some(authority), false), &image, noise(61, 600_000)).await;
    assert_eq!(client(None, true).manifest(&image).await.unwrap().0.digest(), &digest);
    let error = client(None, false).manifest(&image).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
    let error = client(Some(key), false).manifest(&image).await.unwrap_err();
    assert!(
        error.to_string().contains("ca_file") && error.to_string().contains("no PEM certificate"),
        "{error}"
    );
    let missing = Some(PathBuf::from("/nonexistent/ca.pem"));
    let error = client(missing, false).manifest(&image).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_registry_serves_https_with_a_certificate() {
    if !have("openssl") {
        return;
    }
    let dir = folder();
    let authority = certificate_of(dir.path(), "ca", SignedBy::Itself);
    let certificate = certificate_of(dir.path(), "tls", SignedBy::Authority);
    let key = dir.path().join("tls.key");
    let tls = Some(TlsConfig { certificate: certificate.clone(), key: key.clone() });
    let registry =
        Registry::embedded(ServerConfig { tls, ..ServerConfig::new(dir.path().join("root")) }).await;
    let image = registry.reference("app:v1");
    let client = |plain_http, ca_file: Option<PathBuf>| {
        let host = HostConfig { plain_http: Some(plain_http), ca_file, ..HostConfig::default() };
        Client::new(ClientConfig { hosts: BTreeMap::from([(registry.host(), host)]), ..config() }).unwrap()
    };
    let trusting = client(false, Some(authority));
    let (digest, layer) = push_image(&trusting, &image, noise(62, 1_500_000)).await;
    assert_eq!(trusting.manifest(&image).await.unwrap().0.digest(), &digest);
    let part = trusting.blob_range(image.repository(), &layer, 1_000_000, 400_000).await.unwrap();
    assert_eq!(part, noise(62, 1_500_000).slice(1_000_000..1_400_000));
    assert!(client(false, None).manifest(&image).await.is_err(), "the authority is not trusted");
    assert!(client(true, None).manifest(&image).await.is_err(), "nothing is said without TLS");
    registry.stop().await;

    // What cannot be used is an error at the start that names the file.
    let other = certificate_of(dir.path(), "other", SignedBy::Itself);
    for (certificate, key, named) in [
        (dir.path().join("missing.crt"), key.clone(), "missing.crt"),
        (key.clone(), key.clone(), "holds no PEM certificate"),
        (certificate.clone(), certificate, "tls.crt"),
        (other, key, "other.crt"),
    ] {
        let tls = Some(TlsConfig { certificate, key });
        let listen = ([127, 0, 0, 1], 0).into();
        let config = ServerConfig { tls, listen, ..ServerConfig::new(dir.path().join("root")) };
        let error = registry::server::serve(config, Default::default()).await.unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}
