//! A bootstrap of any bytes: everything that a daemon or a merge does with it ends, without a panic, in bounded memory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::layout::v6::FileType;

fuzz_target!(|data: &[u8]| {
    let Ok(bootstrap) = Bootstrap::from_bytes(data.to_vec()) else { return };
    let _ = bootstrap.prefetch();
    let _ = rafs::check::structure(&bootstrap);
    walk(&bootstrap);
    if let Ok(image) = bootstrap.to_image() {
        // What can be read can be written, unless the writer says why not; and what it writes can be read.
        let mut bytes = Vec::new();
        if bootstrap::write(&image, &WriteOptions::default(), &mut bytes).is_ok() {
            let again = Bootstrap::from_bytes(bytes).expect("what is written can be opened");
            again.to_image().expect("what is written can be read");
        }
    }
});

/// Reads as a daemon does, a few levels deep: it has no overview of the tree.
fn walk(bootstrap: &Bootstrap) {
    let mut budget = 10_000;
    let mut pending = vec![bootstrap.root()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = bootstrap.read_dir(directory, 0) else { continue };
        let mut last = 0;
        for entry in entries {
            budget -= 1;
            let Ok(entry) = entry else { break };
            if budget < 0 {
                return;
            }
            assert!(entry.next_offset > last, "an offset leads on");
            last = entry.next_offset;
            let _ = bootstrap.lookup(directory, entry.name);
            let _ = bootstrap.xattrs(entry.nid);
            let _ = bootstrap.read_link(entry.nid);
            let Ok(inode) = bootstrap.inode(entry.nid) else { continue };
            if inode.kind == FileType::Directory {
                pending.push(entry.nid);
            }
            let middle = inode.size / 2;
            let Ok(pieces) = bootstrap.chunks(entry.nid, middle..middle.saturating_add(1 << 20)) else {
                continue;
            };
            for piece in pieces.take(1000) {
                let Ok(piece) = piece else { break };
                assert!(piece.len > 0 && piece.file_offset + u64::from(piece.len) <= inode.size);
                let _ = bootstrap.chunk(piece.blob, piece.chunk);
            }
        }
    }
}
