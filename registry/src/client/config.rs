//! What a user can set about registries, and every default.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::reference::{api_host, is_loopback};

/// How the client reaches registries.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// Settings of single registries, by `HOST[:PORT]` as in references.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Folder of containerd's settings of registries (`config_path` there): mirrors, certificates and headers, used for
    /// reads of what `hosts` does not name. As there, several are separated by `:`, see [`ClientConfig::certs_dirs`].
    /// Empty: none. Default: `/etc/containerd/certs.d`.
    pub certs_dir: PathBuf,
    /// Docker's `config.json` with the credentials. Default: `$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// What is tried again, how often and when.
    pub retries: Retries,
    /// How blobs are uploaded.
    pub upload: UploadConfig,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            certs_dir: PathBuf::from("/etc/containerd/certs.d"),
            docker_config: None,
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            upload: UploadConfig::default(),
        }
    }
}

/// Settings of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Speak plain HTTP. Default: only with loopback hosts.
    pub plain_http: Option<bool>,
    /// PEM file of certificate authorities trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate: whoever is on the way can read credentials.
    pub insecure_skip_verify: bool,
    /// Hosts or URLs (`http://HOST[:PORT]`) asked in this order before the registry itself, for reads only.
    pub mirrors: Vec<String>,
}

/// Deadlines of network waits.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Until a connection stands. Default: 10 s.
    #[serde(rename = "connect_seconds", with = "seconds")]
    pub connect: Duration,
    /// Without a byte moving in either direction. Default: 30 s.
    #[serde(rename = "idle_seconds", with = "seconds")]
    pub idle: Duration,
    /// For a registry to check and store an upload that it has received in full. Default: 300 s.
    #[serde(rename = "commit_seconds", with = "seconds")]
    pub commit: Duration,
    /// For a small operation as a whole, with its retries: manifests, ranges, status, tokens. Default: 120 s.
    #[serde(rename = "operation_seconds", with = "seconds")]
    pub operation: Duration,
    /// For a credential helper to answer. Default: 15 s.
    #[serde(rename = "credential_helper_seconds", with = "seconds")]
    pub credential_helper: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            commit: Duration::from_secs(300),
            operation: Duration::from_secs(120),
            credential_helper: Duration::from_secs(15),
        }
    }
}

/// Retries after broken connections and the answers 408, 429 and 5xx.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// How often a request is sent at most. Default: 5.
    pub attempts: u32,
    /// Before the second attempt; doubles each time, less a random part. Default: 0.2 s.
    #[serde(rename = "first_delay_seconds", with = "seconds")]
    pub first_delay: Duration,
    /// The longest pause, also where a registry's `Retry-After` asks for more. Default: 20 s.
    #[serde(rename = "longest_delay_seconds", with = "seconds")]
    pub longest_delay: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 5, first_delay: Duration::from_millis(200), longest_delay: Duration::from_secs(20) }
    }
}

/// How blobs are uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UploadConfig {
    /// Bytes sent in one request and kept in memory until acknowledged; twice this is held at most. A registry that
    /// takes only larger pieces gets larger ones. Default: 8 MiB.
    pub piece_bytes: usize,
    /// Where a blob is kept until it is pushed when its registry cannot resume a broken upload (CNCF
    /// distribution 2.x and what is built on it). `false` in [`UploadConfig::spool`] turns that off.
    /// Default: `/var/tmp`.
    pub spool_dir: PathBuf,
    /// Keep such blobs at all. Without, a connection that breaks during such an upload fails the push.
    pub spool: bool,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self { piece_bytes: 8 << 20, spool_dir: PathBuf::from("/var/tmp"), spool: true }
    }
}

impl ClientConfig {
    /// Refuses settings with which nothing works.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.upload.piece_bytes == 0 {
            let (what, reason) = ("upload.piece_bytes".to_owned(), "must be more than 0".to_owned());
            return Err(Error::Config { what, reason });
        }
        Ok(())
    }

    /// The folders that `certs_dir` names, in order: the first that has settings of a host counts for it. Empty parts, for
    /// which containerd would look into its working directory, are left out.
    pub fn certs_dirs(&self) -> Vec<PathBuf> {
        std::env::split_paths(&self.certs_dir).filter(|dir| !dir.as_os_str().is_empty()).collect()
    }

    /// The file with Docker's credentials, if it is known which one that is; it need not exist.
    pub fn docker_config_file(&self) -> Option<PathBuf> {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let of_user = || {
            let of_variable = env("DOCKER_CONFIG").map(|dir| dir.join("config.json"));
            of_variable.or_else(|| env("HOME").map(|home| home.join(".docker/config.json")))
        };
        self.docker_config.clone().or_else(of_user)
    }

    /// The settings of `host`, defaults if none are given.
    pub(super) fn host(&self, host: &str) -> HostConfig {
        self.hosts.get(host).cloned().unwrap_or_default()
    }

    /// Scheme and authority of the registry `host`'s API.
    pub(super) fn base_url(&self, host: &str) -> String {
        let plain = self.host(host).plain_http.unwrap_or_else(|| is_loopback(host));
        format!("{}://{}", if plain { "http" } else { "https" }, api_host(host))
    }
}

/// Durations as (fractions of) seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(input)?;
        Duration::try_from_secs_f64(seconds)
            .map_err(|e| serde::de::Error::custom(format!("{seconds} is no number of seconds: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_and_durations_are_seconds() {
        let config: ClientConfig = serde_json::from_str(r#"{"timeouts": {"idle_seconds": 1.5}}"#).unwrap();
        assert_eq!(config.timeouts.idle, Duration::from_millis(1500));
        assert_eq!(config.timeouts.connect, Timeouts::default().connect);
        assert!(serde_json::from_str::<ClientConfig>(r#"{"timeouts": {"idle": 1}}"#).is_err());
        assert!(serde_json::from_str::<ClientConfig>(r#"{"timeouts": {"idle_seconds": -1}}"#).is_err());
    }

    #[test]
    fn folders_of_settings_are_separated_as_containerds_are() {
        let dirs = |text: &str| {
            let config = serde_json::json!({ "certs_dir": text });
            serde_json::from_value::<ClientConfig>(config).unwrap().certs_dirs()
        };
        let two = "/etc/containerd/certs.d:/etc/docker/certs.d";
        assert_eq!(dirs(two), ["/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
        assert_eq!(dirs(":/a::/b c:"), ["/a", "/b c"].map(PathBuf::from));
        assert_eq!(dirs(""), Vec::<PathBuf>::new());
        assert_eq!(dirs(":"), Vec::<PathBuf>::new());
        assert_eq!(ClientConfig::default().certs_dirs(), [PathBuf::from("/etc/containerd/certs.d")]);
    }

    #[test]
    fn loopback_is_plain_http_unless_told_otherwise() {
        let mut config = ClientConfig::default();
        assert_eq!(config.base_url("127.0.0.1:5000"), "http://127.0.0.1:5000");
        assert_eq!(config.base_url("example.org"), "https://example.org");
        assert_eq!(config.base_url("docker.io"), "https://registry-1.docker.io");
        let tls = HostConfig { plain_http: Some(false), ..HostConfig::default() };
        config.hosts.insert("127.0.0.1:5000".to_owned(), tls);
        assert_eq!(config.base_url("127.0.0.1:5000"), "https://127.0.0.1:5000");
    }
}
