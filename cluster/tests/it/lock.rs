//! Locks, made of images in a registry of this process.

use std::fs;

use cluster::discover::{self, Discovery, Options};
use cluster::lock::{Change, Lock, ResolveOptions, Resolved, changes, resolve};
use registry::client::Client;
use tempfile::TempDir;

use crate::support::{self, Registry, index, manifest};

async fn found(dir: &TempDir) -> Discovery {
    discover::discover(dir.path(), &Options::default()).await.unwrap()
}

async fn resolved(dir: &TempDir, options: &ResolveOptions, obeyed: Option<&Lock>) -> Resolved {
    let client = Client::new(support::config()).unwrap();
    resolve(&found(dir).await, dir.path(), &client, options, obeyed).await.unwrap()
}

fn list(lines: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("imageList"), lines).unwrap();
    dir
}

#[tokio::test]
async fn an_index_is_locked_with_its_platforms_and_their_sizes() {
    let registry = Registry::start().await;
    let host = registry.host();
    let amd64 = registry.image("app", "linux/amd64", &[b"layer one", b"two"]).await;
    let arm64 = registry.image("app", "linux/arm64", &[b"layer one"]).await;
    let digest = registry.tag("app", "v1", index(&[&amd64, &arm64])).await;
    let alone = registry.image("alone", "linux/arm64", &[b"x"]).await;
    registry.tag("alone", "v1", alone.content.clone()).await;
    let dir = list(&format!("{host}/app:v1\n{host}/alone:v1\n{host}/app@{digest}\n"));
    let all = resolved(&dir, &ResolveOptions::default(), None).await;
    assert_eq!((all.problems.as_slice(), all.warnings.as_slice()), (&[][..], &[][..]));
    let names: Vec<_> = all.lock.images.iter().map(|image| image.reference.to_string()).collect();
    assert_eq!(names, [format!("{host}/alone:v1"), format!("{host}/app:v1"), format!("{host}/app@{digest}")]);
    let app = &all.lock.images[1];
    assert_eq!((app.digest.to_string(), app.platforms.len()), (digest.clone(), 2));
    assert_eq!(app.platforms[0].platform.to_string(), "linux/amd64");
    assert_eq!(app.platforms[0].digest.to_string(), amd64.digest);
    assert_eq!(app.platforms[0].bytes, amd64.bytes);
    assert_eq!(app.asked_by, ["imageList"]);
    // One platform: the image that does not have it is an error, at its line.
    let options =
        ResolveOptions { platforms: vec!["linux/amd64".parse().unwrap()], ..ResolveOptions::default() };
    let one = resolved(&dir, &options, None).await;
    assert_eq!(one.lock.images.len(), 2);
    assert_eq!(one.lock.images[0].platforms.len(), 1);
    let problem = one.problems[0].to_string();
    assert!(problem.starts_with("imageList:2: ") && problem.contains("linux/amd64"), "{problem}");
    // What is in the index is the same either way.
    assert_eq!(one.lock.images[0].digest, app.digest);
}

#[tokio::test]
async fn what_is_asked_for_must_be_there_and_candidates_need_not() {
    let registry = Registry::start().await;
    let host = registry.host();
    let image = registry.image("there", "linux/amd64", &[b"x"]).await;
    registry.tag("there", "v1", image.content).await;
    let dir = list(&format!("# one\n{host}/absent:v1\n{host}/there:v1\n"));
    let resource = format!(
        "apiVersion: x.io/v1\nkind: X\nspec:\n  a: {{image: '{host}/there:v1'}}\n  b: {{image: '{host}/candidate:v1'}}\n"
    );
    fs::create_dir(dir.path().join("manifests")).unwrap();
    fs::write(dir.path().join("manifests/x.yaml"), resource).unwrap();
    let found = resolved(&dir, &ResolveOptions::default(), None).await;
    assert_eq!(found.lock.images.len(), 1);
    assert_eq!(found.lock.images[0].asked_by, ["imageList", "manifests/x.yaml"]);
    let (problems, warnings) = (&found.problems, &found.warnings);
    assert_eq!((problems.len(), warnings.len()), (1, 1));
    assert!(
        problems[0].to_string().starts_with(&format!("imageList:2: {host}/absent:v1: ")),
        "{}",
        problems[0]
    );
    assert!(warnings[0].to_string().starts_with("manifests/x.yaml:5: "), "{}", warnings[0]);
    let options =
        ResolveOptions { allow_missing: vec!["**/absent:*".to_owned()], ..ResolveOptions::default() };
    let found = resolved(&dir, &options, None).await;
    assert_eq!((found.problems.len(), found.warnings.len()), (0, 2));
}

#[tokio::test]
async fn a_lock_is_obeyed_until_it_is_updated() {
    let registry = Registry::start().await;
    let host = registry.host();
    let first = registry.image("app", "linux/amd64", &[b"first"]).await;
    registry.tag("app", "v1", first.content.clone()).await;
    let dir = list(&format!("{host}/app:v1\n"));
    let options = ResolveOptions::default();
    let lock = resolved(&dir, &options, None).await.lock;
    // The tag moves, and another image is asked for.
    let second = registry.image("app", "linux/amd64", &[b"second"]).await;
    registry.tag("app", "v1", second.content.clone()).await;
    registry.tag("app", "v2", second.content.clone()).await;
    fs::write(dir.path().join("imageList"), format!("{host}/app:v1\n{host}/app:v2\n")).unwrap();
    let obeying = resolved(&dir, &options, Some(&lock)).await.lock;
    assert_eq!(obeying.images[0], lock.images[0]);
    let added = Change::Added { image: format!("{host}/app:v2"), asked_by: vec!["imageList".to_owned()] };
    assert_eq!(changes(&lock, &obeying), [added]);
    let updated = resolved(&dir, &options, None).await.lock;
    let moved = Change::Moved {
        image: format!("{host}/app:v1"),
        locked: first.digest.parse().unwrap(),
        found: second.digest.parse().unwrap(),
    };
    assert_eq!(changes(&obeying, &updated), [moved]);
    // A lock for other platforms says nothing.
    let options = ResolveOptions { platforms: vec!["linux/amd64".parse().unwrap()], ..options };
    let other = resolved(&dir, &options, Some(&lock)).await.lock;
    assert_eq!(other.images[0].digest.to_string(), second.digest);
    let gone = Change::Removed { image: format!("{host}/app:v2") };
    assert_eq!(changes(&updated, &Lock { images: updated.images[..1].to_vec(), ..updated.clone() }), [gone]);
}

#[tokio::test]
async fn nydus_forms_and_artifacts_are_what_they_are() {
    let registry = Registry::start().await;
    let host = registry.host();
    let plain = registry.image("app", "linux/amd64", &[b"plain"]).await;
    let nydus = registry.image("app", "linux/amd64", &[b"nydus form"]).await;
    let mut both: serde_json::Value = serde_json::from_slice(&index(&[&plain, &nydus])).unwrap();
    both["manifests"][1]["artifactType"] = "application/vnd.nydus.image.manifest.v1+json".into();
    registry.tag("app", "v1", serde_json::to_vec(&both).unwrap()).await;
    let artifact = registry.blob("manifests", b"flux").await;
    let content = manifest(&artifact, "application/vnd.cncf.flux.config.v1+json", &[]);
    registry.tag("manifests", "v1", content).await;
    let dir = list(&format!("{host}/app:v1\n{host}/manifests:v1\n"));
    let options =
        ResolveOptions { platforms: vec!["linux/amd64".parse().unwrap()], ..ResolveOptions::default() };
    let found = resolved(&dir, &options, None).await;
    assert_eq!(found.problems, []);
    let [app, manifests] = &found.lock.images[..] else { panic!("two images") };
    assert_eq!((app.platforms.len(), app.nydus.len()), (1, 1));
    assert_eq!(
        (app.platforms[0].digest.to_string(), app.nydus[0].digest.to_string()),
        (plain.digest, nydus.digest)
    );
    assert_eq!((manifests.platforms.len(), manifests.nydus.len()), (0, 0));
}

/// The index of images of which the first is a nydus image.
fn first_as_nydus(images: &[&support::Stored]) -> Vec<u8> {
    let mut index: serde_json::Value = serde_json::from_slice(&index(images)).unwrap();
    index["manifests"][0]["artifactType"] = "application/vnd.nydus.image.manifest.v1+json".into();
    serde_json::to_vec(&index).unwrap()
}

#[tokio::test]
async fn a_platform_that_is_there_as_a_nydus_image_alone_is_there() {
    let registry = Registry::start().await;
    let host = registry.host();
    let amd64 = registry.image("app", "linux/amd64", &[b"nydus form"]).await;
    let arm64 = registry.image("app", "linux/arm64", &[b"plain"]).await;
    registry.tag("app", "alone", first_as_nydus(&[&amd64])).await;
    registry.tag("app", "mixed", first_as_nydus(&[&amd64, &arm64])).await;
    let dir = list(&format!("{host}/app:alone\n{host}/app:mixed\n"));
    let counts = async |platforms: &[&str]| {
        let platforms = platforms.iter().map(|platform| platform.parse().unwrap()).collect();
        let found = resolved(&dir, &ResolveOptions { platforms, ..ResolveOptions::default() }, None).await;
        let count = |image: &cluster::lock::Locked| (image.platforms.len(), image.nydus.len());
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        (found.lock.images.iter().map(count).collect::<Vec<_>>(), problems)
    };
    assert_eq!(counts(&[]).await, (vec![(0, 1), (1, 1)], vec![]));
    assert_eq!(counts(&["linux/amd64"]).await, (vec![(0, 1), (0, 1)], vec![]));
    let (found, problems) = counts(&["linux/amd64", "linux/arm64"]).await;
    assert_eq!((found, problems.len()), (vec![(1, 1)], 1), "{problems:?}");
    assert!(problems[0].contains("no image for linux/arm64; it has linux/amd64"), "{problems:?}");
    // One that is for no platform that is wanted is no artifact.
    let (found, problems) = counts(&["linux/arm64"]).await;
    assert_eq!((found, problems.len()), (vec![(1, 0)], 1), "{problems:?}");
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_an_error_in_time() {
    // Connections are taken, and nothing is ever said.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap();
    let lines: String = (0..20).map(|number| format!("{host}/app:v{number}\n")).collect();
    let dir = list(&lines);
    let options =
        ResolveOptions { deadline: std::time::Duration::from_millis(200), ..ResolveOptions::default() };
    let found = resolved(&dir, &options, None).await;
    assert_eq!((found.lock.images.len(), found.problems.len()), (0, 20));
    assert!(found.problems[0].to_string().contains("not looked up within"), "{}", found.problems[0]);
}

#[tokio::test]
async fn a_registry_that_does_not_answer_keeps_no_others_waiting() {
    let mut registries = Vec::new();
    for _ in 0..5 {
        registries.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let host = |registry: &tokio::net::TcpListener| registry.local_addr().unwrap().to_string();
    registries.sort_by_cached_key(host);
    let lines: String = registries.iter().map(|registry| format!("{}/app:v1\n", host(registry))).collect();
    let dir = list(&lines);
    let options = ResolveOptions { concurrency: 2, ..ResolveOptions::default() };
    // The first one says nothing, and the others are gone once they have been asked.
    let _silent = registries.remove(0);
    let asked = futures::future::join_all(
        registries.into_iter().map(|registry| async move { registry.accept().await.map(drop) }),
    );
    let all_asked = async {
        tokio::select! {
            found = resolved(&dir, &options, None) => panic!("{:?}", found.problems),
            asked = asked => asked.into_iter().for_each(Result::unwrap),
        }
    };
    // A registry that is gone is asked again for some seconds.
    tokio::time::timeout(std::time::Duration::from_secs(60), all_asked).await.expect("others wait");
}

#[tokio::test]
async fn an_archive_of_the_tree_is_locked_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("images/skopeo")).unwrap();
    fs::write(
        dir.path().join("images/skopeo/tar.txt"),
        "oci-archive:a.tar@team/own:v1\ndocker-archive:none.tar@b:1\n",
    )
    .unwrap();
    let made = support::oci_archive(&dir.path().join("images/skopeo/a.tar"), "docker.io/team/own:v1");
    let found = resolved(&dir, &ResolveOptions::default(), None).await;
    let own = &found.lock.images[0];
    assert_eq!((own.reference.to_string().as_str(), own.digest.to_string()), ("docker.io/team/own:v1", made));
    assert_eq!(own.archive.as_ref().unwrap().path, "images/skopeo/a.tar");
    assert!(found.problems[0].to_string().starts_with("images/skopeo/tar.txt:2: "), "{}", found.problems[0]);
}
