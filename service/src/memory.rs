//! What the allocator keeps of memory that was given back to it, which without this is much: glibc gives each thread a heap
//! of its own, and returns of a heap what is at its end.
#![allow(unsafe_code)]

/// Bytes of an allocation from which on it is mapped on its own, untouched pages of which cost nothing.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: i32 = 4 << 20;

/// Bytes of unused memory above which the heap is given back.
#[cfg(target_env = "gnu")]
const TRIM_BYTES: i32 = 4 << 20;

/// Heaps of a process whose threads mostly wait.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Has large buffers mapped on their own for good. glibc raises its limit to the size of the largest buffer that was
/// given back, up to 32 MiB; then buffers of megabytes that are hardly used, such as the 16 MiB that the library for FUSE takes for
/// each thread, come from memory that was used before and has to be cleared, which makes all of it real.
pub fn keep_large_buffers_mapped() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator, which takes its own lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, TRIM_BYTES);
    }
}

/// Has threads share few heaps. To be called before there are many threads: those that have a heap keep it.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, which takes its own lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives memory that is free back to the system. It takes some milliseconds: for when there is nothing else to do.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches only what is free, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
