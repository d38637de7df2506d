use std::io::{self, Read};

use super::archive::{END, HeaderMaker, entry, padded, pax};
use super::{Problem, TarSource, read_all, read_error, read_one, read_problem};
use crate::source::{EntryKind, Source, SourceError};

#[test]
fn an_archive_ends_with_two_zero_blocks_one_or_none() {
    let file = entry(b"f", b'0', b"x");
    for zeros in [0, 512, 1024, 10_240] {
        assert_eq!(read_one(&[file.clone(), vec![0; zeros]].concat()).1, b"x");
    }
    assert!(read_all(&[][..]).unwrap().is_empty());
    assert!(read_all(&END[..]).unwrap().is_empty());
}

#[test]
fn the_padding_of_the_last_content_may_be_missing() {
    let archive = [HeaderMaker::new(b"f", b'0', 3).block(), b"abc".to_vec()].concat();
    assert_eq!(read_one(&archive).1, b"abc");
}

#[test]
fn a_lone_zero_block_between_entries_is_refused() {
    let archive = [entry(b"f", b'0', b"x"), vec![0; 512], entry(b"g", b'0', b"")].concat();
    let error = read_error(archive.as_slice());
    assert!(matches!(error.problem, Problem::LoneZeroBlock));
    assert_eq!(error.offset, 1024);
}

#[test]
fn what_follows_the_end_is_read_but_ignored() {
    let archive = [entry(b"f", b'0', b"x"), END.to_vec(), entry(b"g", b'0', b""), b"odd".to_vec()].concat();
    let mut rest = archive.as_slice();
    assert_eq!(read_all(&mut rest).unwrap().len(), 1);
    assert!(rest.is_empty());
}

#[test]
fn content_that_is_not_read_is_skipped() {
    let archive = [entry(b"a", b'0', &[1; 3000]), entry(b"b", b'0', b"second"), END.to_vec()].concat();
    let mut source = TarSource::new(archive.as_slice());
    source.next_entry().unwrap().unwrap();
    assert_eq!(source.read(&mut [0; 100]).unwrap(), 100);
    assert_eq!(source.next_entry().unwrap().unwrap().path, b"b");
    let mut content = [0; 100];
    assert_eq!(source.read(&mut content).unwrap(), 6);
    assert_eq!(source.read(&mut content).unwrap(), 0);
}

#[test]
fn files_of_more_than_4_gib_are_read_in_full() {
    let size = (4 << 30) + 7_u64;
    let header = HeaderMaker::new(b"large", b'0', size).block();
    let content = io::repeat(b'x').take(size.next_multiple_of(512));
    let archive = header.as_slice().chain(content).chain(&END[..]);
    let mut source = TarSource::new(archive);
    assert_eq!(source.next_entry().unwrap().unwrap().kind, EntryKind::Regular { size });
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match source.read(&mut buffer).unwrap() {
            0 => break,
            count => total += count as u64,
        }
    }
    assert_eq!(total, size);
    assert!(source.next_entry().unwrap().is_none());
}

/// An archive with every kind of extension.
fn varied_archive() -> Vec<u8> {
    let long = b"n".repeat(2000);
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.realsize", "9000"),
    ];
    let sparse_content = [padded(b"1\n8000\n1000\n"), vec![7; 1000]].concat();
    let parts = [
        entry(b"dir/", b'5', b""),
        entry(b"small", b'0', b"small"),
        pax(b'g', &[("comment", "global")]),
        pax(b'x', &[("path", long.as_slice()), ("SCHILY.xattr.user.a", &long)]),
        entry(b"long", b'0', &[3; 5000]),
        entry(b"././@LongLink", b'L', &long),
        HeaderMaker::gnu(b"l", b'1', 0).link(b"small").block(),
        pax(b'x', &sparse),
        entry(b"GNUSparseFile/s", b'0', &sparse_content),
        HeaderMaker::gnu(b"old", b'S', 4)
            .put(386, b"00000001000\x0000000000004\0")
            .put(483, b"00000002000\0")
            .block(),
        padded(b"last"),
    ];
    [parts.concat(), END.to_vec()].concat()
}

/// Where an archive may end: behind the content of each entry, and up to its padding's end.
fn valid_ends(archive: &[u8]) -> Vec<std::ops::RangeInclusive<u64>> {
    let mut source = TarSource::new(archive);
    let mut ends = vec![0..=0];
    while source.next_entry().unwrap().is_some() {
        super::read_content(&mut source).unwrap();
        let end = source.input.offset();
        ends.push(end..=end.next_multiple_of(512));
    }
    // A global header needs no entry behind it.
    ends.push(2048 + "18 comment=global\n".len() as u64..=2560);
    ends.push(archive.len() as u64 - 512..=archive.len() as u64);
    ends
}

#[test]
fn a_truncated_archive_is_an_error_at_its_end_unless_it_ends_between_entries() {
    let archive = varied_archive();
    let whole = read_all(archive.as_slice()).unwrap();
    let ends = valid_ends(&archive);
    // Every 100th byte, and those next to block borders.
    let lengths =
        (0..=archive.len()).filter(|length| length % 100 == 0 || matches!(length % 512, 0 | 1 | 511));
    for length in lengths {
        let result = read_all(&archive[..length]);
        if ends.iter().any(|end| end.contains(&(length as u64))) {
            let files = result.unwrap_or_else(|error| panic!("{length}: {error}"));
            assert_eq!(files, whole[..files.len()], "{length}");
            continue;
        }
        let Err(SourceError::Tar(error)) = result else { panic!("{length}: {result:?}") };
        let block = length as u64 / 512 * 512;
        assert!((block..=length as u64).contains(&error.offset), "{length}: {error}");
    }
}

#[test]
fn truncation_names_the_entry_and_how_much_is_missing() {
    let archive = entry(b"some/file", b'0', &[1; 1000]);
    let error = read_error(&archive[..700]);
    assert!(matches!(error.problem, Problem::Truncated { missing: 812, .. }), "{error}");
    assert_eq!(error.offset, 700);
    assert_eq!(
        error.to_string(),
        "tar stream, byte 700, entry \"some/file\": the stream ends 812 bytes early, within content"
    );
}

#[test]
fn a_source_that_failed_is_at_its_end() {
    let mut source = TarSource::new(&b"garbage that is no header"[..]);
    assert!(source.next_entry().is_err());
    assert!(source.next_entry().unwrap().is_none());
    assert_eq!(source.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn errors_of_the_stream_below_are_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "peer went away"))
        }
    }
    let archive = entry(b"f", b'0', &[1; 1000]);
    let error = read_error(archive[..600].chain(Broken));
    assert!(matches!(&error.problem, Problem::Io(error) if error.kind() == io::ErrorKind::ConnectionReset));
    assert!(error.to_string().contains("peer went away"), "{error}");
    assert_eq!(error.offset, 600);
}

#[test]
fn interrupted_and_short_reads_do_not_matter() {
    struct Halting<'a>(&'a [u8], bool);
    impl Read for Halting<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = buf.len().min(7);
            self.0.read(&mut buf[..length])
        }
    }
    let archive = varied_archive();
    assert_eq!(read_all(Halting(&archive, false)).unwrap(), read_all(archive.as_slice()).unwrap());
}

#[test]
fn what_is_no_archive_is_refused() {
    assert!(matches!(
        read_problem(vec![b'x'; 1024].as_slice()),
        Problem::Number { .. } | Problem::Checksum { .. }
    ));
    assert!(matches!(read_problem(&b"short"[..]), Problem::Truncated { missing: 507, .. }));
}
