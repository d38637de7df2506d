//! OCI images made from tars, in a layout on disk and pushed by skopeo: for images that need no build.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
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
    write(dir, &[layer], command, &[architecture()])?;
    let name = format!("{registry}/{repository}");
    copy(&format!("oci:{}", dir.display()), &format!("docker://{name}"))?;
    Ok(name)
}

/// Has skopeo copy an image with everything in it.
pub fn copy(from: &str, to: &str) -> Result<()> {
    process::run(
        Command::new(peers::system("skopeo")?)
            .args(["--insecure-policy", "copy", "--all"])
            .args(["--src-tls-verify=false", "--dest-tls-verify=false"])
            .args([from, to]),
    )?;
    Ok(())
}

/// Writes a layout to `dir` with one image of the plain tars `layers` and the command `command`: for a single architecture
/// as a manifest, for several as an index.
pub fn write(dir: &Path, layers: &[&Path], command: &[&str], architectures: &[&str]) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let bytes = fs::read(layer).with_context(|| format!("reading {}", layer.display()))?;
        let (digest, size) = put(&blobs, &bytes)?;
        descriptors.push(json!({
            "mediaType": OCI_LAYER, "digest": digest, "size": size,
        }));
        diff_ids.push(digest);
    }
    let mut manifests = Vec::new();
    for architecture in architectures {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = put_json(&blobs, OCI_CONFIG, &config)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": config, "layers": descriptors,
        });
        let mut manifest = put_json(&blobs, OCI_MANIFEST, &manifest)?;
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(manifest);
    }
    if manifests.len() > 1 {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        manifests = vec![put_json(&blobs, OCI_INDEX, &index)?];
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(dir.join("index.json"), index.to_string())?;
    fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(())
}

/// This machine's architecture as OCI calls it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Stores a document; returns its descriptor.
fn put_json(blobs: &Path, media_type: &str, value: &Value) -> Result<Value> {
    let (digest, size) = put(blobs, value.to_string().as_bytes())?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
}

fn put(blobs: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let hex = hex::encode(Sha256::digest(bytes));
    fs::write(blobs.join(&hex), bytes)?;
    Ok((format!("sha256:{hex}"), bytes.len()))
}
