//! System calls that no safe crate offers.
#![allow(unsafe_code)]

mod pages;
mod shared;

pub(crate) use pages::Pages;
pub(crate) use shared::{Arena, memory};

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Where a process has a descriptor. It is not borrowed: whoever uses this sees to it that the owner has not let go of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorPlace(RawFd);

impl DescriptorPlace {
    /// That of a descriptor.
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> Self {
        Self(descriptor.as_raw_fd())
    }
}

/// Makes what is at `place` another descriptor of what `descriptor` is one of.
pub(crate) fn replace(
    descriptor: BorrowedFd<'_>,
    DescriptorPlace(place): DescriptorPlace,
) -> std::io::Result<()> {
    // SAFETY: it is open, as whoever has the place sees to, and is not closed here: the value is never dropped. Its owner
    // goes on owning the same number, which stays open all the time.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place) });
    rustix::io::dup3(descriptor, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Closes all descriptors from the number `first` on that were inherited: whoever started this process may hold what keeps
/// mounts alive.
pub(crate) fn close_from(first: u32) -> std::io::Result<()> {
    // SAFETY: called before anything in this process has a descriptor of its own beyond the first three; the numbers are
    // passed by value.
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
