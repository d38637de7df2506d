//! The system calls that need `unsafe`: making a child harmless before it becomes another program, and waiting for changes of mounts.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How many words a program that is started by its descriptor may get.
const WORDS_LIMIT: usize = 64;

/// The table of this process's mounts, as what has something urgent to say ([`Interest::PRIORITY`]) when one of them changes.
pub(crate) fn watched_mounts() -> io::Result<AsyncFd<File>> {
    let table = File::open("/proc/self/mountinfo")?;
    // SAFETY: a `File` keeps its descriptor open, and the same, until it is dropped, and nobody else can close it.
    let watched = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) };
    watched.map_err(|error| error.into_parts().1)
}

/// What a child may not do.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// The user that it becomes, where this process may change users.
    pub(crate) user: u32,
    /// The most memory that it has for data, in bytes.
    pub(crate) memory_bytes: u64,
    /// The largest file that it writes, in bytes.
    pub(crate) file_bytes: u64,
    /// The processor time that it has, in seconds.
    pub(crate) cpu_seconds: u64,
}

/// A program that is started by its descriptor, so that it need not be where the child's user can look.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) file: File,
    /// All its words, with its name.
    pub(crate) words: Vec<CString>,
    /// Its whole environment, `NAME=VALUE` each.
    pub(crate) environment: Vec<CString>,
}

/// Has `command` start within `confinement`: a network of its own without any interface that is up, another user, no new
/// privileges, limits. With `program` that one is started, not the command's own.
pub(crate) fn confine(command: &mut Command, confinement: Confinement, program: Option<Program>) {
    let child = move || {
        apply(&confinement)?;
        program.as_ref().map_or(Ok(()), |program| Err(execute(program)))
    };
    // SAFETY: between fork and exec the closure makes system calls alone: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(child);
    }
}

fn apply(confinement: &Confinement) -> io::Result<()> {
    if Uid::effective().is_root() {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let (user, group) = (Uid::from_raw(confinement.user), Gid::from_raw(confinement.user));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    } else {
        // What a user may not have here is no worse than what that user can do anyway.
        let _ = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
    }
    nix::sys::prctl::set_no_new_privs()?;
    for (resource, limit) in [
        (Resource::RLIMIT_DATA, confinement.memory_bytes),
        (Resource::RLIMIT_FSIZE, confinement.file_bytes),
        (Resource::RLIMIT_CPU, confinement.cpu_seconds),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}

/// Has `command` lead a session of its own, without a terminal: an interrupt there does not reach it, and it can ask nobody there.
pub(crate) fn leave_terminal(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
    }
}

/// Becomes `program`; comes back only with the reason why not.
fn execute(program: &Program) -> io::Error {
    let (Some(words), Some(environment)) = (pointers(&program.words), pointers(&program.environment)) else {
        return io::Error::from_raw_os_error(nix::libc::E2BIG);
    };
    // SAFETY: both lists end with a null pointer, and what they point to lives as long as `program`.
    unsafe {
        nix::libc::fexecve(program.file.as_raw_fd(), words.as_ptr(), environment.as_ptr());
    }
    io::Error::last_os_error()
}

/// The list that C expects: pointers, then null. On the stack, as nothing may be allocated after fork.
fn pointers(words: &[CString]) -> Option<[*const c_char; WORDS_LIMIT + 1]> {
    let mut list = [std::ptr::null(); WORDS_LIMIT + 1];
    for (index, word) in words.iter().enumerate() {
        *list[..WORDS_LIMIT].get_mut(index)? = word.as_ptr();
    }
    Some(list)
}
