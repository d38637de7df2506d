//! A table of contents of any bytes, at the end of a stream of any bytes.

#![no_main]

use std::ops::Range;

use fuzz::{digests, patch, seed};
use libfuzzer_sys::fuzz_target;
use rafs::blob::stream::{Toc, own_bootstrap};

const ENTRY: usize = 128;
const HEADER: usize = 512;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else { return };
    let Some(mut stream) = patch::bytes(input, seed::streams()) else { return };
    if choice & 1 == 1 && stream.len() >= HEADER {
        // The last bytes before the header are entries; header and digests are given.
        stream.truncate(stream.len() - HEADER);
        let size = (usize::from(choice >> 1 & 31) * ENTRY).min(stream.len());
        let start = stream.len() - size;
        let (parts, table) = stream.split_at_mut(start);
        digests::mend_table(table, parts);
        stream.extend_from_slice(&digests::table_header(size));
    }
    let size = stream.len() as u64;
    let read = |range: Range<u64>| Ok(stream[range.start as usize..range.end as usize].to_vec());
    let _ = own_bootstrap(size, read).expect("nothing beyond the end is asked for");
    let range = Toc::range(size);
    let Ok(toc) = Toc::parse(&stream[range.start as usize..], size, None) else { return };
    for part in &toc.parts {
        // Within the stream, as the table is refused otherwise.
        let stored = &stream[part.range.start as usize..part.range.end as usize];
        assert_eq!(part.decode(stored).is_ok(), part.verify(stored).is_ok(), "both or none");
    }
});
