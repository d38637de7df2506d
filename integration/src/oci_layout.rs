//! A one-layer OCI image made from a tar, pushed by skopeo: for images that need no build.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::peers;
use crate::process;

/// Pushes an image with the plain tar `layer` and the command `command` to a plain-HTTP registry; returns its name.
pub fn push(
    registry: SocketAddr,
    repository: &str,
    layer: &Path,
    command: &[&str],
    dir: &Path,
) -> Result<String> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let bytes = fs::read(layer).with_context(|| format!("reading {}", layer.display()))?;
    let (layer_digest, layer_size) = put(&blobs, &bytes)?;
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let (config_digest, config_size) = put_json(&blobs, &config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer_size,
        }],
    });
    let (manifest_digest, manifest_size) = put_json(&blobs, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest, "size": manifest_size,
        }],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    let name = format!("{registry}/{repository}");
    process::run(
        Command::new(peers::system("skopeo")?)
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", dir.display()))
            .arg(format!("docker://{name}")),
    )?;
    Ok(name)
}

/// This machine's architecture as OCI calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn put_json(blobs: &Path, value: &Value) -> Result<(String, usize)> {
    put(blobs, value.to_string().as_bytes())
}

fn put(blobs: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let hex = hex::encode(Sha256::digest(bytes));
    fs::write(blobs.join(&hex), bytes)?;
    Ok((format!("sha256:{hex}"), bytes.len()))
}
