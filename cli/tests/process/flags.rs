//! What flags of `nydus-cluster cluster` change.

use std::fs;
use std::path::Path;

use registry::client::{Client, ClientConfig};
use test_support::{helm, noise};

use super::packages::{push_plain, said};
use super::registry::Serving;

fn write(dir: &Path, path: &str, content: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// The images that `cluster images root` finds with `flags`.
fn found(dir: &Path, flags: &[&str]) -> Vec<String> {
    let table = said(dir, &[&["cluster", "images", "root"], flags].concat());
    let names = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names.map(ToOwned::to_owned).collect()
}

#[test]
fn files_that_fit_a_pattern_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "root/manifests/imageList", "r.example/own:1\n");
    write(dir, "root/images/shim/more", "r.example/more:1\n");
    write(dir, "root/images/shim/most", "r.example/most:1\n");
    let [more, most, own] = ["more", "most", "own"].map(|name| format!("r.example/{name}:1"));
    assert_eq!(found(dir, &[]), [&more[..], &most, &own]);
    assert_eq!(found(dir, &["--ignore", "images/shim/mor*"]), [&most[..], &own]);
    assert_eq!(
        found(dir, &["--ignore", "images/shim/*", "--ignore", "!images/shim/more"]),
        [&more[..], &own]
    );
    assert_eq!(found(dir, &["--ignore", "mor*", "--ignore", "imageList"]), [&most[..]]);
}

/// A chart that says which version of Kubernetes it is rendered for.
const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: x}
spec:
  containers:
  - image: r.example/{{ .Values.name }}:{{ if semverCompare \">=1.40-0\" .Capabilities.KubeVersion.Version }}new{{ else }}old{{ end }}
";
const TEMPLATE: &str = "apiVersion: v1
kind: Pod
spec: {containers: [{image: 'r.example/template:{{ .Tag | default \"none\" }}'}]}
";

#[test]
fn charts_and_templates_are_rendered_as_flags_say() {
    let Some(helm) = helm() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "root/charts/web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n");
    write(dir, "root/charts/web/values.yaml", "name: usual\n");
    write(dir, "root/charts/web/templates/pod.yaml", POD);
    write(dir, "root/manifests/pod.yaml.tmpl", TEMPLATE);
    write(dir, "root/Metadata", "{\"version\": \"v1.29.0\", \"kubeVersion\": \"v1.29.0\"}\n");
    write(dir, "mine.yaml", "name: mine\n");
    let helm = ["--helm", helm.to_str().unwrap()];
    let found = |flags: &[&str]| found(dir, &[&helm, flags].concat());
    assert_eq!(found(&["--env", "Tag="]), ["r.example/template:none", "r.example/usual:old"]);
    assert_eq!(found(&["--env", "Tag=v7"]), ["r.example/template:v7", "r.example/usual:old"]);
    let version = ["--env", "Tag=v7", "--kube-version", "1.41.0"];
    assert_eq!(found(&version), ["r.example/template:v7", "r.example/usual:new"]);
    // A rendering more.
    let values = found(&["--env", "Tag=v7", "--values", "web=mine.yaml"]);
    assert_eq!(values, ["r.example/mine:old", "r.example/template:v7", "r.example/usual:old"]);
}

/// What a registry in `dir` stores.
fn stored_bytes(dir: &Path) -> u64 {
    let (mut bytes, mut folders) = (0, vec![dir.join("registry/docker/registry/v2/blobs")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => bytes += entry.metadata().unwrap().len(),
            }
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_stores_what_an_earlier_one_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let serving = Serving::start(dir, "registry", &[]);
    let client = Client::new(ClientConfig::default()).unwrap();
    let (library, own) = (noise(7, 900_000), noise(8, 100_000));
    let [first, second] = ["first", "second"].map(|name| format!("{}/team/{name}:v1", serving.address));
    push_plain(&client, &first, &[("library", library.clone())]).await;
    push_plain(&client, &second, &[("library", library.clone()), ("own", own.clone())]).await;
    let to = |tag: &str| format!("{}/cluster:{tag}", serving.address);
    let save = |image: &str, flags: &[&str]| {
        write(dir, "root/imageList", &format!("{image}\n"));
        let before = stored_bytes(dir);
        said(dir, &[&["cluster", "save", "root"], flags].concat());
        stored_bytes(dir) - before
    };
    save(&first, &["--to", &to("v1")]);
    let on_first = save(&second, &["--to", &to("v2"), "--base", &to("v1")]);
    assert!(on_first < own.len() as u64 + (64 << 10), "{on_first} bytes are new");
    let alone = save(&second, &["--to", &to("v3")]);
    assert!(alone > library.len() as u64, "{alone} bytes are new");
}
