//! A cluster image from its directory to a registry, into a package, and from there to another registry, by the commands.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::registry::{Serving, closed};

/// `nydus-cluster`, with the configuration and credentials in `dir` alone.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let config = dir.join("config.toml");
    fs::write(&config, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
    command.current_dir(dir).arg("--config").arg(config).env("DOCKER_CONFIG", dir).args(arguments);
    command
}

/// What the command says, if it ends well.
fn said(dir: &Path, arguments: &[&str]) -> String {
    let output = command(dir, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(dir, arguments)).unwrap()
}

#[test]
fn a_cluster_image_travels_as_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = Serving::start(dir, "from", &[]);
    let host = &from.address;
    for (name, content) in [("app", "an application"), ("db", "a database")] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("file"), content).unwrap();
        said(dir, &["image", "convert", &format!("directory:{name}"), &format!("{host}/team/{name}:v1")]);
    }
    fs::create_dir_all(dir.join("root/manifests")).unwrap();
    fs::write(dir.join("root/manifests/imageList"), format!("{host}/team/app:v1\n{host}/team/db:v1\n"))
        .unwrap();
    fs::write(dir.join("root/Metadata"), r#"{"version": "v1.29.0", "arch": "amd64"}"#).unwrap();
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let cluster = format!("{host}/k8s:v1");
    said(dir, &["image", "convert", "directory:root", &cluster]);

    let online = json(dir, &["cluster", "inspect", &cluster, "--json"]);
    assert_eq!(online["components"]["version"], "v1.29.0");
    assert_eq!(online["components"]["layout"], "sealer");
    let saved = said(dir, &["cluster", "save", &cluster, "--plain", "-o", "cluster.tar"]);
    assert_eq!(saved.lines().count(), 3, "{saved}");
    drop(from);

    // From here on there is no registry that anything came from.
    let mut packed = json(dir, &["cluster", "inspect", "cluster.tar", "--json"]);
    assert_eq!(packed["images"].as_array().unwrap().len(), 2);
    packed["name"] = online["name"].clone();
    assert_eq!(packed, online);
    let text = said(dir, &["cluster", "inspect", "cluster.tar"]);
    assert!(text.contains("/team/app:v1") && text.contains("2 images"), "{text}");
    let found = json(dir, &["cluster", "images", "cluster.tar", "--json"]);
    assert_eq!(found["images"].as_array().unwrap().len(), 2);
    said(dir, &["image", "check", "package:cluster.tar"]);
    said(dir, &["image", "check", "package:cluster.tar:team/db:v1"]);
    let serving = Serving::start(dir, "none", &["--package", "cluster.tar"]);
    said(dir, &["image", "check", &format!("{}/team/app:v1", serving.address)]);
    drop(serving);

    let to = Serving::start(dir, "to", &[]);
    said(dir, &["registry", "sync", "cluster.tar", &format!("{}/mirror", to.address)]);
    for name in ["k8s:v1", "team/app:v1", "team/db:v1"] {
        said(dir, &["image", "check", &format!("{}/mirror/{name}", to.address)]);
    }
    said(dir, &["registry", "copy", "package:cluster.tar:team/db:v1", &format!("{}/db:mine", to.address)]);
    said(dir, &["image", "check", &format!("{}/db:mine", to.address)]);

    for arguments in [&["cluster", "inspect", "cluster.tar"][..], &["cluster", "images", "root", "--json"]] {
        let output = command(dir, arguments).stdout(closed()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        let status = command(dir, arguments).stdout(Stdio::null()).stderr(closed()).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }
}
