use super::archive::{END, HeaderMaker, entry, pax};
use super::{Problem, read_all, read_error, read_one, read_problem};
use crate::source::{Entry, EntryKind};
use crate::tree::Time;

fn with_records(records: &[(&str, &[u8])]) -> Entry {
    read_one(&[pax(b'x', records), entry(b"short", b'0', b""), END.to_vec()].concat()).0
}

fn mtime(text: &str) -> (i64, u32) {
    let time = with_records(&[("mtime", text.as_bytes())]).metadata.mtime;
    (time.seconds, time.nanoseconds)
}

#[test]
fn path_owner_and_time_replace_those_of_the_header() {
    let path = b"\xc3\xa4/".repeat(1000);
    let path = [path.as_slice(), b"\xff=file\n"].concat();
    let file =
        with_records(&[("path", &path), ("uid", b"4294967295"), ("gid", b"3000000"), ("mtime", b"1.5")]);
    assert_eq!(file.path, path);
    assert_eq!((file.metadata.uid, file.metadata.gid), (u32::MAX, 3_000_000));
    assert_eq!(file.metadata.mtime, Time { seconds: 1, nanoseconds: 500_000_000 });
}

#[test]
fn the_size_record_counts_for_the_content() {
    let header = HeaderMaker::new(b"f", b'0', 0).put(124, b"77777777777\0").block();
    let content = super::archive::padded(b"abcdef");
    let (file, read) = read_one(&[pax(b'x', &[("size", "6")]), header, content, END.to_vec()].concat());
    assert_eq!(file.kind, EntryKind::Regular { size: 6 });
    assert_eq!(read, b"abcdef");
}

#[test]
fn linkpath_is_the_target_of_both_kinds_of_links() {
    let target = b"x".repeat(300);
    for (typeflag, kind) in
        [(b'1', EntryKind::HardLink(target.clone())), (b'2', EntryKind::Symlink(target.clone().into()))]
    {
        let archive =
            [pax(b'x', &[("linkpath", &target)]), entry(b"l", typeflag, b""), END.to_vec()].concat();
        assert_eq!(read_one(&archive).0.kind, kind);
    }
}

#[test]
fn times_have_nanoseconds_and_may_be_before_1970() {
    assert_eq!(mtime("1"), (1, 0));
    assert_eq!(mtime("1."), (1, 0));
    assert_eq!(mtime("1.000000001"), (1, 1));
    assert_eq!(mtime("1.0000000019"), (1, 1), "finer than a nanosecond is rounded down");
    assert_eq!(mtime("-1"), (-1, 0));
    assert_eq!(mtime("-1.25"), (-2, 750_000_000));
    assert_eq!(mtime("-0.000000001"), (-1, 999_999_999));
    assert_eq!(mtime("-0.0000000001"), (-1, 999_999_999), "and rounded down here too");
    assert_eq!(mtime("-1.9999999999"), (-2, 0));
}

#[test]
fn values_that_cannot_be_are_refused_with_their_offset() {
    let cases: [(&str, &[u8]); 9] = [
        ("mtime", b"yesterday"),
        ("mtime", b"1.2.3"),
        ("mtime", b"99999999999999999999"),
        ("uid", b"4294967296"),
        ("uid", b"-1"),
        ("size", b"1e3"),
        ("path", b"a\0b"),
        ("LIBARCHIVE.xattr.user.a", b"?"),
        ("SCHILY.xattr.", b"x"),
    ];
    for (key, value) in cases {
        let archive =
            [pax(b'x', &[("comment", &b"12345"[..]), (key, value)]), entry(b"f", b'0', b"")].concat();
        let error = read_error(archive.as_slice());
        assert!(
            matches!(&error.problem, Problem::PaxValue { key: found, .. } if **found == *key.as_bytes()),
            "{error}"
        );
        assert_eq!(error.offset, 512 + "17 comment=12345\n".len() as u64, "{error}");
    }
}

#[test]
fn extended_attributes_are_taken_from_both_vendors() {
    let file = with_records(&[
        ("SCHILY.xattr.user.binary", b"\0\xff\n=\n"),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.user.a%3Db", b"as it stands"),
        ("LIBARCHIVE.xattr.security.capability", b"AQAAAgAgAAAAAAAAAAAAAAAAAAA="),
        ("LIBARCHIVE.xattr.user.100%25%3d", b"dW5wYWRkZWQ"),
    ]);
    let expected: [(&[u8], &[u8]); 5] = [
        (b"security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        (b"user.100%=", b"unpadded"),
        (b"user.a%3Db", b"as it stands"),
        (b"user.binary", b"\0\xff\n=\n"),
        (b"user.empty", b""),
    ];
    let found = file.metadata.xattrs.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>();
    assert_eq!(found, expected);
}

#[test]
fn an_empty_value_takes_a_record_back() {
    let file = with_records(&[
        ("path", b"long"),
        ("uid", b"77"),
        ("mtime", b"9"),
        ("path", b""),
        ("uid", b""),
        ("mtime", b""),
    ]);
    assert_eq!(file.path, b"short");
    assert_eq!(file.metadata.uid, 1);
    assert_eq!(file.metadata.mtime.seconds, 3);
}

#[test]
fn records_hold_for_one_entry_and_global_ones_for_all_that_follow() {
    let archive = [
        entry(b"before", b'0', b""),
        pax(b'g', &[("uid", "7"), ("gid", "8"), ("comment", "made by git"), ("path", "ignored")]),
        entry(b"global", b'0', b""),
        pax(b'x', &[("uid", "9"), ("path", "local")]),
        entry(b"short", b'0', b""),
        pax(b'g', &[("uid", "")]),
        entry(b"after", b'0', b""),
        END.to_vec(),
    ];
    let files = read_all(archive.concat().as_slice()).unwrap();
    let found = files.iter().map(|(file, _)| (file.path.as_slice(), file.metadata.uid, file.metadata.gid));
    let expected: [(&[u8], u32, u32); 4] =
        [(b"before", 1, 2), (b"global", 7, 8), (b"local", 9, 8), (b"after", 1, 8)];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn an_archive_of_a_global_header_alone_is_empty() {
    assert!(read_all([pax(b'g', &[("comment", "x")]), END.to_vec()].concat().as_slice()).unwrap().is_empty());
}

#[test]
fn records_that_are_none_are_refused() {
    let cases: [(&[u8], &str); 9] = [
        (b"path=a\n", "length and a space"),
        (b"x path=a\n", "no decimal number"),
        (b"99999999999999999999 a=b\n", "no decimal number"),
        (b"18446744073709551615 a=b\n", "exceeds the header"),
        (b"200 path=a\n", "exceeds the header"),
        (b"1 path=a\n", "does not cover"),
        (b"8 path=a\n", "no newline"),
        (b"7 path\n", "no equals sign"),
        (b"5 =a\n", "no keyword"),
    ];
    for (records, expected) in cases {
        let archive = [entry(b"PaxHeaders/x", b'x', records), entry(b"f", b'0', b"")].concat();
        let error = read_error(archive.as_slice());
        assert!(matches!(&error.problem, Problem::PaxRecord(reason) if reason.contains(expected)), "{error}");
        assert_eq!(error.offset, 512);
    }
}

#[test]
fn an_extension_must_be_followed_by_its_entry() {
    let archive = [pax(b'x', &[("path", "lost")]), END.to_vec()].concat();
    let error = read_error(archive.as_slice());
    assert!(matches!(error.problem, Problem::NoEntryAfterExtension), "{error}");
    assert_eq!(error.entry.as_deref(), Some(&b"lost"[..]));
    assert!(matches!(
        read_problem(pax(b'x', &[("path", "lost")]).as_slice()),
        Problem::NoEntryAfterExtension
    ));
}
