//! Upstream's tools and the kernel take our images: the same tree, no finding.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::image_files::{ImageFiles, MountedErofs, fsck};
use integration::node::Node;
use integration::nydus_image::NydusImage;
use integration::servers::{Nydusd, UpstreamMode};
use integration::tree::content_digest;
use integration::{demo, process, wait};

use crate::fixture::{Built, Fixture, manifest, nydus_layers};
use crate::same_tree::list_image_tree;

const PREFETCH_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn nydusd_tree(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let dir = fixture.subdir("nydusd")?;
    let files = image_files(fixture, image, &dir)?;
    let daemon = Nydusd::start(fixture.peers(), &dir.join("daemon"), &files.bootstrap, &files.blobs)?;
    let seen = list_image_tree(daemon.mountpoint())?;
    fixture.demo_exported()?.expect_same(&seen, "nydusd")
}

pub(crate) fn image_check(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("image-check")?;
    let files = image_files(fixture, fixture.demo()?, &dir)?;
    NydusImage::new(fixture.peers())?.check(&files)?;
    Ok(())
}

pub(crate) fn kernel_and_fsck(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let dir = fixture.subdir("kernel")?;
    let files = image_files(fixture, image, &dir)?;
    // A daemon of upstream's that has read everything leaves complete devices in its cache.
    let daemon = Nydusd::start(fixture.peers(), &dir.join("daemon"), &files.bootstrap, &files.blobs)?;
    let served = list_image_tree(daemon.mountpoint())?;
    drop(daemon);
    let blobs = nydus_layers(&image.manifest)?.0;
    let device = |digest: &String| {
        dir.join("daemon/cache").join(format!("{}.blob.data", digest.trim_start_matches("sha256:")))
    };
    let devices: Vec<PathBuf> = blobs.iter().map(device).collect();

    fsck(&files.bootstrap, &devices)?;
    let mounted = MountedErofs::new(&files.bootstrap, &devices, &dir.join("mnt"))?;
    let seen = list_image_tree(mounted.path())?;
    drop(mounted);
    seen.expect_same("the kernel", &served, "nydusd")?;
    fixture.demo_exported()?.expect_same(&seen, "the kernel")
}

/// Upstream's node, which the benchmarks compare ours with, runs our images in each of its modes, and fetches what nobody reads
/// where it is told to.
pub(crate) fn node(fixture: &Fixture) -> Result<()> {
    const UNREAD_BYTES: u64 = 4 << 20;
    let dir = fixture.subdir("upstream-node")?;
    let registry = fixture.registry()?;
    let files = [("read", 2 << 20), ("unread", UNREAD_BYTES)];
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &files)?;
    let name = format!("{}/upstream-node:v1", registry.address());
    fixture.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={name}")])?;
    let blobs = nydus_layers(&manifest(&name)?)?.0;
    let unread = blobs.last().context("a blob")?;
    let content = content_digest(&context.join("read"))?;
    for mode in [UpstreamMode::OnDemand, UpstreamMode::Prefetch, UpstreamMode::Shared] {
        let start = registry.access_log().mark()?;
        let fetched = || -> Result<u64> {
            let requests = registry.access_log().since(start)?;
            let of_unread = requests.iter().filter(|request| request.reads_blob(unread));
            Ok(of_unread.map(|request| request.bytes_sent).sum())
        };
        let node = dir.join(format!("{mode:?}").to_lowercase());
        let node = Node::upstream(fixture.peers(), &node, fixture.pause()?, mode)?;
        node.cri().pull(&name)?;
        let pod = node.pod("upstream-node")?;
        let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &name, &[]))?;
        let said = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/read"])?.success()?;
        ensure!(said.starts_with(&content), "{mode:?}: {said}, expected {content}");
        if mode == UpstreamMode::Prefetch {
            wait::until_true("nydusd has fetched what nobody read", PREFETCH_DEADLINE, || {
                fetched().is_ok_and(|bytes| bytes >= UNREAD_BYTES)
            })?;
        } else {
            let bytes = fetched()?;
            ensure!(bytes < UNREAD_BYTES / 4, "{mode:?}: {bytes} bytes of what nobody read were fetched");
        }
        node.cri().remove_pod(&pod.id)?;
    }
    Ok(())
}

/// Takes an image's files out of the embedded registry's storage.
pub(crate) fn image_files(fixture: &Fixture, image: &Built, dir: &Path) -> Result<ImageFiles> {
    let registry = fixture.registry()?;
    let (digests, bootstrap) = nydus_layers(&image.manifest)?;
    let blobs = dir.join("blobs");
    fs::create_dir(&blobs)?;
    for digest in digests {
        symlink(registry.blob_file(&digest), blobs.join(digest.trim_start_matches("sha256:")))?;
    }
    process::run(
        Command::new("tar").arg("--directory").arg(dir).arg("-xzf").arg(registry.blob_file(&bootstrap)),
    )?;
    Ok(ImageFiles { bootstrap: dir.join("image/image.boot"), blobs })
}
