//! `nydus-cluster image …` on images in a registry: what is in them, whether they are sound, and back to files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::process::{self, Output, Server};
use integration::{demo, gnu_tar, peers, wait};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::fixture::{Fixture, nydus_layers};
use crate::same_tree::list_image_tree;

const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// `nydus-cluster image COMMAND IMAGE`, to be completed.
pub(crate) fn image(command: &str, image: &str) -> Result<Command> {
    let mut program = Command::new(peers::nydus_cluster()?);
    program.args(["image", command, image]);
    Ok(program)
}

pub(crate) fn inspect(fixture: &Fixture) -> Result<()> {
    let demo = fixture.demo()?;
    let output = process::run(image("inspect", &demo.name)?.arg("--json"))?;
    let inspection: Value = serde_json::from_str(&output.stdout)?;
    ensure!(inspection["rafs_version"] == 6, "{inspection}");
    let (blobs, _) = nydus_layers(&demo.manifest)?;
    let listed = inspection["blobs"].as_array().map_or(0, Vec::len);
    ensure!(listed == blobs.len(), "{listed} blobs, the manifest has {}", blobs.len());
    let for_people = process::run(&mut image("inspect", &demo.name)?)?.stdout;
    ensure!(for_people.contains("RAFS v6") && for_people.contains("largest files"), "{for_people}");

    let chunks = process::run(image("inspect", &demo.name)?.args(["--json", "--file", "/srv/app/app.py"]))?;
    let chunks: Value = serde_json::from_str(&chunks.stdout)?;
    let size = fs::metadata(demo.context.join("app.py"))?.len();
    ensure!(chunks[0]["content_bytes"] == size && chunks[1].is_null(), "one chunk of {size}: {chunks}");
    Ok(())
}

pub(crate) fn check(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("check")?, &[("data", 2 << 20)])?;
    let built = fixture.build(&context, "check:v1")?;
    expect_exit(0, &mut image("check", &built.name)?)?;

    let blob = nydus_layers(&built.manifest)?.0[1].clone();
    let file = OpenOptions::new().read(true).write(true).open(fixture.registry()?.blob_file(&blob))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1 << 19)?;
    file.write_all_at(&[byte[0] ^ 1], 1 << 19)?;
    let findings = expect_exit(1, &mut image("check", &built.name)?)?.stdout;
    ensure!(findings.contains(blob.trim_start_matches("sha256:")), "the blob is not named: {findings}");
    expect_exit(0, image("check", &built.name)?.arg("--metadata-only"))?;
    expect_exit(2, &mut image("check", &format!("{}/absent:v1", fixture.registry()?.address()))?)?;
    Ok(())
}

pub(crate) fn expect_exit(code: i32, command: &mut Command) -> Result<Output> {
    let (status, output) = process::run_any(command)?;
    ensure!(status.code() == Some(code), "{command:?}: {status}, expected {code}: {output:?}");
    Ok(output)
}

pub(crate) fn unpack(fixture: &Fixture) -> Result<()> {
    let demo = fixture.demo()?;
    let expected = fixture.demo_exported()?;
    let dir = fixture.subdir("unpack")?;
    let unpacked = dir.join("unpacked");
    process::run(image("unpack", &demo.name)?.arg(&unpacked).arg("--directory"))?;
    expected.expect_same(&list_image_tree(&unpacked)?, "image unpack --directory")?;

    let (tar, extracted) = (dir.join("image.tar"), dir.join("extracted"));
    process::run(image("unpack", &demo.name)?.arg(&tar))?;
    gnu_tar::extract(&tar, &extracted)?;
    expected.expect_same(&list_image_tree(&extracted)?, "image unpack, extracted by tar")?;

    // What is there already is not overwritten.
    process::run_failing(image("unpack", &demo.name)?.arg(&unpacked).arg("--directory"))?;
    Ok(())
}

pub(crate) fn mount(fixture: &Fixture) -> Result<()> {
    let demo = fixture.demo()?;
    let dir = fixture.subdir("mount")?;
    let mountpoint = dir.join("mnt");
    let mut command = image("mount", &demo.name)?;
    command.arg(&mountpoint);
    let mut server = Server::spawn("image mount", command, dir.join("mount.log"))?;
    server.wait_ready(MOUNT_DEADLINE, || mountpoint.join("srv/app/app.py").exists())?;
    let expected = fixture.demo_exported()?;
    let same = list_image_tree(&mountpoint).and_then(|seen| expected.expect_same(&seen, "image mount"));
    kill(server.pid()?, Signal::SIGINT)?;
    same?;
    wait::until_true("the mount ended", MOUNT_DEADLINE, || !is_mounted(&mountpoint))?;
    let status = wait::until("the command ended", MOUNT_DEADLINE, || server.exited())?;
    ensure!(status.success(), "an interrupted mount ends well: {status}");
    Ok(())
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}
