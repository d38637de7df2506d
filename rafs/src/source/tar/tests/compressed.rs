use std::io::{self, Read, Write};

use super::archive::{END, entry};
use super::{read_all, read_error};
use crate::source::decompress::Decompressor;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn archive() -> Vec<u8> {
    let noise =
        (0..300_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>();
    [entry(b"a", b'0', &noise), entry(b"b", b'0', &noise[..1000]), END.to_vec()].concat()
}

fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    Decompressor::new(bytes).read_to_end(&mut all).map(|_| all)
}

#[test]
fn every_compression_is_recognised_by_its_first_bytes() {
    let archive = archive();
    let (start, end) = archive.split_at(1234);
    let skippable = [&b"\x50\x2a\x4d\x18\x04\0\0\0skip"[..], &zstd(&archive)].concat();
    let streams = [
        archive.clone(),
        gzip(&archive),
        [gzip(start), gzip(b""), gzip(end)].concat(),
        zstd(&archive),
        [zstd(start), zstd(end)].concat(),
        skippable,
    ];
    for stream in streams {
        assert!(decompressed(&stream).unwrap() == archive);
        assert_eq!(read_all(stream.as_slice()).unwrap().len(), 2);
    }
}

#[test]
fn streams_shorter_than_a_magic_number_are_read_as_they_are() {
    for length in 0..6 {
        let bytes = &b"\0\x01\x02\x03\x04\x05"[..length];
        assert_eq!(decompressed(bytes).unwrap(), bytes);
    }
}

#[test]
fn the_first_bytes_may_come_one_by_one() {
    struct Single<'a>(&'a [u8]);
    impl Read for Single<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let length = buf.len().min(1);
            self.0.read(&mut buf[..length])
        }
    }
    let compressed = zstd(b"content");
    let mut all = Vec::new();
    Decompressor::new(Single(&compressed)).read_to_end(&mut all).unwrap();
    assert_eq!(all, b"content");
}

#[test]
fn truncated_streams_are_errors_that_name_entry_format_and_offsets() {
    for (format, stream) in [("gzip", gzip(&archive())), ("zstd", zstd(&archive()))] {
        for length in (10..stream.len()).step_by(9973).chain([stream.len() - 1]) {
            let error = read_error(&stream[..length]).to_string();
            assert!(
                error.contains(&format!("broken {format} stream, near compressed byte {length}")),
                "{error}"
            );
            assert!(error.starts_with("tar stream, byte "), "{error}");
        }
    }
}

#[test]
fn a_wrong_gzip_checksum_is_found_though_the_archive_ended_before() {
    let mut stream = gzip(&archive());
    let checksum = stream.len() - 8;
    stream[checksum] ^= 1;
    assert!(read_error(stream.as_slice()).to_string().contains("broken gzip stream"));
}

#[test]
fn trailing_bytes_are_errors() {
    for stream in [gzip(&archive()), zstd(&archive())] {
        for garbage in [&b"garbage!"[..], &[0; 512]] {
            assert!(decompressed(&[&stream, garbage].concat()).is_err());
        }
    }
}

#[test]
fn other_compressions_are_refused_by_name() {
    let cases: [(&[u8], &str); 3] =
        [(b"\xfd7zXZ\0\0", "xz"), (b"BZh91AY&SY", "bzip2"), (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4")];
    for (stream, name) in cases {
        let error = read_error(stream).to_string();
        assert!(error.contains(&format!("compressed by {name}")), "{error}");
    }
}

#[test]
fn errors_of_the_stream_below_are_not_blamed_on_compression() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::TimedOut, "registry does not answer"))
        }
    }
    for stream in [gzip(&archive()), zstd(&archive()), archive()] {
        let mut all = Vec::new();
        let error = Decompressor::new(stream[..1000].chain(Broken)).read_to_end(&mut all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "registry does not answer");
    }
}
