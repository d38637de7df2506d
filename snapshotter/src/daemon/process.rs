//! The daemon as a process: started, watched, never ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::config::DaemonConfig;
use crate::error::Error;
use crate::sys;

/// How often a process is looked at that cannot be watched by a descriptor (before Linux 5.3).
const POLL: Duration = Duration::from_secs(1);

/// Waits until a process ends, which need not be a child.
pub(super) async fn ended(pid: u32) -> io::Result<()> {
    match sys::watch_process(pid) {
        Ok(descriptor) => descriptor.readable().await.map(drop),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        Err(_) => loop {
            tokio::time::sleep(POLL).await;
            if !Path::new(&format!("/proc/{pid}")).exists() {
                return Ok(());
            }
        },
    }
}

/// Starts the daemon.
pub(super) fn start(config: &DaemonConfig) -> Result<Child, Error> {
    let program = match &config.command {
        Some(program) => program.clone(),
        // The new one, where it was replaced.
        None => service::program::path().map_err(Error::io("find the running program", "/proc/self/exe"))?,
    };
    let mut command = Command::new(&program);
    command.args(&config.args).stdin(Stdio::null());
    if let Some(path) = &config.log {
        let log = open_log(path)?;
        let copy = log.try_clone().map_err(Error::io("use the log", path))?;
        command.stdout(log).stderr(copy);
    }
    // It is not the process that the service manager watches.
    for variable in service::manager::VARIABLES {
        command.env_remove(variable);
    }
    sys::in_own_session(&mut command);
    command.spawn().map_err(Error::io("start the daemon", program))
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io("open the daemon's log", path))
}
