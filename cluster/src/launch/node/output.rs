//! What a program says while it runs. It goes into a pipe: who waits for our own output does not wait for what a program leaves in the
//! background with its output open, such as the server that a hook starts.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long what a program has started may go on to say something once the program has ended: what it piped its own output through is
/// a little behind.
const GRACE: Duration = Duration::from_secs(1);
/// How much longer it may take to pass it on, to somebody who does not listen.
const PASSING_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is asked whether the program has ended.
const POLL_INTERVAL_MS: u16 = 20;
/// The most that is kept of an answer.
const KEPT_LIMIT_BYTES: usize = 4 << 20;
/// How much is read at once: what a pipe holds.
const BUFFER_BYTES: usize = 64 << 10;
/// Goes on to read, so that what a program left in the background can go on to write: into the journal where there is one. A shell
/// gives nothing to read to what it starts in the background, unless it is told to.
const READS_ON: &str =
    "exec 3<&0; { systemd-cat --identifier=nydus-cluster <&3 2>/dev/null || exec cat <&3 >/dev/null; } &";

/// The output of one program, from its start to its end.
pub(super) struct ProgramOutput {
    ended: Sender<()>,
    followed: Receiver<io::Result<Followed>>,
}

/// What was kept, and what is open still.
type Followed = (Vec<u8>, Option<PipeReader>);

impl ProgramOutput {
    /// Shows it on our standard error. The program writes into what is returned with it.
    pub(super) fn shown() -> io::Result<(Self, PipeWriter)> {
        // Nobody may hear it any more, and the program goes on.
        Self::new(|_, said| drop(io::stderr().write_all(said)))
    }

    /// Keeps it.
    pub(super) fn kept() -> io::Result<(Self, PipeWriter)> {
        Self::new(|kept, said| {
            let room = KEPT_LIMIT_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(said.get(..room).unwrap_or(said));
        })
    }

    fn new(take: impl Fn(&mut Vec<u8>, &[u8]) + Send + 'static) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let (ended, is_ended) = mpsc::channel();
        let (tell, followed) = mpsc::channel();
        thread::spawn(move || {
            // Who waited may have given up.
            _ = tell.send(follow(reader, &is_ended, &take));
        });
        Ok((Self { ended, followed }, writer))
    }

    /// Takes the rest, once the program has ended; returns what was kept. What it left in the background can go on to write.
    pub(super) fn end(self) -> io::Result<Vec<u8>> {
        drop(self.ended);
        let followed = self.followed.recv_timeout(GRACE + PASSING_DEADLINE);
        let (kept, open) = followed.map_err(|_| io::Error::other("its output could not be passed on"))??;
        open.map_or(Ok(()), read_on)?;
        Ok(kept)
    }
}

/// Reads until all is said, or for a little while longer than the program runs.
fn follow(
    mut reader: PipeReader,
    is_ended: &Receiver<()>,
    take: &impl Fn(&mut Vec<u8>, &[u8]),
) -> io::Result<Followed> {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
    let mut ended = None;
    loop {
        let mut readable = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut readable, PollTimeout::from(POLL_INTERVAL_MS)) {
            Err(Errno::EINTR) | Ok(0) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => match reader.read(&mut buffer)? {
                0 => return Ok((kept, None)),
                length => take(&mut kept, &buffer[..length]),
            },
        }
        if ended.is_none() && is_ended.try_recv() == Err(TryRecvError::Disconnected) {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|ended| ended.elapsed() > GRACE) {
            return Ok((kept, Some(reader)));
        }
    }
}

/// Has somebody read from `open` who is there for as long as anybody writes, longer than we.
fn read_on(open: PipeReader) -> io::Result<()> {
    let mut shell = Command::new("/bin/sh");
    let shell = shell.args(["-c", READS_ON]).stdin(open).stdout(Stdio::null()).stderr(Stdio::null());
    let status = shell.process_group(0).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}
