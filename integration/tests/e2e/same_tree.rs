//! The tree a container sees is the tree that BuildKit's own `type=local` export of the same build shows.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use integration::tree::{self, ListOptions, Listing};
use integration::{demo, gnu_tar};

use crate::fixture::{Built, Fixture};

/// Layers carry times in whole seconds, as BuildKit writes them.
const OPTIONS: ListOptions = ListOptions { nanoseconds: false };

pub(crate) fn in_a_container(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let expected = fixture.demo_exported()?;
    ensure!(expected.contains("./srv/app/app.py"), "the export is not the demonstration's");
    ensure!(!expected.contains("./usr/share/doc"), "the last layer deletes the documentation");
    compare_container(fixture, image, expected, "demo-mount")
}

pub(crate) fn special_files(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("special")?;
    demo::special_files(&dir.join("tree"))?;
    gnu_tar::pack(&dir.join("tree"), &dir.join("layer.tar"))?;
    let context = demo::one_layer(&dir.join("layer.tar"), &dir.join("context"))?;
    let image = fixture.build(&context, "special:v1")?;
    let expected = Exported::of(fixture, &image, "special-exported")?;
    for path in ["./fifo", "./null", "./loop", "./dangling", "./second-name"] {
        ensure!(expected.contains(path), "BuildKit did not export {path}");
    }
    compare_container(fixture, &image, &expected, "special-mount")
}

/// The tree that containers of an image on the shared node see.
pub(crate) fn container_tree(fixture: &Fixture, image: &str, name: &str) -> Result<Listing> {
    let mounted = fixture.subdir(name)?;
    let guard = fixture.node()?.mount(image, &mounted)?;
    let seen = list_image_tree(&mounted);
    drop(guard);
    seen
}

fn compare_container(fixture: &Fixture, image: &Built, expected: &Exported, name: &str) -> Result<()> {
    fixture.node()?.cri().pull(&image.name)?;
    expected.expect_same(&container_tree(fixture, &image.name, name)?, "the container")
}

/// What BuildKit's own exports of a build show.
pub(crate) struct Exported {
    /// `type=local`: everything but owners, which buildctl sets to its own user.
    local: Listing,
    /// `type=tar`, unpacked: everything but times, which it rounds up where layers cut off.
    tar: Listing,
}

impl Exported {
    /// Exports the image's build once more.
    pub(crate) fn of(fixture: &Fixture, image: &Built, name: &str) -> Result<Self> {
        let dir = fixture.subdir(name)?;
        let (local, tar, archive) = (dir.join("local"), dir.join("tar"), dir.join("image.tar"));
        // One after the other: a client that unpacks many files lets BuildKit's session wait. And through the exporter,
        // whose windows hold the requests for all files: straight to buildkitd they fill the stream's 64 KiB when buildctl
        // is slow to write files, and Go's HTTP/2 server, buildctl's end, then keeps the stream's WINDOW_UPDATE frames
        // behind the DATA that waits, so that both ends wait for good.
        for output in
            [format!("type=local,dest={}", local.display()), format!("type=tar,dest={}", archive.display())]
        {
            fixture.buildctl()?.build(&image.context, &[&output])?;
        }
        gnu_tar::extract(&archive, &tar)?;
        let exported = Self { local: list_image_tree(&local)?, tar: list_image_tree(&tar)? };
        fs::remove_dir_all(dir)?;
        Ok(exported)
    }

    /// Whether the exports have this path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.local.contains(path) && self.tar.contains(path)
    }

    /// Fails unless `seen` is the same tree.
    pub(crate) fn expect_same(&self, seen: &Listing, name: &str) -> Result<()> {
        let owners = seen.clone().without_mtimes();
        owners.expect_same(name, &self.tar.clone().without_mtimes(), "type=tar")?;
        seen.clone().without_owners().expect_same(name, &self.local.clone().without_owners(), "type=local")
    }
}

/// Lists an image's tree.
///
/// Without its root, which exports leave as the destination was; without the times of `/dev` and `/etc`, where runc puts
/// mount points for the time of a build step: exports show that, layers do not.
pub(crate) fn list_image_tree(root: &Path) -> Result<Listing> {
    let mut listing = tree::list(root, OPTIONS)?;
    listing.remove(".");
    listing.ignore_mtime("./dev");
    listing.ignore_mtime("./etc");
    Ok(listing)
}
