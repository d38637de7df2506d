//! Orders and blobs as messages have them: what a worker needs of them. It needs no digests of chunks, since it verifies
//! nothing, and not to know where in the cache a chunk goes.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rafs::blob::{BatchMember, Blob, Chunk, ChunkIndex, MetaLocation};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};
use serde::{Deserialize, Serialize};

use crate::cache::Generation;
use crate::control::BlobId;
use crate::front::{BackendName, Extent, Order};

/// An [`Order`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderShape {
    blob: BlobId,
    generation: u64,
    coding: BlobShape,
    extents: Vec<ExtentShape>,
    demanded: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
    /// How long it may take: clocks are each process's own.
    milliseconds: u64,
}

/// An [`Extent`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct ExtentShape {
    start: u64,
    bytes: u32,
    compressed: bool,
    /// The batch that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch: Option<u32>,
    /// Of each chunk its index, its uncompressed size, and where it starts in the batch, if it is one.
    chunks: Vec<(u32, u32, u32)>,
}

/// A [`Blob`] without its chunks.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlobShape {
    id: Option<BlobId>,
    compressor: CompressorShape,
    chunk_size: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    info: Option<InfoShape>,
}

/// What is needed to read chunk information.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct InfoShape {
    compressed_size: u64,
    uncompressed_size: u64,
    features: u32,
    offset: u64,
    stored_bytes: u64,
    bytes: u64,
    compressor: CompressorShape,
    toc: Option<(BlobId, u32)>,
}

/// A [`Compressor`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CompressorShape {
    None,
    Lz4,
    Zstd(i32),
}

impl OrderShape {
    pub(super) fn new(order: &Order) -> Self {
        let left = order.until.saturating_duration_since(Instant::now());
        Self {
            blob: order.blob,
            generation: order.generation.0,
            coding: BlobShape::coding(&order.coding),
            extents: order.extents.iter().map(ExtentShape::new).collect(),
            demanded: order.demanded.iter().map(|chunk| chunk.0).collect(),
            refused: order.refused.iter().map(ToString::to_string).collect(),
            milliseconds: left.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    pub(super) fn order(self) -> Order {
        Order {
            blob: self.blob,
            generation: Generation(self.generation),
            coding: Arc::new(self.coding.blob()),
            extents: self.extents.into_iter().map(ExtentShape::extent).collect(),
            demanded: self.demanded.into_iter().map(ChunkIndex).collect(),
            refused: self.refused.into_iter().map(BackendName::from).collect(),
            until: after(self.milliseconds),
        }
    }
}

/// The moment when so much time is over; a day from now at most.
pub(super) fn after(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds.min(86_400_000))
}

impl ExtentShape {
    fn new(extent: &Extent) -> Self {
        let first = extent.chunks.first().map(|(_, chunk)| chunk);
        let chunk = |(index, chunk): &(ChunkIndex, Chunk)| {
            (index.0, chunk.uncompressed_size, chunk.batch.map_or(0, |member| member.offset))
        };
        let Range { start, end } = extent.stored;
        Self {
            start,
            bytes: u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX),
            compressed: first.is_some_and(|chunk| chunk.compressed),
            batch: first.and_then(|chunk| chunk.batch).map(|member| member.index),
            chunks: extent.chunks.iter().map(chunk).collect(),
        }
    }

    fn extent(self) -> Extent {
        let chunk = |(index, uncompressed_size, offset)| {
            let chunk = Chunk {
                digest: Digest([0; 32]),
                compressed_offset: self.start,
                compressed_size: self.bytes,
                uncompressed_offset: 0,
                uncompressed_size,
                compressed: self.compressed,
                batch: self.batch.map(|index| BatchMember { index, offset }),
            };
            (ChunkIndex(index), chunk)
        };
        Extent {
            stored: self.start..self.start.saturating_add(self.bytes.into()),
            chunks: self.chunks.into_iter().map(chunk).collect(),
        }
    }
}

impl BlobShape {
    /// As much as decoding needs.
    fn coding(blob: &Blob) -> Self {
        Self {
            id: blob.id.map(BlobId),
            compressor: blob.compressor.into(),
            chunk_size: blob.chunk_size,
            info: None,
        }
    }

    /// As much as reading chunk information needs.
    pub(super) fn with_info(blob: &Blob) -> Self {
        let info = blob.meta.map(|meta| InfoShape {
            compressed_size: blob.compressed_size,
            uncompressed_size: blob.uncompressed_size,
            features: blob.features,
            offset: meta.offset,
            stored_bytes: meta.compressed_size,
            bytes: meta.uncompressed_size,
            compressor: meta.compressor.into(),
            toc: blob.toc.map(|(digest, size)| (BlobId(digest), size)),
        });
        Self { info, ..Self::coding(blob) }
    }

    pub(super) fn blob(self) -> Blob {
        let info = self.info;
        let of = |value: fn(&InfoShape) -> u64| info.as_ref().map_or(0, value);
        Blob {
            id: self.id.map(|id| id.0),
            stored_size: 0,
            compressed_size: of(|info| info.compressed_size),
            uncompressed_size: of(|info| info.uncompressed_size),
            chunk_size: self.chunk_size,
            compressor: self.compressor.into(),
            // Nothing is verified by it.
            digester: DigestAlgorithm::Sha256,
            features: info.as_ref().map_or(0, |info| info.features),
            meta: info.as_ref().map(|info| MetaLocation {
                offset: info.offset,
                compressed_size: info.stored_bytes,
                uncompressed_size: info.bytes,
                compressor: info.compressor.into(),
            }),
            toc: info.and_then(|info| info.toc).map(|(digest, size)| (digest.0, size)),
            chunks: Vec::new(),
        }
    }
}

impl From<Compressor> for CompressorShape {
    fn from(compressor: Compressor) -> Self {
        match compressor {
            Compressor::None => Self::None,
            Compressor::Lz4 => Self::Lz4,
            Compressor::Zstd { level } => Self::Zstd(level),
        }
    }
}

impl From<CompressorShape> for Compressor {
    fn from(shape: CompressorShape) -> Self {
        match shape {
            CompressorShape::None => Self::None,
            CompressorShape::Lz4 => Self::Lz4,
            CompressorShape::Zstd(level) => Self::Zstd { level },
        }
    }
}
