//! Small archives that claim much.

use super::archive::{END, HeaderMaker, entry, pax};
use super::{Problem, TarSource, read_problem};
use crate::source::{EntryKind, Source};

const EIGHT_EIB: &[u8; 12] = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";

#[test]
fn extension_headers_that_claim_more_than_their_limit_are_refused() {
    for typeflag in *b"xgLK" {
        for size in [&EIGHT_EIB[..], b"00004000001\0"] {
            let header = HeaderMaker::new(b"h", typeflag, 0).put(124, size).block();
            let problem = read_problem(header.as_slice());
            assert!(matches!(problem, Problem::TooLong { limit: 1_048_576, .. }), "{problem}");
        }
    }
}

#[test]
fn extension_headers_of_the_limit_are_read() {
    let value = vec![b'v'; (1 << 20) - "1048576 path=\n".len()];
    let archive = [pax(b'x', &[("path", &value)]), entry(b"f", b'0', b""), END.to_vec()].concat();
    assert_eq!(super::read_one(&archive).0.path.len(), value.len());
}

#[test]
fn content_that_is_only_claimed_is_an_error_not_an_allocation() {
    let header = HeaderMaker::new(b"f", b'0', 0).put(124, EIGHT_EIB).block();
    let mut source = TarSource::new(header.as_slice());
    let entry = source.next_entry().unwrap().unwrap();
    assert_eq!(entry.kind, EntryKind::Regular { size: i64::MAX as u64 });
    assert!(source.read(&mut [0; 512]).is_err());
    assert!(matches!(read_problem(header.as_slice()), Problem::Truncated { .. }));
}

#[test]
fn sizes_near_the_largest_number_do_not_overflow() {
    for size in ["18446744073709551615", "18446744073709551104"] {
        let archive = [pax(b'x', &[("size", size)]), entry(b"f", b'0', b"x")].concat();
        assert!(matches!(read_problem(archive.as_slice()), Problem::Truncated { .. }));
    }
    let sparse = [("GNU.sparse.size", "18446744073709551615"), ("GNU.sparse.map", "18446744073709551614,1")];
    let archive = [pax(b'x', &sparse), entry(b"f", b'0', b"x"), END.to_vec()].concat();
    let mut source = TarSource::new(archive.as_slice());
    let entry = source.next_entry().unwrap().unwrap();
    assert_eq!(entry.kind, EntryKind::Regular { size: u64::MAX });
    assert_eq!(source.read(&mut [1; 4096]).unwrap(), 4096, "the hole is made up, not stored");
    assert!(source.next_entry().unwrap().is_none());
}

#[test]
fn a_sparse_map_that_claims_many_segments_must_have_them() {
    let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1")];
    let header = HeaderMaker::new(b"f", b'0', 0).put(124, EIGHT_EIB).block();
    let map = super::archive::padded(b"1048576\n");
    let problem = read_problem([pax(b'x', &records), header, map].concat().as_slice());
    assert!(matches!(problem, Problem::Sparse(_) | Problem::Truncated { .. }), "{problem}");
}

#[test]
fn messages_stay_short_whatever_the_names() {
    let long = vec![b'n'; 1 << 19];
    let archive = [pax(b'x', &[("path", &long)]), HeaderMaker::new(b"f", b'0', 99).block()].concat();
    let error = super::read_error(archive.as_slice());
    assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
}
