use super::archive::{END, HeaderMaker, entry, padded};
use super::{Problem, read_all, read_error, read_one, read_problem};
use crate::source::EntryKind;
use crate::tree::{DeviceNumber, Metadata, Time};

fn kind_of(header: HeaderMaker) -> EntryKind {
    read_one(&[header.block(), END.to_vec()].concat()).0.kind
}

#[test]
fn a_regular_file_has_its_header_and_content() {
    let (file, content) = read_one(&[entry(b"a/b", b'0', b"hello"), END.to_vec()].concat());
    assert_eq!(file.path, b"a/b");
    assert_eq!(file.kind, EntryKind::Regular { size: 5 });
    assert_eq!(content, b"hello");
    let mtime = Time { seconds: 3, nanoseconds: 0 };
    assert_eq!(file.metadata, Metadata { permissions: 0o644, uid: 1, gid: 2, mtime, ..Metadata::default() });
}

#[test]
fn every_typeflag_has_its_kind() {
    let header = |typeflag| HeaderMaker::new(b"name", typeflag, 0);
    let regular = EntryKind::Regular { size: 0 };
    assert_eq!(kind_of(header(0)), regular);
    assert_eq!(kind_of(header(b'0')), regular);
    assert_eq!(kind_of(header(b'1').link(b"./t")), EntryKind::HardLink(b"./t".to_vec()));
    assert_eq!(kind_of(header(b'2').link(b"../t")), EntryKind::Symlink((*b"../t").into()));
    let device = DeviceNumber { major: 0o12, minor: 0o345 };
    let numbers = |typeflag| header(typeflag).put(329, b"0000012\0").put(337, b"0000345\0");
    assert_eq!(kind_of(numbers(b'3')), EntryKind::CharDevice(device));
    assert_eq!(kind_of(numbers(b'4')), EntryKind::BlockDevice(device));
    assert_eq!(kind_of(header(b'5')), EntryKind::Directory);
    assert_eq!(kind_of(header(b'6')), EntryKind::Fifo);
    assert_eq!(kind_of(header(b'7')), regular, "contiguous files are regular");
    assert_eq!(kind_of(header(b'z')), regular, "POSIX: unknown types are regular files");
    assert_eq!(kind_of(header(b'D')), EntryKind::Directory, "GNU directory listings are directories");
}

#[test]
fn links_and_directories_have_no_content_whatever_their_size_says() {
    for typeflag in *b"123456" {
        let header = HeaderMaker::new(b"first", typeflag, 5000).link(b"target").block();
        let files =
            read_all([header, entry(b"second", b'0', b"x"), END.to_vec()].concat().as_slice()).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].1, b"");
        assert_eq!(files[1].0.path, b"second");
    }
}

#[test]
fn volume_labels_and_solaris_acls_are_passed_over() {
    for typeflag in *b"VA" {
        let archive =
            [entry(b"label", typeflag, b"12345"), entry(b"file", b'0', b"x"), END.to_vec()].concat();
        assert_eq!(read_one(&archive).0.path, b"file");
    }
}

#[test]
fn archives_that_would_lose_files_are_refused() {
    for typeflag in *b"MN" {
        let archive = [entry(b"part", typeflag, b"12345"), END.to_vec()].concat();
        assert!(matches!(read_problem(archive.as_slice()), Problem::Unsupported(_)));
    }
}

#[test]
fn a_name_with_a_trailing_slash_is_a_directory() {
    let header = HeaderMaker::new(b"old/", 0, 0).put(257, &[0; 8]);
    assert_eq!(kind_of(header), EntryKind::Directory);
    assert_eq!(kind_of(HeaderMaker::new(b"new/", b'0', 0)), EntryKind::Directory);
}

#[test]
fn what_is_stored_for_a_directory_is_passed_over() {
    for (name, typeflag) in [(&b"listing"[..], b'D'), (b"old/", b'0')] {
        let archive = [entry(name, typeflag, b"Yfile\0"), entry(b"next", b'0', b"x"), END.to_vec()].concat();
        let files = read_all(archive.as_slice()).unwrap();
        assert_eq!((&files[0].0.kind, files[0].1.as_slice()), (&EntryKind::Directory, &b""[..]));
        assert_eq!((files[1].0.path.as_slice(), files[1].1.as_slice()), (&b"next"[..], &b"x"[..]));
    }
}

#[test]
fn version_7_headers_have_no_prefix_and_no_device_numbers() {
    let header = HeaderMaker::new(b"name", b'3', 0).put(257, &[0; 8]).put(329, b"garbage!garbage!prefix");
    let (file, _) = read_one(&[header.block(), END.to_vec()].concat());
    assert_eq!(file.path, b"name");
    assert_eq!(file.kind, EntryKind::CharDevice(DeviceNumber::default()));
}

#[test]
fn the_prefix_goes_before_the_name_in_ustar_and_star_but_not_in_gnu() {
    let path = |header: HeaderMaker| read_one(&[header.block(), END.to_vec()].concat()).0.path;
    assert_eq!(path(HeaderMaker::new(b"name", b'0', 0).put(345, b"some/dir")), b"some/dir/name");
    assert_eq!(path(HeaderMaker::gnu(b"name", b'0', 0).put(345, b"00000000000\0")), b"name");
    let star = HeaderMaker::new(b"name", b'0', 0)
        .put(345, &[b'p'; 131])
        .put(476, b"00000000001 ")
        .put(508, b"tar\0");
    assert_eq!(path(star), [&[b'p'; 131][..], b"/name"].concat());
}

#[test]
fn names_may_fill_their_fields_and_need_not_be_utf_8() {
    let name = [0xff; 100];
    let prefix = [0xfe; 155];
    let (file, _) =
        read_one(&[HeaderMaker::new(&name, b'0', 0).put(345, &prefix).block(), END.to_vec()].concat());
    assert_eq!(file.path, [&prefix[..], b"/", &name].concat());
}

#[test]
fn numbers_may_be_base_256() {
    let mut size = [0; 12];
    size[0] = 0x80;
    size[11] = 3;
    let mut before_1970 = [0xff; 12];
    before_1970[11] = 0xfe;
    let uid = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let header = HeaderMaker::gnu(b"f", b'0', 0).put(124, &size).put(136, &before_1970).put(108, &uid);
    let (file, content) = read_one(&[header.block(), padded(b"abc"), END.to_vec()].concat());
    assert_eq!(content, b"abc");
    assert_eq!(file.metadata.uid, u32::MAX);
    assert_eq!(file.metadata.mtime, Time { seconds: -2, nanoseconds: 0 });
}

#[test]
fn octal_numbers_may_be_padded_with_spaces_or_missing() {
    let header =
        HeaderMaker::new(b"f", b'0', 0).put(124, b"         3 \0").put(108, &[0; 8]).put(116, b"        ");
    let (file, content) = read_one(&[header.block(), padded(b"abc"), END.to_vec()].concat());
    assert_eq!(content, b"abc");
    assert_eq!((file.metadata.uid, file.metadata.gid), (0, 0));
}

#[test]
fn numbers_out_of_range_are_refused_with_field_entry_and_offset() {
    let first = entry(b"fine", b'0', b"x");
    let cases: [(HeaderMaker, &str); 4] = [
        (HeaderMaker::new(b"bad", b'0', 0).put(124, b"00000x00000\0"), "size"),
        (HeaderMaker::new(b"bad", b'0', 0).put(124, &[0xff; 12]), "size"),
        (HeaderMaker::new(b"bad", b'0', 0).put(116, &[0x80, 0, 0, 1, 0, 0, 0, 0]), "gid"),
        (HeaderMaker::new(b"bad", b'0', 0).put(136, &[0x9f; 12]), "mtime"),
    ];
    for (header, expected) in cases {
        let error = read_error([first.clone(), header.block()].concat().as_slice());
        assert!(matches!(&error.problem, Problem::Number { field, .. } if *field == expected), "{error}");
        assert_eq!(error.offset, 1024);
        assert_eq!(error.entry.as_deref(), Some(&b"bad"[..]));
    }
}

#[test]
fn file_type_bits_in_the_mode_are_ignored() {
    let header = HeaderMaker::new(b"f", b'0', 0).put(100, b"0104755\0");
    let (file, _) = read_one(&[header.block(), END.to_vec()].concat());
    assert_eq!(file.metadata.permissions, 0o4755);
}

#[test]
fn checksums_of_unsigned_and_of_signed_bytes_are_accepted() {
    let unsigned = HeaderMaker::new(b"\xff\xfe", b'0', 0).block();
    assert_eq!(read_one(&[unsigned.clone(), END.to_vec()].concat()).0.path, b"\xff\xfe");
    let mut signed = unsigned;
    let sum = u32::from_str_radix(std::str::from_utf8(&signed[148..154]).unwrap(), 8).unwrap();
    signed[148..154].copy_from_slice(format!("{:06o}", sum - 2 * 256).as_bytes());
    assert_eq!(read_one(&[signed, END.to_vec()].concat()).0.path, b"\xff\xfe");
}

#[test]
fn a_wrong_checksum_is_refused_with_its_offset() {
    let mut archive = [entry(b"fine", b'0', b"x"), entry(b"bad", b'0', b"")].concat();
    archive[1024] ^= 1;
    let error = read_error(archive.as_slice());
    assert!(matches!(error.problem, Problem::Checksum { .. }));
    assert_eq!(error.offset, 1024);
    assert!(error.to_string().contains("byte 1024"), "{error}");
}

#[test]
fn gnu_long_names_and_link_targets_replace_those_of_the_header() {
    let name = [b"d/".repeat(300).as_slice(), b"\xffname"].concat();
    let target = b"t".repeat(5000);
    let long = |typeflag, text: &[u8]| entry(b"././@LongLink", typeflag, &[text, b"\0"].concat());
    let header = HeaderMaker::gnu(b"cut", b'2', 0).link(b"cut").block();
    let (file, _) = read_one(&[long(b'K', &target), long(b'L', &name), header, END.to_vec()].concat());
    assert_eq!(file.path, name);
    assert_eq!(file.kind, EntryKind::Symlink(target.into()));
}

#[test]
fn links_without_a_target_and_files_without_a_name_are_refused() {
    assert!(matches!(read_problem(entry(b"l", b'1', b"").as_slice()), Problem::NoTarget));
    assert!(matches!(read_problem(entry(b"l", b'2', b"").as_slice()), Problem::NoTarget));
    assert!(matches!(read_problem(entry(b"", b'0', b"").as_slice()), Problem::NoName));
    assert_eq!(read_one(&entry(b"", b'5', b"")).0.path, b".", "a directory without a name is the root");
}
