//! Bit flags of the extension superblock, of blobs and of chunks.

/// Flags of the extension superblock (`RafsSuperFlags` upstream).
pub mod superblock {
    /// Chunks are stored as they are.
    pub const COMPRESSION_NONE: u64 = 0x1;
    /// Chunks are compressed with LZ4, block format.
    pub const COMPRESSION_LZ4: u64 = 0x2;
    /// Chunk digests are BLAKE3.
    pub const HASH_BLAKE3: u64 = 0x4;
    /// Chunk digests are SHA-256.
    pub const HASH_SHA256: u64 = 0x8;
    /// Inodes carry owner and group; without it a daemon shows its own.
    pub const EXPLICIT_UID_GID: u64 = 0x10;
    /// Some inode has extended attributes.
    pub const HAS_XATTR: u64 = 0x20;
    /// Chunks are compressed with gzip (images made from stargz).
    pub const COMPRESSION_GZIP: u64 = 0x40;
    /// Chunks are compressed with zstd.
    pub const COMPRESSION_ZSTD: u64 = 0x80;
    /// Every blob carries `blob.meta` and `blob.digest`.
    pub const INLINED_CHUNK_DIGEST: u64 = 0x100;
    /// Blobs are plain tar files, with blocks of 512 bytes.
    pub const TARFS_MODE: u64 = 0x200;
    /// Chunks are not encrypted.
    pub const ENCRYPTION_NONE: u64 = 0x0100_0000;
    /// Chunks are encrypted with AES-128-XTS.
    pub const ENCRYPTION_AES_128_XTS: u64 = 0x0200_0000;
}

/// Features of a blob (`BlobFeatures` upstream), in blob table and chunk-info header.
pub mod blob {
    /// Uncompressed chunk offsets are multiples of 4 KiB.
    pub const ALIGNED: u32 = 0x1;
    /// The layer's own bootstrap is a part of the blob stream; set in that bootstrap alone.
    pub const INLINED_FS_META: u32 = 0x2;
    /// Chunk-info entries are of version 2, 24 bytes.
    pub const CHUNK_INFO_V2: u32 = 0x4;
    /// The blob is an index over a gzip stream.
    pub const ZRAN: u32 = 0x8;
    /// Chunk data and chunk information are two blobs.
    pub const SEPARATE: u32 = 0x10;
    /// The stream has a `blob.digest` part.
    pub const INLINED_CHUNK_DIGEST: u32 = 0x20;
    /// The blob is a plain tar file.
    pub const TARFS: u32 = 0x40;
    /// Small files are compressed together.
    pub const BATCH: u32 = 0x80;
    /// Chunks are encrypted.
    pub const ENCRYPTED: u32 = 0x100;
    /// Made as a chunk dictionary: the chunk count may differ from the chunk-info header's.
    pub const IS_CHUNKDICT_GENERATED: u32 = 0x200;
    /// A tar header follows each part of the stream.
    pub const HAS_TAR_HEADER: u32 = 0x1000_0000;
    /// The stream ends with a table of contents.
    pub const HAS_TOC: u32 = 0x2000_0000;
    /// Made by nydus-image 2.2 or newer.
    pub const CAP_TAR_TOC: u32 = 0x4000_0000;
    /// The bits of which a reader must know every one.
    pub const INCOMPATIBLE_MASK: u32 = 0x0000_ffff;
    /// The incompatible bits that nydus 2.4 defines.
    pub const INCOMPATIBLE_KNOWN: u32 = 0x0000_0fff;
}

/// Flags of a chunk-table entry (`BlobChunkFlags` upstream).
pub mod chunk {
    /// The stored bytes are compressed.
    pub const COMPRESSED: u32 = 0x1;
    /// The chunk is all zeros and not stored.
    pub const HOLE: u32 = 0x2;
    /// The stored bytes are encrypted.
    pub const ENCRYPTED: u32 = 0x4;
    /// The chunk is a member of a batch.
    pub const BATCH: u32 = 0x8;
    /// The entry has a CRC-32 of the chunk.
    pub const HAS_CRC32: u32 = 0x10;
}

/// Numbers of compressors in blob table and chunk-info header.
pub mod compressor {
    /// Stored.
    pub const NONE: u32 = 0;
    /// LZ4, block format.
    pub const LZ4_BLOCK: u32 = 1;
    /// gzip.
    pub const GZIP: u32 = 2;
    /// zstd.
    pub const ZSTD: u32 = 3;
}

/// Numbers of digest algorithms in the blob table.
pub mod digest {
    /// BLAKE3.
    pub const BLAKE3: u32 = 0;
    /// SHA-256.
    pub const SHA256: u32 = 1;
}
