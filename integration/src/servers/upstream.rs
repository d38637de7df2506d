//! Upstream's nydus: the daemon as an oracle and a baseline, and its snapshotter.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::{ProxySnapshotter, START_DEADLINE, accepts_unix};
use crate::leftovers;
use crate::peers::Peers;
use crate::process::{self, Server};

/// Upstream's nydusd serving one image by FUSE.
#[derive(Debug)]
pub struct Nydusd {
    server: Server,
    mountpoint: PathBuf,
}

impl Nydusd {
    /// Mounts `bootstrap` at `dir/mnt`; blobs are read from files named by their ids in `blobs`.
    pub fn start(peers: &Peers, dir: &Path, bootstrap: &Path, blobs: &Path) -> Result<Self> {
        Self::start_with(peers, dir, (bootstrap, blobs), false)
    }

    /// The same; `prefetch` has it read all of the image from the mount on.
    pub fn start_with(
        peers: &Peers,
        dir: &Path,
        (bootstrap, blobs): (&Path, &Path),
        prefetch: bool,
    ) -> Result<Self> {
        let backend = json!({"type": "localfs", "config": {"dir": blobs}});
        let mountpoint = dir.join("mnt");
        let cache = dir.join("cache");
        for folder in [&mountpoint, &cache] {
            fs::create_dir_all(folder)?;
        }
        let config = dir.join("nydusd.json");
        let text = json!({
            "device": {
                "backend": backend,
                "cache": {"type": "blobcache", "config": {"work_dir": cache}},
            },
            "mode": "direct", "digest_validate": false, "enable_xattr": true, "fs_prefetch": fs_prefetch(prefetch),
        });
        fs::write(&config, text.to_string())?;
        let mut command = Command::new(peers.nydus("nydusd")?);
        command
            .args(["fuse", "--thread-num", "4", "--rlimit-nofile", "0", "--mountpoint"])
            .arg(&mountpoint)
            .arg("--bootstrap")
            .arg(bootstrap)
            .arg("--config")
            .arg(config)
            .arg("--apisock")
            .arg(dir.join("api.sock"));
        let mut server = Server::spawn("nydusd", command, dir.join("nydusd.log"))?;
        server.wait_ready(START_DEADLINE, || is_mountpoint(&mountpoint))?;
        Ok(Self { server, mountpoint })
    }

    /// Where the image's root is.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Drop for Nydusd {
    fn drop(&mut self) {
        // nydusd unmounts on SIGTERM; what is left after a crash goes here.
        if self.server.stop().is_err() || is_mountpoint(&self.mountpoint) {
            let _ = process::run(Command::new("umount").arg("--lazy").arg(&self.mountpoint));
        }
    }
}

/// What its configuration says of prefetch.
fn fs_prefetch(enable: bool) -> serde_json::Value {
    json!({"enable": enable, "prefetch_all": enable, "threads_count": 8, "merging_size": 1 << 20})
}

/// Whether a file system is mounted at `path`.
pub fn is_mountpoint(path: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// How upstream's node works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamMode {
    /// A daemon for each image, which fetches what is read.
    OnDemand,
    /// A daemon for each image, which fetches all of it from the mount on.
    Prefetch,
    /// One daemon for all images, which fetches what is read.
    Shared,
    /// A daemon for each image; nydus images next to plain ones are looked for.
    BesidePlain,
}

/// Upstream's nydus-snapshotter with nydusd: the peer of our node side.
#[derive(Debug)]
pub struct UpstreamSnapshotter {
    server: Server,
    dir: PathBuf,
    socket: PathBuf,
}

impl UpstreamSnapshotter {
    /// Starts it with everything under `dir`.
    pub fn start(peers: &Peers, dir: &Path, mode: UpstreamMode) -> Result<Self> {
        let prefetch = mode == UpstreamMode::Prefetch;
        fs::create_dir_all(dir)?;
        let socket = dir.join("nydus-snapshotter.sock");
        let daemon_config = dir.join("nydusd.json");
        let text = json!({
            "device": {
                "backend": {"type": "registry", "config": {
                    "scheme": "http", "skip_verify": true, "timeout": 5, "connect_timeout": 5, "retry_limit": 2,
                }},
                "cache": {"type": "blobcache", "config": {"work_dir": dir.join("cache")}},
            },
            "mode": "direct", "digest_validate": false, "enable_xattr": true, "iostats_files": false,
            "fs_prefetch": fs_prefetch(prefetch),
        });
        fs::write(&daemon_config, text.to_string())?;
        // Without CAP_SYS_RESOURCE nydusd cannot raise its limit of open files, and ends.
        let daemon = dir.join("nydusd");
        fs::write(
            &daemon,
            format!("#!/bin/sh\nexec {} \"$@\" --rlimit-nofile 0\n", peers.nydus("nydusd")?.display()),
        )?;
        fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755))?;
        let config = dir.join("config.toml");
        fs::write(&config, configuration(peers, dir, &socket, (&daemon, &daemon_config), mode)?)?;
        let mut command = Command::new(peers.nydus_snapshotter("containerd-nydus-grpc")?);
        command.arg("--config").arg(config);
        let mut server = Server::spawn("nydus-snapshotter", command, dir.join("nydus-snapshotter.log"))?;
        server.wait_ready(START_DEADLINE, || accepts_unix(&socket))?;
        Ok(Self { server, dir: dir.to_owned(), socket })
    }

    /// What containerd needs to know of it.
    pub fn as_proxy(&self) -> ProxySnapshotter {
        ProxySnapshotter { name: "nydus".to_owned(), socket: self.socket.clone() }
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Its daemons outlive it, so they are ended here, with the mounts they leave.
impl Drop for UpstreamSnapshotter {
    fn drop(&mut self) {
        if let Err(error) = self.server.stop().and_then(|()| leftovers::clear(&self.dir)) {
            process::tell(format_args!("stopping nydus-snapshotter and its daemons: {error:#}"));
        }
    }
}

fn configuration(
    peers: &Peers,
    dir: &Path,
    socket: &Path,
    (daemon, daemon_config): (&Path, &Path),
    mode: UpstreamMode,
) -> Result<String> {
    let daemons = if mode == UpstreamMode::Shared { "shared" } else { "multiple" };
    let beside_plain = mode == UpstreamMode::BesidePlain;
    Ok(format!(
        r#"version = 1
root = "{dir}/root"
address = "{socket}"
daemon_mode = "{daemons}"
[system]
enable = false
[daemon]
nydusd_path = "{daemon}"
nydusd_config = "{daemon_config}"
nydusimage_path = "{image}"
fs_driver = "fusedev"
recover_policy = "none"
[log]
level = "info"
log_to_stdout = true
[remote]
skip_ssl_verify = true
[snapshot]
enable_nydus_overlayfs = false
sync_remove = true
[cache_manager]
disable = false
cache_dir = "{dir}/cache"
[experimental]
enable_index_detect = {beside_plain}
"#,
        dir = dir.display(),
        socket = socket.display(),
        daemon = daemon.display(),
        daemon_config = daemon_config.display(),
        image = peers.nydus("nydus-image")?.display(),
    ))
}
