//! Walking over the fields of a message, and writing single ones.

use super::{WireError, varint};

/// Wire types, the low three bits of a tag.
mod wire_type {
    pub(super) const VARINT: u64 = 0;
    pub(super) const FIXED64: u64 = 1;
    pub(super) const LENGTH_DELIMITED: u64 = 2;
    pub(super) const FIXED32: u64 = 5;
}

/// One field as it stands in a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Field<'a> {
    /// The field's number.
    pub(crate) number: u64,
    /// Tag and value, as they are.
    pub(crate) raw: &'a [u8],
    /// The value.
    pub(crate) value: Value<'a>,
}

/// A field's value, as far as the wire tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Value<'a> {
    /// An integer, boolean or enumeration.
    Varint(u64),
    /// A string, byte string or message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which nothing here looks into.
    Fixed,
}

impl<'a> Field<'a> {
    /// The content of a string, byte string or message; `None` for numbers.
    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// The fields of a message, in order.
pub(crate) struct Fields<'a> {
    message: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    /// The fields of `message`.
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self { message, offset: 0 }
    }

    fn error(&self, offset: usize, reason: &'static str) -> WireError {
        WireError { offset, length: self.message.len(), reason }
    }

    fn varint(&self, offset: usize) -> Result<(u64, usize), WireError> {
        let rest = self.message.get(offset..).unwrap_or_default();
        let (value, length) =
            varint::decode(rest).ok_or_else(|| self.error(offset, "expected a whole varint of 64 bits"))?;
        Ok((value, offset + length))
    }

    /// The end of the `length` bytes from `offset`, if the message has as many.
    fn end_of(&self, offset: usize, length: u64) -> Result<usize, WireError> {
        usize::try_from(length)
            .ok()
            .and_then(|length| offset.checked_add(length))
            .filter(|&end| end <= self.message.len())
            .ok_or_else(|| self.error(offset, "a field is longer than what is left of the message"))
    }

    fn parse(&self) -> Result<(Field<'a>, usize), WireError> {
        let start = self.offset;
        let (tag, offset) = self.varint(start)?;
        let (value, end) = match tag & 7 {
            wire_type::VARINT => {
                let (value, end) = self.varint(offset)?;
                (Value::Varint(value), end)
            }
            wire_type::FIXED64 => (Value::Fixed, self.end_of(offset, 8)?),
            wire_type::FIXED32 => (Value::Fixed, self.end_of(offset, 4)?),
            wire_type::LENGTH_DELIMITED => {
                let (length, offset) = self.varint(offset)?;
                let end = self.end_of(offset, length)?;
                (Value::Bytes(&self.message[offset..end]), end)
            }
            _ => return Err(self.error(start, "unknown wire type (expected 0, 1, 2 or 5)")),
        };
        Ok((Field { number: tag >> 3, raw: &self.message[start..end], value }, end))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.message.len() {
            return None;
        }
        match self.parse() {
            Ok((field, end)) => {
                self.offset = end;
                Some(Ok(field))
            }
            Err(error) => {
                self.offset = self.message.len();
                Some(Err(error))
            }
        }
    }
}

/// Appends a string, byte string or message field.
pub(crate) fn put_bytes(number: u64, value: &[u8], out: &mut Vec<u8>) {
    varint::encode(number << 3 | wire_type::LENGTH_DELIMITED, out);
    varint::encode(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// The string of field `number`; absence is the empty string, protobuf's default.
pub(crate) fn string(message: &[u8], number: u64) -> Result<String, WireError> {
    let mut found = String::new();
    for field in Fields::of(message) {
        let field = field?;
        if let (true, Some(bytes)) = (field.number == number, field.bytes()) {
            // A scalar field may be repeated on the wire: the last one counts.
            found = String::from_utf8_lossy(bytes).into_owned();
        }
    }
    Ok(found)
}
