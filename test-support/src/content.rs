//! Bytes for files: always the same for the same seed, and other ones for each seed.

/// A generator of pseudo-random numbers: xorshift, quick and without cycles that a test could meet.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        // Small seeds are alike; multiplied they are not.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&numbers.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Letters that compress: each byte is one of sixteen.
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    (0..length).map(|_| b'a' + (numbers.next() >> 33) as u8 % 16).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn seeds_give_different_bytes_and_always_the_same() {
        for content in [noise, text] {
            assert_eq!(content(7, 1000), content(7, 1000));
            assert_eq!(content(7, 1000)[..10], content(7, 10));
            let all: BTreeSet<Vec<u8>> = (0..1000).map(|seed| content(seed, 16)).collect();
            assert_eq!(all.len(), 1000);
        }
    }

    #[test]
    fn noise_does_not_compress_and_text_does() {
        let packed = |content: fn(u64, usize) -> Vec<u8>| crate::gzip(&content(1, 100_000)).len();
        assert!(packed(noise) >= 100_000);
        assert!((50_000..95_000).contains(&packed(text)), "{}", packed(text));
    }
}
