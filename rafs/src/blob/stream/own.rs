//! The layer's own bootstrap, as a part of its blob stream.

use std::io;
use std::ops::Range;

use super::{Toc, TocError};
use crate::blob::tar_header;
use crate::layout::toc::{BOOTSTRAP, TAR_HEADER_SIZE, TOC};
use crate::limits::Limits;

/// The bootstrap of the layer that a blob stream belongs to.
#[derive(Clone, Debug)]
pub struct OwnBootstrap {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The stream's table of contents, if it has one.
    pub toc: Option<Toc>,
}

/// Reads the layer's bootstrap out of a stream of `size` bytes; `None` where that is no blob stream, or one without it.
/// `read` gives a range of the stream, and is asked for nothing beyond its end.
///
/// Streams of nydus-image without a table of contents end with the bootstrap as it is.
///
/// # Errors
///
/// The outer one when reading fails, the inner one when the stream is broken.
pub fn own_bootstrap(
    size: u64,
    read: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
) -> io::Result<Result<Option<OwnBootstrap>, TocError>> {
    own_bootstrap_within(size, Limits::DEFAULT, read)
}

/// [`own_bootstrap`] with other limits.
///
/// # Errors
///
/// As there.
pub fn own_bootstrap_within(
    size: u64,
    limits: Limits,
    read: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
) -> io::Result<Result<Option<OwnBootstrap>, TocError>> {
    let tail = read(Toc::range(size))?;
    let Some(last) = tail.last_chunk::<TAR_HEADER_SIZE>().and_then(tar_header::decode) else {
        return Ok(Ok(None));
    };
    if last.0 == TOC.as_bytes() {
        let toc = match Toc::parse(&tail, size, None) {
            Ok(toc) => toc,
            Err(error) => return Ok(Err(error)),
        };
        let Some(part) = toc.part(BOOTSTRAP) else { return Ok(Ok(None)) };
        // Before it is read: what the table says may be anything.
        if let Err(error) = part.check_limits(limits) {
            return Ok(Err(error));
        }
        let decoded = part.decode(&read(part.range.clone())?);
        return Ok(decoded.map(|bytes| Some(OwnBootstrap { bytes, toc: Some(toc) })));
    }
    let end = size - TAR_HEADER_SIZE as u64;
    match end.checked_sub(last.1) {
        Some(_) if last.0 == BOOTSTRAP.as_bytes() && last.1 > limits.part_bytes => {
            let (size, limit) = (last.1, limits.part_bytes);
            Ok(Err(TocError::TooLarge { name: BOOTSTRAP.to_owned(), size, limit }))
        }
        Some(start) if last.0 == BOOTSTRAP.as_bytes() => {
            Ok(Ok(Some(OwnBootstrap { bytes: read(start..end)?, toc: None })))
        }
        _ => Ok(Ok(None)),
    }
}
