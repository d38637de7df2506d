//! One blob on its way into an output: a layer is converted, and stored as it is where that is asked for, while it comes; a JSON
//! document is kept.

use bytes::{Bytes, BytesMut};
use registry::digest::{Digest, Hasher};

use super::documents::Document;
use super::{Claim, Output, OutputError};
use image::destination::BlobWriter;
use image::layer::{Flight, LayerConversion};
use image::progress::{Task, short};

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
    kind: IngestKind,
}

enum IngestKind {
    /// Too little has come to tell; what was claimed before, if it is a layer.
    Unknown(BytesMut, Option<Claim>),
    Document(Document),
    Layer(Box<Making>),
    /// A layer of which all that is to be made is there.
    Known,
}

/// A layer on its way to what is made of it.
struct Making {
    /// What converts it, unless it is converted.
    conversion: Option<(LayerConversion, Option<Flight>)>,
    /// Where it is stored as it is, if that is asked for.
    plain: Option<Box<dyn BlobWriter>>,
    task: Task,
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
        let kind = IngestKind::Unknown(BytesMut::new(), claim);
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
            IngestKind::Unknown(begin, claim) => {
                begin.extend_from_slice(&data);
                if begin.len() >= SNIFF_BYTES {
                    let (begin, claim) = (begin.split(), claim.take());
                    self.decide(begin, claim).await?;
                }
                Ok(())
            }
            IngestKind::Document(document) => {
                let written = document.write(&data).await;
                written.map_err(|error| self.output.documents_error(&self.expected, error))
            }
            IngestKind::Layer(making) => making.write(self.output, &self.expected, data).await,
            IngestKind::Known => Ok(()),
        }
    }

    /// Decides what the blob is by its first bytes.
    async fn decide(&mut self, begin: BytesMut, claim: Option<Claim>) -> Result<(), OutputError> {
        if is_document(&begin) {
            let mut document = self.output.begin_document();
            let written = document.write(&begin).await;
            written.map_err(|error| self.output.documents_error(&self.expected, error))?;
            self.kind = IngestKind::Document(document);
            return Ok(());
        }
        let claim = match claim {
            Some(claim) => claim,
            None => match self.output.claim(&self.expected).await? {
                Claim::Absent(_) if self.output.leaves(&self.expected, self.total).await? => Claim::Here,
                claim => claim,
            },
        };
        let (conversion, doing) = match claim {
            Claim::Here => {
                self.kind = IngestKind::Known;
                return Ok(());
            }
            Claim::Converted => (None, "pushing"),
            Claim::Absent(flight) => {
                (Some((self.output.convert(&self.expected).await?, flight)), "converting")
            }
        };
        let plain = self.output.begin_plain(&self.expected).await?;
        let task = self.output.task(format!("{doing} {}", short(&self.expected)), self.total);
        let mut making = Box::new(Making { conversion, plain, task });
        making.write(self.output, &self.expected, begin.freeze()).await?;
        self.kind = IngestKind::Layer(making);
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
        if let IngestKind::Unknown(begin, claim) = &mut self.kind {
            let (begin, claim) = (begin.split(), claim.take());
            self.decide(begin, claim).await?;
        }
        match self.kind {
            IngestKind::Unknown(..) | IngestKind::Known => {}
            IngestKind::Document(document) => self.output.add_document(&self.expected, document).await?,
            IngestKind::Layer(making) => making.finish(self.output, &self.expected).await?,
        }
        Ok(found)
    }

    fn wrong(&self, reason: String) -> OutputError {
        OutputError::Blob { digest: self.expected.clone(), reason }
    }
}

impl Making {
    /// Takes the next bytes of the layer `digest`.
    async fn write(&mut self, output: &Output, digest: &Digest, data: Bytes) -> Result<(), OutputError> {
        self.task.advance(data.len() as u64);
        if let Some((conversion, flight)) = &mut self.conversion {
            let written = conversion.write(data.clone()).await;
            written.map_err(|error| output.layer_error(digest, error))?;
            flight.iter().for_each(Flight::progress);
        }
        if let Some(plain) = &mut self.plain {
            let written = plain.write(data).await;
            written.map_err(|error| output.push_error(format!("layer {digest}"), error))?;
        }
        Ok(())
    }

    /// All of it has been written, and has the digest `digest`: waits until what is made of it is where it belongs.
    async fn finish(self, output: &Output, digest: &Digest) -> Result<(), OutputError> {
        let Self { conversion, plain, task } = self;
        let converted = async {
            let Some((conversion, flight)) = conversion else { return Ok(()) };
            let layer = conversion.finish().await.map_err(|error| output.layer_error(digest, error))?;
            output.add_layer(digest, layer, flight).await
        };
        let stored = async {
            let Some(plain) = plain else { return Ok(()) };
            output.add_plain(digest, plain).await
        };
        match tokio::try_join!(converted, stored) {
            Ok(_) => {
                task.finish();
                Ok(())
            }
            Err(error) => {
                task.fail(&error.to_string());
                Err(error)
            }
        }
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
