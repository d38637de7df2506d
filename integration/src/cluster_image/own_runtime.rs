//! A plain cluster image of a few files that makes its cluster by its own hooks, in sealer's words and sealos'.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use registry::client::{Client, ClientConfig, HostConfig};
use registry::layout::Paths;
use registry::media_types::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use registry::{Reference, Repository, digest};
use serde_json::{Value, json};

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
/// The same, made here.
type TreeFile = (String, u32, Vec<u8>);

/// A container image that the second one has in a registry of its own, as `COPY registry` leaves it there.
pub const WORD: &str = "registry.example/cluster/word:1";
/// Its repository where names have no hosts.
const WORD_REPOSITORY: &str = "cluster/word";

/// What each has: what its hooks say is in `/run/own-runtime` of a node, and the server that the first one leaves in the background, which says
/// that it is there until it cannot, in `/run/own-server`. What launches it takes long once, where `/run/own-slow` is.
const FILES: &[File] = &[
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

/// The first line of a lock, which is all of one without images.
const LOCK: &str = "{\"images.lock\":1,\"platforms\":[\"linux/amd64\"]}\n";

/// A container image: its manifest, its config, its layer.
struct Word {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Word {
    fn new() -> Result<Self> {
        let layer = tar_of(&[("word".to_owned(), 0o644, b"word\n".to_vec())])?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest::sha256(&layer).to_string()]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described(OCI_CONFIG, &config),
            "layers": [described(OCI_LAYER, &layer)],
        });
        Ok(Self { manifest: manifest.to_string().into_bytes(), config, layer })
    }

    /// A lock that has it.
    fn lock(&self) -> String {
        let (digest, size) = (digest::sha256(&self.manifest).to_string(), self.manifest.len());
        let bytes = self.config.len() + self.layer.len();
        let platform = json!({"platform": "linux/amd64", "digest": digest, "size": size, "bytes": bytes});
        let line = json!({
            "image": WORD, "digest": digest, "media_type": OCI_MANIFEST, "size": size, "platforms": [platform], "asked_by": ["imageList"]
        });
        format!("{LOCK}{line}\n")
    }

    /// A registry's directory with it, below `registry/`.
    fn stored(&self) -> Vec<TreeFile> {
        let paths = Paths::new(Path::new("registry"));
        let file = |path: &Path, content: Vec<u8>| (path.display().to_string(), 0o644, content);
        let mut files = Vec::new();
        for (content, is_manifest) in [(&self.manifest, true), (&self.config, false), (&self.layer, false)] {
            let digest = digest::sha256(content);
            let link = digest.to_string().into_bytes();
            files.push(file(&paths.data(&digest), content.clone()));
            if is_manifest {
                files.push(file(&paths.revision(WORD_REPOSITORY, &digest), link.clone()));
                files.push(file(&paths.tag_current(WORD_REPOSITORY, "1"), link));
            } else {
                files.push(file(&paths.layer(WORD_REPOSITORY, &digest), link));
            }
        }
        files
    }

    async fn push(self, client: &Client, host: &str) -> Result<()> {
        let name = Reference::parse(&format!("{host}/{WORD}"))?;
        client.push_blob(name.repository(), self.config.into()).await?;
        client.push_blob(name.repository(), self.layer.into()).await?;
        client.put_manifest(&name, OCI_MANIFEST, self.manifest.into()).await?;
        Ok(())
    }
}

fn described(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest::sha256(content).to_string(), "size": content.len()})
}

async fn push(host: &str, which: OwnRuntime) -> Result<()> {
    let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
    let hosts = BTreeMap::from([(host.to_owned(), plain)]);
    let client = Client::new(ClientConfig { hosts, ..ClientConfig::default() })?;
    let repository = Repository::parse(&format!("{host}/{NAME}"))?;
    let word = Word::new()?;
    let layer = layer(which, &word)?;
    if which == OwnRuntime::Second {
        word.push(&client, host).await?;
    }
    let [init_cri, clean_cri] = which.runtime();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["COLOR=green"],
            "Labels": {
                "init-cluster": "sh scripts/up.sh",
                "join-cluster": "scripts/join.sh",
                "leave-cluster": "rm -f /run/own-runtime; if [ -e /run/own-server ]; then kill $(cat /run/own-server); rm /run/own-server; fi",
                "init-registry": "touch /run/own-registry",
                "clean-registry": "rm -f /run/own-registry",
                "auth": "touch /run/own-auth",
                "check": "echo \"checked $CLUSTER_NAME\"; echo check >>/run/own-hooks",
                "init-cri": init_cri,
                "clean-cri": clean_cri,
                "init": which.init(),
                "clean": "rm -f /run/own-hooks",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest::sha256(&layer).to_string()]},
    })
    .to_string()
    .into_bytes();
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

fn layer(which: OwnRuntime, word: &Word) -> Result<Vec<u8>> {
    let own = |(path, mode, content): &File| ((*path).to_owned(), *mode, content.as_bytes().to_vec());
    let mut files: Vec<TreeFile> = which.files().map(own).collect();
    let lock = if which == OwnRuntime::Second { word.lock() } else { LOCK.to_owned() };
    files.push(("images.lock".to_owned(), 0o644, lock.into_bytes()));
    if which == OwnRuntime::Second {
        files.extend(word.stored());
    }
    tar_of(&files)
}

fn tar_of(files: &[TreeFile]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(tar.into_inner()?)
}
