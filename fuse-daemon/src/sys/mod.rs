//! System calls that no safe crate offers.
#![allow(unsafe_code)]

mod shared;

pub(crate) use shared::{Arena, memory};

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Makes `place`, a descriptor whose owner does not let go of it, another descriptor of what `descriptor` is one of.
pub(crate) fn replace(descriptor: BorrowedFd<'_>, place: BorrowedFd<'_>) -> std::io::Result<()> {
    // SAFETY: `place` is open for as long as it is borrowed, and is not closed here: the value is never dropped. Its
    // owner goes on owning the same number, which stays open all the time.
    let mut place = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) });
    rustix::io::dup3(descriptor, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Bytes of an allocation from which on it is mapped on its own, untouched pages of which cost nothing.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: i32 = 4 << 20;

/// Bytes of unused memory above which the heap is given back.
#[cfg(target_env = "gnu")]
const TRIM_BYTES: i32 = 4 << 20;

/// Has large buffers mapped on their own for good. glibc raises its limit to the size of the largest buffer that was
/// given back, up to 32 MiB; then the 16 MiB that `fuser` takes for each thread, and hardly uses, come from memory
/// that was used before and has to be cleared, which makes all of it real.
pub(crate) fn keep_large_buffers_mapped() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator, which takes its own lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, TRIM_BYTES);
    }
}

/// Gives memory of the heap that is free back to the system. Threads that decode leave much, each in a heap of its own.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches only what is free, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Closes all descriptors from the number `first` on that were inherited: whoever started this process may hold what keeps
/// mounts alive.
pub(crate) fn close_from(first: u32) -> std::io::Result<()> {
    // SAFETY: called before anything in this process has a descriptor of its own beyond the first three; the numbers are
    // passed by value.
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
