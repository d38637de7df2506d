//! The chunks of one file.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use rafs::bootstrap::Bootstrap;
use serde::Serialize;

use super::super::json;

/// One chunk of a file. Sizes and offsets are in bytes.
#[derive(Debug, Serialize)]
pub(super) struct FileChunk {
    file_offset: u64,
    blob: String,
    chunk: u32,
    digest: String,
    /// Where the stored bytes are in the blob: of a batch member, those of the whole batch.
    stored_offset: u64,
    stored_bytes: u32,
    content_bytes: u32,
    /// Where the chunk begins in its batch, if it is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_in_batch: Option<u32>,
}

/// The chunks of the file at this path, in order.
pub(super) fn of(bootstrap: &Bootstrap, file: &Path) -> anyhow::Result<Vec<FileChunk>> {
    let path = file.as_os_str().as_bytes();
    let nid = bootstrap
        .lookup_path(path)?
        .with_context(|| format!("{}: no such file in the image", file.display()))?;
    let pieces = bootstrap.chunks(nid, 0..u64::MAX).with_context(|| file.display().to_string())?;
    pieces
        .map(|piece| {
            let piece = piece?;
            let chunk = bootstrap.chunk(piece.blob, piece.chunk)?;
            let blob = bootstrap.blobs().get(usize::from(piece.blob.0)).and_then(|blob| blob.id);
            Ok(FileChunk {
                file_offset: piece.file_offset,
                blob: json::id(blob),
                chunk: piece.chunk.0,
                digest: chunk.digest.to_string(),
                stored_offset: chunk.compressed_offset,
                stored_bytes: chunk.compressed_size,
                content_bytes: chunk.uncompressed_size,
                offset_in_batch: chunk.batch.map(|member| member.offset),
            })
        })
        .collect()
}

/// A table of them.
pub(super) fn text(chunks: &[FileChunk]) -> String {
    let mut text = "file offset  blob          chunk  stored at    size     content  digest\n".to_owned();
    for chunk in chunks {
        let _ = writeln!(
            text,
            "{:>11}  {:.12}  {:>5}  {:>9}  {:>6}  {:>8}  {}{}",
            chunk.file_offset,
            chunk.blob,
            chunk.chunk,
            chunk.stored_offset,
            chunk.stored_bytes,
            chunk.content_bytes,
            chunk.digest,
            chunk.offset_in_batch.map_or_else(String::new, |offset| format!("  at {offset} of its batch"))
        );
    }
    text
}
