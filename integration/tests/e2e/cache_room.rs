//! A cache with little room: by a quota, and by a disk that is full.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::{ContainerSpec, Pod};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::node::{Node, NodeOptions};
use integration::tree::content_digest;
use integration::{demo, process, wait};

use crate::fixture::{Built, Fixture, nydus_layers, through};

const FILE_SIZE: u64 = 5 << 20;
/// Less than what runs at once reads.
const QUOTA: u64 = 12 << 20;
/// What files other than data may take beyond the quota, and what is being written when it is found full.
const QUOTA_SLACK: u64 = 1 << 20;
/// How long reading everything may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Reads as often as it is told to, directly, since the page cache would answer otherwise.
fn reader(files: &[&str], times: usize) -> String {
    format!(
        "for i in $(seq {times}); do for f in {}; do \
         s=$(dd if=/$f bs=64k iflag=direct 2>/error | sha256sum); echo $f ${{s%% *}}; done; done",
        files.join(" ")
    )
}

fn expected(context: &Path, files: &[&str], times: usize) -> Result<String> {
    let line = |file: &&str| Ok(format!("{file} {}\n", content_digest(&context.join(file))?));
    let lines: Result<String> = files.iter().map(line).collect();
    Ok(lines?.repeat(times))
}

/// Containers read side by side, each all of these files of its image.
fn read_together(
    node: &Node,
    pod: &Pod,
    images: &[(&Built, &str)],
    files: &[&str],
    times: usize,
) -> Result<()> {
    let mut readers = Vec::new();
    for (number, (built, image)) in images.iter().enumerate() {
        let name = format!("{}-{times}-{number}", files.join("-"));
        let command = ["/bin/busybox", "sh", "-c", &reader(files, times)];
        readers.push((node.cri().run_container(pod, &ContainerSpec::new(&name, image, &command))?, built));
    }
    for (reader, built) in readers {
        node.cri().wait_exit(&reader, PATIENCE)?;
        let (said, expected) = (node.cri().logs(&reader)?, expected(&built.context, files, times)?);
        ensure!(said == expected, "the container says {said}, expected {expected}");
    }
    Ok(())
}

fn image(fixture: &Fixture, name: &str, files: &[&str]) -> Result<Built> {
    let files: Vec<_> = files.iter().map(|file| (*file, FILE_SIZE)).collect();
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &files)?;
    fixture.build(&context, &format!("{name}:v1"))
}

/// The file with what is cached of the blob of an image's last layer.
fn cached(node: &Node, image: &Built) -> Result<PathBuf> {
    let blobs = nydus_layers(&image.manifest)?.0;
    let digest = blobs.last().context("an image without blobs")?;
    Ok(node.cache().join(format!("{}.blob.data", digest.trim_start_matches("sha256:"))))
}

fn bytes_on_disk(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.blocks() * 512,
            // It gave way meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// Waits until the daemon's log has these words: other threads than those that answer reads may write them.
fn wait_logged(node: &Node, words: &str) -> Result<()> {
    let logged = wait::until_true(words, PATIENCE, || node.daemon_log().contains(words));
    logged.with_context(|| node.daemon_log())
}

/// Containers read more than the quota at once: what ran before gives way, what runs does not, and all of it is right.
pub(crate) fn quota(fixture: &Fixture) -> Result<()> {
    let [old, one, two] =
        ["quota-old", "quota-one", "quota-two"].map(|name| image(fixture, name, &["x", "y"]));
    let (old, one, two) = (old?, one?, two?);
    let config = format!("[daemon]\ncache_quota_bytes = {QUOTA}\n");
    let mut node = fixture.new_node("quota-node", &config)?;
    for image in [&old, &one, &two] {
        node.cri().pull(&image.name)?;
    }
    let pod = node.pod("quota")?;
    read_together(&node, &pod, &[(&old, old.name.as_str())], &["x", "y"], 1)?;
    ensure!(cached(&node, &old)?.exists(), "nothing was cached");
    node.cri().remove_pod(&pod.id)?;
    // containerd removes a container's snapshot later than the container.
    wait::until_true("no container has a snapshot", PATIENCE, || {
        let mut list = node.containerd().ctr();
        list.args(["snapshots", "--snapshotter", node.containerd().snapshotter(), "ls"]);
        process::run(&mut list).is_ok_and(|listed| !listed.stdout.contains("Active"))
    })?;

    // The image is mounted still, and with these the cache is full.
    let pod = node.pod("quota-again")?;
    let both = [&one, &two, &one, &two].map(|image| (image, image.name.as_str()));
    read_together(&node, &pod, &both, &["x", "y"], 1)?;
    let snapshotter = node.snapshotter()?;
    wait::until_true("what no container uses is unmounted", PATIENCE, || {
        snapshotter.server().log_text().contains("unmounted an image that no container uses")
    })?;
    read_together(&node, &pod, &both, &["y", "x"], 2)?;
    // As much as was needed, of layers of the image that ended: those of the others are in use.
    wait_logged(&node, "freed blobs that were used longest ago").context("nothing gave way")?;
    for image in [&one, &two] {
        let file = cached(&node, image)?;
        ensure!(file.exists(), "{} is gone, of {} which runs", file.display(), image.name);
    }
    // What was read last may be on its way to the disk, and what has to give way for it not be gone yet.
    let mut used = 0;
    let in_quota = wait::until("the cache is full, and not fuller", PATIENCE, || {
        used = bytes_on_disk(&node.cache())?;
        Ok((used <= QUOTA + QUOTA_SLACK && used > QUOTA / 2).then_some(()))
    });
    in_quota.with_context(|| format!("{used} bytes are cached"))?;
    // What gave way is mounted and read again; there is no room for it.
    read_together(&node, &pod, &[(&old, old.name.as_str())], &["y", "x"], 1)?;
    node.cri().remove_pod(&pod.id)
}

/// Containers start and read though nothing can be cached; when there is room, it is used.
pub(crate) fn full_disk(fixture: &Fixture) -> Result<()> {
    let full = image(fixture, "disk-full", &["first", "second", "third"])?;
    let other = image(fixture, "disk-other", &["first"])?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let (full_name, other_name) =
        (through(&full.name, proxy.address()), through(&other.name, proxy.address()));
    let options = NodeOptions { cache_disk: Some(2 << 20), ..NodeOptions::default() };
    let node = fixture.new_node_with("disk-node", options)?;
    node.cri().pull(&full_name)?;
    let pod = node.pod("disk")?;
    let twice = [(&full, full_name.as_str()); 2];
    read_together(&node, &pod, &twice, &["first", "second"], 1)?;
    let count = |what: &str| node.daemon_log().matches(what).count();
    wait_logged(&node, "the cache's disk is full")?;
    ensure!(count("the cache's disk is full") == 1, "not logged once: {}", node.daemon_log());

    // To the last byte, so that there is no room either for what is to be known of another image.
    fill(&node.cache().join("filler"))?;
    node.cri().pull(&other_name)?;
    read_together(&node, &pod, &[(&other, other_name.as_str())], &["first"], 1)?;
    ensure!(count("the cache's disk is full") == 1, "logged again: {}", node.daemon_log());

    node.resize_cache_disk(64 << 20)?;
    read_together(&node, &pod, &twice, &["third", "second"], 1)?;
    wait_logged(&node, "disk has room again")?;
    ensure!(count("disk has room again") == 1, "{}", node.daemon_log());
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Status(503))]);
    read_together(&node, &pod, &[(&full, full_name.as_str())], &["second", "third"], 1)?;
    node.cri().remove_pod(&pod.id)
}

/// Writes until there is no room left.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    loop {
        match file.write(&[0x55; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("filling the cache's disk"),
        }
    }
}
