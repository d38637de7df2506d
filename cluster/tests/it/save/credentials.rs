//! Images of several registries, each of which wants words of its own.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use cluster::save::{Destination, SaveOptions};
use registry::Reference;
use registry::client::{Client, ClientConfig, UploadConfig};

use super::{check_image_as, fetched, locked_as, plain, saved_in};
use crate::peers::noise;
use crate::support::{self, Registry, layer};

/// What somebody says to a registry.
type Word<'a> = (&'a Registry, &'a str, &'a str);

/// A client with these words in a configuration of Docker's.
fn client_with(dir: &Path, name: &str, words: &[Word<'_>]) -> Client {
    let entry = |(registry, user, password): &Word<'_>| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        (registry.host(), serde_json::json!({"auth": auth}))
    };
    let auths: serde_json::Map<_, _> = words.iter().map(entry).collect();
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, serde_json::json!({"auths": auths}).to_string()).unwrap();
    let upload = UploadConfig { spool_dir: dir.to_owned(), ..UploadConfig::default() };
    Client::new(ClientConfig { docker_config: Some(path), upload, ..support::config() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_several_registries_come_by_what_is_said_to_each() {
    let dir = tempfile::tempdir().unwrap();
    let (app, db) = (Registry::start_for("alice", "one").await, Registry::start_for("bob", "two").await);
    let to = Registry::start_for("carol", "three").await;
    for (registry, name, seed) in [(&app, "app", 1), (&db, "db", 2)] {
        let image = registry.image(name, "linux/amd64", &[&layer(&[("file", &noise(seed, 300_000))])]).await;
        registry.tag(name, "v1", image.content).await;
    }
    let words = [(&app, "alice", "one"), (&db, "bob", "two"), (&to, "carol", "three")];
    let all = client_with(dir.path(), "all.json", &words);
    let list = format!("{}/app:v1\n{}/db:v1\n", app.host(), db.host());
    let lock = locked_as(&all, &dir, &list, &[]).await;

    // What one registry knows is nothing to the other, and nobody else's image fails over it.
    let swapped = [(&app, "alice", "one"), (&db, "alice", "one"), words[2]];
    let swapped = client_with(dir.path(), "swapped.json", &swapped);
    for (number, options) in [plain(), SaveOptions::default()].into_iter().enumerate() {
        let folder = Destination::Directory(dir.path().join(format!("refused-{number}")));
        let (_, failed) = saved_in(&swapped, &lock, dir.path(), &folder, &options).await;
        let failed: Vec<_> = failed.iter().map(ToString::to_string).collect();
        assert!(failed.len() == 1 && failed[0].starts_with(&format!("{}/db:v1: ", db.host())), "{failed:?}");
    }

    for (tag, options) in [("plain", plain()), ("rafs", SaveOptions::default())] {
        let name = Reference::parse(&format!("{}/team/cluster:{tag}", to.host())).unwrap();
        let destination = Destination::Repository(name.clone());
        let (reports, failed) = saved_in(&all, &lock, dir.path(), &destination, &options).await;
        assert!(failed.is_empty() && reports.len() == 2, "{failed:?}");
        assert!(reports.iter().all(|report| report.fetched > 300_000), "{reports:?}");
        let (reports, _) = saved_in(&all, &lock, dir.path(), &destination, &options).await;
        assert_eq!(fetched(&reports), 0);
        if tag == "plain" {
            for image in &lock.images {
                check_image_as(&all, name.repository(), image.platforms[0].digest.as_ref()).await;
            }
        }
    }
}
