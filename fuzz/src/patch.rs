//! From an input to what it stands for: changes to a seed, or the bytes as they stand.

use crate::seed::Image;

/// Inputs whose first byte is at least this are bytes as they stand.
const RAW: u8 = 0xc0;

/// Numbers that are limits somewhere.
const INTERESTING: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0xfff,
    0x1000,
    0xffff,
    1 << 20,
    1 << 24,
    (1 << 24) - 1,
    u32::MAX as u64,
    1 << 40,
    1 << 44,
    i64::MAX as u64,
    u64::MAX,
];

/// How much is copied: sizes of structures, for the most part.
const LENGTHS: [usize; 32] = [
    1, 2, 3, 4, 8, 12, 12, 13, 16, 24, 32, 32, 36, 40, 48, 64, 64, 76, 80, 80, 96, 100, 128, 128, 144, 200,
    256, 512, 1024, 1024, 2048, 4096,
];

/// The most bytes that a change can make of an image's part.
const LARGEST: usize = 128 << 10;

/// The image that an input stands for.
///
/// The first byte chooses a seed, and changes follow: a byte that says what is changed how, an offset of 16 bits, and
/// what the change needs. From [`RAW`] on, its low bits count the blocks of the bootstrap, and the blob is the rest.
pub fn image(input: &[u8], seeds: &[Image]) -> Option<Image> {
    let (&first, mut rest) = input.split_first()?;
    if first >= RAW {
        let (bootstrap, blob) = rest.split_at((usize::from(first - RAW) * 4096).min(rest.len()));
        let blobs = vec![(rafs::digest::Digest([0; 32]), blob.to_vec())];
        return Some(Image { bootstrap: bootstrap.to_vec(), blobs });
    }
    let mut image = seeds[usize::from(first) % seeds.len()].clone();
    while let Some(change) = Change::take(&mut rest) {
        let (_, blob) = &mut image.blobs[0];
        change.apply(if change.in_blob { blob } else { &mut image.bootstrap });
    }
    Some(image)
}

/// The bytes that an input stands for, in the same way, but that there is one part.
pub fn bytes(input: &[u8], seeds: &[Vec<u8>]) -> Option<Vec<u8>> {
    let (&first, mut rest) = input.split_first()?;
    if first >= RAW {
        return Some(rest.to_vec());
    }
    let mut bytes = seeds[usize::from(first) % seeds.len()].clone();
    while let Some(change) = Change::take(&mut rest) {
        change.apply(&mut bytes);
    }
    Some(bytes)
}

/// A change of a part.
struct Change<'a> {
    in_blob: bool,
    offset: usize,
    what: Edit<'a>,
}

enum Edit<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// A number of this many bytes.
    Number(u64, usize),
    /// This many bytes from another offset: a second inode, directory entry, chunk or tar header.
    Copy(usize, usize),
    /// Another length of the whole: the offset.
    Length,
}

impl<'a> Change<'a> {
    fn take(input: &mut &'a [u8]) -> Option<Self> {
        let [kind, low, high] = *take(input, 3)? else { return None };
        let what = match kind & 3 {
            0 => Edit::Bytes(take(input, usize::from(kind >> 3 & 15) + 1)?),
            1 => {
                let [number] = *take(input, 1)? else { return None };
                Edit::Number(INTERESTING[usize::from(number & 15)], 1 << (number >> 4 & 3))
            }
            2 => {
                let [low, high] = *take(input, 2)? else { return None };
                Edit::Copy(usize::from(u16::from_le_bytes([low, high])), LENGTHS[usize::from(kind >> 3)])
            }
            _ => Edit::Length,
        };
        Some(Self { in_blob: kind & 4 != 0, offset: usize::from(u16::from_le_bytes([low, high])), what })
    }

    fn apply(&self, part: &mut Vec<u8>) {
        let bytes = match self.what {
            Edit::Bytes(bytes) => bytes.to_vec(),
            Edit::Number(number, size) => number.to_le_bytes()[..size].to_vec(),
            Edit::Copy(from, size) => match part.get(from..(from + size).min(part.len())) {
                Some(bytes) => bytes.to_vec(),
                None => return,
            },
            Edit::Length => return part.resize(self.offset.min(LARGEST), 0),
        };
        if let Some(place) = part.get_mut(self.offset..self.offset + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(count)?;
    *input = rest;
    Some(taken)
}
