//! A path that differs between two images.

use std::fmt;

use crate::layout::v6::FileType;
use crate::tree::{DeviceNumber, Time};

/// Values of extended attributes and targets of links are shown up to this many bytes.
const SHOWN_BYTES: usize = 100;

/// A path at which the images differ.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Names from the root with a `/` before each; empty for the root.
    pub path: Vec<u8>,
    /// What happened to it.
    pub what: ChangeKind,
}

impl Change {
    /// The path for messages: what is not printable ASCII is escaped.
    pub fn shown(&self) -> String {
        if self.path.is_empty() { "/".to_owned() } else { self.path.escape_ascii().to_string() }
    }
}

/// How a path differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ChangeKind {
    /// The first image does not have it.
    Added(Side),
    /// The second image does not have it.
    Removed(Side),
    /// Both have it, and these are the differences, at least one.
    Changed(Vec<Difference>),
}

/// A file that only one image has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Side {
    /// Its type.
    pub kind: FileType,
    /// Size in bytes of its content; 0 for another name of a file that was met, and for what is no regular file.
    pub bytes: u64,
}

/// One thing that differs at a path: its value in the first image and in the second.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Difference {
    /// The type.
    Type(FileType, FileType),
    /// The permission bits with set-uid, set-gid and sticky.
    Mode(u16, u16),
    /// Owner and group.
    Owner((u32, u32), (u32, u32)),
    /// The time of the last modification.
    Time(Time, Time),
    /// An extended attribute: its name, and its values where there are.
    Xattr(Box<[u8]>, Option<Box<[u8]>>, Option<Box<[u8]>>),
    /// The target of a symbolic link.
    Target(Box<[u8]>, Box<[u8]>),
    /// The number of a device.
    Device(DeviceNumber, DeviceNumber),
    /// The size of a regular file in bytes.
    Size(u64, u64),
    /// The content of a regular file.
    Content {
        /// Where the first chunk that differs begins, in bytes; `None` where that is not known.
        offset: Option<u64>,
        /// Bytes of the second image's file in chunks that the first image's file does not have.
        bytes: u64,
    },
    /// The path that is met first of those that name the same file and that both images have.
    HardLink(Box<[u8]>, Box<[u8]>),
}

impl Difference {
    /// Whether it is about what the file holds, not about what is known of it.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Type(..) | Self::Target(..) | Self::Device(..) | Self::Size(..) | Self::Content { .. }
        )
    }

    /// What differs, in one or two words.
    pub fn name(&self) -> String {
        match self {
            Self::Type(..) => "type".to_owned(),
            Self::Mode(..) => "mode".to_owned(),
            Self::Owner(..) => "owner".to_owned(),
            Self::Time(..) => "mtime".to_owned(),
            Self::Xattr(name, ..) => format!("xattr {}", name.escape_ascii()),
            Self::Target(..) => "link target".to_owned(),
            Self::Device(..) => "device".to_owned(),
            Self::Size(..) => "size".to_owned(),
            Self::Content { offset: Some(offset), .. } => format!("content from byte {offset} on"),
            Self::Content { offset: None, .. } => "content".to_owned(),
            Self::HardLink(..) => "hard link".to_owned(),
        }
    }

    /// Both values as text; `None` for content, which is too much to show.
    pub fn values(&self) -> Option<(String, String)> {
        let pair = match self {
            Self::Type(a, b) => (a.to_string(), b.to_string()),
            Self::Mode(a, b) => (format!("{a:04o}"), format!("{b:04o}")),
            Self::Owner(a, b) => (format!("{}:{}", a.0, a.1), format!("{}:{}", b.0, b.1)),
            Self::Time(a, b) => (time(*a), time(*b)),
            Self::Xattr(_, a, b) => (value(a.as_deref()), value(b.as_deref())),
            Self::Target(a, b) => (value(Some(a)), value(Some(b))),
            Self::Device(a, b) => (format!("{}:{}", a.major, a.minor), format!("{}:{}", b.major, b.minor)),
            Self::Size(a, b) => (a.to_string(), b.to_string()),
            Self::HardLink(a, b) => (value(Some(a)), value(Some(b))),
            Self::Content { .. } => return None,
        };
        Some(pair)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match self.values() {
            Some((a, b)) => write!(f, " {a} -> {b}"),
            None => Ok(()),
        }
    }
}

/// Seconds and nanoseconds as a decimal number.
fn time(time: Time) -> String {
    format!("{}.{:09}", time.seconds, time.nanoseconds)
}

fn value(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "(none)".to_owned(),
        Some(bytes) if bytes.len() <= SHOWN_BYTES => format!("\"{}\"", bytes.escape_ascii()),
        Some(bytes) => {
            format!("\"{}\"... ({} bytes)", bytes[..SHOWN_BYTES].escape_ascii(), bytes.len())
        }
    }
}
