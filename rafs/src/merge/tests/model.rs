//! Random stacks of layers against a model that knows paths only.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{MemorySource, merge, mode, paths, with_xattr};
use crate::source::EntryKind;
use crate::tree::{DeviceNumber, Image, Kind, NodeId};

/// What a path of a layer is.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Item {
    /// A directory, with its mode if it has an entry.
    Directory { permissions: Option<u16>, opaque: bool },
    /// A file of this content.
    File(u8),
    /// Another name of the file at this path.
    HardLink(String),
    /// An OCI whiteout of the path.
    Whiteout,
    /// An overlayfs whiteout of the path.
    OverlayWhiteout,
    /// An OCI opaque marker in the directory.
    OpaqueMarker,
}

/// A layer: no path is below one that is no directory.
type LayerModel = BTreeMap<String, Item>;

/// What a stack shows: type with mode or content, and for files the layer and path that they are from.
type Shown = BTreeMap<String, (String, Option<(usize, String)>)>;

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at])
}

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
        .prop_map(|names| names.iter().map(|name| format!("/{name}")).collect())
}

fn an_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        3 => (0o700..0o710u16, prop::bool::weighted(0.2))
            .prop_map(|(mode, opaque)| Item::Directory { permissions: Some(mode), opaque }),
        4 => (0..4u8).prop_map(Item::File),
        1 => a_path().prop_map(Item::HardLink),
        2 => Just(Item::Whiteout),
        1 => Just(Item::OverlayWhiteout),
        1 => Just(Item::OpaqueMarker),
    ]
}

fn a_layer() -> impl Strategy<Value = LayerModel> {
    prop::collection::vec((a_path(), an_item()), 0..12).prop_map(|entries| {
        let mut layer = LayerModel::new();
        for (path, item) in entries {
            let fits = parents(&path)
                .all(|parent| layer.get(parent).is_none_or(|above| matches!(above, Item::Directory { .. })));
            let key = match item {
                Item::Whiteout => format!("{path}#whiteout"),
                Item::OpaqueMarker => format!("{path}/#opaque"),
                _ => path.clone(),
            };
            let links = match &item {
                Item::HardLink(target) => matches!(layer.get(target), Some(Item::File(_))),
                Item::OpaqueMarker => matches!(layer.get(&path), Some(Item::Directory { .. })),
                _ => true,
            };
            if !fits || !links || layer.contains_key(&key) {
                continue;
            }
            for parent in parents(&path) {
                let implied = Item::Directory { permissions: None, opaque: false };
                layer.entry(parent.to_owned()).or_insert(implied);
            }
            layer.insert(key, item);
        }
        layer
    })
}

/// The layer as a source would have it.
fn to_source(layer: &LayerModel) -> MemorySource {
    let mut source = MemorySource::default();
    let marker = |path: &str, prefix: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/{prefix}{name}"),
        None => format!("{prefix}{path}"),
    };
    for (path, item) in layer {
        match item {
            Item::Directory { permissions: None, .. } => {}
            Item::Directory { permissions: Some(permissions), opaque } => {
                let mut metadata = mode(*permissions);
                if *opaque {
                    metadata.xattrs = with_xattr("trusted.overlay.opaque", "y").xattrs;
                }
                source.add(path.as_bytes(), metadata, EntryKind::Directory, &[]);
            }
            Item::File(content) => _ = source.file(path, &[*content]),
            Item::HardLink(target) => _ = source.link(path, target),
            Item::Whiteout => _ = source.file(&marker(path.trim_end_matches("#whiteout"), ".wh."), b""),
            Item::OverlayWhiteout => {
                let kind = EntryKind::CharDevice(DeviceNumber { major: 0, minor: 0 });
                source.add(path.as_bytes(), mode(0), kind, &[]);
            }
            Item::OpaqueMarker => _ = source.file(&path.replace("#opaque", ".wh..wh..opq"), b""),
        }
    }
    source
}

/// What a stack shows by the rules, path by path.
fn show(layers: &[LayerModel]) -> Shown {
    let mut shown = Shown::new();
    let remove = |shown: &mut Shown, path: &str, itself: bool| {
        let below = format!("{path}/");
        shown.retain(|other, _| !(other.starts_with(&below) || itself && other == path));
    };
    for (number, layer) in layers.iter().enumerate() {
        for (path, item) in layer {
            match item {
                Item::Directory { opaque: true, .. } => remove(&mut shown, path, false),
                Item::OpaqueMarker => remove(&mut shown, path.trim_end_matches("/#opaque"), false),
                Item::Whiteout => remove(&mut shown, path.trim_end_matches("#whiteout"), true),
                Item::OverlayWhiteout => remove(&mut shown, path, true),
                _ => {}
            }
        }
        for (path, item) in layer {
            let (described, from) = match item {
                Item::Directory { permissions, .. } => {
                    let is_directory = shown.get(path).is_some_and(|(kind, _)| kind.starts_with("directory"));
                    if permissions.is_none() && is_directory {
                        continue;
                    }
                    if !is_directory {
                        remove(&mut shown, path, true);
                    }
                    (format!("directory {:o}", permissions.unwrap_or(0o755)), None)
                }
                Item::File(content) => (format!("file {content}"), Some((number, path.clone()))),
                Item::HardLink(target) => {
                    let Item::File(content) = layer[target] else { panic!("links are to files") };
                    (format!("file {content}"), Some((number, target.clone())))
                }
                Item::Whiteout | Item::OverlayWhiteout | Item::OpaqueMarker => continue,
            };
            if from.is_some() {
                remove(&mut shown, path, true);
            }
            shown.insert(path.clone(), (described, from));
        }
    }
    shown
}

fn describe(image: &Image, id: NodeId) -> String {
    let node = image.tree.node(id);
    match &node.kind {
        Kind::Directory(_) => format!("directory {:o}", node.metadata.permissions),
        Kind::Regular { chunks, .. } => {
            let digest = image.blobs[usize::from(chunks[0].blob.0)].chunks[chunks[0].chunk.0 as usize].digest;
            let content = (0..4u8).find(|&content| *blake3::hash(&[content]).as_bytes() == digest.0);
            format!("file {}", content.expect("one of the contents"))
        }
        kind => format!("{kind:?}"),
    }
}

/// For each path the first path that shows the same node.
fn groups<T: PartialEq>(items: &[(String, T)]) -> Vec<(&str, &str)> {
    let first = |wanted: &T| items.iter().find(|(_, item)| item == wanted).map_or("", |(path, _)| path);
    items.iter().map(|(path, item)| (path.as_str(), first(item))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn merged_layers_show_what_the_model_shows(layers in prop::collection::vec(a_layer(), 1..5)) {
        let image = merge(layers.iter().map(|layer| to_source(layer).build()).collect()).unwrap();
        let expected = show(&layers);
        let found: BTreeMap<_, _> = paths(&image.tree).into_iter().filter(|(path, _)| !path.is_empty()).collect();
        let described: BTreeMap<_, _> =
            found.iter().map(|(path, &id)| (path.clone(), describe(&image, id))).collect();
        let expected_kinds: BTreeMap<_, _> =
            expected.iter().map(|(path, (kind, _))| (path.clone(), kind.clone())).collect();
        prop_assert_eq!(described, expected_kinds);

        let is_file = |path: &String| expected[path].1.is_some();
        let found: Vec<_> = found.into_iter().filter(|(path, _)| is_file(path)).collect();
        let expected: Vec<_> = expected.iter().filter_map(|(path, (_, from))| Some((path.clone(), from.clone()?))).collect();
        prop_assert_eq!(groups(&found), groups(&expected));
    }
}
