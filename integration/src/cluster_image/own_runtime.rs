//! A plain cluster image of a few files that makes its cluster by its own hooks, in sealer's words and sealos'.

use std::collections::BTreeMap;

use anyhow::Result;
use registry::client::{Client, ClientConfig, HostConfig};
use registry::media_types::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use registry::{Repository, digest};
use serde_json::json;

use crate::servers::EmbeddedRegistry;

const NAME: &str = "registry.example/cluster/own-runtime";

/// Which image of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnRuntime {
    /// The first one, with a hook that fails.
    Failing,
    /// With templates.
    First,
    /// Other files in place of those.
    Second,
}

/// A file: its path, its mode, what is in it.
type File = (&'static str, u32, &'static str);

/// What each has: what its hooks say is in `/run/own-runtime` of a node, and the server that the first one leaves in the background, which says
/// that it is there until it cannot, in `/run/own-server`. What launches it takes long once, where `/run/own-slow` is.
const FILES: &[File] = &[
    ("images.lock", 0o644, "{\"images.lock\":1,\"platforms\":[\"linux/amd64\"]}\n"),
    (
        "scripts/up.sh",
        0o644,
        "set -e; { cat etc/own.conf; echo \"first $NODE_ROLE $NODE_ADDRESS\"; } >/run/own-runtime\necho token-of-first >$CLUSTER_JOIN; echo 'kind: Config' >$KUBECONFIG\n\
         while echo a server is there; do sleep 0.2; done &\necho $! >/run/own-server\n",
    ),
    (
        "application/apps/word/go.sh",
        0o644,
        "if test -e /run/own-slow; then rm /run/own-slow; sleep 300; fi\necho \"$WORD of $CLUSTER_NAME, $(cat $KUBECONFIG)\" >>/run/own-runtime\n",
    ),
];
const JOIN: &str = "#!/bin/sh\necho \"$NODE_ROLE $NODE_ADDRESS joins $CLUSTER_ENDPOINT with $(cat $CLUSTER_JOIN)\" >/run/own-runtime\n";
const OF_FIRST: &[File] = &[
    ("etc/own.conf.tmpl", 0o644, "color is {{ .COLOR }}\n"),
    ("scripts/join.sh.tmpl", 0o755, JOIN),
    ("bin/own-first", 0o755, "#!/bin/sh\necho first\n"),
];
const OF_SECOND: &[File] = &[
    ("etc/own.conf", 0o644, "color is of the second\n"),
    ("scripts/join.sh", 0o755, JOIN),
    ("bin/own-second", 0o755, "#!/bin/sh\necho second\n"),
];
/// sealer's words.
const EXTENSION: &str = r#"{"schemaVersion":"v1alpha1","type":"kube-installer","applications":[{"name":"word","type":"shell","files":["go.sh"],"env":{"WORD":"launched"}}],"launch":{"cmds":null,"app_names":["word"]}}"#;

impl OwnRuntime {
    /// Pushes the image; returns its name.
    pub fn push(self, registry: &EmbeddedRegistry) -> Result<String> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(push(&registry.address().to_string(), self))?;
        Ok(format!("{NAME}:{}", self.tag()))
    }

    fn tag(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::First => "1",
            Self::Second => "2",
        }
    }

    fn files(self) -> impl Iterator<Item = &'static File> {
        FILES.iter().chain(if self == Self::Second { OF_SECOND } else { OF_FIRST })
    }

    /// The labels `init-cri` and `clean-cri`. The second image installs a containerd where there is none, and takes that away.
    fn runtime(self) -> [String; 2] {
        let (mut init, mut clean) = ("echo init-cri >>/run/own-hooks".to_owned(), "true".to_owned());
        if self == Self::Second {
            let install = "echo '#!/bin/sh' >/usr/sbin/containerd; chmod +x /usr/sbin/containerd";
            init += &format!("; if ! command -v containerd >/dev/null; then {install}; fi");
            clean = "rm -f /usr/sbin/containerd".to_owned();
        }
        [init, clean]
    }

    /// The label `init`, which writes into the image's tree too.
    fn init(self) -> String {
        match self {
            Self::Failing => "echo why >&2; exit 3".to_owned(),
            Self::First | Self::Second => format!("echo init | tee written-{} >>/run/own-hooks", self.tag()),
        }
    }
}

async fn push(host: &str, which: OwnRuntime) -> Result<()> {
    let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
    let hosts = BTreeMap::from([(host.to_owned(), plain)]);
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() })?;
    let repository = Repository::parse(&format!("{host}/{NAME}"))?;
    let layer = layer(which)?;
    let [init_cri, clean_cri] = which.runtime();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["COLOR=green"],
            "Labels": {
                "init-cluster": "sh scripts/up.sh",
                "join-cluster": "scripts/join.sh",
                "leave-cluster": "rm /run/own-runtime; if [ -e /run/own-server ]; then kill $(cat /run/own-server); rm /run/own-server; fi",
                "init-registry": "touch /run/own-registry",
                "clean-registry": "rm -f /run/own-registry",
                "auth": "touch /run/own-auth",
                "check": "echo \"checked $CLUSTER_NAME\"; echo check >>/run/own-hooks",
                "init-cri": init_cri,
                "clean-cri": clean_cri,
                "init": which.init(),
                "clean": "rm /run/own-hooks",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest::sha256(&layer).to_string()]},
    })
    .to_string()
    .into_bytes();
    let described = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": digest::sha256(content).to_string(), "size": content.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(OCI_CONFIG, &config),
        "layers": [described(OCI_LAYER, &layer)],
        "annotations": {"sealer.image.extension": EXTENSION},
    });
    client.push_blob(&repository, config.into()).await?;
    client.push_blob(&repository, layer.into()).await?;
    client
        .put_manifest(&repository.with_tag(which.tag())?, OCI_MANIFEST, manifest.to_string().into())
        .await?;
    Ok(())
}

fn layer(which: OwnRuntime) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in which.files() {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, path, content.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}
