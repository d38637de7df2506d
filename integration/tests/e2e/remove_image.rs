//! Removing an image unmounts it and frees the cache.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::{demo, leftovers, wait};

use crate::fixture::Fixture;

/// containerd collects what nothing refers to any more in the background.
const FREED_DEADLINE: Duration = Duration::from_secs(60);
const FILE_SIZE: u64 = 6 << 20;

pub(crate) fn frees(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("remove")?, &[("data", FILE_SIZE)])?;
    let image = fixture.build(&context, "remove:v1")?;
    let mut node = fixture.new_node("remove-node", "")?;
    let dir = node.snapshotter()?.dir().to_owned();
    // The sandbox's image stays: it is the state to come back to.
    let pod = node.pod("remove")?;
    let before = (leftovers::mounts(&dir)?.len(), stored_bytes(&dir)?);
    node.cri().pull(&image.name)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &image.name, &[]))?;
    node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    ensure!(leftovers::mounts(&dir)?.len() > before.0, "the image was not mounted");
    ensure!(stored_bytes(&dir)? >= before.1 + FILE_SIZE, "what was read was not cached");

    node.cri().remove_container(&container)?;
    node.cri().remove_image(&image.name)?;
    wait::until_true("the image was unmounted", FREED_DEADLINE, || {
        leftovers::mounts(&dir).is_ok_and(|mounts| mounts.len() == before.0)
    })?;
    wait::until_true("the cache was freed", FREED_DEADLINE, || {
        stored_bytes(&dir).is_ok_and(|bytes| bytes < before.1 + FILE_SIZE / 4)
    })
}

/// Bytes that files under `dir` take on its own file system; logs do not count.
fn stored_bytes(dir: &Path) -> Result<u64> {
    let device = fs::metadata(dir)?.dev();
    let mut bytes = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(folder) {
            // Removed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // Another file system, or gone while we look.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_none_or(|extension| extension != "log") {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    Ok(bytes)
}
