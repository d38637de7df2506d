//! Extended attributes, stored behind their inode.

use zerocopy::IntoBytes;

use super::WriteError;
use crate::layout::v6::{XattrEntry, XattrHeader};
use crate::tree::Xattrs;
use crate::xattr::split;

/// The stored bytes of extended attributes: none, or a multiple of 4.
///
/// Names outside the namespaces that EROFS knows are left out: no Linux file system could show them.
pub(super) fn encode(xattrs: &Xattrs) -> Result<Vec<u8>, WriteError> {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let Some((index, suffix)) = split(name) else {
            tracing::debug!(name = %name.escape_ascii(), "extended attribute of an unknown namespace left out");
            continue;
        };
        let name = || name.escape_ascii().to_string();
        let value_size = u16::try_from(value.len())
            .map_err(|_| WriteError::LargeXattr { name: name(), size: value.len() })?;
        let name_len = u8::try_from(suffix.len()).map_err(|_| WriteError::BadName(name()))?;
        if bytes.is_empty() {
            bytes.extend_from_slice(XattrHeader::default().as_bytes());
        }
        let entry = XattrEntry { name_len, name_index: index, value_size: value_size.into() };
        bytes.extend_from_slice(entry.as_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if count(bytes.len()).is_none() {
        return Err(WriteError::LargeXattrs(bytes.len()));
    }
    Ok(bytes)
}

/// `xattr_count` for this many stored bytes.
pub(super) fn count(size: usize) -> Option<u16> {
    match size.checked_sub(size_of::<XattrHeader>()) {
        None => Some(0),
        Some(entries) => u16::try_from(entries / 4 + 1).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{XATTR_VALUE_LIMIT_BYTES, XATTRS_LIMIT_BYTES};

    #[test]
    fn messages_say_how_much_is_allowed() {
        assert_eq!((count(XATTRS_LIMIT_BYTES), count(XATTRS_LIMIT_BYTES + 4)), (Some(u16::MAX), None));
        let of = |size| Xattrs::from([(b"user.a"[..].into(), vec![1; size].into())]);
        assert!(encode(&of(XATTR_VALUE_LIMIT_BYTES)).is_ok());
        let refused = encode(&of(XATTR_VALUE_LIMIT_BYTES + 1)).unwrap_err().to_string();
        assert!(refused.ends_with("a value of 65536 bytes; at most 65535 are allowed"), "{refused}");
        assert!(WriteError::LargeXattrs(300_000).to_string().contains("at most 262148 are allowed"));
    }
}
