//! containerd's settings of registries.

use std::fs;
use std::path::Path;
use std::time::Instant;

use registry::client::{Client, ClientConfig};
use registry::digest::sha256;
use registry::reference::Repository;
use test_support::SignedBy;

use crate::support::fake::{Fake, answer};
use crate::support::{Registry, SOON, config, folder, have};
use crate::tls::certificate_of;

fn client(certs_dir: &Path) -> Client {
    let mut config = ClientConfig { certs_dir: certs_dir.to_owned(), ..config() };
    config.retries.attempts = 1;
    Client::new(config).unwrap()
}

fn write(certs_dir: &Path, registry: &str, text: &str) {
    let folder = certs_dir.join(registry);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("hosts.toml"), text).unwrap();
}

#[tokio::test]
async fn a_mirror_gets_its_headers_at_its_own_path_and_where_it_redirects_to_does_not() {
    let store = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
    let location = format!("http://{}/signed", store.host);
    let mirror = Fake::start(move |_, _| answer(307, &[("location", &location)], "")).await;
    let certs = folder();
    let text = format!(
        "[host.\"http://{host}/api/custom\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
         [host.\"http://{host}/api/custom\".header]\nx-secret = \"shared\"\n",
        host = mirror.host
    );
    write(certs.path(), "registry.invalid", &text);
    let repository = registry::Reference::parse("registry.invalid/app").unwrap().repository().clone();
    client(certs.path()).blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    let asked = &mirror.seen()[0];
    assert!(asked.path.starts_with("/api/custom/app/blobs/sha256:"), "{}", asked.path);
    assert!(asked.path.ends_with("ns=registry.invalid"), "{}", asked.path);
    assert_eq!(asked.header("x-secret"), Some("shared"));
    assert_eq!(store.seen()[0].header("x-secret"), None);
}

#[tokio::test]
async fn the_registry_itself_is_asked_after_its_mirrors() {
    let mirror = Fake::start(|_, _| answer(404, &[], "")).await;
    let registry = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
    let certs = folder();
    write(certs.path(), "_default", &format!("[host.\"http://{}\"]\n", mirror.host));
    client(certs.path()).blob_range(&registry.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 1));
}

#[tokio::test]
async fn settings_are_found_in_the_second_of_two_folders_separated_as_in_containerd() {
    let mirror = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
    let (first, second) = (folder(), folder());
    write(first.path(), "other.invalid", "");
    write(second.path(), "registry.invalid", &format!("[host.\"http://{}\"]\n", mirror.host));
    let both = format!("{}:{}", first.path().display(), second.path().display());
    let repository = registry::Reference::parse("registry.invalid/app").unwrap().repository().clone();
    client(Path::new(&both)).blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    assert_eq!(mirror.seen().len(), 1);
}

/// A registry that takes only connections with a certificate, behind an authority of its own.
#[tokio::test(flavor = "multi_thread")]
async fn authority_and_client_certificate_are_used_once_they_are_there() {
    if !have("docker-registry") || !have("openssl") {
        return;
    }
    let dir = folder();
    let authority = certificate_of(dir.path(), "ca", SignedBy::Itself);
    let certificate = certificate_of(dir.path(), "tls", SignedBy::Authority);
    let own = certificate_of(dir.path(), "client", SignedBy::Authority);
    let tls = format!(
        "http:\n  addr: 127.0.0.1:0\n  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]",
        certificate.display(),
        dir.path().join("tls.key").display(),
        authority.display()
    );
    let registry = Registry::docker(dir.path(), &tls);
    let (host, repository) = (registry.host(), registry.repository("app"));
    let certs = folder();
    let client = client(certs.path());
    let asked = async |repository: &Repository| client.blob_size(repository, &sha256(b"any")).await;
    write(certs.path(), &host, &format!("server = \"https://{host}\"\nca = \"{}\"\n", authority.display()));
    let error = asked(&repository).await.unwrap_err();
    assert!(error.status().is_none(), "no answer without a certificate: {error}");
    let text = format!(
        "server = \"https://{host}\"\nca = \"{}\"\nclient = [[\"{}\", \"{}\"]]\n",
        authority.display(),
        own.display(),
        dir.path().join("client.key").display()
    );
    write(certs.path(), &host, &text);
    // The file is read again by itself.
    let late = Instant::now() + SOON;
    let found = loop {
        match asked(&repository).await {
            Err(error) if Instant::now() >= late => panic!("{error}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            Ok(found) => break found,
        }
    };
    assert_eq!(found, None, "it has no such blob, and says so");
}
