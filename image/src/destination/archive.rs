//! The tar of an OCI image layout, made of the layout's folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use registry::reference::Reference;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::StoreError;
use super::staging::{MARKER, OCI_BLOBS};
use crate::document::Stored;
use crate::layer::OutputWriter;
use crate::source::{OCI_INDEX_FILE, REF_NAME};

/// The annotation by which containerd and BuildKit keep an image's full name in a layout.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Pieces of 256 KiB between who packs and who reads.
const QUEUE: usize = 4;

/// A tar while it is made.
#[derive(Debug)]
pub struct LayoutStream {
    pieces: mpsc::Receiver<Bytes>,
    packing: Option<JoinHandle<Result<(), StoreError>>>,
}

impl LayoutStream {
    /// What `pack` writes.
    pub(super) fn new(pack: impl FnOnce(OutputWriter) -> Result<(), StoreError> + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let packing = tokio::task::spawn_blocking(move || pack(OutputWriter::new(sender)));
        Self { pieces, packing: Some(packing) }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if let Some(piece) = self.pieces.recv().await {
            return Ok(Some(piece));
        }
        match self.packing.take() {
            Some(packing) => packing.await?.map(|()| None),
            None => Ok(None),
        }
    }
}

/// The entries of an index for the image `root` under each of `names`, as BuildKit's exports state them, with `annotations`.
pub(super) fn entries(
    names: &[Reference],
    root: &Stored,
    annotations: &BTreeMap<String, String>,
) -> Vec<Value> {
    let entry = |named: Value| {
        let mut entry = root.descriptor();
        let mut all = json!(annotations);
        if let (Some(all), Value::Object(named)) = (all.as_object_mut(), named) {
            all.extend(named);
            if !all.is_empty() {
                entry["annotations"] = json!(all);
            }
        }
        entry
    };
    let named = |name: &Reference| entry(json!({ IMAGE_NAME: name.to_string(), REF_NAME: name.tag() }));
    if names.is_empty() { vec![entry(json!({}))] } else { names.iter().map(named).collect() }
}

/// Packs the layout in `folder`, small documents first, so that readers of a stream learn early what is in it.
pub(super) fn pack<W: Write>(folder: &Path, out: W) -> io::Result<W> {
    let mut tar = tar::Builder::new(out);
    let mut add = |name: &str, kind| -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        if kind == tar::EntryType::Directory {
            header.set_size(0);
            return tar.append_data(&mut header, format!("{name}/"), io::empty());
        }
        let file = File::open(folder.join(name))?;
        header.set_size(file.metadata()?.len());
        tar.append_data(&mut header, name, file)
    };
    let mut blobs: Vec<_> = fs::read_dir(folder.join(OCI_BLOBS))?
        .map(|entry| Ok(format!("{OCI_BLOBS}/{}", entry?.file_name().to_string_lossy())))
        .collect::<io::Result<_>>()?;
    // The same image gives the same tar.
    blobs.sort();
    for (name, kind) in [MARKER, OCI_INDEX_FILE]
        .map(|name| (name, tar::EntryType::Regular))
        .into_iter()
        .chain(["blobs", OCI_BLOBS].map(|name| (name, tar::EntryType::Directory)))
        .chain(blobs.iter().map(|name| (name.as_str(), tar::EntryType::Regular)))
    {
        add(name, kind)?;
    }
    let mut out = tar.into_inner()?;
    out.flush()?;
    Ok(out)
}
