//! A blob on its way while it is written: a small one is held back, so that it need not be sent where it is already.

use bytes::Bytes;
use registry::digest::Digest;
use tokio::sync::mpsc;

use crate::destination::{BlobWriter, Destination, StoreError};

/// As much is held back: the bootstrap of some 50,000 files.
const HELD_BYTES: usize = 4 << 20;

/// The begin of a blob.
#[derive(Default)]
pub(super) struct Held {
    pieces: Vec<Bytes>,
    bytes: usize,
}

/// A blob of which all is written.
pub(super) enum Sent {
    /// It is small, and all of it is here.
    Nothing(Held),
    /// It is on its way.
    Partly(Box<dyn BlobWriter>),
}

impl Held {
    /// Adds a piece; whether that is more than is held back.
    pub(super) fn push(&mut self, piece: Bytes) -> bool {
        self.bytes += piece.len();
        self.pieces.push(piece);
        self.bytes > HELD_BYTES
    }

    /// Sends what is here, and all that comes.
    pub(super) async fn send(
        self,
        rest: &mut mpsc::Receiver<Bytes>,
        destination: &dyn Destination,
    ) -> Result<Box<dyn BlobWriter>, StoreError> {
        let mut writer = self.begin(destination).await?;
        while let Some(piece) = rest.recv().await {
            writer.write(piece).await?;
        }
        Ok(writer)
    }

    async fn begin(self, destination: &dyn Destination) -> Result<Box<dyn BlobWriter>, StoreError> {
        let mut writer = destination.begin().await?;
        for piece in self.pieces {
            writer.write(piece).await?;
        }
        Ok(writer)
    }
}

impl Sent {
    /// Has the blob stored under its digest, and returns its size in bytes.
    pub(super) async fn finish(
        self,
        digest: &Digest,
        destination: &dyn Destination,
    ) -> Result<u64, StoreError> {
        match self {
            Self::Partly(writer) => writer.finish(digest).await,
            Self::Nothing(held) if destination.has_blob(digest).await? => Ok(held.bytes as u64),
            Self::Nothing(held) => held.begin(destination).await?.finish(digest).await,
        }
    }

    /// Gives the blob up.
    pub(super) async fn cancel(self) {
        if let Self::Partly(writer) = self {
            writer.cancel().await;
        }
    }
}
