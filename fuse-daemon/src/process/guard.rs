//! The worker locks itself up: whoever takes it over by what it decodes has a process that may talk to the network, and to
//! nobody else.
//!
//! What the kernel does not know, or the rights of the daemon do not allow, is left out: fewer guards are no reason to serve
//! nothing. Which hold is told to the front, and logged there.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::filter;
use super::message::Guards;

/// Locks the process up, as the user `user`. To be called while it has one thread: some of it holds for the thread that calls,
/// and those that it starts.
pub(super) fn lock_up(user: u32) -> Guards {
    // While it still may. Where it may not, it can get none of them all the same: it executes nothing, and `no_new_privs` holds.
    for capability in CapabilitySet::all().iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    let changed = setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .is_ok();
    let none = CapabilitySet::empty();
    let dropped =
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .is_ok();
    let no_more = set_no_new_privs(true).is_ok();
    // Another process of this user cannot look into it. It is only in addition.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // A worker whose daemon was killed hears it from its socket, unless it was taken over.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    Guards {
        user: changed && Uid::effective() == uid && user != 0,
        capabilities: dropped && no_more,
        landlock: no_files().unwrap_or(false),
        seccomp: no_more && filter::apply().is_ok(),
    }
}

/// Denies every access to files, servers of TCP, and processes outside; whether anything of it holds.
fn no_files() -> Result<bool, landlock::RulesetError> {
    // The newest that is known: of what the kernel does not know, nothing is asked.
    let abi = ABI::V7;
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(abi))?
        .create()?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use super::*;

    const PORT: &str = "LOCKED_UP_PORT";
    const SOCKET: &str = "LOCKED_UP_SOCKET";

    /// Run by the test below as a process of its own.
    #[test]
    #[ignore = "locks up the process that it runs in"]
    fn inside() {
        let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
        let socket = std::env::var(SOCKET).unwrap();
        drop(UnixStream::connect(&socket).expect("it may before"));
        drop(File::open("/proc/self/exe").expect("it may before"));
        let guards = lock_up(64_912);
        assert!(guards.landlock && guards.seccomp && guards.capabilities, "missing: {:?}", guards.missing());
        for path in ["/", "/etc/passwd", "/proc/self/exe", "/dev/null", "/tmp"] {
            assert!(File::open(path).is_err(), "{path} can be opened");
        }
        assert!(File::create("/tmp/locked-up").is_err());
        assert!(UnixStream::connect(&socket).is_err());
        assert!(std::os::unix::net::UnixDatagram::unbound().is_err());
        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        assert!(Command::new("/bin/true").spawn().is_err());
        assert!(nix::unistd::setuid(Uid::from_raw(0)).is_err());
        // What it is for.
        let other = std::thread::spawn(move || TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert!(other.join().unwrap());
    }

    #[test]
    fn who_is_locked_up_has_no_files_no_local_sockets_and_no_programs_but_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _local = UnixListener::bind(&socket).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::guard::tests::inside", "--ignored", "--nocapture"])
            .env(PORT, listener.local_addr().unwrap().port().to_string())
            .env(SOCKET, &socket)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
    }
}
