use super::archive::{END, HeaderMaker, padded, pax};
use super::{Problem, read_one, read_problem};
use crate::source::EntryKind;

/// "head", a hole, "middle" and a hole, 5000 bytes in all.
fn expected() -> Vec<u8> {
    let mut content = vec![0; 5000];
    content[..4].copy_from_slice(b"head");
    content[4096..4102].copy_from_slice(b"middle");
    content
}

const STORED: &[u8] = b"headmiddle";

fn check(archive: &[u8]) {
    let (file, content) = read_one(archive);
    assert_eq!(file.path, b"sparse");
    assert_eq!(file.kind, EntryKind::Regular { size: 5000 });
    assert!(content == expected());
}

fn slots(segments: &[(u64, u64)]) -> Vec<u8> {
    segments
        .iter()
        .flat_map(|(offset, length)| format!("{offset:011o}\0{length:011o}\0").into_bytes())
        .collect()
}

fn old_gnu(segments: &[(u64, u64)], real_size: u64, stored: u64) -> HeaderMaker {
    let header = HeaderMaker::gnu(b"sparse", b'S', stored).put(386, &slots(segments));
    header.put(483, format!("{real_size:011o}\0").as_bytes())
}

#[test]
fn the_old_gnu_format_has_its_map_in_the_header() {
    let header = old_gnu(&[(0, 4), (4096, 6), (5000, 0)], 5000, 10).block();
    check(&[header, padded(STORED), END.to_vec()].concat());
}

#[test]
fn the_old_gnu_format_goes_on_in_blocks_behind_the_header() {
    let segments = (0..30).map(|index| (index * 1000, 1)).collect::<Vec<_>>();
    let header = old_gnu(&segments[..4], 30_000, 30).put(482, &[1]).block();
    let mut first = padded(&slots(&segments[4..25]));
    first[504] = 1;
    let second = padded(&slots(&segments[25..]));
    let (file, content) = read_one(&[header, first, second, padded(&[b'x'; 30]), END.to_vec()].concat());
    assert_eq!(file.kind, EntryKind::Regular { size: 30_000 });
    assert!(
        content.iter().enumerate().all(|(index, &byte)| byte == if index % 1000 == 0 { b'x' } else { 0 })
    );
}

#[test]
fn pax_version_0_0_has_a_record_for_each_number() {
    let records = [
        ("GNU.sparse.size", "5000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "4"),
        ("GNU.sparse.offset", "4096"),
        ("GNU.sparse.numbytes", "6"),
    ];
    check(
        &[pax(b'x', &records), HeaderMaker::new(b"sparse", b'0', 10).block(), padded(STORED), END.to_vec()]
            .concat(),
    );
}

#[test]
fn pax_version_0_1_has_a_list() {
    let records =
        [("GNU.sparse.size", "5000"), ("GNU.sparse.name", "sparse"), ("GNU.sparse.map", "0,4,4096,6,5000,0")];
    let header = HeaderMaker::new(b"GNUSparseFile.1/sparse", b'0', 10).block();
    check(&[pax(b'x', &records), header, padded(STORED), END.to_vec()].concat());
}

fn version_1_0(map: &[u8], stored: &[u8], real_size: &str) -> Vec<u8> {
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", real_size),
    ];
    let content = [padded(map).as_slice(), stored].concat();
    let header = HeaderMaker::new(b"GNUSparseFile.1/sparse", b'0', content.len() as u64).block();
    [pax(b'x', &records), header, padded(&content), END.to_vec()].concat()
}

#[test]
fn pax_version_1_0_has_its_map_before_the_content() {
    check(&version_1_0(b"2\n0\n4\n4096\n6\n", STORED, "5000"));
}

#[test]
fn a_version_1_0_map_may_cross_blocks() {
    let map = (0..500).fold("500\n".to_owned(), |map, index| format!("{map}{}\n1\n", index * 10));
    let (_, content) = read_one(&version_1_0(map.as_bytes(), &[b'x'; 500], "5000"));
    assert!(content.iter().enumerate().all(|(index, &byte)| byte == if index % 10 == 0 { b'x' } else { 0 }));
}

#[test]
fn a_file_may_be_one_hole() {
    let (file, content) = read_one(&version_1_0(b"1\n5000\n0\n", b"", "5000"));
    assert_eq!(file.kind, EntryKind::Regular { size: 5000 });
    assert!(content == [0; 5000]);
    let (file, _) = read_one(&[old_gnu(&[], 0, 0).block(), END.to_vec()].concat());
    assert_eq!(file.kind, EntryKind::Regular { size: 0 });
}

#[test]
fn maps_that_contradict_themselves_are_refused() {
    type Case = (&'static [(u64, u64)], u64, u64, &'static str);
    let cases: [Case; 5] = [
        (&[(4, 4), (0, 4)], 100, 8, "out of order"),
        (&[(0, 4), (3, 4)], 100, 8, "overlap"),
        (&[(0, 4), (97, 4)], 100, 8, "beyond the file"),
        (&[(0, 4), (50, 4)], 100, 9, "add up"),
        (&[(0, 4), (50, 4)], 100, 7, "add up"),
    ];
    for (segments, real_size, stored, expected) in cases {
        let archive = [old_gnu(segments, real_size, stored).block(), padded(&[1; 9]), END.to_vec()].concat();
        let problem = read_problem(archive.as_slice());
        assert!(matches!(&problem, Problem::Sparse(reason) if reason.contains(expected)), "{problem}");
    }
}

#[test]
fn broken_version_1_0_maps_are_refused() {
    let cases: [(&[u8], &str); 7] = [
        (b"2\n0\n4\n", "not decimal"),
        (b"one\n", "not decimal"),
        (b"\n", "not decimal"),
        (b"99999999999999999999\n", "not decimal"),
        (b"0000000000000000000000001\n", "not decimal"),
        (b"18446744073709551615\n", "more than 1048576"),
        (b"1\n18446744073709551615\n1\n", "beyond 64 bits"),
    ];
    for (map, expected) in cases {
        let problem = read_problem(version_1_0(map, b"headmiddle", "5000").as_slice());
        assert!(matches!(&problem, Problem::Sparse(reason) if reason.contains(expected)), "{problem}");
    }
    let all_map = version_1_0(&b"100000\n".repeat(73), b"", "5000");
    let problem = read_problem(all_map.as_slice());
    assert!(matches!(&problem, Problem::Sparse(reason) if reason.contains("does not end")), "{problem}");
}

#[test]
fn records_of_sparse_files_that_contradict_themselves_are_refused() {
    type Case = (&'static [(&'static str, &'static str)], &'static str);
    let cases: [Case; 5] = [
        (&[("GNU.sparse.map", "0,10")], "size is missing"),
        (&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "0,10,5")], "odd"),
        (&[("GNU.sparse.size", "10"), ("GNU.sparse.numbytes", "10")], "without an offset"),
        (&[("GNU.sparse.size", "10"), ("GNU.sparse.numblocks", "1")], "add up"),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,10")], "beyond the file"),
    ];
    for (records, expected) in cases {
        let header = HeaderMaker::new(b"f", b'0', 10).block();
        let problem = read_problem([pax(b'x', records), header, padded(STORED)].concat().as_slice());
        assert!(matches!(&problem, Problem::Sparse(reason) if reason.contains(expected)), "{problem}");
    }
}

#[test]
fn unknown_versions_are_refused_rather_than_read_as_they_are() {
    let header = HeaderMaker::new(b"f", b'0', 10).block();
    let records = [("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")];
    let problem = read_problem([pax(b'x', &records), header, padded(STORED)].concat().as_slice());
    assert!(matches!(problem, Problem::Unsupported(_)), "{problem}");
    let header = HeaderMaker::new(b"f", b'S', 10).block();
    assert!(matches!(read_problem(header.as_slice()), Problem::Unsupported(_)));
}
