//! What a user can set about the server, and every default.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::tls::TlsConfig;

/// What to serve, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The folder that holds everything; created if missing. CNCF distribution calls it
    /// `storage.filesystem.rootdirectory`. Default: `/var/lib/nydus-cluster/registry`.
    pub root: PathBuf,
    /// The address to listen on; port 0 takes any free one. Default: `127.0.0.1:5000`.
    pub listen: SocketAddr,
    /// A file to which each request is appended as a line of JSON ([`super::AccessRecord`]). Default: none.
    pub access_log: Option<PathBuf>,
    /// Whether manifests, tags and blobs may be deleted. Default: yes.
    pub delete: bool,
    /// A file of users and bcrypt hashes, as `htpasswd -B` makes it. Default: everyone may do everything.
    pub htpasswd: Option<PathBuf>,
    /// Certificate and key for HTTPS. Default: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// Seconds without a byte moving after which a connection is closed. Default: 60.
    pub idle_seconds: u64,
    /// Seconds that requests get to finish at shutdown. Default: 10.
    pub drain_seconds: u64,
    /// Seconds without a byte written after which an upload is removed. Default: 604800 (a week), as with CNCF
    /// distribution.
    pub stale_upload_seconds: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/nydus-cluster/registry"),
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            access_log: None,
            delete: true,
            htpasswd: None,
            tls: None,
            idle_seconds: 60,
            drain_seconds: 10,
            stale_upload_seconds: 7 * 86_400,
        }
    }
}

impl ServerConfig {
    /// The defaults, for `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..Self::default() }
    }

    /// What somebody who lets others reach `address` should know. `read_only`: nothing can be pushed.
    pub(super) fn warnings(&self, address: SocketAddr, read_only: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if address.ip().is_loopback() {
            return warnings;
        }
        if self.htpasswd.is_none() {
            let what = match (read_only, self.delete) {
                (true, _) => "read",
                (false, true) => "push, overwrite and delete",
                (false, false) => "push and overwrite",
            };
            let advice = "name users with htpasswd, or listen on a loopback address";
            warnings.push(format!("whoever reaches {address} may {what} everything here: {advice}"));
        } else if self.tls.is_none() {
            let advice = "set tls, or let a proxy that speaks HTTPS reach it on a loopback address";
            warnings.push(format!("passwords for {address} cross the network in the clear: {advice}"));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_listener_is_warned_of_unless_only_this_machine_reaches_it() {
        let (open, local) = (([0, 0, 0, 0], 5000).into(), ([127, 0, 0, 1], 5000).into());
        let config = ServerConfig::new("/x");
        assert!(config.warnings(local, false).is_empty());
        let warning = config.warnings(open, false).concat();
        assert!(warning.contains("0.0.0.0:5000 may push, overwrite and delete"), "{warning}");
        let warning = ServerConfig { delete: false, ..config.clone() }.warnings(open, false).concat();
        assert!(
            warning.contains("push and overwrite everything") && !warning.contains("delete"),
            "{warning}"
        );
        let warning = config.warnings(open, true).concat();
        assert!(warning.contains("may read everything here"), "{warning}");
        let users = ServerConfig { htpasswd: Some("/htpasswd".into()), ..config };
        let warning = users.warnings(open, false).concat();
        assert!(warning.contains("in the clear") && users.warnings(local, true).is_empty(), "{warning}");
        let tls = Some(TlsConfig { certificate: "/c".into(), key: "/k".into() });
        assert!(ServerConfig { tls, ..users }.warnings(open, false).is_empty());
    }
}
