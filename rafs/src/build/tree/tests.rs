//! What becomes of entries.

use crate::build::tests::{MemorySource, mode, paths};
use crate::build::{BuildError, BuildOptions, build_source};
use crate::source::EntryKind;
use crate::tree::{Kind, Layer, Tree};

fn error(source: &mut MemorySource) -> BuildError {
    build_source(source, std::io::sink(), &BuildOptions::default()).unwrap_err()
}

fn size(layer: &Layer, path: &str) -> u64 {
    match layer.tree.node(paths(&layer.tree)[path]).kind {
        Kind::Regular { size, .. } => size,
        ref kind => panic!("{path} is {kind:?}"),
    }
}

fn all_paths(layer: &Layer) -> Vec<String> {
    paths(&layer.tree).into_keys().collect()
}

#[test]
fn missing_parents_are_made_and_known_as_implied() {
    let layer = MemorySource::default().file("a/b/c", b"1").directory("a", 0o700).build();
    let paths = paths(&layer.tree);
    assert_eq!(paths.keys().collect::<Vec<_>>(), ["", "/a", "/a/b", "/a/b/c"]);
    assert_eq!(layer.tree.node(paths["/a"]).metadata.permissions, 0o700);
    assert_eq!(layer.tree.node(paths["/a/b"]).metadata.permissions, 0o755);
    assert!(!layer.tree.is_implied(paths["/a"]));
    assert!(layer.tree.is_implied(paths["/a/b"]));
    assert!(layer.tree.is_implied(Tree::ROOT));
}

#[test]
fn an_entry_for_the_root_gives_its_metadata() {
    for root in [".", "./", "/", "a/.."] {
        let layer = MemorySource::default().directory(root, 0o711).file("a/b", b"").build();
        assert_eq!(layer.tree.node(Tree::ROOT).metadata.permissions, 0o711, "{root}");
        assert!(!layer.tree.is_implied(Tree::ROOT));
    }
    let message = error(MemorySource::default().file("./", b"")).to_string();
    assert_eq!(message, "entry \"./\": it names the root, and the entry is not a directory");
}

#[test]
fn no_path_leaves_the_root() {
    let layer = MemorySource::default()
        .file("../../x", b"1")
        .file("/etc/../y", b"2")
        .symlink("up", "../../../..")
        .file("up/z", b"3")
        .symlink("abs", "/d")
        .file("abs/w", b"4")
        .build();
    assert_eq!(all_paths(&layer), ["", "/abs", "/d", "/d/w", "/up", "/x", "/y", "/z"]);
}

#[test]
fn the_last_of_several_entries_wins() {
    let layer = MemorySource::default().file("a", b"1").file("./a", b"22").file("a", b"333").build();
    assert_eq!(size(&layer, "/a"), 3);
    assert_eq!(all_paths(&layer), ["", "/a"]);
}

#[test]
fn a_directory_over_a_directory_keeps_its_entries() {
    let layer = MemorySource::default().directory("d", 0o700).file("d/a", b"").directory("d/", 0o711).build();
    let paths = paths(&layer.tree);
    assert_eq!(layer.tree.node(paths["/d"]).metadata.permissions, 0o711);
    assert!(paths.contains_key("/d/a"));
}

#[test]
fn a_file_over_a_directory_removes_it_and_the_reverse() {
    let layer = MemorySource::default().file("d/a", b"").file("d", b"file").build();
    assert_eq!(all_paths(&layer), ["", "/d"]);
    let layer = MemorySource::default().file("d", b"file").file("d/a", b"").build();
    assert_eq!(all_paths(&layer), ["", "/d", "/d/a"]);
}

#[test]
fn parents_that_are_symbolic_links_are_followed() {
    let layer = MemorySource::default()
        .directory("usr/bin", 0o755)
        .symlink("bin", "usr/bin")
        .file("bin/sh", b"sh")
        .symlink("usr/lib", "../lib64")
        .file("usr/lib/x/y", b"")
        .build();
    let expected =
        ["", "/bin", "/lib64", "/lib64/x", "/lib64/x/y", "/usr", "/usr/bin", "/usr/bin/sh", "/usr/lib"];
    assert_eq!(all_paths(&layer), expected);
}

#[test]
fn a_loop_of_symbolic_links_is_an_error() {
    let message =
        error(MemorySource::default().symlink("a", "b").symlink("b", "a").file("a/x", b"")).to_string();
    assert_eq!(message, "entry \"a/x\": it leads through too many symbolic links");
}

#[test]
fn hard_links_share_a_node_whatever_it_is() {
    let layer = MemorySource::default()
        .file("file", b"content")
        .link("to-file", "./file")
        .symlink("symlink", "nowhere")
        .link("to-symlink", "/symlink")
        .build();
    let paths = paths(&layer.tree);
    assert_eq!(paths["/file"], paths["/to-file"]);
    assert_eq!(paths["/symlink"], paths["/to-symlink"]);
}

#[test]
fn hard_links_may_come_before_their_target() {
    let layer =
        MemorySource::default().link("c", "b").link("b", "a").link("d", "c").file("a", b"content").build();
    let paths = paths(&layer.tree);
    for name in ["/b", "/c", "/d"] {
        assert_eq!(paths[name], paths["/a"], "{name}");
    }
    assert_eq!(size(&layer, "/d"), 7);
}

#[test]
fn a_hard_link_keeps_what_it_linked_to_when_the_target_is_replaced() {
    let layer = MemorySource::default().file("a", b"old").link("b", "a").file("a", b"newer").build();
    assert_eq!((size(&layer, "/a"), size(&layer, "/b")), (5, 3));
}

#[test]
fn a_hard_link_to_nothing_is_an_error_that_names_both() {
    let message = error(MemorySource::default().link("dir/link", "gone")).to_string();
    assert_eq!(message, "entry \"dir/link\" is a hard link to \"gone\", which does not exist");
    let message = error(MemorySource::default().link("a", "b").link("b", "a")).to_string();
    assert!(message.ends_with("which does not exist"), "{message}");
    let message = error(MemorySource::default().directory("d", 0o755).link("l", "d")).to_string();
    assert_eq!(message, "entry \"l\" is a hard link to \"d\", which is a directory");
    let message = error(MemorySource::default().link("l", "d").directory("d", 0o755)).to_string();
    assert_eq!(message, "entry \"l\" is a hard link to \"d\", which is a directory");
}

#[test]
fn a_hard_link_to_nothing_that_is_replaced_is_no_error() {
    let layer =
        MemorySource::default().link("a", "gone").link("d/b", "gone").file("a", b"1").file("d", b"2").build();
    assert_eq!(all_paths(&layer), ["", "/a", "/d"]);
}

#[test]
fn names_may_be_any_bytes_up_to_255_of_them() {
    let name = [b"\xff\n ".as_slice(), &[b'x'; 252]].concat();
    let mut source = MemorySource::default();
    source.add(&name, mode(0o600), EntryKind::Fifo, &[]);
    let layer = source.build();
    assert!(layer.tree.lookup([name.as_slice()]).is_some());
    source.add(&[b'x'; 256], mode(0o600), EntryKind::Fifo, &[]);
    assert!(error(&mut source).to_string().ends_with("a name in it has 256 bytes: at most 255 are possible"));
}

#[test]
fn extended_attributes_stay_unless_no_file_system_stores_them() {
    let names: [&[u8]; 6] = [
        b"user.a",
        b"security.capability",
        b"trusted.x",
        b"system.posix_acl_access",
        b"com.apple.x",
        b"user.",
    ];
    let mut metadata = mode(0o644);
    metadata.xattrs = names.iter().map(|&name| (name.into(), b"value".as_slice().into())).collect();
    let mut source = MemorySource::default();
    source.add(b"f", metadata.clone(), EntryKind::Regular { size: 0 }, &[]);
    source.add(b"pipe", metadata.clone(), EntryKind::Fifo, &[]);
    source.add(b"link", metadata, EntryKind::Symlink(b"f"[..].into()), &[]);
    let layer = source.build();
    let found = &layer.tree.node(paths(&layer.tree)["/f"]).metadata.xattrs;
    assert_eq!(found.len(), 4);
    assert!(names[..4].iter().all(|&name| found.contains_key(name)));
    for path in ["/pipe", "/link"] {
        let found = &layer.tree.node(paths(&layer.tree)[path]).metadata.xattrs;
        assert!(found.len() == 3 && !found.contains_key(&b"user.a"[..]), "{path}: only files can have it");
    }
}

/// What tools make of overlayfs's whiteouts, which share an inode.
#[test]
fn a_whiteout_that_is_a_hard_link_is_a_whiteout() {
    let layer = MemorySource::default()
        .link("d/.wh.first", "d/of-a-lower-layer")
        .link("d/.wh.second", "d/.wh.third")
        .file("d/.wh.third", b"")
        .link("d/.wh..wh..opq", "nowhere")
        .build();
    let names = ["/d/.wh..wh..opq", "/d/.wh.first", "/d/.wh.second", "/d/.wh.third"];
    assert_eq!(all_paths(&layer)[2..], names);
    assert!(names.iter().all(|name| size(&layer, name) == 0));
    // Other links still need something to link to.
    assert!(matches!(error(MemorySource::default().link("a", "nowhere")), BuildError::LinkTarget { .. }));
}

/// The link came through a symbolic link that is something else by the end.
#[test]
fn a_pending_link_is_resolved_where_it_lies() {
    let layer = MemorySource::default()
        .directory("d", 0o755)
        .symlink("way", "d")
        .link("way/link", "target")
        .directory("way", 0o755)
        .file("target", b"content")
        .build();
    assert_eq!(size(&layer, "/d/link"), 7);
    // In a directory that is gone, nobody misses the target.
    let layer = MemorySource::default().link("d/link", "absent").file("d", b"file").build();
    assert_eq!(all_paths(&layer), ["", "/d"]);
}

#[test]
fn many_entries_in_one_directory_and_deep_ones_are_no_problem() {
    let mut source = MemorySource::default();
    for number in 0..20_000 {
        source.file(&format!("many/{number}"), b"");
    }
    source.file(&"d/".repeat(2_000), b"");
    let layer = source.build();
    assert_eq!(layer.tree.entries(layer.tree.lookup([b"many".as_slice()]).unwrap()).unwrap().len(), 20_000);
}
