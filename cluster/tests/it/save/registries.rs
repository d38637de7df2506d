//! Registries that want tokens, that cut connections, that say no more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use cluster::save::{Destination, SaveOptions};
use cluster::saved::{SavedAt, SavedImages};
use registry::Reference;
use registry::client::{Client, ClientConfig, Retries, Timeouts, UploadConfig};

use super::{check_image_as, client, fetched, locked, saved, saved_as, saved_in};
use crate::peers::proxy::{Proxy, Way};
use crate::peers::{self, have, noise, token};
use crate::support::held::Held;
use crate::support::{self, Registry, layer};

const LARGE: usize = 4 << 20;

/// CNCF distribution's registry, where alice may do everything and others nothing.
async fn registry_with_tokens(dir: &Path) -> (peers::Registry, peers::fake::Fake) {
    let key = token::Key::make(dir);
    let certificate = key.certificate.clone();
    let service = token::service(key).await;
    let auth = token::configuration(&service.host, &certificate);
    (peers::Registry::docker(dir, &auth), service)
}

/// A configuration of Docker's with what alice says to `host`.
fn credentials(dir: &Path, host: &str) -> std::path::PathBuf {
    let path = dir.join("config.json");
    let word = base64::engine::general_purpose::STANDARD.encode("alice:secret");
    fs::write(&path, serde_json::json!({"auths": {host: {"auth": word}}}).to_string()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_tokens_gets_them() {
    if !have("docker-registry") || !have("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (to, _service) = registry_with_tokens(dir.path()).await;
    let from = Registry::start().await;
    for (name, layer) in [("app", noise(1, 300_000)), ("db", noise(2, 700_000))] {
        let image = from.image(name, "linux/amd64", &[&layer, b"shared"]).await;
        from.tag(name, "v1", support::index(&[&image])).await;
    }
    let list = format!("{0}/app:v1\n{0}/db:v1\n", from.host());
    let lock = locked(&dir, &list, &[]).await;
    let name = Reference::parse(&format!("{}/team/cluster:images", to.host())).unwrap();
    let destination = Destination::Repository(name.clone());
    // Who may not push is told so for each image, and there is no tag.
    let (_, failed) = saved(&lock, dir.path(), &destination).await;
    assert_eq!(failed.len(), 2);
    assert!(failed[0].to_string().starts_with(&format!("{}/app:v1: ", from.host())), "{}", failed[0]);
    let docker_config = Some(credentials(dir.path(), &to.host()));
    let alice = Client::new(ClientConfig { docker_config, ..support::config() }).unwrap();
    let (_, failed) = saved_as(&alice, &lock, dir.path(), &destination).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(alice.head_manifest(&name).await.unwrap().is_some());
    for image in &lock.images {
        check_image_as(&alice, name.repository(), image.platforms[0].digest.as_ref()).await;
    }
    let (reports, _) = saved_as(&alice, &lock, dir.path(), &destination).await;
    assert_eq!(fetched(&reports), 0);
}

/// An image with a layer of this many bytes that do not compress.
async fn image_of(registry: &Registry, name: &str, seed: u64, length: usize) -> Vec<u8> {
    let content = layer(&[("file", &noise(seed, length))]);
    let image = registry.image(name, "linux/amd64", &[&content]).await;
    registry.tag(name, "v1", image.content).await;
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn images_as_rafs_go_to_a_registry_that_wants_tokens() {
    if !have("docker-registry") || !have("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (to, _service) = registry_with_tokens(dir.path()).await;
    let from = Registry::start().await;
    image_of(&from, "app", 1, 300_000).await;
    image_of(&from, "db", 2, 700_000).await;
    let lock = locked(&dir, &format!("{0}/app:v1\n{0}/db:v1\n", from.host()), &[]).await;
    let name = Reference::parse(&format!("{}/team/cluster:images", to.host())).unwrap();
    let destination = Destination::Repository(name.clone());
    let upload = || UploadConfig { spool_dir: dir.path().to_owned(), ..UploadConfig::default() };
    let nobody = Client::new(ClientConfig { upload: upload(), ..support::config() }).unwrap();
    let options = SaveOptions::default();
    let refused = cluster::save::save(&lock, dir.path(), &nobody, &destination, &options, &|_| {}).await;
    assert!(refused.unwrap_err().to_string().contains(&to.host()));
    let docker_config = Some(credentials(dir.path(), &to.host()));
    let alice = Client::new(ClientConfig { docker_config, upload: upload(), ..support::config() }).unwrap();
    let (_, failed) = saved_in(&alice, &lock, dir.path(), &destination, &options).await;
    assert!(failed.is_empty(), "{failed:?}");
    let images = SavedImages::open(&SavedAt::Repository(name.clone()), &alice).await.unwrap();
    for image in images.table().unwrap().images.values() {
        check_image_as(&alice, name.repository(), image.manifest.as_ref()).await;
    }
    let (reports, _) = saved_in(&alice, &lock, dir.path(), &destination, &options).await;
    assert_eq!((reports.len(), fetched(&reports)), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_rafs_cuts_are_taken_up_and_a_stall_names_its_image() {
    let registry = Registry::start().await;
    let good = image_of(&registry, "good", 1, 200_000).await;
    let large = image_of(&registry, "large", 2, LARGE).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(registry.host(), Way::ToClient, vec![1 << 20, 3 << 20]).await;
    let lock = locked(&dir, &format!("{}/large:v1\n", proxy.host), &[]).await;
    let cut = Destination::Directory(dir.path().join("cut"));
    let (reports, failed) = saved_in(&client(), &lock, dir.path(), &cut, &SaveOptions::default()).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!((proxy.cuts(), fetched(&reports)), (2, large.len() as u64));

    let held = Held::start(registry.host()).await;
    let lock = locked(&dir, &format!("{0}/good:v1\n{0}/large:v1\n", held.host), &[]).await;
    held.let_through(2 << 20);
    let short = Timeouts { idle: Duration::from_millis(300), ..Timeouts::default() };
    let retries = Retries { attempts: 2, ..Retries::default() };
    let impatient = Client::new(ClientConfig { timeouts: short, retries, ..support::config() }).unwrap();
    let to = Destination::Directory(dir.path().join("stalled"));
    let (_, failed) = saved_in(&impatient, &lock, dir.path(), &to, &SaveOptions::default()).await;
    let named: Vec<String> = failed.iter().map(ToString::to_string).collect();
    assert!(named.iter().any(|text| text.starts_with(&format!("{}/large:v1: ", held.host))), "{named:?}");
    held.let_through(u64::MAX);
    let (reports, failed) = saved_in(&client(), &lock, dir.path(), &to, &SaveOptions::default()).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(fetched(&reports) <= (good.len() + large.len()) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_come_keeps_no_others_waiting() {
    let (stuck, good) = (Registry::start().await, Registry::start().await);
    let mut layers: Vec<Vec<u8>> = (0..6).map(|seed| layer(&[("file", &noise(seed, 200_000))])).collect();
    // They are fetched in the order of their diff ids.
    layers.sort_by_cached_key(|layer| registry::digest::sha256(layer).to_string());
    let held = Held::start(stuck.host()).await;
    let proxy = Proxy::start(good.host(), Way::ToClient, Vec::new()).await;
    let mut list = String::new();
    for (number, layer) in layers.iter().enumerate() {
        let (from, host) = if number == 0 { (&stuck, &held.host) } else { (&good, &proxy.host) };
        let name = format!("app-{number}");
        let image = from.image(&name, "linux/amd64", &[layer]).await;
        from.tag(&name, "v1", image.content).await;
        list += &format!("{host}/{name}:v1\n");
    }
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &list, &[]).await;
    // Its documents come, and its layer does not.
    held.let_through(100_000);
    let short = Timeouts { idle: Duration::from_secs(1), ..Timeouts::default() };
    let retries = Retries { attempts: 100, longest_delay: Duration::from_millis(100), ..Retries::default() };
    let client = Client::new(ClientConfig { timeouts: short, retries, ..support::config() }).unwrap();
    let to = Destination::Directory(dir.path().join("registry"));
    let options = SaveOptions { conversions: 2, ..SaveOptions::default() };
    let others: usize = layers[1..].iter().map(Vec::len).sum();
    let watch = async {
        let all_others = async {
            while proxy.passed() < others as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all_others).await.expect("other layers wait");
        held.let_through(u64::MAX);
    };
    let ((_, failed), ()) = tokio::join!(saved_in(&client, &lock, dir.path(), &to, &options), watch);
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_is_taken_up_where_it_was() {
    let registry = Registry::start().await;
    let image = registry.image("app", "linux/amd64", &[&noise(3, LARGE)]).await;
    registry.tag("app", "v1", image.content.clone()).await;
    let proxy = Proxy::start(registry.host(), Way::ToClient, vec![1 << 20, 3 << 20]).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{}/app:v1\n", proxy.host), &[]).await;
    let (reports, failed) =
        saved(&lock, dir.path(), &Destination::Directory(dir.path().join("registry"))).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!((proxy.cuts(), fetched(&reports)), (2, image.bytes));
    // Little came twice.
    assert!(proxy.passed() < image.bytes + (1 << 20), "{}", proxy.passed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_no_more_fails_its_images_in_time() {
    let registry = Registry::start().await;
    let image = registry.image("app", "linux/amd64", &[&noise(4, LARGE)]).await;
    registry.tag("app", "v1", image.content.clone()).await;
    let held = Held::start(registry.host()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{}/app:v1\n", held.host), &[]).await;
    held.let_through(2 << 20);
    let short = Timeouts { idle: Duration::from_millis(300), ..Timeouts::default() };
    let retries = Retries { attempts: 2, ..Retries::default() };
    let impatient = Client::new(ClientConfig { timeouts: short, retries, ..support::config() }).unwrap();
    let to = Destination::Directory(dir.path().join("registry"));
    let (_, failed) = saved_as(&impatient, &lock, dir.path(), &to).await;
    assert!(failed[0].to_string().starts_with(&format!("{}/app:v1: ", held.host)), "{failed:?}");
    held.let_through(u64::MAX);
    let (_, failed) = saved(&lock, dir.path(), &to).await;
    assert!(failed.is_empty(), "{failed:?}");
}
