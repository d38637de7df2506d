//! What kernel and daemon agreed on when a file system was mounted (FUSE_INIT), for a daemon that takes it over.
//!
//! The kernel says it once. `fuser` wants to hear it at the start of every session, so one that takes over a descriptor is
//! told again, by us: see [`StandIn`](super::stand_in::StandIn).

use fuser::{InitFlags, KernelConfig, Version};
use serde::{Deserialize, Serialize};

/// What the kernel offered.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Negotiated {
    /// Minor version of the protocol; the major one is 7.
    pub minor: u32,
    /// `FUSE_*` flags that the kernel offered.
    pub flags: u64,
    /// Bytes that the kernel reads ahead at most.
    pub max_readahead: u32,
}

/// Major version of the protocol, and opcode and flag of FUSE_INIT, from `linux/fuse.h`.
const MAJOR: u32 = 7;
const FUSE_INIT: u32 = 26;
const FUSE_INIT_EXT: u64 = 1 << 30;

/// `struct fuse_in_header` and `struct fuse_init_in`.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | length of all |
/// | 4 | 4 | opcode |
/// | 8 | 8 | id of the request |
/// | 16 | 24 | node, user, group, process, padding: 0 |
/// | 40 | 4 | major version |
/// | 44 | 4 | minor version |
/// | 48 | 4 | max_readahead |
/// | 52 | 4 | flags, lower half |
/// | 56 | 4 | flags, upper half |
/// | 60 | 44 | unused: 0 |
const REQUEST_BYTES: usize = 104;

impl Negotiated {
    /// From what `fuser` shows of the kernel's request.
    pub(super) fn of(config: &mut KernelConfig) -> Self {
        let Version(_, minor) = config.kernel_abi();
        // The only way to learn it: what is set is what was offered, or too much, which names the most there is.
        let max_readahead = config.set_max_readahead(u32::MAX).unwrap_or_else(|most| most);
        Self { minor, flags: config.capabilities().bits(), max_readahead }
    }

    /// Whether the kernel knows what a flag stands for.
    pub(super) fn offers(self, flag: InitFlags) -> bool {
        self.flags & flag.bits() != 0
    }

    /// Whether the kernel sends again what was read and not answered, if it is told to (from 6.9 on).
    pub(super) fn repeats_requests(self) -> bool {
        self.offers(InitFlags::FUSE_HAS_RESEND)
    }

    /// The kernel's request that offers this.
    pub(super) fn request(self) -> [u8; REQUEST_BYTES] {
        let flags = self.flags | FUSE_INIT_EXT;
        let (low, high) = (flags & u64::from(u32::MAX), flags >> 32);
        let fields = [
            (0, REQUEST_BYTES as u64),
            (4, FUSE_INIT.into()),
            (8, 1),
            (40, MAJOR.into()),
            (44, self.minor.into()),
            (48, self.max_readahead.into()),
            (52, low),
            (56, high),
        ];
        let mut request = [0; REQUEST_BYTES];
        for (at, value) in fields {
            // All values fit into four bytes; the id's upper half is 0.
            request[at..at + 4].copy_from_slice(&value.to_ne_bytes()[..4]);
        }
        request
    }
}
