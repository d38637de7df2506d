//! What hostile input may cost. The format's own limits are in [`crate::layout`].

/// Limits that a caller may lower (or raise, who knows where an image comes from).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The most memory in bytes that the chunk information of all blobs of an image may take, with digests. A few kilobytes
    /// of each blob could be a gigabyte otherwise, in a daemon that serves other images too.
    pub chunk_info_bytes: u64,
    /// The largest part of a blob stream that is decompressed, in bytes.
    pub part_bytes: u64,
    /// The longest path in bytes that is unpacked, compared or shown.
    pub path_bytes: usize,
    /// How many findings of a check are listed. Beyond that they are counted: a broken image should not flood its reader.
    pub findings: usize,
}

impl Limits {
    /// Chunk information of about 10 million chunks, parts as large as the bootstrap of tens of millions of files, and paths
    /// that a system call takes: `PATH_MAX` without its NUL.
    pub const DEFAULT: Self = Self {
        chunk_info_bytes: 512 << 20,
        part_bytes: 4 << 30,
        path_bytes: crate::layout::PATH_LIMIT_BYTES,
        findings: 1000,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
