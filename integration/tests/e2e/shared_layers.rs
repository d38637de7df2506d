//! Images that share layers, as versions of an application do, leave each other alone.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::{ContainerSpec, Cri};
use integration::node::Node;
use integration::tree::content_digest;
use integration::{demo, wait};

use crate::fixture::{Built, Fixture};

/// containerd collects what nothing refers to any more in the background.
const FREED_DEADLINE: Duration = Duration::from_secs(60);
const FILE_SIZE: u64 = 3 << 20;
const FILES: [&str; 3] = ["replaced", "removed", "kept"];

/// A new version, with other files in the place of some, starts next to the old one.
pub(crate) fn rolled_out(fixture: &Fixture) -> Result<()> {
    let (v1, v2) = versions(fixture, "rolled-out")?;
    let node = fixture.new_node("rolled-out-node", "")?;
    let pod = node.pod("rolled-out")?;
    let old = run(&node, &pod, "old", &v1.name)?;
    read_right(node.cri(), &old, "kept", &v1.context.join("data/kept"))?;
    let new = run(&node, &pod, "new", &v2.name)?;
    read_right(node.cri(), &new, "replaced", &v2.context.join("replacement"))?;
    // What the new version has no use for, and the old one had not read before.
    for file in FILES {
        read_right(node.cri(), &old, file, &v1.context.join("data").join(file))?;
    }
    // And the other way round, once the old version is gone.
    node.cri().remove_container(&old)?;
    node.cri().remove_image(&v1.name)?;
    read_right(node.cri(), &new, "kept", &v2.context.join("data/kept"))
}

/// An image is removed and comes back, while another that runs shares its layers.
pub(crate) fn pulled_again(fixture: &Fixture) -> Result<()> {
    let (v1, v2) = versions(fixture, "pulled-again")?;
    let node = fixture.new_node("pulled-again-node", "")?;
    let pod = node.pod("pulled-again")?;
    let stays = run(&node, &pod, "stays", &v2.name)?;
    for round in 0..2 {
        let comes = run(&node, &pod, &format!("comes-{round}"), &v1.name)?;
        for file in FILES {
            read_right(node.cri(), &comes, file, &v1.context.join("data").join(file))?;
        }
        node.cri().remove_container(&comes)?;
        node.cri().remove_image(&v1.name)?;
    }
    read_right(node.cri(), &stays, "kept", &v2.context.join("data/kept"))?;
    read_right(node.cri(), &stays, "replaced", &v2.context.join("replacement"))
}

/// Nothing stays in the cache of images that are gone, though the last of them never ran.
pub(crate) fn freed(fixture: &Fixture) -> Result<()> {
    let (v1, v2) = versions(fixture, "freed")?;
    let mut node = fixture.new_node("freed-node", "")?;
    let cache = node.snapshotter()?.dir().join("root/cache");
    let pod = node.pod("freed")?;
    node.cri().pull(&v2.name)?;
    let container = run(&node, &pod, "ran", &v1.name)?;
    for file in FILES {
        read_right(node.cri(), &container, file, &v1.context.join("data").join(file))?;
    }
    ensure!(!blobs_in(&cache)?.is_empty(), "what was read was not cached");
    node.cri().remove_container(&container)?;
    node.cri().remove_image(&v1.name)?;
    node.cri().remove_image(&v2.name)?;
    let freed = wait::until_true("the cache has no blob", FREED_DEADLINE, || {
        blobs_in(&cache).is_ok_and(|blobs| blobs.is_empty())
    });
    freed.with_context(|| format!("{:?}", blobs_in(&cache)))
}

/// The files in a cache that belong to a blob: their names begin with its digest.
fn blobs_in(cache: &Path) -> Result<Vec<String>> {
    let mut blobs = Vec::new();
    for entry in fs::read_dir(cache)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let digits = name.split('.').next().unwrap_or_default();
        if digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            blobs.push(name);
        }
    }
    Ok(blobs)
}

/// Two versions of an image: the second replaces and removes files of the first.
fn versions(fixture: &Fixture, name: &str) -> Result<(Built, Built)> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("replacement", FILE_SIZE)])?;
    fs::create_dir(context.join("data"))?;
    for file in FILES {
        demo::random_file(&context.join("data").join(file), FILE_SIZE)?;
    }
    let dockerfile = context.join("Dockerfile");
    fs::write(
        &dockerfile,
        "FROM scratch\nADD busybox.tar /\nCOPY data /\nCMD [\"/bin/sleep\", \"infinity\"]\n",
    )?;
    let v1 = fixture.build(&context, &format!("{name}:v1"))?;
    let mut further = OpenOptions::new().append(true).open(&dockerfile)?;
    writeln!(
        further,
        "COPY replacement /replaced\nRUN --network=none [\"/bin/busybox\", \"rm\", \"/removed\"]"
    )?;
    let v2 = fixture.build(&context, &format!("{name}:v2"))?;
    Ok((v1, v2))
}

fn run(node: &Node, pod: &integration::cri::Pod, name: &str, image: &str) -> Result<String> {
    node.cri().pull(image)?;
    node.cri().run_container(pod, &ContainerSpec::new(name, image, &[]))
}

fn read_right(cri: &Cri, container: &str, file: &str, original: &Path) -> Result<()> {
    let sum = cri.exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
    let expected = content_digest(original)?;
    ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    Ok(())
}
