//! The generated layers: every case of a tar that an image may have.

use super::{Content, Dialect, Kind, Layer, Sparse, bytes};

/// `cap_net_raw+ep`, as a file capability is stored (revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list as it is stored: version 2; owner rw, user 1000 r, group r, mask r, others none.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
    16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// The lowest layer. It has whiteouts too, which find nothing to remove.
pub fn base() -> Layer {
    let mut layer = Layer::default();
    layer.directory("").spelled("./").mode(0o1755).owner(3, 4).mtime(1_600_000_000, 0);
    plain(&mut layer);
    long_names(&mut layer);
    numbers(&mut layer);
    attributes(&mut layer);
    sparse(&mut layer);
    links(&mut layer);
    special(&mut layer);
    contents(&mut layer);
    spellings(&mut layer);
    repeated(&mut layer);
    to_be_changed(&mut layer);
    layer.whiteout("nothing-below");
    layer.whiteout("missing/nothing-below");
    layer.directory("opaque-first");
    layer.opaque("opaque-first");
    layer.file("opaque-first/file", "stays");
    layer
}

/// A layer that goes over [`base`].
pub fn upper() -> Layer {
    let mut layer = Layer::default();
    // After what it does not remove: its own layer's.
    layer.file("changed/again", "new, though whited out below").mtime(1_700_000_001, 0);
    layer.whiteout("changed/again");
    layer.whiteout("changed/removed");
    layer.whiteout("changed/removed-directory");
    layer.whiteout("changed/never-there");
    layer.directory("changed/emptied").mode(0o700);
    layer.opaque("changed/emptied");
    layer.file("changed/emptied/new", "new");
    layer.directory("changed/to-file-and-back");
    layer.file("changed/directory-to-file", "a file now");
    layer.directory("changed/file-to-directory").mode(0o711);
    layer.file("changed/file-to-directory/in", "a directory now");
    layer.symlink("changed/directory-to-link", "emptied");
    layer.directory("changed/metadata").mode(0o2750).owner(5, 6).mtime(1_500_000_000, 0);
    // One of two names gets a file of its own, the other keeps what it had.
    layer.file("changed/linked-1", "no longer the same");
    layer.link("changed/third-name", "changed/linked-1").mode(0o644);
    // Content that the layer below has.
    layer.file("same-content", bytes(2, 300_000, 1));
    layer.file("changed/kept-directory/added", "by a layer without an entry for its directory");
    layer
}

/// What nydus-image 2.2 does not take: access control lists (its tree has no place for an attribute whose name is all
/// prefix), and times before 1970 (which are unsigned to it).
pub fn beyond_upstream() -> Layer {
    let mut layer = Layer::default();
    let pax = Dialect::Pax;
    layer.file("acl-file", "x").mode(0o640).dialect(pax).xattr("system.posix_acl_access", ACL);
    layer.directory("acl-directory").mode(0o750).dialect(pax).xattr("system.posix_acl_default", ACL);
    layer.file("time-before-1970", "").mtime(-5, 250_000_000).dialect(pax);
    layer.file("time-1902", "").mtime(-2_145_916_800, 0).dialect(Dialect::Gnu);
    layer
}

/// A layer with a directory of `count` entries.
pub fn many_entries(count: usize) -> Layer {
    let mut layer = Layer::default();
    layer.directory("many");
    for number in 0..count {
        let path = format!("many/entry-{number:06}");
        match number % 50 {
            0 => layer.symlink(path, format!("entry-{:06}", number + 1)),
            1 => layer.file(path, format!("content {}", number % 1000)),
            _ => layer.file(path, ""),
        };
    }
    layer
}

/// A layer with a file of `size` bytes: some at the start, in the middle and at the end.
pub fn large_file(size: u64) -> Layer {
    let mut layer = Layer::default();
    let data = bytes(9, 70_000, 2);
    let segments = [(0, &data[..]), (size / 2 + 4321, &data[..]), (size - 70_000, &data[..])];
    let content = Content::sparse(&segments, size, Sparse::V1_0);
    layer.add("large", Kind::File(content)).mode(0o644).dialect(Dialect::Pax);
    layer
}

fn plain(layer: &mut Layer) {
    layer.directory("etc");
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    layer.file("etc/shadow", "root:*:0::::::\n").mode(0o640).owner(0, 42);
    layer.file("empty", "");
    layer.directory("tmp").mode(0o1777);
    layer.file("bin/su", "#!/bin/false\n").mode(0o6755);
    layer.file("no-permissions", "none").mode(0);
    layer.directory("empty-directory").mode(0o500);
}

fn long_names(layer: &mut Layer) {
    let directory = "d".repeat(90);
    layer.directory(&directory);
    layer.file(format!("{directory}/{}", "u".repeat(100)), "prefix and name of ustar");
    let deep = format!("{directory}/{}/{}", "e".repeat(200), "f".repeat(200));
    layer.file(format!("{deep}/pax"), "a long path in PAX").dialect(Dialect::Pax);
    layer.file(format!("{deep}/gnu"), "a long path in GNU").dialect(Dialect::Gnu);
    layer.file("n".repeat(255), "the longest name, in PAX").dialect(Dialect::Pax);
    layer.file("g".repeat(255), "the longest name, in GNU").dialect(Dialect::Gnu);
    layer.symlink("long-target-pax", "t/".repeat(600)).dialect(Dialect::Pax);
    layer.symlink("long-target-gnu", "../".repeat(500)).dialect(Dialect::Gnu);
    layer.symlink("longest-target", "x".repeat(4095)).dialect(Dialect::Pax);
    layer.link("link-to-long-pax", format!("{deep}/pax")).dialect(Dialect::Pax);
    layer.link("link-to-long-gnu", format!("{deep}/gnu")).dialect(Dialect::Gnu);
    layer.file(b"latin-\xe9", "a name that is not UTF-8");
    layer.file(b"directory-\xff/\xfe", "in another").dialect(Dialect::Pax);
    layer.symlink(b"latin-link-\xe8", b"latin-\xe9");
    layer.file("space and\nnewline\t\\ \"quote\"", "a strange name");
    layer.file(" ", "a space");
    layer.file("-rf", "sorts before the dots");
    layer.file("...", "sorts after them");
}

fn numbers(layer: &mut Layer) {
    layer.file("owner-pax", "").owner(3_000_000_000, 4_000_000_001).dialect(Dialect::Pax);
    layer.file("owner-gnu", "").owner(2_097_152, 4_294_967_294).dialect(Dialect::Gnu);
    layer.file("time-nanoseconds", "").mtime(1_234_567_890, 123_456_789).dialect(Dialect::Pax);
    layer.file("time-one-nanosecond", "").mtime(1_234_567_890, 1).dialect(Dialect::Pax);
    layer.directory("time-directory").mtime(1_234_567_890, 987_654_321).dialect(Dialect::Pax);
    layer.symlink("time-link", "etc").mtime(1_234_567_890, 500_000_000).dialect(Dialect::Pax);
    layer.file("time-zero", "").mtime(0, 0);
    layer.file("time-2100", "").mtime(4_102_444_800, 0).dialect(Dialect::Gnu);
    layer.file("time-2300", "").mtime(10_413_792_000, 5).dialect(Dialect::Pax);
}

fn attributes(layer: &mut Layer) {
    let pax = Dialect::Pax;
    layer.file("attributes-file", "x").dialect(pax).xattr("user.name", "value").xattr("user.empty", "");
    layer.file("attributes-binary", "x").dialect(pax).xattr("user.binary", b"a\0b\n=\xff");
    layer.file("attributes-large", "x").dialect(pax).xattr("user.large", bytes(8, 2500, 1));
    layer.file("attributes-capability", "x").dialect(pax).xattr("security.capability", CAPABILITY);
    layer.directory("attributes-directory").dialect(pax).xattr("trusted.name", "value");
    layer.symlink("attributes-link", "etc").dialect(pax).xattr("trusted.name", "of the link");
    let many = layer.file("attributes-many", "x").dialect(pax);
    for number in 0..20 {
        many.xattr(&format!("user.number-{number}"), number.to_string());
    }
}

fn sparse(layer: &mut Layer) {
    let data = bytes(3, 10_000, 2);
    let segments: Vec<_> = (0..30_u64).map(|number| (number * 50_000 + 7, &data[..])).collect();
    let size = 30 * 50_000;
    let formats = [
        ("sparse-gnu", Sparse::OldGnu, Dialect::Gnu),
        ("sparse-0.0", Sparse::V0_0, Dialect::Pax),
        ("sparse-0.1", Sparse::V0_1, Dialect::Pax),
        ("sparse-1.0", Sparse::V1_0, Dialect::Pax),
        ("sparse-dense", Sparse::Dense, Dialect::Ustar),
    ];
    for (path, sparse, dialect) in formats {
        let content = Content::sparse(&segments, size, sparse);
        layer.add(path, Kind::File(content)).mode(0o644).dialect(dialect);
        if sparse != Sparse::Dense {
            let hole = Content::sparse(&[(3_000_000, b"")], 3_000_000, sparse);
            layer.add(format!("{path}-hole"), Kind::File(hole)).mode(0o600).dialect(dialect);
        }
    }
}

fn links(layer: &mut Layer) {
    layer.link("links/before-its-target", "links/file");
    layer.link("links/before-that", "links/before-its-target");
    layer.file("links/file", "of four names").mode(0o640).owner(7, 8);
    layer.link("links/after", "links/file");
    layer.symlink("links/symlink", "file");
    layer.link("links/symlink-2", "links/symlink");
    layer.add("links/device", Kind::CharDevice(1, 5)).mode(0o666);
    layer.link("links/device-2", "links/device");
    layer.add("links/fifo", Kind::Fifo).mode(0o600);
    layer.link("links/fifo-2", "links/fifo");
    layer.link("links/empty-2", "empty");
    layer.link("other/directory/large", "links/large");
    layer.file("links/large", bytes(4, 200_000, 3));
}

fn special(layer: &mut Layer) {
    layer.add("dev/null", Kind::CharDevice(1, 3)).mode(0o666);
    layer.add("dev/loop0", Kind::BlockDevice(7, 0)).mode(0o660).owner(0, 6);
    layer.add("dev/largest-numbers", Kind::BlockDevice(4095, 0xfffff)).mode(0o600);
    layer.add("dev/minor-256", Kind::CharDevice(10, 256)).mode(0o600);
    layer.add("dev/fifo", Kind::Fifo).mode(0o644).mtime(1_700_000_000, 7).dialect(Dialect::Pax);
    layer.symlink("dev/dangling", "/no/such/target");
    layer.symlink("dev/loop", "loop");
}

fn contents(layer: &mut Layer) {
    for (number, size) in [1, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, 1 << 20].into_iter().enumerate()
    {
        layer.file(format!("contents/size-{size}"), bytes(20 + number as u64, size, 3));
    }
    layer.file("contents/several-chunks", bytes(1, 3_333_333, 5));
    layer.file("contents/does-not-compress", bytes(2, 300_000, 1));
    layer.file("contents/the-same", bytes(2, 300_000, 1));
    layer.file("contents/starts-the-same", [bytes(2, 262_144, 1), bytes(6, 100, 1)].concat());
    layer.file("contents/zeros", vec![0; 2_500_000]);
    // Enough names for several blocks of a directory.
    for number in 0..400 {
        let path = format!("contents/small/a-file-with-a-name-of-some-length-{number:03}");
        layer.file(path, format!("small content {}\n", number % 150).repeat(1 + number % 9));
    }
}

fn spellings(layer: &mut Layer) {
    layer.directory("spelled").spelled("./spelled//");
    layer.file("spelled/dot", "./").spelled("./spelled/./dot");
    layer.file("spelled/absolute", "/").spelled("/spelled/absolute");
    layer.file("spelled/outside", "never outside of the root").spelled("../../../spelled/outside");
    layer.file("spelled/up", "..").spelled("no/such/../../spelled/up");
    layer.file("spelled/slashes", "//").spelled("spelled///slashes");
    layer.file("missing/parents/of-this", "no entry for its directories");
    layer.directory("usr/lib");
    layer.symlink("lib", "usr/lib");
    layer.file("usr/lib/through-a-link", "lib is a link").spelled("lib/through-a-link");
    layer.symlink("usr/absolute", "/usr/lib");
    layer
        .file("usr/lib/through-an-absolute-link", "from the root")
        .spelled("usr/absolute/through-an-absolute-link");
}

fn repeated(layer: &mut Layer) {
    layer.file("repeated/file", "the first").mode(0o600);
    layer.file("repeated/file", "the last").mode(0o644).owner(9, 9);
    layer.file("repeated/to-directory", "a file at first");
    layer.directory("repeated/to-directory").mode(0o750);
    layer.file("repeated/to-directory/in", "it");
    layer.file("repeated/to-file/in", "gone");
    layer.file("repeated/to-file", "a file in the end");
    layer.directory("repeated/directory").mode(0o700).dialect(Dialect::Pax).xattr("user.first", "1");
    layer.file("repeated/directory/in", "stays");
    layer.directory("repeated/directory").mode(0o755).dialect(Dialect::Pax).xattr("user.last", "2");
    layer.file("repeated/linked", "kept by its other name");
    layer.link("repeated/other-name", "repeated/linked");
    layer.file("repeated/linked", "another file");
}

/// What [`upper`] changes.
fn to_be_changed(layer: &mut Layer) {
    layer.directory("changed").mtime(1_650_000_000, 0);
    for path in
        ["again", "removed", "removed-directory/a", "removed-directory/b/c", "emptied/old", "emptied/d/old"]
    {
        layer.file(format!("changed/{path}"), format!("old {path}"));
    }
    layer.file("changed/to-file-and-back/old", "stays");
    layer.file("changed/directory-to-file/gone", "gone");
    layer.file("changed/file-to-directory", "a file");
    layer.file("changed/directory-to-link/gone", "gone");
    layer.directory("changed/metadata").mode(0o777);
    layer.file("changed/metadata/stays", "stays");
    layer.file("changed/linked-1", "two names");
    layer.link("changed/linked-2", "changed/linked-1");
    layer.directory("changed/kept-directory").mode(0o711).owner(11, 12).mtime(1_640_000_000, 0);
    layer.file("changed/kept-directory/old", "stays");
}
