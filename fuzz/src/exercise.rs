//! All that the product does with a bootstrap and with a tar stream. Errors are fine.

use std::io;

use rafs::bootstrap::{self, Bootstrap, Nid, WriteOptions};
use rafs::layout::v6::FileType;
use rafs::merge::merge;
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source, SourceError};
use rafs::tree::Image;

/// Stops when an archive grows beyond what the input can honestly hold: files may share chunks.
pub struct Limited(pub u64);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that a daemon, a check and a merge do with a bootstrap.
pub fn bootstrap(bytes: Vec<u8>) {
    let Ok(bootstrap) = Bootstrap::from_bytes(bytes) else { return };
    for nid in bootstrap.prefetch().unwrap_or_default().into_iter().take(100) {
        let _ = bootstrap.inode(nid);
    }
    let _ = rafs::check::structure(&bootstrap);
    walk(&bootstrap);
    tree(&bootstrap);
}

/// What can be read can be written, unless the writer says why not; and what it writes can be read, and is sound.
pub fn tree(bootstrap: &Bootstrap) {
    let Ok(image) = bootstrap.to_image() else { return };
    rewrite(&image);
    let layers = [bootstrap.to_layer(), bootstrap.to_layer()];
    let layers = layers.map(|layer| layer.expect("what is an image is a layer"));
    if let Ok(merged) = merge(layers.into()) {
        rewrite(&merged);
    }
}

fn rewrite(image: &Image) {
    let mut bytes = Vec::new();
    if bootstrap::write(image, &WriteOptions::default(), &mut bytes).is_ok() {
        let again = Bootstrap::from_bytes(bytes).expect("what is written can be opened");
        again.to_image().expect("what is written can be read");
    }
}

/// Reads as a daemon does, which has no overview of the tree.
fn walk(bootstrap: &Bootstrap) {
    let mut budget = 10_000;
    let mut pending = vec![bootstrap.root()];
    while let Some(directory) = pending.pop() {
        let _ = bootstrap.parent(directory);
        let Ok(entries) = bootstrap.read_dir(directory, 0) else { continue };
        let mut last = 0;
        for entry in entries {
            budget -= 1;
            let Ok(entry) = entry else { break };
            if budget < 0 {
                return;
            }
            assert!(entry.next_offset > last, "an offset leads on");
            assert!(!matches!(entry.name, b"" | b"." | b".."), "a name is a name");
            last = entry.next_offset;
            let _ = bootstrap.lookup(directory, entry.name);
            if file(bootstrap, entry.nid) {
                pending.push(entry.nid);
            }
        }
        let _ = bootstrap.read_dir(directory, u64::MAX).map(Iterator::count);
    }
}

/// Looks at a file of any type; says whether it is a directory.
fn file(bootstrap: &Bootstrap, nid: Nid) -> bool {
    let _ = bootstrap.xattrs(nid);
    let _ = bootstrap.read_link(nid);
    let Ok(inode) = bootstrap.inode(nid) else { return false };
    let middle = inode.size / 2;
    for range in [0..1, middle..middle.saturating_add(1 << 20), inode.size.saturating_sub(1)..u64::MAX] {
        let Ok(pieces) = bootstrap.chunks(nid, range) else { break };
        for piece in pieces.take(100) {
            let Ok(piece) = piece else { break };
            assert!(piece.len > 0 && piece.file_offset + u64::from(piece.len) <= inode.size);
            let _ = bootstrap.chunk(piece.blob, piece.chunk);
        }
    }
    inode.kind == FileType::Directory
}

/// Holes may have any size, so reading stops after this many bytes of a file.
const CONTENT_LIMIT: u64 = 64 << 10;

/// Reads a tar stream to its end, or up to its first error, and says how large its files are together.
pub fn archive(archive: &[u8]) -> Result<u64, SourceError> {
    let mut source = TarSource::new(archive);
    let mut buffer = [0; 8192];
    let mut total = 0_u64;
    while let Some(entry) = source.next_entry()? {
        assert!(!entry.path.is_empty());
        assert!(entry.metadata.mtime.nanoseconds < 1_000_000_000);
        let mut length = 0;
        while length < CONTENT_LIMIT {
            match source.read(&mut buffer)? {
                0 => break,
                count => length += count as u64,
            }
        }
        match entry.kind {
            EntryKind::Regular { size } => {
                assert!(length == size || (length >= CONTENT_LIMIT && length < size));
                total = total.saturating_add(size);
            }
            _ => assert_eq!(length, 0),
        }
    }
    Ok(total)
}
