//! A table of contents of any bytes, and chunks and parts that claim to be anything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::blob::stream::Toc;

fuzz_target!(|data: &[u8]| {
    let size = data.len() as u64;
    let range = Toc::range(size);
    let Ok(toc) = Toc::parse(&data[range.start as usize..], size, None) else { return };
    for part in &toc.parts {
        // Within the stream, as the table is refused otherwise.
        let stored = &data[part.range.start as usize..part.range.end as usize];
        let _ = part.decode(stored);
    }
});
