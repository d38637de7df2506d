//! The files of a plain image: its layers, the lowest first, with what each takes away.

use std::collections::BTreeSet;

use rafs::source::tar::TarSource;
use rafs::source::{Entry, EntryKind, Source as _};
use registry::client::Descriptor;
use tokio::sync::mpsc;

use super::collected::{Collected, Item, normalised};
use super::large::Large;
use super::{FilesError, Wanted};
use crate::layer::InputReader;
use crate::source::Source;

/// Pieces of a layer on their way to the thread that reads it.
const PIECES: usize = 4;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

pub(super) async fn collect(
    source: &Source,
    layers: &[Descriptor],
    wanted: Wanted,
) -> Result<Collected, FilesError> {
    let read = move |input: InputReader, collected: &mut Collected| read(input, wanted, collected);
    over(source, layers, Collected::default(), read).await
}

/// Writes the files that are wanted.
pub(super) async fn write(source: &Source, layers: &[Descriptor], large: Large) -> Result<(), FilesError> {
    over(source, layers, large, write_layer).await.map(drop)
}

/// Reads every layer on a thread that may block; returns what came of it.
async fn over<T: Send + 'static>(
    source: &Source,
    layers: &[Descriptor],
    mut state: T,
    read: impl Fn(InputReader, &mut T) -> Result<(), Failed> + Copy + Send + 'static,
) -> Result<T, FilesError> {
    for layer in layers {
        let mut stream = source.blob(layer).await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let name = layer.digest().to_string();
        let reading = tokio::task::spawn_blocking(move || {
            let done = read(InputReader::new(receiver), &mut state);
            (state, done.map_err(|error| named(error, name)))
        });
        let mut heard = true;
        // To its end, even if nobody reads any more: only then it is known to be what its digest says.
        while let Some(piece) = stream.next().await? {
            if heard && !piece.is_empty() {
                heard = sender.send(piece).await.is_ok();
            }
        }
        let _ = sender.send(bytes::Bytes::new()).await;
        drop(sender);
        let (back, done) = reading.await?;
        done?;
        state = back;
    }
    Ok(state)
}

/// What reading a layer fails with.
enum Failed {
    Tar(rafs::source::SourceError),
    Files(FilesError),
}

fn named(error: Failed, layer: String) -> FilesError {
    match error {
        Failed::Tar(error) => FilesError::Layer { layer, error },
        Failed::Files(error) => error,
    }
}

/// Writes what is wanted of a layer's tar over what is below it.
fn write_layer(input: InputReader, large: &mut Large) -> Result<(), Failed> {
    let mut tar = TarSource::new(input);
    let mut of_layer = BTreeSet::new();
    while let Some(entry) = tar.next_entry().map_err(Failed::Tar)? {
        let Some(path) = normalised(&entry.path) else { continue };
        if let Some(hidden) = Hidden::of(&path) {
            // What the layer itself has is not below it.
            large.remove(|path| hidden.covers(path) && !of_layer.contains(path)).map_err(Failed::Files)?;
            continue;
        }
        if let (EntryKind::Regular { size }, true) = (&entry.kind, large.wants(&path)) {
            let mut file = large.begin(&path, *size).map_err(Failed::Files)?;
            let mut buffer = vec![0; 64 << 10];
            loop {
                match tar.read(&mut buffer).map_err(Failed::Tar)? {
                    0 => break,
                    read => file.write(&buffer[..read]).map_err(Failed::Files)?,
                }
            }
            of_layer.insert(path);
        } else if !matches!(entry.kind, EntryKind::Directory) {
            large.remove(|below| covers(&path, below)).map_err(Failed::Files)?;
        }
    }
    Ok(())
}

/// What a layer takes away of those below it.
enum Hidden<'a> {
    /// What is in this directory.
    Within(&'a [u8]),
    /// This path, and what is in it.
    Path(Vec<u8>),
}

impl<'a> Hidden<'a> {
    /// What the entry at `path` takes away; `None` for one that is a file or directory itself.
    fn of(path: &'a [u8]) -> Option<Self> {
        let split = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, name) = (&path[..split.saturating_sub(1)], &path[split..]);
        if name == OPAQUE {
            return Some(Self::Within(folder));
        }
        let name = name.strip_prefix(WHITEOUT)?;
        Some(Self::Path([&path[..split], name].concat()))
    }

    fn covers(&self, path: &[u8]) -> bool {
        match self {
            Self::Within(folder) => folder.is_empty() || path != *folder && covers(folder, path),
            Self::Path(hidden) => covers(hidden, path),
        }
    }
}

/// Whether `path` is `place`, or in it.
fn covers(place: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Reads a layer's tar over what is below it.
fn read(input: InputReader, wanted: Wanted, collected: &mut Collected) -> Result<(), Failed> {
    let mut tar = TarSource::new(input);
    let mut layer = Vec::new();
    // What the layer takes away is below it, wherever in the tar it says so.
    while let Some(entry) = tar.next_entry().map_err(Failed::Tar)? {
        let Some(path) = normalised(&entry.path) else { continue };
        if let Some(hidden) = Hidden::of(&path) {
            match hidden {
                Hidden::Within(folder) => collected.remove_within(folder),
                Hidden::Path(path) => collected.remove(&path),
            }
        } else if wanted(&path) {
            let left = collected.left();
            if let Some(item) = item(&mut tar, entry, &layer, collected, left)? {
                layer.push((path, item));
            }
        }
    }
    for (path, item) in layer {
        collected.put(path, item).map_err(Failed::Files)?;
    }
    Ok(())
}

fn item(
    tar: &mut TarSource<InputReader>,
    entry: Entry,
    layer: &[(Vec<u8>, Item)],
    collected: &Collected,
    left: u64,
) -> Result<Option<Item>, Failed> {
    Ok(match entry.kind {
        EntryKind::Directory => Some(Item::Directory),
        EntryKind::Symlink(target) => Some(Item::Symlink(target.into())),
        EntryKind::Regular { size } => {
            if size > left {
                return Err(Failed::Files(FilesError::TooMuch { what: "bytes", limit: left }));
            }
            let mut content = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                match tar.read(&mut buffer).map_err(Failed::Tar)? {
                    0 => break Some(Item::File(content)),
                    read => content.extend_from_slice(&buffer[..read]),
                }
            }
        }
        // Another name of a file that is wanted, too.
        EntryKind::HardLink(target) => {
            let target = normalised(&target);
            let of_layer = layer.iter().rev().find(|(path, _)| Some(path) == target.as_ref());
            let found = of_layer.map(|(_, item)| item).or_else(|| collected.get(target.as_ref()?));
            found.cloned()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::destination::{DiskShare, DiskSpace, DiskUse, StoreError};

    const FILES: DiskUse = DiskUse { what: "files", setting: "file_bytes", of: "all", instead: "have none" };

    fn lay(large: &mut Large, files: &[(&str, &str)]) -> Result<(), Failed> {
        let (sender, receiver) = mpsc::channel(2);
        for piece in [test_support::tar_of(files).into(), bytes::Bytes::new()] {
            sender.try_send(piece).unwrap();
        }
        write_layer(InputReader::new(receiver), large)
    }

    #[test]
    fn large_files_are_what_the_layers_together_show() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a/x", "a/y", "b", "d/z"].map(|path| path.as_bytes().to_vec());
        let space = DiskSpace::new(dir.path(), 16, &FILES);
        let room = Arc::new(DiskShare::of(&space));
        let mut large = Large::new(paths.into(), dir.path().to_owned(), room);
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        let shown = || ["a/x", "a/y", "b", "d/z"].map(|path| read(path).unwrap_or_default());
        let of = |large: &mut Large, files: &[(&str, &str)]| assert!(lay(large, files).is_ok());
        of(&mut large, &[("a/x", "x1"), ("./a/y", "y1"), ("b", "b1"), ("c", "not wanted"), ("d/z", "z1")]);
        assert_eq!(shown(), ["x1", "y1", "b1", "z1"]);
        assert!(!dir.path().join("c").exists());
        of(&mut large, &[("a/.wh.x", ""), ("b", "b2, longer")]);
        assert_eq!(shown(), ["", "y1", "b2, longer", "z1"].map(str::to_owned));
        // What a layer takes away is below it, wherever in it that stands; a file hides a directory.
        of(&mut large, &[("a/x", "x"), ("a/.wh..wh..opq", ""), ("b", ""), ("d", "a file")]);
        assert_eq!(shown(), ["x", "", "", ""].map(str::to_owned));
        assert!(read("b").is_some());
        let error =
            lay(&mut large, &[("b", "0123456789")]).and_then(|()| lay(&mut large, &[("a/y", "012345")]));
        assert!(matches!(
            error,
            Err(Failed::Files(FilesError::Room(StoreError::DiskFull { limit: 16, .. })))
        ));
        drop(large);
        assert_eq!(space.left(), 16);
    }
}
