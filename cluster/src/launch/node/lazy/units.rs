//! The units that containerd waits for.

use std::path::{Path, PathBuf};

use super::socket;

const DAEMON: &str = "nydus-cluster-daemon.service";
const SNAPSHOTTER: &str = "nydus-cluster-snapshotter.service";
const SERVE: &str = "nydus-cluster-serve.service";
/// All of them, in the order in which they start.
pub(in crate::launch::node) const SERVICES: [&str; 3] = [DAEMON, SNAPSHOTTER, SERVE];

/// The files below the directory of units, with their texts. `name` is what the images are called, with their digest.
pub(super) fn all(
    program: &Path,
    settings: &Path,
    documents: &Path,
    name: &str,
    port: u16,
) -> Vec<(PathBuf, String)> {
    let role = format!("{} --config {}", program.display(), settings.display());
    let documents = documents.display();
    let serve = format!("{role} cluster serve {name} --root {documents} --listen 127.0.0.1:{port}");
    // It goes on from what it has when it is killed: nobody has to wait for a pause.
    let daemon = unit("Images that are read lazily", "", "simple", &format!("{role} daemon"));
    let after = format!("Wants={DAEMON}\nAfter={DAEMON} network-online.target\n");
    let snapshotter = format!("{role} snapshotter");
    let snapshotter =
        unit("containerd's snapshotter of images that are read lazily", &after, "notify", &snapshotter);
    let serve = unit("Answers for the images that are read lazily", "", "notify", &serve);
    vec![
        (DAEMON.into(), daemon),
        (SNAPSHOTTER.into(), snapshotter),
        (SERVE.into(), serve),
        ("containerd.service.d/20-nydus-cluster-images.conf".into(), containerd()),
    ]
}

fn unit(description: &str, order: &str, kind: &str, command: &str) -> String {
    format!(
        "# Written by nydus-cluster cluster run.
[Unit]
Description={description}
{order}After=local-fs.target
Before=containerd.service kubelet.service
StartLimitIntervalSec=0

[Service]
Type={kind}
ExecStart={command}
Restart=always
RestartSec=100ms
TimeoutStopSec=20
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    )
}

/// containerd starts when all of it is there, and goes on when one of them is started again.
fn containerd() -> String {
    let services = SERVICES.join(" ");
    format!(
        "[Unit]\nWants={services}\nAfter={services}\n\n[Service]\nExecStartPre=/bin/sh -c 'test -S {}'\n",
        socket().display()
    )
}
