//! One blob on its way into an output: a layer is converted while it comes, a JSON document is kept.

use bytes::{Bytes, BytesMut};
use registry::digest::{Digest, Hasher};

use crate::build::documents::Document;
use crate::build::{Claim, Output, OutputError};
use image::layer::{Flight, LayerConversion};
use image::progress::Task;

/// Bytes by which layers and documents are told apart: where tar has its magic.
pub(crate) const SNIFF_BYTES: usize = 512;

/// Where tar has its magic.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

/// A blob that is coming.
pub(crate) struct Ingest<'a> {
    output: &'a Output,
    /// The digest as announced; the content is checked against it.
    expected: Digest,
    /// The size as announced, 0 if unknown.
    total: u64,
    received: u64,
    hasher: Hasher,
    kind: Kind,
}

enum Kind {
    /// Too little has come to tell; what was claimed before, if it is a layer.
    Unknown(BytesMut, Option<Claim>),
    Document(Document),
    Layer(LayerConversion, Option<Flight>, Task),
    /// A layer that was converted before.
    Known,
}

impl<'a> Ingest<'a> {
    /// Begins to take the blob `expected` of `total` bytes, of which `claim` says what there is if that was asked already.
    pub(crate) fn new(
        output: &'a Output,
        expected: Digest,
        total: u64,
        claim: Option<Claim>,
    ) -> Result<Self, OutputError> {
        let hasher = Hasher::like(&expected)
            .map_err(|error| OutputError::Blob { digest: expected.clone(), reason: error.to_string() })?;
        let kind = Kind::Unknown(BytesMut::new(), claim);
        Ok(Self { output, expected, total, received: 0, hasher, kind })
    }

    /// The bytes taken so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes, waiting while the conversion is behind.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), OutputError> {
        self.hasher.update(&data);
        self.received += data.len() as u64;
        if self.total > 0 && self.received > self.total {
            return Err(self.wrong(format!("has more than the announced {} bytes", self.total)));
        }
        match &mut self.kind {
            Kind::Unknown(begin, claim) => {
                begin.extend_from_slice(&data);
                if begin.len() >= SNIFF_BYTES {
                    let (begin, claim) = (begin.split(), claim.take());
                    self.decide(begin, claim).await?;
                }
                Ok(())
            }
            Kind::Document(document) => {
                let written = document.write(&data).await;
                written.map_err(|error| self.output.documents_error(&self.expected, error))
            }
            Kind::Layer(conversion, flight, task) => {
                task.advance(data.len() as u64);
                let written = conversion.write(data).await;
                written.map_err(|error| self.output.layer_error(&self.expected, error))?;
                flight.iter().for_each(Flight::progress);
                Ok(())
            }
            Kind::Known => Ok(()),
        }
    }

    /// Decides what the blob is by its first bytes.
    async fn decide(&mut self, begin: BytesMut, claim: Option<Claim>) -> Result<(), OutputError> {
        if is_document(&begin) {
            let mut document = self.output.begin_document();
            let written = document.write(&begin).await;
            written.map_err(|error| self.output.documents_error(&self.expected, error))?;
            self.kind = Kind::Document(document);
            return Ok(());
        }
        let claim = match claim {
            Some(claim) => claim,
            None => self.output.claim(&self.expected).await?,
        };
        let Claim::Absent(flight) = claim else {
            self.kind = Kind::Known;
            return Ok(());
        };
        let mut conversion = self.output.convert(&self.expected).await?;
        let task = self.output.task(format!("converting {}", short(&self.expected)), self.total);
        task.advance(begin.len() as u64);
        let written = conversion.write(begin.freeze()).await;
        written.map_err(|error| self.output.layer_error(&self.expected, error))?;
        self.kind = Kind::Layer(conversion, flight, task);
        Ok(())
    }

    /// The blob is complete: checks it, and waits until what is made of it is where it belongs.
    pub(crate) async fn commit(mut self) -> Result<Digest, OutputError> {
        if self.total > 0 && self.received != self.total {
            return Err(self.wrong(format!("ended after {} of {} bytes", self.received, self.total)));
        }
        let found = self.hasher.clone().finish();
        if found != self.expected {
            return Err(self.wrong(format!("has digest {found}")));
        }
        if let Kind::Unknown(begin, claim) = &mut self.kind {
            let (begin, claim) = (begin.split(), claim.take());
            self.decide(begin, claim).await?;
        }
        match self.kind {
            Kind::Unknown(..) | Kind::Known => {}
            Kind::Document(document) => self.output.add_document(&self.expected, document).await?,
            Kind::Layer(conversion, flight, task) => {
                let layer = conversion.finish().await;
                match layer {
                    Ok(layer) => self.output.add_layer(&self.expected, layer, flight).await?,
                    Err(error) => {
                        let error = self.output.layer_error(&self.expected, error);
                        task.fail(&error.to_string());
                        return Err(error);
                    }
                }
                task.finish();
            }
        }
        Ok(found)
    }

    fn wrong(&self, reason: String) -> OutputError {
        OutputError::Blob { digest: self.expected.clone(), reason }
    }
}

/// Whether a blob that begins so is JSON; layers are tar, gzip or zstd.
pub(crate) fn is_document(begin: &[u8]) -> bool {
    let first = begin.iter().find(|byte| !byte.is_ascii_whitespace());
    first == Some(&b'{') && !is_tar(begin)
}

/// Whether a blob that begins so is an uncompressed tar.
pub(crate) fn is_tar(begin: &[u8]) -> bool {
    begin.get(TAR_MAGIC).is_some_and(|magic| magic == b"ustar")
}

/// A digest as short as people compare them.
pub(crate) fn short(digest: &Digest) -> String {
    digest.as_ref().chars().take("sha256:".len() + 12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_a_tar_whose_first_name_looks_like_it() {
        assert!(is_document(b"{}"));
        assert!(is_document(b"\n  {\"schemaVersion\": 2}"));
        let mut tar = vec![0; 512];
        tar[..5].copy_from_slice(b"{name");
        tar[TAR_MAGIC].copy_from_slice(b"ustar");
        assert!(!is_document(&tar));
        assert!(
            !is_document(&[0x1f, 0x8b, 8]) && !is_document(&[0x28, 0xb5, 0x2f, 0xfd]) && !is_document(b"")
        );
    }
}
