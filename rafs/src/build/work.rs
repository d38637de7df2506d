//! Workers: digest and compress what is in a unit.

use super::BuildError;
use super::dictionary::Dictionary;
use super::options::BuildOptions;
use super::seen::Seen;
use super::unit::{Fate, Piece, Unit, offset};
use crate::compress::Encoder;
use crate::digest::DigestAlgorithm;

/// From this size in bytes on, what does not shrink is written from where it is; below, it is cheaper to copy it to the
/// packed bytes, which are then written in one go.
const WRITE_IN_PLACE: u32 = 64 << 10;

/// One worker, with the memory that its compressor needs.
pub(super) struct Worker<'a> {
    encoder: Encoder,
    digester: DigestAlgorithm,
    dictionary: Option<&'a Dictionary>,
    seen: &'a Seen,
}

impl<'a> Worker<'a> {
    pub(super) fn new(options: &'a BuildOptions, seen: &'a Seen) -> Result<Self, BuildError> {
        Ok(Self {
            encoder: Encoder::new(options.compressor)?,
            digester: options.digester,
            dictionary: options.dictionary.as_deref(),
            seen,
        })
    }

    /// Decides the fate of every piece of a unit, and packs what is to be stored.
    pub(super) fn process(&mut self, unit: &mut Unit) -> Result<(), BuildError> {
        if unit.batch {
            let Unit { content, used, packed, packed_used, .. } = unit;
            *packed_used = self.encoder.compress(&content[..*used], packed)?;
            return Ok(());
        }
        let Unit { content, pieces, packed, packed_used, .. } = unit;
        for piece in pieces {
            let content = &content[piece.start as usize..][..piece.length as usize];
            piece.digest = self.digester.digest(content);
            piece.fate = match self.known(piece) {
                Some(fate) => fate,
                None => self.pack(content, packed, packed_used)?,
            };
        }
        Ok(())
    }

    fn known(&self, piece: &Piece) -> Option<Fate> {
        if let Some(found) =
            self.dictionary.and_then(|dictionary| dictionary.find(&piece.digest, piece.length))
        {
            return Some(Fate::InDictionary(found));
        }
        self.seen.claim(piece.digest, piece.number).map(Fate::SameAs)
    }

    fn pack(&mut self, content: &[u8], packed: &mut [u8], used: &mut usize) -> Result<Fate, BuildError> {
        // Stored pieces take at most their own size, so what is left of `packed` always holds the bound of the next.
        let out = &mut packed[*used..];
        let start = offset(*used);
        let (length, compressed) = match self.encoder.shrink(content, out)? {
            Some(length) => (length, true),
            None if offset(content.len()) >= WRITE_IN_PLACE => return Ok(Fate::Raw),
            None => {
                out[..content.len()].copy_from_slice(content);
                (content.len(), false)
            }
        };
        *used += length;
        Ok(Fate::Packed { start, length: offset(length), compressed })
    }
}
