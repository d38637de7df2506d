//! An image that no lock names, on the layers of one that the cluster image's lock does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use registry::client::{Client, ClientConfig, HostConfig};
use registry::media_types::{OCI_LAYER, OCI_MANIFEST};
use registry::{Reference, Repository, digest};
use serde_json::{Value, json};

use super::ClusterImage;
use crate::servers::EmbeddedRegistry;

const BELOW: &str = "registry.example/services/redis:7.0";
const OUTSIDE: &str = "registry.example/outside/redis";

impl ClusterImage {
    /// Pushes the image, which has a file `/outside` more than Redis; returns its name.
    pub fn push_outside(&self, registry: &EmbeddedRegistry) -> Result<String> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(push(&registry.address().to_string()))?;
        Ok(format!("{OUTSIDE}:1"))
    }
}

async fn push(host: &str) -> Result<()> {
    let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
    let hosts = BTreeMap::from([(host.to_owned(), plain)]);
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() })?;
    let below = Reference::parse(&format!("{host}/{BELOW}"))?;
    let outside = Repository::parse(&format!("{host}/{OUTSIDE}"))?;
    let mut manifest: Value = serde_json::from_slice(&client.manifest(&below).await?.1)?;
    if let Some(first) = manifest["manifests"][0]["digest"].as_str() {
        let image = below.repository().with_digest(first.parse()?);
        manifest = serde_json::from_slice(&client.manifest(&image).await?.1)?;
    }
    let digest_of =
        |value: &Value| Ok::<_, anyhow::Error>(value["digest"].as_str().context("no digest")?.parse()?);
    let layers = manifest["layers"].as_array().context("a manifest without layers")?.clone();
    for layer in &layers {
        client.mount_blob(&outside, below.repository(), &digest_of(layer)?).await?;
    }
    let mut config = client.blob(below.repository(), &digest_of(&manifest["config"])?)?;
    let mut text = Vec::new();
    while let Some(piece) = config.next().await? {
        text.extend_from_slice(&piece);
    }
    let mut config: Value = serde_json::from_slice(&text)?;
    let layer = layer()?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().context("a config without diff ids")?;
    diff_ids.push(digest::sha256(&layer).to_string().into());
    if let Some(history) = config["history"].as_array_mut() {
        history.push(json!({"created_by": "outside"}));
    }
    let described = |media_type: &Value, content: &[u8]| json!({"mediaType": media_type, "digest": digest::sha256(content).to_string(), "size": content.len()});
    let config = config.to_string().into_bytes();
    manifest["config"] = described(&manifest["config"]["mediaType"], &config);
    let layers = manifest["layers"].as_array_mut().context("a manifest without layers")?;
    layers.push(described(&OCI_LAYER.into(), &layer));
    client.push_blob(&outside, config.into()).await?;
    client.push_blob(&outside, layer.into()).await?;
    let name = outside.with_tag("1")?;
    client.put_manifest(&name, OCI_MANIFEST, manifest.to_string().into()).await?;
    Ok(())
}

fn layer() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(8);
    header.set_mode(0o644);
    tar.append_data(&mut header, "outside", &b"outside\n"[..])?;
    Ok(tar.into_inner()?)
}
