//! Parts of blobs that are no chunks: bootstraps, tables of contents. Brought whole, and unpacked into a file.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rafs::blob::stream::Toc;
use rafs::source::decompress::Decompressor;
use registry::digest::Hasher;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::LocalWorker;
use super::whole::{HeldWhole, WrongSources};
use crate::control::BlobId;

/// Stored bytes of a part at most, which are in memory at once: those of a bootstrap of tens of millions of files.
const STORED_BYTES: u64 = 512 << 20;

/// What is unpacked at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A part of a blob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredPart {
    /// The blob.
    pub(crate) blob: BlobId,
    /// Where in it the stored bytes are.
    pub(crate) range: Range<u64>,
    /// Whether they are a gzip or zstd stream, which is undone.
    pub(crate) packed: bool,
    /// Bytes that it may have, unpacked.
    pub(crate) limit: u64,
    /// What it has to be.
    pub(crate) expected: ExpectedPart,
}

/// What a part has to be, by the request that it is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExpectedPart {
    /// Its bytes, unpacked, have this SHA-256.
    Sha256(BlobId),
    /// It is the end of the blob, with the table of contents that has this SHA-256.
    Toc(BlobId),
}

/// Why a part cannot be used.
enum PartError {
    /// It is not what was asked for: another backend may have that.
    Wrong(String),
    /// The file cannot be written.
    Write(io::Error),
}

impl LocalWorker {
    /// Brings a part from whichever backend has it first, and writes it to the beginning of `file`: how many bytes it has. Others
    /// are asked where one delivers what is wrong. With nobody left to ask, nothing is verified: whoever wants it says what it is.
    ///
    /// # Errors
    ///
    /// Nobody has it by then, it is no such stream, or it has more bytes than it may have.
    pub(crate) async fn part(&self, part: StoredPart, until: Instant, file: File) -> io::Result<u64> {
        let stored_bytes = part.range.end.saturating_sub(part.range.start);
        if stored_bytes > STORED_BYTES {
            let error = format!("it has {stored_bytes} stored bytes, expected at most {STORED_BYTES}");
            return Err(io::Error::other(error));
        }
        let (part, file) = (Arc::new(part), Arc::new(file));
        let mut refused = WrongSources::default();
        loop {
            let sources = refused.others_of(self.shared.sources.of(part.blob));
            let has_others = sources.len() > 1;
            let mut held = None;
            let brought = self.shared.bring_whole(part.blob, sources, &part.range, stored_bytes, &mut held);
            let stored =
                timeout_at(until, brought).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let stored = stored.map_err(|error| io::Error::other(refused.and(error)))?;
            let (part_of, file_of) = (Arc::clone(&part), Arc::clone(&file));
            let unpacking = move || (unpack(&stored, &part_of, &file_of, has_others), held);
            let (unpacked, held) = tokio::task::spawn_blocking(unpacking).await.map_err(io::Error::other)?;
            match unpacked {
                Ok(bytes) => return Ok(bytes),
                Err(PartError::Write(error)) => return Err(error),
                Err(PartError::Wrong(error)) if !has_others => {
                    return Err(io::Error::other(refused.and(error)));
                }
                Err(PartError::Wrong(error)) => {
                    for source in held.iter().flat_map(HeldWhole::delivered_by) {
                        tracing::warn!(source = %source.name, blob = %part.blob, "asking others: {error}");
                        self.shared.sources.demote(part.blob, source);
                        refused.add(source, error.clone());
                    }
                }
            }
        }
    }
}

/// Unpacks a part into a file: how many bytes it has. What it is is verified if that is asked for.
fn unpack(stored: &[u8], part: &StoredPart, file: &File, verify: bool) -> Result<u64, PartError> {
    let StoredPart { limit, expected, .. } = *part;
    let mut plain: Box<dyn Read + '_> =
        if part.packed { Box::new(Decompressor::new(stored)) } else { Box::new(stored) };
    let (mut buffer, mut at) = (vec![0; BUFFER_BYTES], 0);
    let mut hasher = match expected {
        ExpectedPart::Sha256(digest) if verify => Some((Hasher::sha256(), digest)),
        _ => None,
    };
    loop {
        let read = plain.read(&mut buffer).map_err(|error| PartError::Wrong(error.to_string()))?;
        if read == 0 {
            break;
        }
        let end = at + read as u64;
        if end > limit {
            return Err(PartError::Wrong(format!("it unpacks to more than {limit} bytes")));
        }
        file.write_all_at(&buffer[..read], at).map_err(PartError::Write)?;
        hasher.iter_mut().for_each(|(hasher, _)| hasher.update(&buffer[..read]));
        at = end;
    }
    if let Some((hasher, expected)) = hasher {
        let found = hasher.finish();
        if found.as_ref().parse().ok() != Some(expected) {
            return Err(PartError::Wrong(format!("it is {found}, expected sha256:{expected}")));
        }
    }
    match expected {
        ExpectedPart::Toc(digest) if verify => Toc::parse(stored, part.range.end, Some(digest.0))
            .map(|_| at)
            .map_err(|error| PartError::Wrong(error.to_string())),
        _ => Ok(at),
    }
}
