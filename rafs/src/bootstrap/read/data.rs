//! The bytes of a bootstrap, with every access checked.

use std::ops::Deref;
use std::path::PathBuf;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{At, ReadError};
use crate::sys::Map;

/// Bytes of a bootstrap.
#[derive(Debug)]
pub(super) enum Data {
    /// A file that is mapped, and where it is.
    Mapped(Map, PathBuf),
    Owned(Vec<u8>),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map, _) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Data {
    pub(super) fn len(&self) -> u64 {
        self.deref().len() as u64
    }

    /// Fails if some of the bytes could not be read, since they were opened.
    pub(super) fn sound(&self) -> Result<(), ReadError> {
        match self {
            Self::Mapped(map, path) if map.is_damaged() => Err(ReadError::Damaged { path: path.clone() }),
            _ => Ok(()),
        }
    }

    /// Lets go of what is mapped and was read; it can be read again.
    pub(super) fn let_go(&self) {
        if let Self::Mapped(map, _) = self {
            map.let_go();
        }
    }

    /// `len` bytes at `offset`.
    pub(super) fn bytes(&self, what: &'static str, offset: u64, len: u64) -> Result<&[u8], ReadError> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        let found = range.and_then(|(offset, len)| self.get(offset..offset.checked_add(len)?));
        found.ok_or(ReadError::OutOfBounds { what, offset, len, size: self.len() })
    }

    /// The struct at `offset`.
    pub(super) fn view<T>(&self, what: &'static str, offset: u64) -> Result<&T, ReadError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        let bytes = self.bytes(what, offset, size_of::<T>() as u64)?;
        Ok(T::ref_from_bytes(bytes).expect("the size is right and any alignment will do"))
    }

    /// As many structs as `len` bytes at `offset` hold.
    pub(super) fn table<T>(&self, what: &'static str, offset: u64, len: u64) -> Result<&[T], ReadError>
    where
        T: FromBytes + Immutable + Unaligned,
    {
        let bytes = self.bytes(what, offset, len)?;
        let expected = "a whole number of entries";
        <[T]>::ref_from_bytes(bytes).map_err(|_| ReadError::corrupt(what, At::Byte(offset), expected))
    }
}
