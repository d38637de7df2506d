//! Makes archives block by block, valid or not.

use super::super::header::BLOCK_BYTES;

/// The end of an archive.
pub(super) const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// A header being made.
pub(super) struct HeaderMaker([u8; BLOCK_BYTES]);

impl HeaderMaker {
    /// A ustar header of mode 644, owner 1:2 and mtime 3.
    pub(super) fn new(name: &[u8], typeflag: u8, size: u64) -> Self {
        let mut block = [0; BLOCK_BYTES];
        block[..name.len()].copy_from_slice(name);
        let maker = Self(block).put(100, b"0000644\0").put(108, b"0000001\0").put(116, b"0000002\0");
        let size = format!("{size:011o}\0");
        let maker = maker.put(124, size.as_bytes()).put(136, b"00000000003\0").put(156, &[typeflag]);
        maker.put(257, b"ustar\x0000")
    }

    /// The same in old GNU's dialect.
    pub(super) fn gnu(name: &[u8], typeflag: u8, size: u64) -> Self {
        Self::new(name, typeflag, size).put(257, b"ustar  \0")
    }

    /// Overwrites bytes.
    pub(super) fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Overwrites the link name.
    pub(super) fn link(self, target: &[u8]) -> Self {
        self.put(157, target)
    }

    /// Puts the checksum in.
    pub(super) fn block(self) -> Vec<u8> {
        let maker = self.put(148, b"        ");
        let sum = maker.0.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        maker.put(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }
}

/// Content with its padding.
pub(super) fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

/// A ustar entry with content.
pub(super) fn entry(name: &[u8], typeflag: u8, content: &[u8]) -> Vec<u8> {
    [HeaderMaker::new(name, typeflag, content.len() as u64).block(), padded(content)].concat()
}

/// A PAX header of `typeflag` `x` or `g` with these records.
pub(super) fn pax<V: AsRef<[u8]>>(typeflag: u8, records: &[(&str, V)]) -> Vec<u8> {
    let records = records.iter().flat_map(|(key, value)| record(key, value.as_ref())).collect::<Vec<_>>();
    entry(b"PaxHeaders/x", typeflag, &records)
}

/// A record, its length counting itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}
