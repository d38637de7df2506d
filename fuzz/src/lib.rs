//! What the fuzz targets share.
//!
//! A parser behind a checksum, a magic number or kilobytes of padding is hardly ever reached by bytes at random. So inputs
//! are mostly *changes* to something whole: [`patch`] turns an input into an image that differs from a [`seed`] in a few
//! places, [`archive`] gives tar headers the checksums that they need, [`digests`] gives a table of contents its digests.

pub mod archive;
pub mod digests;
pub mod exercise;
pub mod patch;
pub mod seed;
