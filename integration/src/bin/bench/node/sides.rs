//! Who runs containers, and a node of theirs that has never seen an image.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cri::{ContainerSpec, Pod};
use integration::node::{Node, NodeOptions};
use integration::peers::ContainerdVersion;
use integration::servers::{CriSnapshotter, UpstreamMode};

use crate::lab::{Lab, forget_page_cache, touch_memory};

const DEADLINE: Duration = Duration::from_secs(600);

/// Who runs containers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Side {
    Ours,
    Upstream,
    UpstreamPrefetch,
    /// One daemon for all images.
    UpstreamShared,
    /// containerd 1.7 with overlayfs.
    Overlayfs,
    /// containerd 2.4 with overlayfs, which unpacks layers at the same time.
    ParallelOverlayfs,
    /// containerd 2.4 with layers that are EROFS images.
    Erofs,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Upstream => "nydusd",
            Self::UpstreamPrefetch => "nydusd, prefetch",
            Self::UpstreamShared => "nydusd, shared",
            Self::Overlayfs => "containerd 1.7, overlayfs, zstd",
            Self::ParallelOverlayfs => "containerd 2.4, parallel unpack, zstd",
            Self::Erofs => "containerd 2.4, EROFS layers",
        }
    }
}

/// A node that has never seen an image, gone with all it had when dropped.
pub(super) struct Fresh {
    /// Before the directory.
    node: Option<Node>,
    pub(super) pod: Pod,
    dir: PathBuf,
}

impl Fresh {
    /// One in the lab's directory `name`.
    pub(super) fn new(lab: &Lab, side: Side, name: &str) -> Result<Self> {
        let dir = lab.subdir(name)?;
        let (peers, pause) = (&lab.peers, &lab.pause);
        let upstream = |mode| Node::upstream(peers, &dir, pause, mode);
        let own = |version, snapshotter| Node::with_containerds(peers, &dir, pause, version, snapshotter);
        let node = match side {
            Side::Ours => Node::ours(peers, &dir, pause, &NodeOptions::default())?,
            Side::Upstream => upstream(UpstreamMode::OnDemand)?,
            Side::UpstreamPrefetch => upstream(UpstreamMode::Prefetch)?,
            Side::UpstreamShared => upstream(UpstreamMode::Shared)?,
            Side::Overlayfs => own(ContainerdVersion::V1_7, CriSnapshotter::Overlayfs)?,
            Side::ParallelOverlayfs => own(ContainerdVersion::V2_4, CriSnapshotter::ParallelOverlayfs)?,
            Side::Erofs => own(ContainerdVersion::V2_4, CriSnapshotter::Erofs)?,
        };
        let pod = node.pod("bench")?;
        touch_memory();
        forget_page_cache()?;
        Ok(Self { node: Some(node), pod, dir })
    }

    pub(super) fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("the node has ended")
    }

    /// Runs a shell command in a container of its own; what it printed, and how long it took from the request on.
    pub(super) fn run(&self, name: &str, image: &str, command: &str) -> Result<(String, f64)> {
        let start = Instant::now();
        let output = self.run_all(&[ContainerSpec::new(name, image, &["sh", "-c", command])])?;
        Ok((output, start.elapsed().as_secs_f64()))
    }

    /// Runs containers at once to their ends; what they printed.
    pub(super) fn run_all(&self, containers: &[ContainerSpec]) -> Result<String> {
        let cri = self.node()?.cri();
        let started: Vec<_> =
            containers.iter().map(|spec| cri.run_container(&self.pod, spec)).collect::<Result<_>>()?;
        let mut output = String::new();
        for container in started {
            let code = cri.wait_exit(&container, DEADLINE)?;
            let printed = cri.logs(&container)?;
            ensure!(code == 0, "a container ended with {code}: {printed}");
            output.push_str(&printed);
        }
        Ok(output.trim().to_owned())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.node = None;
        let _ = fs::remove_dir_all(&self.dir);
    }
}
