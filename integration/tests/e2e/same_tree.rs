//! The tree a container sees is the tree that BuildKit's own `type=local` export of the same build shows.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use integration::tree::{self, ListOptions, Listing};
use integration::{demo, process};

use crate::fixture::{Built, Fixture};

/// Layers carry times in whole seconds, as BuildKit writes them.
const OPTIONS: ListOptions = ListOptions { nanoseconds: false };

pub(crate) fn in_a_container(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let expected = exported(fixture, image, "demo-local")?;
    ensure!(expected.contains("./srv/app/app.py"), "the export is not the demonstration's");
    ensure!(!expected.contains("./usr/share/doc"), "the last layer deletes the documentation");
    compare_container(fixture, image, &expected, "demo-mount")
}

pub(crate) fn special_files(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("special")?;
    demo::special_files(&dir.join("tree"))?;
    process::run(
        Command::new("tar")
            .args([
                "--create",
                "--format=posix",
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
                "--file",
            ])
            .arg(dir.join("layer.tar"))
            .arg("--directory")
            .arg(dir.join("tree"))
            .arg("."),
    )?;
    let context = demo::one_layer(&dir.join("layer.tar"), &dir.join("context"))?;
    let image = fixture.build(&context, "special:v1")?;
    let expected = exported(fixture, &image, "special-local")?;
    for path in ["./fifo", "./null", "./loop", "./dangling", "./second-name"] {
        ensure!(expected.contains(path), "BuildKit did not export {path}");
    }
    compare_container(fixture, &image, &expected, "special-mount")
}

/// What BuildKit's own export of the build shows.
pub(crate) fn exported(fixture: &Fixture, image: &Built, name: &str) -> Result<Listing> {
    let dest = fixture.subdir(name)?;
    let output = format!("type=local,dest={}", dest.display());
    fixture.plain_buildctl()?.build(&image.context, &[&output])?;
    list_image_tree(&dest)
}

fn compare_container(fixture: &Fixture, image: &Built, expected: &Listing, name: &str) -> Result<()> {
    let node = fixture.node()?;
    node.cri().pull(&image.name)?;
    let mounted = fixture.subdir(name)?;
    let guard = node.mount(&image.name, &mounted)?;
    let seen = list_image_tree(&mounted);
    drop(guard);
    seen?.expect_same("the container", expected, "type=local")
}

/// Lists an image's tree without its root, which `type=local` leaves as the destination was.
pub(crate) fn list_image_tree(root: &Path) -> Result<Listing> {
    let mut listing = tree::list(root, OPTIONS)?;
    listing.remove(".");
    Ok(listing)
}
