//! Bootstraps of a megabyte that are worth many: refused or read within a small multiple of their size.

use std::mem::offset_of;

use rafs::blob::Blob;
use rafs::bootstrap::{Bootstrap, Nid, ReadError, WriteOptions};
use rafs::layout::v5;
use rafs::layout::v6::{
    BlobEntry, CompactInode, EXTENSION_OFFSET, ExtensionSuperblock, FileType, LAYOUT_CHUNKED, XattrHeader,
};
use rafs::merge::merge;
use rafs::unpack::UnpackError;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::raw::{Raw, entries, inline, inode, plain, put};
use super::support::{Builder, Format, OneBlob};
use super::{Sink, alone, within};

const MEGABYTE: usize = 1 << 20;

/// What everything that is done with a bootstrap of `size` bytes may take at a time: a tree takes ten times its inodes,
/// merging has two of them, and claimed chunks have an allowance of their own.
const fn peak(size: usize) -> usize {
    64 * size + (80 << 20)
}

/// And in all.
const fn total(size: usize) -> usize {
    400 * size + (400 << 20)
}

/// Everything that is done with a bootstrap: says what came of unpacking and of reading it whole.
fn use_all(bytes: Vec<u8>) -> (Result<(), UnpackError>, Result<(), ReadError>) {
    let size = bytes.len();
    within(peak(size), total(size), || {
        let mut bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        let _ = rafs::check::structure(&bootstrap);
        let _ = bootstrap.prefetch();
        let _ = rafs::bootstrap::dump(&bootstrap, rafs::limits::Limits::DEFAULT, &mut Sink);
        let unpacked = rafs::unpack::to_tar(&bootstrap, &OneBlob(Vec::new()), &mut Sink);
        let options = rafs::check::Options { threads: 1, ..Default::default() };
        let _ = rafs::check::blobs(&mut bootstrap, &OneBlob(Vec::new()), options);
        let read = bootstrap.to_layer().map(|layer| {
            if let Ok(image) = merge(vec![layer.clone(), layer]) {
                let _ = rafs::bootstrap::write(&image, &WriteOptions::default(), &mut Sink);
            }
        });
        (unpacked, read)
    })
}

/// Each directory is the only entry of the one above it.
#[test]
fn a_chain_of_directories_is_no_recursion() {
    let _alone = alone();
    let mut raw = Raw::new(&[], 0);
    let mut above = 1;
    let mut nids = Vec::new();
    while raw.0.len() < MEGABYTE {
        let nid = raw.next_nid();
        nids.push((nid, above));
        above = nid;
        raw.add(inline(FileType::Directory, 40), &[0; 40]);
    }
    for (position, (nid, parent)) in nids.iter().enumerate() {
        let below = nids.get(position + 1).map(|(nid, _)| *nid);
        let mut content = vec![(&b"."[..], *nid, FileType::Directory), (b"..", *parent, FileType::Directory)];
        content.extend(below.map(|below| (&b"a"[..], below, FileType::Directory)));
        let content = entries(&content);
        raw.put_inode(*nid, inline(FileType::Directory, content.len()));
        let at = 32 * 4096 + *nid as usize * 32 + 32;
        put(&mut raw.0, at, &content);
    }
    let root = [
        (&b"."[..], 1, FileType::Directory),
        (b"..", 1, FileType::Directory),
        (b"a", nids[0].0, FileType::Directory),
    ];
    let block = raw.next_block();
    let content = entries(&root);
    raw.0.extend_from_slice(&content);
    raw.root(block, content.len() as u32);
    let bootstrap = Bootstrap::from_bytes(raw.0.clone()).unwrap();
    assert!(rafs::check::structure(&bootstrap).findings.is_empty());
    let deepest = b"/a".repeat(nids.len());
    assert_eq!(bootstrap.lookup_path(&deepest).unwrap().unwrap().0, nids.last().unwrap().0);
    let (unpacked, read) = use_all(raw.0);
    let UnpackError::Bootstrap(error) = unpacked.unwrap_err() else { panic!("expected a broken bootstrap") };
    for error in [error, read.unwrap_err()] {
        assert!(error.to_string().contains("paths that a system call takes"), "{error}");
    }
}

/// Directories that all have the same block of entries, each of which is one of these directories.
#[test]
fn directories_that_share_their_entries_are_refused() {
    let _alone = alone();
    let mut raw = Raw::new(&[], 0);
    let first = raw.next_nid();
    let directories = 25_000;
    for _ in 0..directories {
        raw.add(plain(FileType::Directory, 0, 0), &[]);
    }
    let names: Vec<_> = (0..250).map(|number| format!("{number:03}")).collect();
    let shared: Vec<_> =
        names.iter().zip(first..).map(|(name, nid)| (name.as_bytes(), nid, FileType::Directory)).collect();
    let block = raw.next_block();
    raw.0.extend_from_slice(&entries(&shared));
    raw.next_block();
    // And one that names them all.
    let all = raw.next_block();
    for start in (0..directories).step_by(200) {
        let names: Vec<_> = (start..start + 200).map(|number| format!("{number:05}")).collect();
        let part: Vec<_> = names
            .iter()
            .zip(first + start..)
            .map(|(name, nid)| (name.as_bytes(), nid, FileType::Directory))
            .collect();
        raw.0.extend_from_slice(&entries(&part));
        raw.next_block();
    }
    for nid in first..first + directories {
        raw.put_inode(nid, plain(FileType::Directory, block, 4096));
    }
    let size = raw.0.len() as u32 - all * 4096;
    raw.root(all, size);
    let (unpacked, read) = use_all(raw.0);
    unpacked.unwrap_err();
    read.unwrap_err();
}

/// Files whose lists of chunks are the rest of the bootstrap, so that they overlap.
#[test]
fn files_that_share_their_chunk_addresses_are_refused() {
    let _alone = alone();
    let mut raw = Raw::new(blob_entry(0, 1).as_bytes(), 1);
    let first = raw.next_nid();
    let files = 10_000;
    // Chunk size 4,096: bits 0. Each claims 400 MB.
    let list = inode(FileType::Regular, LAYOUT_CHUNKED, 0x20, 100_000 * 4096);
    for _ in 0..files {
        raw.add(list, &[]);
    }
    // Addresses of chunk 0 of blob 0.
    let addresses = [0, 0, 1, 0, 0, 0, 0, 0].repeat(110_000);
    raw.0.extend_from_slice(&addresses);
    directory_of(&mut raw, first, files);
    let (unpacked, read) = use_all(raw.0);
    unpacked.unwrap_err();
    read.unwrap_err();
}

/// Inodes each of which is also an extended attribute of those before it.
#[test]
fn files_that_share_their_extended_attributes_are_refused() {
    let _alone = alone();
    let mut raw = Raw::new(&[], 0);
    let first = raw.next_nid();
    let files = 20_000;
    let mut file = plain(FileType::Fifo, 0, 0);
    file.xattr_count.set(59_993);
    // The low byte of the mode is the count of shared attributes; behind the header, twelve bytes later, an attribute
    // `security.` of 28 bytes begins, and ends where the next does.
    file.mode.set(FileType::Fifo.mode());
    file.reserved.set(6 << 8 | 28 << 16);
    for _ in 0..files + 8_000 {
        raw.add(file, &[]);
    }
    raw.0.extend_from_slice(XattrHeader::default().as_bytes());
    directory_of(&mut raw, first, files);
    let bootstrap = Bootstrap::from_bytes(raw.0.clone()).unwrap();
    let nid = bootstrap.lookup_path(b"00000").unwrap().unwrap();
    assert_eq!(bootstrap.xattrs(nid).unwrap().len(), 1, "they can be read, one by one");
    let findings = rafs::check::structure(&bootstrap).findings;
    assert!(findings.iter().any(|finding| finding.problem.contains("overlap")), "{:?}", findings.first());
    let (unpacked, read) = use_all(raw.0);
    unpacked.unwrap_err();
    read.unwrap_err();
}

/// Long names above many files: paths would be a hundred times the bootstrap.
#[test]
fn long_paths_of_many_files_are_not_kept() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    let mut directory = rafs::tree::Tree::ROOT;
    for _ in 0..15 {
        directory = builder.directory(directory, &[b'n'; 255]);
    }
    for number in 0..10_000 {
        builder.file(directory, format!("{number:05}").as_bytes(), b"");
    }
    let (layer, _) = builder.finish();
    let bytes = super::support::written(&layer, &WriteOptions::default());
    let size = bytes.len();
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    let report = within(16 * size, 64 * size, || rafs::check::structure(&bootstrap));
    assert!(report.is_clean() && report.inodes > 10_000);
}

/// One file with many names, deep below: the path of the first is said with every other one.
#[test]
fn many_names_of_one_file_are_read() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    let mut directory = rafs::tree::Tree::ROOT;
    for _ in 0..2000 {
        directory = builder.directory(directory, b"d");
    }
    let file = builder.file(directory, b"file", b"");
    for number in 0..20_000 {
        builder.link(directory, format!("{number:05}").as_bytes(), file);
    }
    let (layer, _) = builder.finish();
    let bytes = super::support::written(&layer, &WriteOptions::default());
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    let mut archive = Sink;
    within(32 << 20, 4 << 30, || rafs::unpack::to_tar(&bootstrap, &OneBlob(Vec::new()), &mut archive))
        .unwrap();
}

#[test]
fn sizes_beyond_the_bootstrap_are_refused() {
    let _alone = alone();
    for kind in [FileType::Directory, FileType::Regular, FileType::Symlink] {
        for size in [u32::MAX, 1 << 31] {
            let mut raw = Raw::new(&[], 0);
            let layout = if kind == FileType::Regular { LAYOUT_CHUNKED } else { 0 };
            raw.add(inode(kind, layout, 0x20, size), &[]);
            directory_of(&mut raw, 2, 1);
            let (_, read) = use_all(raw.0);
            read.unwrap_err();
        }
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let _alone = alone();
    for bad in [&b"a/b"[..], b"/", b"a\0b", b"\0"] {
        let mut raw = Raw::new(&[], 0);
        let nid = raw.add(plain(FileType::Fifo, 0, 0), &[]);
        let content = entries(&[
            (b".", 1, FileType::Directory),
            (bad, nid, FileType::Fifo),
            (b"z", nid, FileType::Fifo),
        ]);
        let block = raw.next_block();
        raw.0.extend_from_slice(&content);
        raw.root(block, content.len() as u32);
        let (unpacked, read) = use_all(raw.0);
        unpacked.unwrap_err();
        read.unwrap_err();
    }
    // Twice, or out of order: a container would see one of them, and nobody knows which.
    for bad in [[&b"a"[..], b"a"], [b"b", b"a"]] {
        let mut raw = Raw::new(&[], 0);
        let nid = raw.add(plain(FileType::Fifo, 0, 0), &[]);
        let content = entries(&bad.map(|name| (name, nid, FileType::Fifo)));
        let block = raw.next_block();
        raw.0.extend_from_slice(&content);
        raw.root(block, content.len() as u32);
        let bootstrap = Bootstrap::from_bytes(raw.0.clone()).unwrap();
        assert!(!rafs::check::structure(&bootstrap).is_clean());
        let (unpacked, read) = use_all(raw.0);
        unpacked.unwrap_err();
        read.unwrap_err();
    }
}

/// In version 5, `..` is no entry; one that is named so would lead an archive's reader out of its directory.
#[test]
fn an_entry_of_version_5_that_is_named_dot_dot_is_refused() {
    let _alone = alone();
    let boot = include_bytes!("../data/v5-lz4.boot");
    let blob = OneBlob(include_bytes!("../data/v5-lz4.blob").to_vec());
    let at = boot.windows(4).position(|name| name == b"pipe").unwrap();
    for name in [&b".."[..], b"."] {
        let mut bytes = boot.to_vec();
        put(&mut bytes, at, name);
        put(&mut bytes, at - 128 + 100, &(name.len() as u16).to_le_bytes());
        let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        rafs::unpack::to_tar(&bootstrap, &blob, &mut Sink).unwrap_err();
        bootstrap.to_image().unwrap_err();
        assert!(!rafs::check::structure(&bootstrap).is_clean());
    }
}

/// In version 5, names are records that a table leads to: one record can be any number of names.
#[test]
fn a_directory_of_version_5_that_repeats_its_entries_is_refused() {
    let _alone = alone();
    let mut bytes = include_bytes!("../data/v5-none.boot").to_vec();
    let table = bytes.len();
    let (sb, _) = v5::RafsSuperblock::mut_from_prefix(&mut bytes).unwrap();
    let (old, count) = (sb.inode_table_offset.get() as usize, sb.inode_table_entries.get());
    let many = MEGABYTE as u32 / 4;
    sb.inode_table_offset.set(table as u64);
    sb.inode_table_entries.set(count + many);
    let entries = bytes[old..old + count as usize * 4].to_vec();
    bytes.extend_from_slice(&entries);
    // The last record, again and again.
    bytes.extend_from_slice(&entries[entries.len() - 4..].repeat(many as usize));
    let root = u32::from_le_bytes(entries[..4].try_into().unwrap()) as usize * 8;
    let (root, _) = v5::InodeRecord::mut_from_prefix(&mut bytes[root..]).unwrap();
    root.child_index.set(count + 1);
    for count in [many, u32::MAX, 1000] {
        let mut bytes = bytes.clone();
        let at = u32::from_le_bytes(entries[..4].try_into().unwrap()) as usize * 8;
        put(&mut bytes, at + 96, &count.to_le_bytes());
        let (unpacked, read) = use_all(bytes);
        unpacked.unwrap_err();
        read.unwrap_err();
    }
}

/// Blobs that count all the chunks that there can be, and describe none.
#[test]
fn chunks_that_are_only_counted_are_not_looked_for() {
    let _alone = alone();
    let table: Vec<u8> = (0..254).flat_map(|index| blob_entry(index, 1 << 24).as_bytes().to_vec()).collect();
    let mut raw = Raw::new(&table, 254);
    directory_of(&mut raw, 2, 0);
    let (_, read) = use_all(raw.0);
    assert!(matches!(read.unwrap_err(), ReadError::Corrupt { what: "blob table", .. }));
}

/// A prefetch table that is nearly all of the bootstrap: one file over and over, and more files than anybody lists.
#[test]
fn a_prefetch_table_takes_no_memory_that_depends_on_its_size() {
    let _alone = alone();
    let entries = 4 * MEGABYTE as u32;
    let same = bootstrap_with_prefetch_table((0..entries).map(|_| 1));
    let listed = within(2 << 20, 4 << 20, || same.prefetch().unwrap());
    assert_eq!(listed, [Nid(1)]);
    let different = bootstrap_with_prefetch_table(1..=entries);
    let listed = within(8 << 20, 16 << 20, || different.prefetch().unwrap());
    assert_eq!(listed, (1..=1 << 16).map(Nid).collect::<Vec<_>>());
}

fn bootstrap_with_prefetch_table(nids: impl Iterator<Item = u32>) -> Bootstrap {
    let mut raw = Raw::new(&[], 0);
    directory_of(&mut raw, 2, 0);
    let start = u64::from(raw.next_block()) * 4096;
    raw.0.extend(nids.flat_map(u32::to_le_bytes));
    let size = raw.0.len() as u32 - start as u32;
    let at = EXTENSION_OFFSET as usize;
    put(&mut raw.0, at + offset_of!(ExtensionSuperblock, prefetch_table_offset), &start.to_le_bytes());
    put(&mut raw.0, at + offset_of!(ExtensionSuperblock, prefetch_table_size), &size.to_le_bytes());
    Bootstrap::from_bytes(raw.0).unwrap()
}

/// A prefetch list of many files is made in one pass.
#[test]
fn a_long_prefetch_list_takes_no_quadratic_time() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    let names: Vec<_> = (0..50_000).map(|number| format!("{number:05}")).collect();
    for name in &names {
        builder.add(
            rafs::tree::Tree::ROOT,
            name.as_bytes(),
            super::support::metadata(0o600),
            rafs::tree::Kind::Fifo,
        );
    }
    let image = rafs::tree::Image { tree: builder.tree, blobs: Vec::<Blob>::new() };
    let prefetch = names.iter().chain(&names).map(|name| name.as_bytes().into()).collect();
    let options = WriteOptions { prefetch, ..WriteOptions::default() };
    within(64 << 20, 256 << 20, || rafs::bootstrap::write(&image, &options, &mut Sink)).unwrap();
}

fn blob_entry(index: u32, chunks: u32) -> BlobEntry {
    let mut entry = BlobEntry::new_zeroed();
    entry.blob_id = *b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    entry.blob_index.set(index);
    entry.chunk_size.set(4096);
    entry.chunk_count.set(chunks);
    entry.compressed_size.set(1 << 40);
    entry.uncompressed_size.set(1 << 44);
    entry
}

/// Makes a root directory that names `count` files from `first` on, one nid after the other.
fn directory_of(raw: &mut Raw, first: u64, count: u64) {
    let block = raw.next_block();
    let root = [(&b"."[..], 1, FileType::Directory), (b"..", 1, FileType::Directory)];
    raw.0.extend_from_slice(&entries(&root));
    for start in (0..count).step_by(200) {
        raw.next_block();
        let names: Vec<_> = (start..(start + 200).min(count)).map(|number| format!("{number:05}")).collect();
        let kind = |nid: u64| {
            let at = 32 * 4096 + nid as usize * size_of::<CompactInode>();
            FileType::of_mode(u16::from_le_bytes([raw.0[at + 4], raw.0[at + 5]])).unwrap()
        };
        let part: Vec<_> =
            names.iter().zip(first + start..).map(|(name, nid)| (name.as_bytes(), nid, kind(nid))).collect();
        let part = entries(&part);
        raw.0.extend_from_slice(&part);
    }
    let size = raw.0.len() as u32 - block * 4096;
    raw.root(block, size);
}
