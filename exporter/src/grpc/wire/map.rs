//! Fields of type `map<string, string>`: repeated messages of key (1) and value (2).

use std::collections::BTreeMap;

use super::field::{self, put_bytes};
use super::{Fields, WireError};

const KEY: u64 = 1;
const VALUE: u64 = 2;

/// Key and value of one entry.
pub(crate) fn entry(message: &[u8]) -> Result<(String, String), WireError> {
    Ok((field::string(message, KEY)?, field::string(message, VALUE)?))
}

/// All entries of map field `number`.
pub(crate) fn entries(message: &[u8], number: u64) -> Result<BTreeMap<String, String>, WireError> {
    let mut map = BTreeMap::new();
    for field in Fields::of(message) {
        let field = field?;
        if let (true, Some(bytes)) = (field.number == number, field.bytes()) {
            let (key, value) = entry(bytes)?;
            map.insert(key, value);
        }
    }
    Ok(map)
}

/// Appends one entry of map field `number`.
pub(crate) fn put_entry(number: u64, key: &str, value: &str, out: &mut Vec<u8>) {
    let mut message = Vec::with_capacity(key.len() + value.len() + 8);
    put_bytes(KEY, key.as_bytes(), &mut message);
    put_bytes(VALUE, value.as_bytes(), &mut message);
    put_bytes(number, &message, out);
}

/// `message` with entry `key` of map field `number` set to `value`, all else as it was.
pub(crate) fn set_entry(message: &[u8], number: u64, key: &str, value: &str) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::with_capacity(message.len() + key.len() + value.len() + 16);
    for field in Fields::of(message) {
        let field = field?;
        let same = match field.bytes() {
            Some(bytes) if field.number == number => entry(bytes)?.0 == key,
            _ => false,
        };
        if !same {
            out.extend_from_slice(field.raw);
        }
    }
    put_entry(number, key, value, &mut out);
    Ok(out)
}
