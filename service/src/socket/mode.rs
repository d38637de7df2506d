//! Permissions, written in octal.

use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Permissions of a file: `0660`. By default the owner's alone, `0600`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u32);

/// A text that is no permissions.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} are no permissions: expected three octal digits, such as 0660")]
pub struct InvalidMode(String);

impl Mode {
    /// Nobody but the owner.
    pub const OWNER: Self = Self(0o600);

    pub(super) fn permissions(self) -> Permissions {
        Permissions::from_mode(self.0)
    }

    pub(super) fn bits(self) -> nix::sys::stat::Mode {
        nix::sys::stat::Mode::from_bits_truncate(self.0)
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::OWNER
    }
}

impl FromStr for Mode {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777 && octal(text));
        bits.map(Self).ok_or_else(|| InvalidMode(text.to_owned()))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl TryFrom<String> for Mode {
    type Error = InvalidMode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal() {
        assert_eq!("0660".parse::<Mode>().unwrap().to_string(), "0660");
        assert_eq!("600".parse::<Mode>().unwrap(), Mode::OWNER);
        for text in ["", "0680", "rw", "1777", "+600", "0o600"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }
}
