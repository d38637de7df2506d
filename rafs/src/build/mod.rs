//! From a source to a layer: a tree, and a blob that is written while the source is read.
//!
//! One pass in bounded memory on all cores: a reader fills units of about 1 MiB with the contents of files, workers digest
//! and compress them, a writer stores what is new in the order of the input. The same input gives the same bytes on any
//! number of threads.

mod dictionary;
mod error;
mod links;
mod options;
mod path;
mod pipeline;
mod read;
mod seen;
mod tree;
mod unit;
mod work;
mod write;

use std::io::{Read, Write};
use std::path::Path;

pub use self::dictionary::Dictionary;
pub use self::error::{BuildError, PathProblem, SourcePath};
pub use self::options::BuildOptions;
use self::read::ReadTree;
use self::write::Written;
use crate::blob::Blob;
use crate::bootstrap::WriteOptions;
use crate::source::Source;
use crate::source::directory::DirectorySource;
use crate::source::tar::TarSource;
use crate::tree::Layer;

/// Builds a layer of a tar stream, plain or compressed with gzip or zstd.
///
/// The blob is written to `blob` strictly sequentially, complete with its tail. The result's first blob is this one.
pub fn build_layer(
    input: impl Read + Send,
    blob: impl Write + Send,
    options: &BuildOptions,
) -> Result<Layer, BuildError> {
    let mut source = TarSource::new(input);
    build_source(&mut source, blob, options)
}

/// Builds a layer of the directory at `path`, as [`build_layer`] does of a tar stream.
pub fn build_directory(
    path: impl AsRef<Path>,
    blob: impl Write + Send,
    options: &BuildOptions,
) -> Result<Layer, BuildError> {
    let mut source = DirectorySource::open(path)?;
    build_source(&mut source, blob, options)
}

/// Builds a layer of a source, as [`build_layer`] does.
pub fn build_source(
    source: &mut (impl Source + Send),
    blob: impl Write + Send,
    options: &BuildOptions,
) -> Result<Layer, BuildError> {
    options.check()?;
    let pipeline::Built { tree, out, written } = pipeline::run(source, blob, options)?;
    let mut layer = layer(tree, written, options);
    let write_options = WriteOptions {
        chunk_size: options.chunk_size,
        compressor: options.compressor,
        digester: options.digester,
        ..WriteOptions::default()
    };
    out.finish(&mut layer, &write_options)?;
    Ok(layer)
}

/// Puts the layer together. What its blob's tail decides is not known yet.
fn layer(tree: ReadTree, written: Written, options: &BuildOptions) -> Layer {
    let mut tree = tree.with_chunks(&written.places);
    let mut blobs = vec![Blob {
        compressed_size: written.compressed_size,
        uncompressed_size: written.uncompressed_size,
        chunks: written.chunks,
        ..Blob::coding(options.chunk_size, options.compressor, options.digester)
    }];
    if let Some(dictionary) = &options.dictionary {
        dictionary.append_used(&mut tree, &mut blobs);
    }
    Layer { tree, blobs }
}

#[cfg(test)]
pub(crate) mod tests;
