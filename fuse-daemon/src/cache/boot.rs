//! Which boot of the machine this is.

use std::io;

/// Identifies one boot of the machine. What a process wrote stays in the page cache for the rest of the boot even if
/// the process is killed; across boots nothing is certain that was not synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The boot that is running.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or holds something else than a UUID.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.trim().chars().filter(|&digit| digit != '-').collect();
        let mut id = [0; 16];
        hex::decode_to_slice(&digits, &mut id).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("boot id {text:?} is no UUID: {error}"))
        })?;
        Ok(Self(id))
    }
}
