//! `nydus-cluster cluster`: locks, saves and merges, by the commands.

use std::fs;
use std::path::Path;

use registry::client::{Client, ClientConfig};
use registry::{Digest, Reference, digest};
use serde_json::{Value, json};
use test_support::{noise, tar_of};

use super::packages::{command, push_plain, said, sent};
use super::registry::Serving;

fn client() -> Client {
    Client::new(ClientConfig::default()).unwrap()
}

/// What a command that fails says: on standard output, and on standard error.
fn failing(dir: &Path, arguments: &[&str]) -> (String, String) {
    let output = command(dir, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn digest_of(name: &str) -> Digest {
    client().manifest(&Reference::parse(name).unwrap()).await.unwrap().0.digest().clone()
}

/// A tree whose list asks for these images.
fn asks_for(dir: &Path, images: &[&str]) {
    let list = dir.join("root/manifests");
    fs::create_dir_all(&list).unwrap();
    fs::write(list.join("imageList"), format!("# what it needs\n{}\n", images.join("\n"))).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_obeyed_checked_and_updated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let serving = Serving::start(dir, "registry", &[]);
    let [app, db, none] = ["app", "db", "none"].map(|name| format!("{}/team/{name}:v1", serving.address));
    for name in [&app, &db] {
        push_plain(&client(), name, &[("file", name.clone().into_bytes())]).await;
    }
    asks_for(dir, &[&app, &db]);
    let table = said(dir, &["cluster", "images", "root"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let place = |line: usize| format!("manifests/imageList:{line}");
    assert_eq!(rows, [vec!["IMAGE", "ASKED", "BY"], vec![&app, &place(2)], vec![&db, &place(3)]]);
    let why = |image: &str| said(dir, &["cluster", "images", "root", "--why", image]);
    assert_eq!(why(&app), format!("{app}\n  {}\n", place(2)));
    assert_eq!(why(app.trim_end_matches(":v1")), why(&app), "all of a repository");
    let (_, error) = failing(dir, &["cluster", "images", "root", "--why", "app"]);
    assert!(error.contains("nothing asks for app"), "{error}");

    let lock = ["cluster", "images", "root", "--lock", "images.lock"];
    let check = ["cluster", "images", "root", "--check", "images.lock"];
    said(dir, &lock);
    assert_eq!(said(dir, &check), "");
    let (first, locked) = (digest_of(&app).await, || fs::read_to_string(dir.join("images.lock")).unwrap());
    let before = locked();
    assert!(before.contains(first.as_ref()), "{before}");
    // The tag is moved.
    push_plain(&client(), &app, &[("file", b"second".to_vec())]).await;
    let second = digest_of(&app).await;
    let (changes, _) = failing(dir, &check);
    assert_eq!(changes, format!("{app}: locked as {first}, but is {second}\n"));
    said(dir, &lock);
    assert_eq!(locked(), before, "what is locked stays");
    said(dir, &[&lock[..], &["--update"]].concat());
    assert_eq!(locked(), before.replace(first.as_ref(), second.as_ref()), "one line is another one");
    assert_eq!(said(dir, &check), "");

    // Platforms that were asked for once are those of the lock.
    let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    said(dir, &[&lock[..], &["--platform", &platform]].concat());
    let before = locked();
    push_plain(&client(), &app, &[("file", b"third".to_vec())]).await;
    said(dir, &lock);
    assert_eq!(locked(), before, "what is locked for a platform stays");
    said(dir, &[&lock[..], &["--update"]].concat());
    assert!(locked().starts_with(before.lines().next().unwrap()), "{}", locked());
    assert_ne!(locked(), before);

    // One that is not there is an error, unless it may be missing; then it is not locked.
    asks_for(dir, &[&app, &db, &none]);
    let before = locked();
    let (_, error) = failing(dir, &lock);
    assert!(error.contains(&format!("error: {}: {none}: ", place(4))), "{error}");
    assert!(error.contains("images.lock is not written"), "{error}");
    let allowed = [&lock[..], &["--allow-missing", "**/team/none:*"]].concat();
    let output = command(dir, &allowed).output().unwrap();
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{warning}");
    assert!(warning.contains(&format!("warning: {}: {none}: ", place(4))), "{warning}");
    assert_eq!(locked(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_fails_names_the_image_and_gives_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let serving = Serving::start(dir, "registry", &[]);
    let [good, bad] = ["good", "bad"].map(|name| format!("{}/team/{name}:v1", serving.address));
    push_plain(&client(), &good, &[("file", b"good".to_vec())]).await;
    let files = [("file", b"bad".to_vec())];
    push_plain(&client(), &bad, &files).await;
    asks_for(dir, &[&good, &bad]);
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let layer = digest::sha256(&tar_of(&files));
    let shelf = dir.join("registry/docker/registry/v2/blobs/sha256").join(&layer.digest()[..2]);
    fs::remove_dir_all(shelf.join(layer.digest())).unwrap();

    let to = format!("{}/cluster:images", serving.address);
    let (_, error) = failing(dir, &["cluster", "save", "root", "--to", &to]);
    assert!(error.contains(&format!("error: {bad}: ")), "{error}");
    assert!(error.contains("1 of 2 images are not saved"), "{error}");
    assert!(client().head_manifest(&Reference::parse(&to).unwrap()).await.unwrap().is_none());
    let (_, error) = failing(dir, &["cluster", "save", "root"]);
    assert!(error.contains(&format!("error: {bad}: ")), "{error}");
}

/// What a merge in one registry may send: documents, and a nydus image's bootstrap.
const SMALL_BYTES: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_moves_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let layers = [noise(1, 600_000), noise(2, 400_000)];
    let before = Serving::start(dir, "registry", &[]);
    for ((name, file), content) in [("k8s", "bin/kubeadm"), ("net", "opt/net")].into_iter().zip(&layers) {
        let plain = format!("{}/team/{name}:v1", before.address);
        push_plain(&client(), &plain, &[(file, content.clone())]).await;
        said(dir, &["image", "convert", "--layer-cache", "", &plain, &plain.replace(":v1", ":nydus")]);
    }
    drop(before);
    for form in ["v1", "nydus"] {
        let log = format!("{form}.json");
        let serving = Serving::start(dir, "registry", &["--access-log", &log]);
        let [k8s, net, merged] =
            ["team/k8s", "team/net", "merged"].map(|name| format!("{}/{name}:{form}", serving.address));
        let output = said(dir, &["cluster", "merge", &k8s, &net, "-t", &merged]);
        assert!(output.starts_with(&format!("{merged}@{}", digest_of(&merged).await)), "{output}");
        let (sent, mounted) = sent(&dir.join(&log));
        assert!(sent.bytes < SMALL_BYTES && mounted >= layers.len(), "{form}: {mounted} mounted, {sent:?}");
        if form == "nydus" {
            said(dir, &["image", "check", &merged]);
        }
    }
}

/// What `docker save` writes of an image of one layer.
fn docker_archive(name: &str, bytes: usize) -> Vec<u8> {
    let layer = tar_of(&[("file", noise(3, bytes))]);
    let diff_id = digest::sha256(&layer).to_string();
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let [config, manifest] = [config, manifest].map(|document| document.to_string().into_bytes());
    tar_of(&[("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)])
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_archives_of_a_cluster_image_are_locked_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let serving = Serving::start(dir, "registry", &[]);
    let [plain, nydus] = ["plain", "nydus"].map(|tag| format!("{}/team/root:{tag}", serving.address));
    let list = "docker-archive:own.tar@team/own:v1\ndocker-archive:none.tar@team/none:v1\n";
    let files = [
        ("images/skopeo/tar.txt", list.into()),
        ("images/skopeo/own.tar", docker_archive("team/own:v1", 200_000)),
    ];
    push_plain(&client(), &plain, &files).await;
    let platform = ["--platform", "linux/amd64"];
    let convert = ["image", "convert", "--layer-cache", "", &plain, &nydus];
    said(dir, &[&convert[..], &platform].concat());
    for image in [&plain, &nydus] {
        let images = [&["cluster", "images", image, "--lock", "images.lock"][..], &platform].concat();
        let (_, error) = failing(dir, &images);
        assert!(error.contains("images/skopeo/tar.txt:2: docker.io/team/none:v1: "), "{error}");
        said(dir, &[&images[..], &["--allow-missing", "**/none:*"]].concat());
        let lock = fs::read_to_string(dir.join("images.lock")).unwrap();
        assert!(lock.contains("docker-archive:images/skopeo/own.tar"), "{lock}");
        let to = format!("{image}-images");
        said(dir, &["cluster", "save", image, "--lock", "images.lock", "--to", &to]);
        let (_, saved) = client().manifest(&Reference::parse(&to).unwrap()).await.unwrap();
        let saved = String::from_utf8(saved.to_vec()).unwrap();
        assert!(saved.contains("docker.io/team/own:v1"), "{saved}");
        said(dir, &["cluster", "save", image, "--lock", "images.lock", "-o", "cluster.tar"]);
        said(dir, &["image", "check", "package:cluster.tar:team/own:v1"]);
        fs::remove_file(dir.join("images.lock")).unwrap();
        fs::remove_file(dir.join("cluster.tar")).unwrap();
    }
}

/// What `cluster inspect` may fetch of a nydus image: documents, its bootstrap, and the chunks of small files.
const INSPECTED_BYTES: u64 = 256 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn inspecting_fetches_no_archive_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let serving = Serving::start(dir, "registry", &["--access-log", "log.json"]);
    let app = format!("{}/team/app:v1", serving.address);
    push_plain(&client(), &app, &[("file", noise(4, 300_000))]).await;
    let files = [
        ("root/imageList", format!("{app}\n").into_bytes()),
        ("root/images/skopeo/tar.txt", b"docker-archive:own.tar@team/own:v1\n".to_vec()),
        ("root/images/skopeo/own.tar", docker_archive("team/own:v1", 6_000_000)),
    ];
    for (path, content) in &files {
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), content).unwrap();
    }
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let cluster = format!("{}/k8s:v1", serving.address);
    said(dir, &["image", "convert", "--fresh", "directory:root", &cluster]);
    let inspect = |source: &str| -> Value {
        serde_json::from_str(&said(dir, &["cluster", "inspect", source, "--json"])).unwrap()
    };
    let here = inspect("root");
    let log = || fs::read_to_string(dir.join("log.json")).unwrap();
    let begin = log().len();
    let report = inspect(&cluster);
    let log = log();
    let requests = log[begin..].lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let fetched: u64 = requests.filter_map(|request| request["bytes_sent"].as_u64()).sum();
    assert!(fetched > 0 && fetched < INSPECTED_BYTES, "{fetched} bytes came");
    // An archive that is here is looked into; how large the image is says the lock as well.
    let sizes = |report: &Value| -> Vec<(Value, Value)> {
        let images = report["images"].as_array().unwrap();
        images.iter().map(|image| (image["image"].clone(), image["bytes"].clone())).collect()
    };
    assert_eq!(sizes(&report), sizes(&here));
    let shared = |report: &Value| {
        report["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|image| image["shared_bytes"].clone())
            .collect::<Vec<_>>()
    };
    let own = sizes(&report).iter().position(|(image, _)| image == "docker.io/team/own:v1").unwrap();
    assert!(shared(&report)[own].is_null() && shared(&here).iter().all(Value::is_number), "{report}");
    let text = said(dir, &["cluster", "inspect", &cluster]);
    assert!(text.contains("1 of 2 images are in archives"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nydus_image_alone_is_saved_as_it_is_and_served_by_a_node_and_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [from, to] = ["from", "to"].map(|name| Serving::start(dir, name, &[]));
    let app = format!("{}/team/app:v1", from.address);
    fs::create_dir(dir.join("app")).unwrap();
    fs::write(dir.join("app/file"), noise(5, 300_000)).unwrap();
    said(dir, &["image", "convert", "--fresh", "directory:app", &app]);
    asks_for(dir, &[&app]);
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let saved = format!("{}/cluster", to.address);
    said(dir, &["cluster", "save", "root", "--to", &format!("{saved}:images")]);
    let cluster = format!("{}/k8s:v1", from.address);
    said(dir, &["image", "convert", "--fresh", "directory:root", &cluster]);
    said(dir, &["cluster", "save", &cluster, "-o", "cluster.tar"]);
    let host = from.address.replace(':', "_");
    drop(from);

    let pinned = format!("{saved}@{}", digest_of(&format!("{saved}:images")).await);
    let serve = ["cluster", "serve", &pinned, "--root", "documents", "--listen", "127.0.0.1:0"];
    // All of it comes from where it was saved, also on a node that begins again.
    for log in ["first.log", "second.log"] {
        let node = Serving::of(command(dir, &serve), &dir.join(log));
        said(dir, &["image", "check", &format!("{}/{host}/team/app:v1", node.address)]);
    }
    let package = Serving::start(dir, "none", &["--package", "cluster.tar"]);
    said(dir, &["image", "check", &format!("{}/team/app:v1", package.address)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_for_saved_images_and_goes_on_without_their_repository() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = Serving::start(dir, "from", &[]);
    let app = format!("{}/team/app:v1", from.address);
    push_plain(&client(), &app, &[("file", noise(6, 100_000))]).await;
    let original = digest_of(&app).await;
    asks_for(dir, &[&app]);
    let to = format!("{}/cluster", from.address);
    said(dir, &["cluster", "save", "root", "--to", &format!("{to}:images")]);
    let pinned = format!("{to}@{}", digest_of(&format!("{to}:images")).await);
    let serve = ["cluster", "serve", &pinned, "--root", "documents", "--listen"];
    let open = command(dir, &[&serve[..], &["0.0.0.0:0"]].concat()).output().unwrap();
    let error = String::from_utf8(open.stderr).unwrap();
    assert!(!open.status.success() && error.contains("expected a loopback address"), "{error}");

    let serve =
        || Serving::of(command(dir, &[&serve[..], &["127.0.0.1:0"]].concat()), &dir.join("serve.log"));
    let host = from.address.replace(':', "_");
    let answered = async |node: &Serving| digest_of(&format!("{}/{host}/team/app:v1", node.address)).await;
    assert_eq!(answered(&serve()).await, original);
    drop(from);
    assert_eq!(answered(&serve()).await, original, "the documents are kept");
}
