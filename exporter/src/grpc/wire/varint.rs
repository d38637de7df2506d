//! Base-128 numbers, least significant group first.

/// No 64-bit number takes more bytes than this.
pub(crate) const LIMIT_BYTES: usize = 10;

/// The number at the start of `bytes` and how many bytes it takes; `None` if it is cut off or does not fit 64 bits.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(LIMIT_BYTES).enumerate() {
        let group = u64::from(byte & 0x7f);
        // The tenth byte has room for the topmost bit alone.
        if index == LIMIT_BYTES - 1 && group > 1 {
            return None;
        }
        value |= group << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Appends `value`.
pub(crate) fn encode(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
