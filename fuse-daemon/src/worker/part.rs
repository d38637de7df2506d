//! Parts of blobs that are no chunks: bootstraps, tables of contents. Brought whole, and unpacked into a file.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rafs::source::decompress::Decompressor;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::LocalWorker;
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
}

impl LocalWorker {
    /// Brings a part from whichever backend has it first, and writes it to the beginning of `file`: how many bytes it has. Nothing is
    /// verified.
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
        let mut held = None;
        let brought = self.shared.bring_whole(part.blob, &part.range, stored_bytes, &mut held);
        let stored =
            timeout_at(until, brought).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        let stored = stored.map_err(io::Error::other)?;
        let unpacking = move || {
            let _held = held;
            unpack(&stored, part.packed, part.limit, &file)
        };
        tokio::task::spawn_blocking(unpacking).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }
}

fn unpack(stored: &[u8], packed: bool, limit: u64, file: &File) -> io::Result<u64> {
    let mut plain: Box<dyn Read + '_> =
        if packed { Box::new(Decompressor::new(stored)) } else { Box::new(stored) };
    let (mut buffer, mut at) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let read = plain.read(&mut buffer)?;
        if read == 0 {
            return Ok(at);
        }
        let end = at + read as u64;
        if end > limit {
            return Err(io::Error::other(format!("it unpacks to more than {limit} bytes")));
        }
        file.write_all_at(&buffer[..read], at)?;
        at = end;
    }
}
