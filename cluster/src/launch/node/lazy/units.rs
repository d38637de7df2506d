//! The units of what mounts images, which are those that are shipped, with the node's program and settings, and of what answers for the names
//! of container images.

use std::path::{Path, PathBuf};

use crate::launch::node::unit;

const DAEMON: &str = "nydus-cluster-daemon.service";
const SNAPSHOTTER: &str = "nydus-cluster-snapshotter.service";
/// What mounts images, in the order in which they start.
pub(in crate::launch::node) const MOUNTING: [&str; 2] = [DAEMON, SNAPSHOTTER];
/// What answers for the names of container images.
pub(in crate::launch::node) const SERVE: &str = "nydus-cluster-serve.service";

/// Units for nodes that people set up by themselves.
mod shipped {
    pub(super) const DAEMON: &str = include_str!("../../../../../scripts/units/nydus-cluster-daemon.service");
    pub(super) const SNAPSHOTTER: &str =
        include_str!("../../../../../scripts/units/nydus-cluster-snapshotter.service");
    pub(super) const CONTAINERD: &str =
        include_str!("../../../../../scripts/units/containerd.service.d/nydus-cluster.conf");
    /// Where they have the program.
    pub(super) const PROGRAM: &str = "/usr/local/bin/nydus-cluster";
}

/// The files below the directory of units of what mounts images, with their texts.
pub(super) fn mounting(program: &Path, settings: &Path) -> Vec<(PathBuf, String)> {
    let role = role(program, settings);
    vec![
        (DAEMON.into(), shipped(shipped::DAEMON, &role)),
        (SNAPSHOTTER.into(), shipped(shipped::SNAPSHOTTER, &role)),
    ]
}

/// The same of what is there for container images. `name` is what these are called, with their digest.
pub(super) fn answering(
    program: &Path,
    settings: &Path,
    documents: &Path,
    name: &str,
    port: u16,
) -> Vec<(PathBuf, String)> {
    let (role, documents) = (role(program, settings), documents.display());
    let serve = unit::serving(
        "nydus-cluster cluster serve, which answers for the names of images that are read lazily",
        "Before=containerd.service",
        &format!("{role} cluster serve {name} --root {documents} --listen 127.0.0.1:{port}"),
    );
    let containerd = shipped(shipped::CONTAINERD, &role);
    let containerd = format!("{containerd}\n[Unit]\nWants={SERVE}\nAfter={SERVE}\n");
    vec![(SERVE.into(), serve), ("containerd.service.d/20-nydus-cluster-images.conf".into(), containerd)]
}

fn role(program: &Path, settings: &Path) -> String {
    format!("{} --config {}", program.display(), settings.display())
}

fn shipped(unit: &str, role: &str) -> String {
    unit.replace(shipped::PROGRAM, role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_units_run_the_node_s_program_with_its_settings() {
        let (program, settings) = (Path::new("/d/nydus"), Path::new("/d/images.toml"));
        let mut units = mounting(program, settings);
        units.extend(answering(program, settings, Path::new("/d"), "r/c@sha256:0", 5100));
        let line = |file: &str, line: &str| {
            let (_, text) = units.iter().find(|(path, _)| path.ends_with(file)).unwrap();
            assert!(text.lines().any(|found| found == line), "{file} has no line {line}:\n{text}");
        };
        line(DAEMON, "ExecStart=/d/nydus --config /d/images.toml daemon");
        line(SNAPSHOTTER, "ExecStart=/d/nydus --config /d/images.toml snapshotter --no-daemon");
        let drop_in = "20-nydus-cluster-images.conf";
        line(drop_in, "ExecStartPre=/d/nydus --config /d/images.toml snapshotter --wait");
        line(drop_in, "After=nydus-cluster-snapshotter.service");
        line(drop_in, "After=nydus-cluster-serve.service");
    }
}
