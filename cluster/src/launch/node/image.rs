//! The cluster image on a node: a tree that scripts may write to.
//!
//! A nydus image is mounted lazily, by the node's daemon or, where the node reads nothing else lazily, by a process of its own. The writable
//! tree is an overlay on it, laid by a unit that others wait for. Some time after that all of it is fetched, so that what runs out of it needs
//! no registry any more. A plain image is made a nydus image first, and is on the node whole.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use image::platform::PlatformName;
use registry::client::ClientConfig;

use super::commands::{LONG, progress, run, systemctl};
use super::ledger::Ledger;
use super::state::State;
use super::{by_daemon, clear, lazy, own};
use crate::launch::error::LaunchError;
use crate::launch::task::Image;

/// The unit that lays the tree, and mounts the image where no daemon does.
pub(super) const UNIT: &str = "nydus-cluster-image.service";
/// Where a node's own units are.
pub(super) const UNITS: &str = "/etc/systemd/system";
/// Where plain images are as nydus images.
const CONVERTED: &str = "converted";
/// What a process that mounts the image has of its own: where it mounts it, and what it has fetched.
const OF_PROCESS: [&str; 2] = ["lower", "cache"];
/// Within it the image's files can be read, or there is something wrong.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// Brings the image of `state`.
pub(super) fn bring(
    ledger: &mut Ledger,
    state: &State,
    program: &Path,
    registry: &ClientConfig,
) -> Result<(), LaunchError> {
    let dir = state.dir.as_path();
    let (source, complete_after) = match &state.saved.prepare.image {
        Image::Directory(_) => return Ok(()),
        Image::Mounted(reference) => (reference.clone(), own::complete_after_seconds()?),
        Image::Converted(reference) => (converted(dir, program, reference)?, 0),
    };
    let of_process: &[&str] = if state.saved.by_daemon { &[] } else { &OF_PROCESS };
    for place in ["upper", "work", "tree"].iter().chain(of_process) {
        let place = dir.join(place);
        std::fs::create_dir_all(&place).map_err(LaunchError::io(place))?;
    }
    let text = if state.saved.by_daemon {
        lazy::start(ledger, dir, program)?;
        by_daemon::mount(&source, registry)?;
        by_daemon::unit(dir, program, &source)
    } else {
        unit(dir, program, &source, complete_after)
    };
    let restart = || {
        systemctl(&["daemon-reload"])?;
        // One that was kept for this run may have been told otherwise.
        if state.role().is_empty() { systemctl(&["try-restart", UNIT]) } else { Ok(()) }
    };
    ledger.put_for(UNIT, |ledger| ledger.file(&Path::new(UNITS).join(UNIT), &text), restart)?;
    systemctl(&["enable", "--now", UNIT])?;
    if state.saved.by_daemon {
        // What an earlier run had, which nothing lies on any more.
        by_daemon::release(Some(&source));
        clear::remove(&OF_PROCESS.map(|place| dir.join(place)))?;
    }
    Ok(())
}

/// Removes the image with all that was written to it, once it is not served any more. What was fetched of it stays: another one may have the
/// same.
pub(super) fn remove(dir: &Path) -> Result<(), LaunchError> {
    clear::remove(&["tree", "upper", "work", "lower", CONVERTED].map(|place| dir.join(place)))
}

/// Converts a plain image once, to a layout under `dir`; returns what that is called.
fn converted(dir: &Path, program: &Path, reference: &str) -> Result<String, LaunchError> {
    let name = registry::digest::sha256(reference.as_bytes());
    let layouts = dir.join(CONVERTED);
    let layout = layouts.join(name.digest());
    let place = format!("oci:{}", layout.display());
    // Written last.
    if !layout.join("index.json").exists() {
        progress(format_args!("converting {reference}, which is no nydus image"));
        std::fs::create_dir_all(&layouts).map_err(LaunchError::io(layouts))?;
        let mut convert = Command::new(program);
        convert.args(["image", "convert", "--layer-cache", "", "--compressor", "lz4", "--platform"]);
        convert.arg(PlatformName::host().to_string()).args([reference, &place]);
        run(&mut convert, LONG)?;
    }
    Ok(place)
}

/// The tree of the image under `dir`.
pub(super) fn tree(dir: &Path) -> PathBuf {
    dir.join("tree")
}

/// What a service needs whose program is in the tree: it waits for the mount however often that fails, and begins again when it does.
pub(super) fn needed(dir: &Path) -> String {
    let tree = tree(dir);
    format!(
        "# Written by nydus-cluster cluster run.
[Unit]
Wants={UNIT}
After={UNIT}
PartOf={UNIT}
StartLimitIntervalSec=0

[Service]
ExecStartPre=/usr/bin/env mountpoint -q {}
Restart=always
RestartSec=1s
",
        tree.display()
    )
}

/// Of a process that mounts the image. With 0 for `complete_after`, what is read of the image is fetched alone.
fn unit(dir: &Path, program: &Path, source: &str, complete_after: u64) -> String {
    let (dir, program, seconds) = (dir.display(), program.display(), MOUNT_DEADLINE.as_secs());
    let complete = match complete_after {
        0 => String::new(),
        after => format!(" --complete-after {after}"),
    };
    format!(
        "# Written by nydus-cluster cluster run.
[Unit]
Description=The cluster image {source}
Wants=network-online.target
After=network-online.target local-fs.target
Before=containerd.service kubelet.service
# Who has the image may be back only after this node.
StartLimitIntervalSec=0

[Service]
ExecStart={program} image mount --options suid,dev,allow_other --cache {dir}/cache{complete} {source} {dir}/lower
ExecStartPost=/bin/sh -c 'until mountpoint -q {dir}/lower; do kill -0 $MAINPID || exit 1; sleep 0.05; done'
ExecStartPost=/bin/mount -t overlay -o lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work overlay {dir}/tree
ExecStopPost=-/bin/umount -l {dir}/tree
# One that was killed leaves a mount that nobody answers.
ExecStopPost=-/bin/umount -l {dir}/lower
TimeoutStartSec={seconds}
Restart=always
RestartSec=2s
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_registry_is_completed_and_one_that_is_on_the_node_is_not() {
        let line = |source: &str, after| {
            let unit = unit(Path::new("/d"), Path::new("/d/nydus"), source, after);
            unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap().to_owned()
        };
        let options = "image mount --options suid,dev,allow_other --cache /d/cache";
        assert_eq!(
            line("r.example/c@sha256:0", 300),
            format!("ExecStart=/d/nydus {options} --complete-after 300 r.example/c@sha256:0 /d/lower")
        );
        assert_eq!(line("oci:/d/c", 0), format!("ExecStart=/d/nydus {options} oci:/d/c /d/lower"));
    }
}
