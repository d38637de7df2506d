//! Starting the process of a worker, and its end.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Variables of the environment that the worker is given: how the network is reached, and what is logged.
const ENVIRONMENT: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NYDUS_CLUSTER_LOG",
    "RUST_BACKTRACE",
];

/// Starts a worker at the other end of a socket. A test has other ones.
pub(super) type Launch = Box<dyn Fn(OwnedFd) -> io::Result<LaunchedWorker> + Send + Sync>;

/// A worker's process, if it has one. Dropped, it is ended.
pub(super) struct LaunchedWorker(pub(super) Option<Child>);

impl LaunchedWorker {
    pub(super) fn pid(&self) -> Option<u32> {
        self.0.as_ref().map(Child::id)
    }

    /// Ends the process at once; how it ended, unless it is not known.
    pub(super) fn end(mut self) -> Option<ExitStatus> {
        self.kill()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        let mut child = self.0.take()?;
        let _ = child.kill();
        child.wait().ok()
    }
}

impl Drop for LaunchedWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The program that runs, with these arguments: the same one also where it was replaced on disk.
pub(super) fn this_program(arguments: Vec<String>) -> Launch {
    Box::new(move |socket| {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("nydus-cluster").args(&arguments).env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        command.stdin(Stdio::from(socket)).stdout(Stdio::null()).current_dir("/");
        command.spawn().map(|child| LaunchedWorker(Some(child)))
    })
}

/// Both ends of what a worker is talked to by.
pub(super) fn sockets() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}
