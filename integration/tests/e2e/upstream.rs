//! Upstream's tools and the kernel take our images: the same tree, no finding.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use integration::image_files::{ImageFiles, MountedErofs, fsck};
use integration::nydus_image::NydusImage;
use integration::process;
use integration::servers::Nydusd;

use crate::fixture::{Built, Fixture, nydus_layers};
use crate::same_tree::list_image_tree;

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
