//! The files of a plain image: its layers, the lowest first, with what each takes away.

use rafs::source::tar::TarSource;
use rafs::source::{Entry, EntryKind, Source as _};
use registry::client::Descriptor;
use tokio::sync::mpsc;

use super::collected::{Collected, Item, normalised};
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
    let mut collected = Collected::default();
    for layer in layers {
        let mut stream = source.blob(layer).await?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let name = layer.digest().to_string();
        let reading = tokio::task::spawn_blocking(move || {
            let read = read(InputReader::new(receiver), wanted, &mut collected);
            (collected, read.map_err(|error| named(error, name)))
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
        let (back, read) = reading.await?;
        read?;
        collected = back;
    }
    Ok(collected)
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

/// Reads a layer's tar over what is below it.
fn read(input: InputReader, wanted: Wanted, collected: &mut Collected) -> Result<(), Failed> {
    let mut tar = TarSource::new(input);
    let mut layer = Vec::new();
    // What the layer takes away is below it, wherever in the tar it says so.
    while let Some(entry) = tar.next_entry().map_err(Failed::Tar)? {
        let Some(path) = normalised(&entry.path) else { continue };
        let split = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, name) = (&path[..split.saturating_sub(1)], &path[split..]);
        if name == OPAQUE {
            collected.remove_within(folder);
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            collected.remove(&[&path[..split], name].concat());
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
