use std::io::Write as _;

use super::*;

/// A tar of files and links, and its bytes.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(mut self, name: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, name, content).unwrap();
        self
    }

    fn link(mut self, kind: tar::EntryType, name: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn open(bytes: &[u8]) -> Result<Archive, SourceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    std::fs::write(&path, bytes).unwrap();
    Archive::open(&path, folder.path())
}

fn content(archive: &Archive, name: &str) -> Vec<u8> {
    archive.part(name).unwrap().document().unwrap()
}

#[test]
fn files_are_found_by_name_wherever_they_lie() {
    let long = format!("{}/layer.tar", "d".repeat(200));
    let tar = Tar::new().file("./index.json", b"{}").file(&long, &[7; 1500]).file("empty", b"").bytes();
    let archive = open(&tar).unwrap();
    assert_eq!(content(&archive, "index.json"), b"{}");
    assert_eq!(content(&archive, &long), [7; 1500]);
    assert_eq!(content(&archive, "empty"), b"");
    let error = archive.part("absent").unwrap_err().to_string();
    assert!(error.contains("absent in") && error.contains("image.tar"), "{error}");
}

#[test]
fn a_pax_name_and_size_count() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", b"blobs/x".as_slice()), ("size", b"3")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_path("short").unwrap();
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    // The content, where the end of the archive was.
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(b"abc");
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    assert_eq!(content(&open(&bytes).unwrap(), "blobs/x"), b"abc");
}

#[test]
fn links_lead_to_files_and_not_in_circles_or_outside() {
    use tar::EntryType::{Link, Symlink};
    let tar = Tar::new()
        .file("a/layer.tar", b"layer")
        .link(Symlink, "b/layer.tar", "../a/layer.tar")
        .link(Link, "c", "a/layer.tar")
        .link(Symlink, "circle", "circle")
        .link(Symlink, "outside", "../../etc/passwd")
        .link(Symlink, "absolute", "/etc/passwd");
    let archive = open(&tar.bytes()).unwrap();
    assert_eq!(content(&archive, "b/layer.tar"), b"layer");
    assert_eq!(content(&archive, "c"), b"layer");
    assert!(archive.part("circle").unwrap_err().to_string().contains("links"));
    for name in ["outside", "absolute", "../a/layer.tar"] {
        assert!(matches!(archive.part(name), Err(SourceError::Missing { .. })), "{name}");
    }
}

#[test]
fn a_compressed_archive_is_read_as_well() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&Tar::new().file("a", b"content").bytes()).unwrap();
    let archive = open(&gzip.finish().unwrap()).unwrap();
    assert_eq!(content(&archive, "a"), b"content");
    let error = open(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0]).unwrap_err().to_string();
    assert!(error.contains("zstd"), "{error}");
}

#[test]
fn what_is_no_tar_is_an_error_with_an_offset() {
    let tar = Tar::new().file("a", &[1; 600]).file("b", &[2; 600]).bytes();
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut tar = tar.clone();
        change(&mut tar);
        open(&tar).unwrap_err().to_string()
    };
    // The second header is at 512 + 1024.
    let error = broken(&|tar| tar[1536] ^= 1);
    assert!(error.contains("offset 1536") && error.contains("checksum"), "{error}");
    let error = broken(&|tar| tar.truncate(1536 + 512 + 100));
    assert!(error.contains("offset 1536") && error.contains("600 bytes"), "{error}");
    let error = broken(&|tar| tar.truncate(1536 + 100));
    assert!(error.contains("offset 1536"), "{error}");
    assert!(broken(&|tar| tar.clear()).contains("offset 0"));
    // A size near the end of numbers.
    let error = broken(&|tar| {
        let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
        header.set_size(u64::MAX - 100);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
    });
    assert!(error.contains("offset 0"), "{error}");
}

#[test]
fn a_description_of_the_next_entry_has_a_limit() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(64 << 20);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize((64 << 20) + 1024, b'x');
    let error = open(&bytes).unwrap_err().to_string();
    assert!(error.contains("the limit is 1048576"), "{error}");
}

#[test]
fn a_folder_or_device_is_no_archive() {
    for path in ["/", "/dev/null"] {
        assert!(Archive::open(Path::new(path), Path::new("/tmp")).is_err());
    }
}
