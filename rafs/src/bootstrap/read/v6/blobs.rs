//! The blob table.

use crate::blob::{Blob, BlobIndex, MetaLocation};
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::{At, ReadError};
use crate::compress::Compressor;
use crate::digest::{Digest, DigestAlgorithm};
use crate::layout::excess;
use crate::layout::flags::blob as features;
use crate::layout::toc::TAR_HEADER_SIZE;
use crate::layout::v6::{BlobEntry, ErofsSuperblock, ExtensionSuperblock, UNKNOWN_BLOB_ID};

const WHAT: &str = "blob table";

pub(super) fn read(
    data: &Data,
    sb: &ErofsSuperblock,
    extension: &ExtensionSuperblock,
) -> Result<Vec<(Blob, u32)>, ReadError> {
    let offset = extension.blob_table_offset.get();
    let table: &[BlobEntry] = data.table(WHAT, offset, u64::from(extension.blob_table_size.get()))?;
    let corrupt = |expected| ReadError::corrupt(WHAT, At::Byte(offset), expected);
    if table.len() > BlobIndex::LIMIT {
        return Err(corrupt("at most 254 entries").found(table.len()));
    }
    if table.len() != usize::from(sb.extra_devices.get()) {
        return Err(corrupt("as many entries as there are devices").found(format_args!(
            "{} entries and {} devices",
            table.len(),
            sb.extra_devices
        )));
    }
    table.iter().enumerate().map(|(index, entry)| blob(index, entry, extension.chunk_size.get())).collect()
}

/// A blob, and how many chunks it has.
fn blob(index: usize, entry: &BlobEntry, chunk_size: u32) -> Result<(Blob, u32), ReadError> {
    let corrupt = |expected| ReadError::corrupt("blob table entry", At::Number(index as u64), expected);
    let bits = entry.features.get();
    // What is not supported comes before what is wrong: with a feature that we do not know, other fields may mean other things.
    let unsupported = [
        (features::ENCRYPTED, "an encrypted blob (AES-128-XTS)"),
        (features::ZRAN, "a blob that indexes a gzip stream (zran)"),
        (features::TARFS, "a blob in tarfs mode"),
        (features::SEPARATE, "a blob with separate chunk information"),
    ];
    if let Some((_, name)) = unsupported.into_iter().find(|(bit, _)| bits & bit != 0) {
        return Err(ReadError::Unsupported(name));
    }
    if bits & features::INCOMPATIBLE_MASK & !features::INCOMPATIBLE_KNOWN != 0 {
        return Err(ReadError::Unsupported("a blob with unknown features"));
    }
    if entry.cipher.get() != 0 {
        return Err(ReadError::Unsupported("an encrypted blob (AES-128-XTS)"));
    }
    if entry.blob_index.get() as usize != index {
        return Err(corrupt("the entry's own index").found(entry.blob_index));
    }
    if entry.chunk_size.get() != chunk_size {
        return Err(corrupt("the image's chunk size").found(entry.chunk_size));
    }
    let (chunks, stored) = (entry.chunk_count.get(), entry.compressed_size.get());
    let uncompressed = entry.uncompressed_size.get();
    if let Some(expected) = excess(chunks, stored, uncompressed) {
        let found = format_args!("{chunks} chunks, {stored} and {uncompressed} bytes");
        return Err(corrupt(expected).found(found));
    }
    let compressor = Compressor::from_number(entry.compressor.get()).map_err(ReadError::Unsupported)?;
    let digester =
        DigestAlgorithm::from_number(entry.digester.get()).ok_or(corrupt("a known digest algorithm"))?;
    let meta = meta(entry)?;
    let blob = Blob {
        id: id(&entry.blob_id).ok_or(corrupt("an id of 64 hexadecimal digits"))?,
        stored_size: entry.compressed_size.get(),
        compressed_size: data_size(entry, meta).ok_or(corrupt("chunk data before chunk information"))?,
        uncompressed_size: entry.uncompressed_size.get(),
        chunk_size,
        compressor,
        digester,
        features: bits & !features::INLINED_FS_META,
        meta,
        toc: (entry.toc_size.get() > 0).then(|| (Digest(entry.toc_digest), entry.toc_size.get())),
        chunks: Vec::new(),
    };
    Ok((blob, entry.chunk_count.get()))
}

/// The id, if known; `None` where it is none.
fn id(id: &[u8; 64]) -> Option<Option<Digest>> {
    if *id == UNKNOWN_BLOB_ID {
        return Some(None);
    }
    std::str::from_utf8(id).ok()?.parse().ok().map(Some)
}

fn meta(entry: &BlobEntry) -> Result<Option<MetaLocation>, ReadError> {
    if entry.meta_compressed_size.get() == 0 && entry.meta_uncompressed_size.get() == 0 {
        return Ok(None);
    }
    let compressor = Compressor::from_number(entry.meta_compressor.get()).map_err(ReadError::Unsupported)?;
    Ok(Some(MetaLocation {
        offset: entry.meta_offset.get(),
        compressed_size: entry.meta_compressed_size.get(),
        uncompressed_size: entry.meta_uncompressed_size.get(),
        compressor,
    }))
}

/// The size of the chunk data. The table has the size of the whole stream; chunk data ends where chunk information
/// begins, except for a tar header between them. Before nydus 2.2 the table had the size of the data.
fn data_size(entry: &BlobEntry, meta: Option<MetaLocation>) -> Option<u64> {
    let bits = entry.features.get();
    // What is not supported comes before what is wrong: with a feature that we do not know, other fields may mean other things.
    let end = match meta {
        Some(meta) if bits & features::CAP_TAR_TOC != 0 => meta.offset,
        _ => return Some(entry.compressed_size.get()),
    };
    let header = if bits & features::HAS_TAR_HEADER != 0 { TAR_HEADER_SIZE as u64 } else { 0 };
    end.checked_sub(header)
}
