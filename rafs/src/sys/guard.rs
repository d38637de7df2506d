//! What happens when a mapped page cannot be read: the kernel sends SIGBUS to the thread that reads it, which would end the
//! process. For guarded mappings the handler puts a page of zeros in its place and notes the damage; other faults take the
//! course that they had.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, sigaction, siginfo_t};

/// More mounts than a node has. A handler may not allocate, so they have a fixed place.
const SLOTS: usize = 4096;

/// A guarded range of addresses; empty while nobody has the slot.
#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    damaged: AtomicBool,
}

static GUARDED: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        damaged: AtomicBool::new(false),
    }
}; SLOTS];

/// What the handler needs: the page size, and what was done about the signal before.
struct Installed {
    page_size: usize,
    before: sigaction,
}

static INSTALLED: OnceLock<Result<Installed, Errno>> = OnceLock::new();

/// A claim to a slot.
#[derive(Debug)]
pub(super) struct Guard(&'static Slot);

impl Guard {
    /// Guards a mapping; `None` if there are too many.
    pub(super) fn new(start: usize, len: usize) -> io::Result<Option<Self>> {
        if let Err(errno) = INSTALLED.get_or_init(install) {
            return Err((*errno).into());
        }
        let free = GUARDED.iter().find(|slot| !slot.taken.swap(true, Ordering::AcqRel));
        Ok(free.map(|slot| {
            slot.damaged.store(false, Ordering::Release);
            slot.end.store(start + len, Ordering::Release);
            slot.start.store(start, Ordering::Release);
            Self(slot)
        }))
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.0.damaged.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::Release);
        self.0.start.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn install() -> Result<Installed, Errno> {
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    let page_size = usize::try_from(page_size).map_err(|_| Errno::EINVAL)?;
    // SAFETY: zeros are a `sigaction`: no flags, an empty mask, the default action.
    let mut action: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: as above.
    let mut before: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: both point to valid structs for the time of the call, and the handler does what a handler may.
    Errno::result(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) })?;
    Ok(Installed { page_size, before })
}

/// Does what a signal handler may alone: atomic loads and stores, and system calls.
extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes a valid `siginfo_t` to handlers with SA_SIGINFO, and SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    if !cover(address) {
        pass_on(signal, info, context);
    }
    Errno::set_raw(errno);
}

/// Puts a page of zeros where a guarded mapping cannot be read; whether it was one.
fn cover(address: usize) -> bool {
    let holds = |slot: &&Slot| {
        (slot.start.load(Ordering::Acquire)..slot.end.load(Ordering::Acquire)).contains(&address)
    };
    // A fault while it is being installed is of no guarded mapping: they come after.
    let Some(Ok(Installed { page_size, .. })) = INSTALLED.get() else { return false };
    let Some(slot) = GUARDED.iter().find(holds) else { return false };
    let page = address / page_size * page_size;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // Before anybody can read the zeros.
    slot.damaged.store(true, Ordering::Release);
    // SAFETY: the page is a part of a mapping that its guard holds, and so does nobody else: a thread is reading it. It is
    // replaced by one that can be read just the same.
    let mapped = unsafe { libc::mmap(page as *mut c_void, *page_size, libc::PROT_READ, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Has done about the signal what was before.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = match INSTALLED.get() {
        Some(Ok(installed)) => Some(&installed.before),
        _ => None,
    };
    match before {
        Some(before) if ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction) => {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: with SA_SIGINFO, that is what the address is of.
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: without SA_SIGINFO, that is what the address is of.
                let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal);
            }
        }
        _ => {
            // SAFETY: zeros are a `sigaction` with the default action.
            let default: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            // SAFETY: the struct is valid. The instruction that failed is repeated after this, and ends the process.
            unsafe { libc::sigaction(signal, &raw const default, null_mut()) };
        }
    }
}
