//! Images made by nydus-image are read as what they were made from.

use std::collections::BTreeMap;
use std::path::Path;

use rafs::blob::source::load_chunk_info;
use rafs::bootstrap::{Bootstrap, Version};
use rafs::layout::v6::FileType;

use crate::support::OneBlob;

fn open(name: &str) -> (Bootstrap, OneBlob) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let bootstrap = Bootstrap::open(&path.with_extension("boot")).unwrap();
    (bootstrap, OneBlob(std::fs::read(path.with_extension("blob")).unwrap()))
}

fn content_of(name: &str, version: Version) {
    let (mut bootstrap, blob) = open(name);
    assert_eq!(bootstrap.version(), version);
    load_chunk_info(&mut bootstrap, &blob).unwrap();
    let mut bytes = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &blob, &mut bytes).unwrap();
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let link = entry.link_name_bytes().map(|link| String::from_utf8(link.into_owned()).unwrap());
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        let (uid, mode) = (entry.header().uid().unwrap(), entry.header().mode().unwrap());
        let pax: BTreeMap<_, _> = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(|record| {
                record.map(|record| (record.key().unwrap().to_owned(), record.value().unwrap().to_owned()))
            })
            .collect::<Result<_, _>>()
            .unwrap();
        // nydus-image does not take the root's time.
        if path != "./" {
            assert_eq!(pax["mtime"], "1700000000.123456789", "{path}");
        }
        if path == "directory/link" || path == "file" {
            assert_eq!((uid, mode), (10, 0o750), "{path}");
        }
        if pax.contains_key("SCHILY.xattr.user.name") {
            assert_eq!((&*path, &*pax["SCHILY.xattr.user.name"]), ("directory/link", "value"));
        }
        found.insert(path, (entry.header().entry_type(), link, content));
    }
    let lines: String = (1..=3000).map(|line| format!("{line}\n")).collect();
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let expected = [
        ("./", Directory, None, ""),
        ("directory/", Directory, None, ""),
        ("directory/lines", Regular, None, &lines),
        ("directory/link", Regular, None, "hello\n"),
        ("empty", Regular, None, ""),
        ("file", Link, Some("directory/link"), ""),
        ("pipe", Fifo, None, ""),
        ("symlink", Symlink, Some("directory/lines"), ""),
    ];
    let expected = expected.map(|(path, kind, link, content)| {
        (path.to_owned(), (kind, link.map(str::to_owned), content.to_owned()))
    });
    assert_eq!(found, BTreeMap::from(expected));
}

#[test]
fn version_6_with_zstd_has_its_content() {
    content_of("v6-zstd", Version::V6);
}

#[test]
fn version_5_with_lz4_has_its_content() {
    content_of("v5-lz4", Version::V5);
}

#[test]
fn version_6_with_batches_has_its_content() {
    content_of("v6-batch", Version::V6);
}

#[test]
fn an_encrypted_image_is_refused_by_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v6-encrypted.boot");
    let error = Bootstrap::open(&path).unwrap_err();
    let expected = format!("bootstrap {}: not supported: an encrypted image (AES-128-XTS)", path.display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn both_versions_are_navigated_alike() {
    for name in ["v6-zstd", "v5-lz4"] {
        let (bootstrap, _) = open(name);
        let nid = |path: &[u8]| bootstrap.lookup_path(path).unwrap();
        assert_eq!(nid(b"/file"), nid(b"directory/link"));
        assert_eq!(nid(b"directory/none"), None);
        assert_eq!(bootstrap.parent(nid(b"directory").unwrap()).unwrap(), bootstrap.root());
        let names: Vec<_> = bootstrap.read_dir(bootstrap.root(), 0).unwrap().map(Result::unwrap).collect();
        assert_eq!(names.len(), 5);
        let rest = bootstrap.read_dir(bootstrap.root(), names[1].next_offset).unwrap();
        assert_eq!(rest.map(Result::unwrap).collect::<Vec<_>>(), names[2..]);
        let symlink = nid(b"symlink").unwrap();
        assert_eq!(bootstrap.read_link(symlink).unwrap(), b"directory/lines");
        assert_eq!(bootstrap.inode(symlink).unwrap().kind, FileType::Symlink);
        let pieces = bootstrap.chunks(nid(b"directory/lines").unwrap(), 4000..9000).unwrap();
        let lens: Vec<_> = pieces.map(|piece| piece.unwrap().len).collect();
        assert_eq!(lens, [96, 4096, 808]);
        bootstrap.to_image().unwrap();
    }
}

#[test]
fn nothing_is_found_wrong_with_them() {
    for name in ["v6-zstd", "v6-batch", "v5-lz4"] {
        let (mut bootstrap, blob) = open(name);
        let mut report = rafs::check::structure(&bootstrap);
        report.merge(rafs::check::blobs(&mut bootstrap, &blob, rafs::check::Options::default()));
        assert!(report.is_clean(), "{name}: {:?}", report.findings);
        assert_eq!(report.bytes, 13_893 + 6);
    }
}

/// The images of nydus-image are the measure; ours of the same files must not be larger.
#[test]
fn a_bootstrap_of_ours_is_no_larger() {
    let (bootstrap, _) = open("v6-zstd");
    let image = bootstrap.to_image().unwrap();
    let mut bytes = Vec::new();
    rafs::bootstrap::write(&image, &rafs::bootstrap::WriteOptions::default(), &mut bytes).unwrap();
    assert!(bytes.len() as u64 <= bootstrap.size());
    assert!(rafs::check::structure(&Bootstrap::from_bytes(bytes).unwrap()).is_clean());
}
