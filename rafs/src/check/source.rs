//! Comparing an image with what it was made from.

use super::Report;
use crate::blob::source::BlobError;
use crate::bootstrap::Bootstrap;
use crate::build::BuildOptions;
use crate::compress::Compressor;
use crate::diff::{self, ChangeKind, DiffError, Difference, Side};
use crate::tree::Image;

/// How to build the layers of the source so that they can be compared with the image: chunks of the same size, digests of the
/// same algorithm. What the build writes is not needed: let it go to [`std::io::sink`].
pub fn source_options(bootstrap: &Bootstrap) -> BuildOptions {
    let digester = bootstrap.blobs().first().map(|blob| blob.digester).unwrap_or_default();
    BuildOptions {
        compressor: Compressor::None,
        digester,
        chunk_size: bootstrap.chunk_size(),
        ..BuildOptions::default()
    }
}

/// Compares every path of an image with the merged layers of its source, which were built with [`source_options`]: type,
/// mode, owner, time, extended attributes, link target, device, size, content, groups of hard links. Directories that the
/// source only implies may have any metadata.
pub fn against_source(source: &Image, image: &Image) -> Report {
    let mut report = Report::default();
    // Digests say it: both have the same algorithm and chunk size.
    let mut never = |_: &[_], _: &[_]| -> Result<_, BlobError> { Ok(Some(0)) };
    let mut add = |change: diff::Change| {
        let path = change.shown();
        match &change.what {
            ChangeKind::Added(side) => {
                report.add(path, format!("{}, which the source does not have", shown(side)))
            }
            ChangeKind::Removed(side) => report.add(path, format!("missing; the source has {}", shown(side))),
            ChangeKind::Changed(differences) => {
                for difference in differences {
                    report.add(&path, problem(difference));
                }
            }
        }
    };
    let outcome = diff::images(source, image, &mut never, &mut add);
    match outcome {
        Ok(()) => {}
        Err(error @ (DiffError::LongPath { .. } | DiffError::Content { .. })) => {
            report.error("image", &error)
        }
    }
    report
}

fn shown(side: &Side) -> String {
    match side.bytes {
        0 => format!("a file of type {}", side.kind),
        bytes => format!("a file of type {} with {bytes} bytes", side.kind),
    }
}

fn problem(difference: &Difference) -> String {
    let name = difference.name();
    match difference.values() {
        Some((expected, found)) => format!("its {name} is {found}; expected {expected}"),
        None => format!("its {name} is not that of the source"),
    }
}
