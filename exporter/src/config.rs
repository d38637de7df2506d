//! What a user can set about the exporter, and every default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cluster::ClusterConfig;
use registry::client::{ClientConfig, SilenceLimit};
use serde::{Deserialize, Serialize};
use service::{Access, Mode, TcpAddress, UnixAddress};

/// How the exporter runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExporterConfig {
    /// buildkitd's socket. Default: `unix:///run/buildkit/buildkitd.sock`.
    pub upstream: UnixAddress,
    /// The socket that BuildKit clients use instead. Default: `unix:///run/nydus-cluster/exporter.sock`.
    pub listen: UnixAddress,
    /// Permissions of that socket; whoever may write to it can build. Default: `0600`.
    pub listen_mode: Mode,
    /// Its group, by name or number. Default: that of the process.
    pub listen_group: Option<String>,
    /// The directory of buildkitd's content store, if the exporter may read it: layers are then read from there, while
    /// buildkitd still writes them, instead of coming over the session. Default: none.
    pub content_store: Option<PathBuf>,
    /// Bytes on disk, under `registry.upload.spool_dir`, for blobs of layers that buildkitd still writes: nothing is sent
    /// before buildkitd says that a layer is of the build. What does not fit is converted when it is complete; with 0,
    /// everything is. Default: 16 GiB.
    pub ahead_bytes: u64,
    /// Bytes on disk, under `registry.upload.spool_dir`, for layers that are flattened, over all builds. What does not fit fails its
    /// build. Default: 16 GiB.
    pub flatten_bytes: u64,
    /// Bytes on disk, under `registry.upload.spool_dir`, for tars that are gathered before they are sent to clients, over all builds.
    /// What does not fit fails its build. Default: 16 GiB.
    pub archive_bytes: u64,
    /// Bytes on disk, under `registry.upload.spool_dir`, for the large documents of images, such as SBOMs, over all builds. What does
    /// not fit fails its build. Default: 4 GiB.
    pub document_bytes: u64,
    /// How registries are reached: of a section of its own in the configuration file, which all roles share.
    #[serde(skip)]
    pub registry: ClientConfig,
    /// Push with the credentials of Docker's `config.json` (`registry.docker_config`) where the BuildKit client has none for
    /// a registry: whoever may build then pushes as the exporter. Never with `registry.insecure=true`. Default: true.
    pub own_credentials: bool,
    /// Where `GET /metrics` is answered, over plain HTTP. Default: nowhere.
    pub metrics_listen: Option<TcpAddress>,
    /// Seconds within which a registry has to answer anything at all before a build's layers are taken: until then they
    /// hold buildkitd's few slots for exports, which other builds need as well. Default: 20.
    pub registry_answer_seconds: u64,
    /// Seconds for which a registry may make no progress later: no answer, and no byte taken, with all attempts. Its build fails
    /// then, and others get buildkitd's slots. A blob of many bytes gets longer to be stored. Deadlines of `[registry.timeouts]`
    /// that are shorter hold. At least 1. Default: 60.
    pub registry_silent_seconds: u64,
    /// Seconds that builds under way get to end after a shutdown was asked for. Default: 300.
    pub drain_seconds: u64,
    /// Layers converted at once, over all builds; at least 1. With `content_store` up to as many again, while buildkitd still
    /// writes them. One whose registry stands still lets another begin. Each takes about 40 MB. Default: 2.
    pub conversions: usize,
    /// Worker threads of one conversion; 0: one a core, four at most. Default: 0.
    pub threads: usize,
    /// What is taken for what the keys of an output do not choose about its image: those keys with their values, such as
    /// `chunk-size = "512K"`. Default: empty.
    pub options: BTreeMap<String, String>,
    /// Bytes of memory for what is known of converted layers, so that a rebuild moves only new ones. `image convert` takes this
    /// and the following settings too. Default: 32 MiB.
    pub layer_cache_bytes: usize,
    /// The directory where that is kept as well, so that it outlives the process; exporters of one machine may share it. Who
    /// can write there decides what is in images. Empty: nowhere. Default: `/var/cache/nydus-cluster/layers`.
    pub layer_cache_dir: PathBuf,
    /// Bytes that it takes there at most. Default: 1 GiB.
    pub layer_cache_disk_bytes: u64,
    /// Use blobs again of which the image at the name that is pushed to says what they were made of: whoever may push there
    /// is believed. Default: true.
    pub reuse_from_registry: bool,
    /// How a result is looked through for container images: of a section of its own in the configuration file.
    #[serde(skip)]
    pub cluster: ClusterConfig,
}

impl Default for ExporterConfig {
    fn default() -> Self {
        Self {
            upstream: UnixAddress::fixed("/run/buildkit/buildkitd.sock"),
            listen: UnixAddress::fixed("/run/nydus-cluster/exporter.sock"),
            listen_mode: Mode::OWNER,
            listen_group: None,
            content_store: None,
            ahead_bytes: 16 << 30,
            flatten_bytes: 16 << 30,
            archive_bytes: 16 << 30,
            document_bytes: 4 << 30,
            registry: ClientConfig::default(),
            own_credentials: true,
            metrics_listen: None,
            registry_answer_seconds: 20,
            registry_silent_seconds: 60,
            drain_seconds: 300,
            conversions: 2,
            threads: 0,
            options: BTreeMap::new(),
            layer_cache_bytes: 32 << 20,
            layer_cache_dir: PathBuf::from("/var/cache/nydus-cluster/layers"),
            layer_cache_disk_bytes: 1 << 30,
            reuse_from_registry: true,
            cluster: ClusterConfig::default(),
        }
    }
}

impl ExporterConfig {
    /// How long a registry may make no progress.
    pub(crate) fn silence_limit(&self) -> SilenceLimit {
        let after = Duration::from_secs(self.registry_silent_seconds.max(1));
        SilenceLimit { after, setting: "exporter.registry_silent_seconds" }
    }

    /// Who may connect.
    pub(crate) fn access(&self) -> Access {
        Access { mode: self.listen_mode, group: self.listen_group.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let config: ExporterConfig =
            serde_json::from_str(r#"{"threads": 3, "content_store": "/content"}"#).unwrap();
        assert_eq!(config.threads, 3);
        assert_eq!(config.content_store.as_deref(), Some(Path::new("/content")));
        assert_eq!(config.upstream, ExporterConfig::default().upstream);
        assert!(serde_json::from_str::<ExporterConfig>(r#"{"thread": 3}"#).is_err());
    }
}
