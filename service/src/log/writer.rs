//! The thread that writes lines, and waits for their reader in everybody's place.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::queue::Queue;

/// Writes lines for as long as the process lives.
pub(super) fn run(queue: &Queue, output: &File) {
    loop {
        let line = queue.take();
        // EPIPE (nobody reads the pipe any more), EIO (the terminal hung up), ENOSPC: the next line may fare better.
        let written = write(output, &line);
        if let Some(lines) = queue.written(written.is_ok()) {
            tracing::warn!(lines, "log lines were lost: they came faster than they were read");
        }
    }
}

fn write(mut output: &File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever shares the descriptor with us made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                poll(&mut ready, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
