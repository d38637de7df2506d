//! A container in a user namespace, whose root file system's ids are mapped by mounts rather than changed on disk.

use anyhow::{Result, ensure};
use integration::node::NodeOptions;
use integration::{demo, process};

use crate::fixture::Fixture;

/// Where the ids of the container begin on the host.
const FIRST_ID: &str = "0:200000:65536";

pub(crate) fn sees_its_own_ids(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("mapped")?, &[("data", 1 << 20)])?;
    let image = fixture.build(&context, "mapped:v1")?;
    let options = NodeOptions { capabilities: vec!["remap-ids"], ..NodeOptions::default() };
    let mut node = fixture.new_node_with("mapped-node", options)?;
    let snapshotter = node.containerd().snapshotter().to_owned();
    let ctr = |command: &[&str]| {
        let mut ctr = node.containerd().ctr();
        ctr.args(command).args(["--snapshotter", &snapshotter]);
        ctr
    };
    process::run(ctr(&["images", "pull"]).args(["--plain-http", &image.name]))?;
    let script = "stat -c %u:%g /data /bin/busybox && sha256sum </data && echo new >/written && stat -c %u /written \
                  && cat /proc/self/uid_map";
    let output =
        process::run(
            ctr(&["run"])
                .args(["--rm", "--remap-labels", "--uidmap", FIRST_ID, "--gidmap", FIRST_ID])
                .args([&image.name, "mapped", "/bin/busybox", "sh", "-c", script]),
        )?;
    let lines: Vec<_> = output.stdout.lines().map(str::trim).collect();
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(lines.len() == 5, "{}", output.stdout);
    ensure!(lines[..2] == ["0:0", "0:0"] && lines[3] == "0", "root's files are root's: {}", output.stdout);
    ensure!(lines[2].starts_with(&expected), "{}, expected {expected}", output.stdout);
    ensure!(lines[4].split_whitespace().eq(["0", "200000", "65536"]), "{}", output.stdout);
    ensure!(node.snapshotter()?.server().exited()?.is_none(), "the snapshotter ended");
    Ok(())
}
