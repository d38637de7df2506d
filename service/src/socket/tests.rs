use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;

use super::*;

fn access() -> Access {
    Access::default()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_directory_is_made_and_everything_goes_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/nydus-cluster/a.sock");
    let (listener, file) = bind_private(&path, &access()).unwrap();
    assert_eq!(mode(&path), 0o600);
    UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
    drop(file);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn mode_and_group_are_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let own = nix::unistd::getegid().as_raw();
    // Root may give it to any group, others to their own.
    let group = if nix::unistd::geteuid().is_root() { own + 12_345 } else { own };
    let access = Access { mode: "0660".parse().unwrap(), group: Some(group.to_string()) };
    let (_listener, _file) = bind_private(&path, &access).unwrap();
    assert_eq!((mode(&path), std::fs::metadata(&path).unwrap().gid()), (0o660, group));

    let access = Access { group: Some("no such group".to_owned()), ..access };
    let error = bind_private(&dir.path().join("b.sock"), &access).unwrap_err();
    assert!(matches!(error, BindError::NoSuchGroup { .. }), "{error}");
}

#[test]
fn nobody_but_the_owner_may_connect_before_all_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let _socket = bind_for_owner(&path).unwrap();
    assert_eq!(mode(&path) & 0o077, 0);
}

#[test]
fn of_several_that_start_together_one_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    for round in 0..20 {
        if round % 2 == 1 {
            // What a killed process leaves.
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        }
        let barrier = Barrier::new(8);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                bind_private(&path, &access())
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (served, refused): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
        assert_eq!(served.len(), 1, "round {round}");
        assert!(refused.iter().all(|error| matches!(error, Err(BindError::InUse(_)))), "{refused:?}");
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn a_living_ones_socket_is_kept_although_it_holds_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    // Also while it accepts nobody and its queue is full.
    let _waiting: Vec<_> = std::iter::from_fn(|| knock_and_stay(&path)).take(10_000).collect();
    let error = bind_private(&path, &access()).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error}");
    assert!(listener.accept().is_ok());
}

fn knock_and_stay(path: &Path) -> Option<std::os::fd::OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path).unwrap()).ok()?;
    Some(socket)
}

#[test]
fn what_is_no_socket_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = bind_private(&path, &access()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_that_another_put_there_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let (_listener, file) = bind_private(&path, &access()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(file);
    UnixStream::connect(&path).unwrap();
    assert!(other.accept().is_ok());
}
