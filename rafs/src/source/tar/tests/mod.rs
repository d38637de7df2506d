//! Archives, good and bad, made by hand, by the `tar` crate and by GNU tar.

mod archive;
mod compressed;
mod gnu_tar;
mod headers;
mod hostile;
mod pax_records;
mod properties;
mod sparse_files;
mod stream;

use std::io::Read;

use super::{Problem, TarError, TarSource};
use crate::source::{Entry, EntryKind, Source, SourceError};

/// What an archive has: entries and their content.
type Files = Vec<(Entry, Vec<u8>)>;

/// Reads everything.
fn read_all(archive: impl Read) -> Result<Files, SourceError> {
    let mut source = TarSource::new(archive);
    let mut files = Vec::new();
    while let Some(entry) = source.next_entry()? {
        let content = read_content(&mut source)?;
        if let EntryKind::Regular { size } = entry.kind {
            assert_eq!(content.len() as u64, size, "content of {:?}", String::from_utf8_lossy(&entry.path));
        }
        files.push((entry, content));
    }
    assert!(source.next_entry()?.is_none(), "the end lasts");
    Ok(files)
}

fn read_content(source: &mut impl Source) -> Result<Vec<u8>, SourceError> {
    let mut content = Vec::new();
    // Not a power of two, so that reads cross blocks.
    let mut buffer = vec![0xaa; 70_001];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Reads an archive with a single entry.
fn read_one(archive: &[u8]) -> (Entry, Vec<u8>) {
    let mut files = read_all(archive).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    files.pop().unwrap()
}

/// Reads an archive that must fail.
fn read_error(archive: impl Read) -> TarError {
    match read_all(archive) {
        Err(SourceError::Tar(error)) => error,
        other => panic!("expected an error, got {other:?}"),
    }
}

fn read_problem(archive: impl Read) -> Problem {
    read_error(archive).problem
}
