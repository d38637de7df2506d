//! The kernel's overlayfs is the oracle for merging: what it shows over the unpacked layers of a random stack is what we
//! show of the merged image.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use integration::corpus::{Layer, Tree};
use integration::image_files::{ImageFiles, LayerInput};
use integration::process;
use integration::tree::Listing;
use nix::mount::{MsFlags, mount, umount};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rafs::bootstrap::WriteOptions;
use rafs::build::BuildOptions;

use crate::lab::{Lab, list, list_overlay};
use crate::{Test, named};

/// Random stacks that are compared: enough for every pair of kinds to meet, in some seconds.
const CASES: u32 = 256;

pub(crate) fn tests() -> Vec<(String, Test)> {
    vec![named("overlayfs::merged_layers_are_what_overlayfs_shows", merged)]
}

/// What a path of a layer is.
#[derive(Clone, Debug)]
enum Item {
    Directory {
        mode: u32,
        xattr: bool,
    },
    File {
        content: u8,
        mode: u32,
    },
    Symlink(String),
    HardLink(String),
    Device,
    Fifo,
    /// The path is removed below and not there any more.
    Whiteout,
}

/// A path of a layer.
#[derive(Clone, Debug)]
struct Change {
    item: Item,
    mtime: i64,
    /// What was at the path is removed below before.
    over_whiteout: bool,
    /// For directories: what is in it below is removed.
    opaque: bool,
}

/// A layer, by path. Every directory has an entry, as in an unpacked layer: one that is only implied has no metadata of
/// its own, which a directory on disk cannot say.
type Changes = BTreeMap<String, Change>;

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
        .prop_map(|names| names.join("/"))
}

fn an_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => (0o700..0o720_u32, any::<bool>()).prop_map(|(mode, xattr)| Item::Directory { mode, xattr }),
        4 => (0..4_u8, 0o600..0o620_u32).prop_map(|(content, mode)| Item::File { content, mode }),
        2 => a_path().prop_map(Item::Symlink),
        2 => a_path().prop_map(Item::HardLink),
        1 => Just(Item::Device),
        1 => Just(Item::Fifo),
        4 => Just(Item::Whiteout),
    ]
}

fn a_change() -> impl Strategy<Value = Change> {
    let rarely = || prop::bool::weighted(0.2);
    (an_item(), 0..2_000_000_000_i64, rarely(), rarely())
        .prop_map(|(item, mtime, over_whiteout, opaque)| Change { item, mtime, over_whiteout, opaque })
}

fn a_layer() -> impl Strategy<Value = Changes> {
    prop::collection::vec((a_path(), a_change()), 0..14).prop_map(|changes| {
        let mut layer = Changes::new();
        for (path, change) in changes {
            let is_directory = |parent: &str| {
                layer.get(parent).is_none_or(|above| matches!(above.item, Item::Directory { .. }))
            };
            let links_to_file = match &change.item {
                Item::HardLink(target) => layer.get(target).is_some_and(|found| {
                    !matches!(found.item, Item::Directory { .. } | Item::Whiteout | Item::HardLink(_))
                }),
                _ => true,
            };
            if layer.contains_key(&path) || !links_to_file || !parents(&path).all(is_directory) {
                continue;
            }
            for parent in parents(&path).map(str::to_owned).collect::<Vec<_>>() {
                layer.entry(parent).or_insert(Change {
                    item: Item::Directory { mode: 0o755, xattr: false },
                    mtime: 1,
                    over_whiteout: false,
                    opaque: false,
                });
            }
            layer.insert(path, change);
        }
        layer
    })
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// The layer as entries. The root has one in every layer, and is opaque in none: overlayfs merges the roots of all layers
/// whatever they say.
fn to_layer(changes: &Changes) -> Layer {
    use integration::corpus::{Dialect, Kind};

    let mut layer = Layer::default();
    layer.directory("").spelled("./");
    for (path, change) in changes {
        if change.over_whiteout && !matches!(change.item, Item::Whiteout) {
            layer.whiteout(path);
        }
        let entry = match &change.item {
            Item::Directory { mode, .. } => layer.directory(path).mode(*mode),
            Item::File { content, mode } => layer.file(path, [*content; 100]).mode(*mode),
            Item::Symlink(target) => layer.symlink(path, target),
            Item::HardLink(target) => layer.link(path, target),
            Item::Device => layer.add(path, Kind::CharDevice(1, 3)),
            Item::Fifo => layer.add(path, Kind::Fifo),
            Item::Whiteout => {
                layer.whiteout(path);
                continue;
            }
        };
        entry.mtime(change.mtime, 0).owner(change.mtime as u32 % 7, 0);
        if let Item::Directory { xattr, .. } = change.item {
            if xattr {
                entry.dialect(Dialect::Pax).xattr("user.of-layer", change.mtime.to_string());
            }
            if change.opaque {
                layer.opaque(path);
            }
        }
    }
    layer
}

/// An overlay of directories, read-only; unmounted when dropped.
struct Overlay(PathBuf);

impl Overlay {
    /// `layers` are the lowest first.
    fn new(layers: &[PathBuf], scratch: &Path) -> Result<Self> {
        let (mountpoint, nothing) = (scratch.join("overlay"), scratch.join("nothing"));
        // A mount of one lower directory and no upper one is refused.
        for dir in [&mountpoint, &nothing] {
            fs::create_dir(dir)?;
        }
        let lower: Vec<_> =
            layers.iter().rev().chain([&nothing]).map(|layer| layer.display().to_string()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), &mountpoint, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))
            .with_context(|| format!("mounting an overlay with {options}"))?;
        Ok(Self(mountpoint))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            process::tell(format_args!("unmounting {}: {error}", self.0.display()));
        }
    }
}

fn merged(lab: &Lab) -> Result<()> {
    let defaults = Config::default();
    // proptest's own variable, for a longer look.
    let cases = if env::var_os("PROPTEST_CASES").is_some() { defaults.cases } else { CASES };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..defaults };
    let mut runner = TestRunner::new(config);
    let strategy = prop::collection::vec(a_layer(), 2..6);
    let outcome = runner.run(&strategy, |stack| {
        compare(lab, &stack).map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    outcome.map_err(|error| anyhow::anyhow!("{error}"))
}

fn compare(lab: &Lab, stack: &[Changes]) -> Result<()> {
    let scratch = lab.scratch()?;
    let layers: Vec<_> = stack.iter().map(to_layer).collect();
    let mut directories = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let root = scratch.path().join(format!("layer-{number}"));
        let mut tree = Tree::new(&root)?;
        tree.apply_for_overlayfs(layer)?;
        tree.finish()?;
        directories.push(root);
    }
    let overlay = Overlay::new(&directories, scratch.path())?;
    let expected = list_overlay(&overlay.0)?;
    drop(overlay);

    let tars: Vec<_> = layers.iter().map(Layer::to_tar).collect();
    let from_tars: Vec<_> = tars.iter().map(|tar| LayerInput::Tar(tar)).collect();
    let from_directories: Vec<_> = directories.iter().map(|root| LayerInput::Directory(root)).collect();
    show(&from_tars, &scratch.path().join("tars"))?.expect_same("layers of tars", &expected, "overlayfs")?;
    let seen = show(&from_directories, &scratch.path().join("directories"))?;
    seen.expect_same("layers of directories", &expected, "overlayfs")
}

/// What the merged image of layers unpacks to.
fn show(layers: &[LayerInput<'_>], dir: &Path) -> Result<Listing> {
    fs::create_dir(dir)?;
    let options = BuildOptions { threads: 1, ..BuildOptions::default() };
    let files = ImageFiles::build(layers, &options, &WriteOptions::default(), dir)?;
    let unpacked = dir.join("unpacked");
    files.unpack_to(&unpacked)?;
    list(&unpacked)
}
