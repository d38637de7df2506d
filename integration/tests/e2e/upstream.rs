//! Upstream's tools and the kernel take our images: the same tree, no finding.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use integration::servers::Nydusd;
use integration::{peers, process};

use crate::fixture::{Built, Fixture, nydus_layers};
use crate::same_tree::list_image_tree;

pub(crate) fn nydusd_tree(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let dir = fixture.subdir("nydusd")?;
    let files = ImageFiles::of(fixture, image, &dir)?;
    let daemon = Nydusd::start(fixture.peers(), &dir.join("daemon"), &files.bootstrap, &files.blobs)?;
    let seen = list_image_tree(daemon.mountpoint())?;
    fixture.demo_exported()?.expect_same(&seen, "nydusd")
}

pub(crate) fn image_check(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("image-check")?;
    let files = ImageFiles::of(fixture, fixture.demo()?, &dir)?;
    let output = process::run(
        Command::new(fixture.peers().nydus("nydus-image")?)
            .args(["check", "--bootstrap"])
            .arg(&files.bootstrap)
            .arg("--blob-dir")
            .arg(&files.blobs),
    )?;
    ensure!(
        output.stdout.contains("RAFS filesystem metadata is valid"),
        "{}{}",
        output.stdout,
        output.stderr
    );
    Ok(())
}

pub(crate) fn kernel_and_fsck(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let dir = fixture.subdir("kernel")?;
    let files = ImageFiles::of(fixture, image, &dir)?;
    // A daemon of upstream's that has read everything leaves complete devices in its cache.
    let daemon = Nydusd::start(fixture.peers(), &dir.join("daemon"), &files.bootstrap, &files.blobs)?;
    let served = list_image_tree(daemon.mountpoint())?;
    drop(daemon);
    let blobs = nydus_layers(&image.manifest)?.0;
    let device = |digest: &String| {
        dir.join("daemon/cache").join(format!("{}.blob.data", digest.trim_start_matches("sha256:")))
    };
    let devices: Vec<PathBuf> = blobs.iter().map(device).collect();

    let mut fsck = Command::new(peers::system("fsck.erofs")?);
    fsck.args(devices.iter().map(|device| format!("--device={}", device.display())));
    process::run(fsck.arg(&files.bootstrap))?;

    let mountpoint = dir.join("mnt");
    fs::create_dir(&mountpoint)?;
    let options: Vec<String> = devices.iter().map(|device| format!("device={}", device.display())).collect();
    let mounted = MountedErofs::new(&files.bootstrap, &mountpoint, &options.join(","))?;
    let seen = list_image_tree(&mounted.0)?;
    drop(mounted);
    seen.expect_same("the kernel", &served, "nydusd")?;
    fixture.demo_exported()?.expect_same(&seen, "the kernel")
}

/// An image's files as upstream's tools want them.
pub(crate) struct ImageFiles {
    /// The bootstrap, unpacked.
    pub(crate) bootstrap: PathBuf,
    /// A directory of blobs, each under its hexadecimal digest.
    pub(crate) blobs: PathBuf,
}

impl ImageFiles {
    /// Takes them out of the embedded registry's storage.
    pub(crate) fn of(fixture: &Fixture, image: &Built, dir: &Path) -> Result<Self> {
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
        Ok(Self { bootstrap: dir.join("image/image.boot"), blobs })
    }
}

/// A bootstrap mounted by the kernel.
struct MountedErofs(PathBuf);

impl MountedErofs {
    fn new(bootstrap: &Path, mountpoint: &Path, options: &str) -> Result<Self> {
        use nix::mount::{MsFlags, mount};

        // Not `mount(8)`, which would put a loop device in between.
        mount(Some(bootstrap), mountpoint, Some("erofs"), MsFlags::MS_RDONLY, Some(options))?;
        Ok(Self(mountpoint.to_owned()))
    }
}

impl Drop for MountedErofs {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount(&self.0) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}
