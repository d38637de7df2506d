//! A plain cluster image of a few files that makes its cluster by its own hooks, in sealer's words and sealos'.

use std::collections::BTreeMap;

use anyhow::Result;
use registry::client::{Client, ClientConfig, HostConfig};
use registry::{Repository, digest};
use serde_json::json;

use super::ClusterImage;
use crate::servers::EmbeddedRegistry;

const NAME: &str = "registry.example/cluster/own-runtime";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// What it has: what its hooks say is in `/run/own-runtime` of a node.
const FILES: &[(&str, &str)] = &[
    ("images.lock", "{\"images.lock\":1,\"platforms\":[\"linux/amd64\"]}\n"),
    ("etc/own.conf.tmpl", "color is {{ .COLOR }}\n"),
    (
        "scripts/up.sh",
        "set -e; { cat etc/own.conf; echo \"first $NODE_ROLE $NODE_ADDRESS\"; } >/run/own-runtime\necho token-of-first >$CLUSTER_JOIN; echo 'kind: Config' >$KUBECONFIG\n",
    ),
    (
        "scripts/join.sh",
        "echo \"$NODE_ROLE $NODE_ADDRESS joins $CLUSTER_ENDPOINT with $(cat $CLUSTER_JOIN)\" >/run/own-runtime\n",
    ),
    (
        "application/apps/word/go.sh",
        "echo \"$WORD of $CLUSTER_NAME, $(cat $KUBECONFIG)\" >>/run/own-runtime\n",
    ),
];
/// sealer's words.
const EXTENSION: &str = r#"{"schemaVersion":"v1alpha1","type":"kube-installer","applications":[{"name":"word","type":"shell","files":["go.sh"],"env":{"WORD":"launched"}}],"launch":{"cmds":null,"app_names":["word"]}}"#;

impl ClusterImage {
    /// Pushes the image; returns its name.
    pub fn push_own_runtime(&self, registry: &EmbeddedRegistry) -> Result<String> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(push(&registry.address().to_string()))?;
        Ok(format!("{NAME}:1"))
    }
}

async fn push(host: &str) -> Result<()> {
    let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
    let hosts = BTreeMap::from([(host.to_owned(), plain)]);
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() })?;
    let repository = Repository::parse(&format!("{host}/{NAME}"))?;
    let layer = layer()?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["COLOR=green"],
            "Labels": {
                "init-cluster": "sh scripts/up.sh",
                "join-cluster": "sh scripts/join.sh",
                "leave-cluster": "rm /run/own-runtime",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest::sha256(&layer).to_string()]},
    })
    .to_string()
    .into_bytes();
    let described = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": digest::sha256(content).to_string(), "size": content.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described(CONFIG_TYPE, &config),
        "layers": [described(LAYER_TYPE, &layer)],
        "annotations": {"sealer.image.extension": EXTENSION},
    });
    client.push_blob(&repository, config.into()).await?;
    client.push_blob(&repository, layer.into()).await?;
    client.put_manifest(&repository.with_tag("1")?, MANIFEST_TYPE, manifest.to_string().into()).await?;
    Ok(())
}

fn layer() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}
