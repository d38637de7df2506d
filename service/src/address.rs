//! Addresses, written the same way for every role, on the command line and in the configuration.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no address, or not one of the kind that is needed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no address to use here: expected {expected}")]
pub struct InvalidAddress {
    text: String,
    expected: &'static str,
}

const UNIX: &str = "unix:///PATH or an absolute path";
const TCP: &str = "ADDRESS:PORT with a numeric address, such as 127.0.0.1:5000, or the same after tcp://";
const EITHER: &str = "unix:///PATH, an absolute path, or [tcp://]ADDRESS:PORT";

/// Where something listens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum SocketAddress {
    /// A local socket: `unix:///run/a.sock` or `/run/a.sock`.
    Unix(UnixAddress),
    /// A TCP port: `127.0.0.1:5000` or `tcp://127.0.0.1:5000`.
    Tcp(TcpAddress),
}

/// The absolute path of a local socket.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnixAddress(PathBuf);

/// A TCP address and port.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TcpAddress(pub SocketAddr);

impl UnixAddress {
    /// An address that the program itself knows.
    ///
    /// # Panics
    ///
    /// The path is not absolute, which is a mistake where this is called.
    pub fn fixed(path: &'static str) -> Self {
        assert!(path.starts_with('/'), "{path} is not absolute");
        Self(PathBuf::from(path))
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for UnixAddress {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl FromStr for SocketAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress { text: text.to_owned(), expected: EITHER };
        // A path may hold "://" as well, but does not begin with a word before it.
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if !scheme.starts_with('/') => (Some(scheme), rest),
            _ => (None, text),
        };
        match scheme {
            Some("unix") | None if rest.starts_with('/') => Ok(Self::Unix(UnixAddress(PathBuf::from(rest)))),
            Some("tcp") | None => {
                rest.parse().map(|address| Self::Tcp(TcpAddress(address))).map_err(|_| invalid())
            }
            Some(_) => Err(invalid()),
        }
    }
}

impl FromStr for UnixAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(SocketAddress::Unix(address)) => Ok(address),
            _ => Err(InvalidAddress { text: text.to_owned(), expected: UNIX }),
        }
    }
}

impl FromStr for TcpAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(SocketAddress::Tcp(address)) => Ok(address),
            _ => Err(InvalidAddress { text: text.to_owned(), expected: TCP }),
        }
    }
}

impl TryFrom<PathBuf> for UnixAddress {
    type Error = InvalidAddress;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        if path.is_absolute() {
            return Ok(Self(path));
        }
        Err(InvalidAddress { text: path.display().to_string(), expected: UNIX })
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(address) => address.fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// As text in the configuration.
macro_rules! as_text {
    ($($address:ty),*) => {$(
        impl TryFrom<String> for $address {
            type Error = InvalidAddress;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$address> for String {
            fn from(address: $address) -> Self {
                address.to_string()
            }
        }
    )*};
}
as_text!(SocketAddress, UnixAddress, TcpAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_socket_is_an_absolute_path_with_or_without_scheme() {
        for text in ["unix:///run/a.sock", "/run/a.sock"] {
            let address: UnixAddress = text.parse().unwrap();
            assert_eq!(address.path(), Path::new("/run/a.sock"));
            assert_eq!(address.to_string(), "unix:///run/a.sock");
        }
        assert_eq!("/run/a://b".parse::<UnixAddress>().unwrap().path(), Path::new("/run/a://b"));
        for text in [
            "",
            "foo",
            "unix://",
            "unix://run/a",
            "unix:/run/a",
            "./a.sock",
            "tcp://127.0.0.1:1",
            "http:///a",
        ] {
            let error = text.parse::<UnixAddress>().unwrap_err().to_string();
            assert!(error.contains("expected unix:///PATH or an absolute path"), "{text}: {error}");
        }
        assert!(UnixAddress::try_from(PathBuf::from("a.sock")).is_err());
    }

    #[test]
    fn a_port_has_a_numeric_address_with_or_without_scheme() {
        for text in ["127.0.0.1:5000", "tcp://127.0.0.1:5000"] {
            let address: TcpAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), "127.0.0.1:5000");
        }
        assert_eq!("[::1]:80".parse::<TcpAddress>().unwrap().to_string(), "[::1]:80");
        for text in ["", "localhost:5000", "5000", ":5000", "unix://127.0.0.1:5000", "/run/a.sock"] {
            assert!(text.parse::<TcpAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_configuration_writes_them_as_text() {
        let address: SocketAddress = serde_json::from_str(r#""/run/a.sock""#).unwrap();
        assert_eq!(serde_json::to_string(&address).unwrap(), r#""unix:///run/a.sock""#);
        let error = serde_json::from_str::<SocketAddress>(r#""a.sock""#).unwrap_err().to_string();
        assert!(error.contains("\"a.sock\" is no address"), "{error}");
    }
}
