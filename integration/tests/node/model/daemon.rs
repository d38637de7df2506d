//! The daemon's process, as its clients and its administrator know it.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fuse_daemon::control::{
    BlobId, CachedStatus, Client, ClientError, Handover, Kept, MountRequest, Verified,
};
use integration::process::{self, Server, WaitingServer, tail};
use integration::servers::START_DEADLINE;
use integration::{leftovers, peers, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::image::{Home, Image};
use super::lab::Lab;
use super::operation::Ending;

/// How long the daemon may take for a request of the control socket that needs no server.
const CONTROL_DEADLINE: Duration = Duration::from_secs(30);

/// How long it takes at most to unmount what nobody uses; after two seconds the daemon detaches it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A mount without its daemon: who reads from it waits.
pub(super) struct HeldMount {
    handover: Handover,
    descriptor: OwnedFd,
}

impl HeldMount {
    pub(super) fn id(&self) -> &str {
        &self.handover.mount.id
    }
}

/// Bytes that the cache may take, in the configuration.
const QUOTA: &str = "cache_quota_bytes";

pub(super) struct Daemon<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    client: Client,
    server: Option<Server>,
}

impl<'a> Daemon<'a> {
    /// Starts a daemon with everything it has under `dir`; `config` is TOML.
    pub(super) fn start(lab: &'a Lab, dir: &Path, config: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("config.toml"), config)?;
        let client = Client::new(dir.join("daemon.sock")).with_deadline(CONTROL_DEADLINE);
        let mut daemon = Self { lab, dir: dir.to_owned(), client, server: None };
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts it again after its end.
    pub(super) fn restart(&mut self) -> Result<()> {
        let server = Server::spawn("daemon", self.command()?, self.log_path())?;
        self.go_on_with(server)
    }

    /// The process of the next daemon, which is there before this one ends: readers have files open meanwhile.
    pub(super) fn successor(&self) -> Result<WaitingServer> {
        WaitingServer::spawn("daemon", &self.command()?, self.log_path())
    }

    /// Has that one begin.
    pub(super) fn succeed(&mut self, successor: WaitingServer) -> Result<()> {
        self.go_on_with(successor.start()?)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(peers::nydus_cluster()?);
        command.arg("--config").arg(self.dir.join("config.toml")).arg("daemon");
        command.arg("--socket").arg(self.client.socket()).arg("--cache").arg(self.cache());
        Ok(command)
    }

    fn go_on_with(&mut self, mut server: Server) -> Result<()> {
        let answers = || self.lab.runtime.block_on(self.client.status()).is_ok();
        server.wait_ready(START_DEADLINE, answers)?;
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    fn server(&mut self) -> Result<&mut Server> {
        self.server.as_mut().context("the daemon is not running")
    }

    /// Fails if it is dead, or wrote that it has a bug.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.server()?.exited()? {
            bail!("the daemon ended: {status}");
        }
        let log = self.log();
        ensure!(!log.contains("panicked at"), "the daemon panicked");
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(super) fn log_tail(&self) -> String {
        tail(&self.log_path())
    }

    /// As an administrator would, or as the kernel does when memory runs out.
    pub(super) fn end(&mut self, kill: bool) -> Result<()> {
        let mut server = self.server.take().context("the daemon is not running")?;
        if kill {
            return server.kill();
        }
        server.stop()?;
        let left = leftovers::mounts(&self.dir)?;
        ensure!(left.is_empty(), "a terminated daemon left {left:?}");
        Ok(())
    }

    /// What another daemon needs to serve a mount on.
    pub(super) fn hand_over(&self, id: &str) -> Result<HeldMount> {
        let handed = self.lab.runtime.block_on(self.client.handover(id));
        let (handover, descriptor) = handed.with_context(|| format!("handing over {id}"))?;
        Ok(HeldMount { handover, descriptor })
    }

    /// Goes on with a mount of the daemon before.
    pub(super) fn adopt(&self, mount: &HeldMount) -> Result<(), ClientError> {
        self.lab.runtime.block_on(self.client.adopt(&mount.handover, mount.descriptor.as_fd()))
    }

    /// Ends it when somebody holds all its mounts.
    pub(super) fn end_with_successor(&mut self, ending: Ending) -> Result<()> {
        if matches!(ending, Ending::Upgrade) {
            self.lab.runtime.block_on(self.client.upgrade())?;
            let server = self.server()?;
            wait::until("the daemon made place", CONTROL_DEADLINE, || server.exited())?;
        }
        let mut server = self.server.take().context("the daemon is not running")?;
        match ending {
            Ending::Kill => server.kill(),
            Ending::Terminate | Ending::Upgrade => server.stop(),
        }
    }

    /// The process that fetches for it, if one is ready.
    pub(super) fn worker(&self) -> Result<Option<Pid>> {
        let status = self.lab.runtime.block_on(self.client.status())?;
        let pid = status.worker.and_then(|worker| worker.pid);
        Ok(pid.map(i32::try_from).transpose()?.map(Pid::from_raw))
    }

    /// Kills that process: which it was.
    pub(super) fn kill_worker(&self) -> Result<Pid> {
        let pid = wait::until("a worker is ready", CONTROL_DEADLINE, || self.worker())?;
        kill(pid, Signal::SIGKILL).context("killing the worker")?;
        Ok(pid)
    }

    pub(super) fn mount(&self, id: &str, image: &Image, homes: &[Home]) -> Result<PathBuf, ClientError> {
        let mountpoint = self.dir.join("mnt").join(id);
        let request = MountRequest {
            id: id.to_owned(),
            bootstrap: image.bootstrap.clone(),
            mountpoint: mountpoint.clone(),
            image: image.name.clone(),
            backends: homes.iter().map(|home| self.lab.backend(home)).collect(),
        };
        self.lab.runtime.block_on(self.client.mount(&request))?;
        Ok(mountpoint)
    }

    pub(super) fn add_backend(&self, id: &str, home: &Home) -> Result<()> {
        Ok(self.lab.runtime.block_on(self.client.add_backends(id, &[self.lab.backend(home)]))?)
    }

    pub(super) fn unmount(&self, id: &str) -> Result<()> {
        let mountpoint = self.dir.join("mnt").join(id);
        let unmounted = async {
            let mut unmounted = pin!(self.client.umount(id));
            match tokio::time::timeout(AT_ONCE, &mut unmounted).await {
                Ok(unmounted) => unmounted,
                Err(_) => {
                    // Nobody of ours: soon it is detached, and what is cached of it stays.
                    println!("{id} is busy: {:?}", leftovers::users(&mountpoint));
                    unmounted.await
                }
            }
        };
        self.lab.runtime.block_on(unmounted)?;
        ensure!(!leftovers::mounts(&mountpoint)?.contains(&mountpoint), "{id} is still mounted");
        Ok(())
    }

    /// The ids of what is mounted.
    pub(super) fn mounted(&self) -> Result<Vec<String>> {
        let status = self.lab.runtime.block_on(self.client.status())?;
        Ok(status.mounts.into_iter().map(|mount| mount.id).collect())
    }

    /// Has the daemon free all of its cache but these blobs, and those that mounts use.
    pub(super) fn keep(&self, blobs: &[BlobId]) -> Result<Kept> {
        Ok(self.lab.runtime.block_on(self.client.keep(blobs))?)
    }

    /// Has it keep a blob from giving way, or no longer.
    pub(super) fn pin(&self, blob: BlobId, pinned: bool) -> Result<()> {
        Ok(self.lab.runtime.block_on(self.client.pin(&[blob], pinned))?)
    }

    /// Has it free all that is neither used nor pinned.
    pub(super) fn prune(&self) -> Result<Kept> {
        Ok(self.lab.runtime.block_on(self.client.prune())?)
    }

    /// Has it verify all that it holds: the chunks that were bad.
    pub(super) fn verify(&self) -> Result<Verified> {
        Ok(self.lab.runtime.block_on(self.client.verify(&[]))?)
    }

    /// What it holds of which blob.
    pub(super) fn cached(&self) -> Result<Vec<CachedStatus>> {
        Ok(self.lab.runtime.block_on(self.client.cached())?)
    }

    /// Sets what the cache may take from the next start on.
    pub(super) fn set_quota(&self, bytes: u64) -> Result<()> {
        let path = self.dir.join("config.toml");
        let config = fs::read_to_string(&path)?;
        let lines = config.lines().map(|line| match line.starts_with(QUOTA) {
            true => format!("{QUOTA} = {bytes}\n"),
            false => format!("{line}\n"),
        });
        Ok(fs::write(path, lines.collect::<String>())?)
    }

    /// Threads by name, except for those of the runtime, which come and go as it likes; and open files that are no sockets.
    pub(super) fn holds(&self) -> Result<(Vec<String>, Vec<String>)> {
        let pid = self.server.as_ref().context("the daemon is not running")?.pid()?;
        let mut threads = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
            if !name.starts_with("tokio") {
                threads.push(name.trim_end().to_owned());
            }
        }
        let mut files = Vec::new();
        for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let Ok(target) = fs::read_link(file?.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            if !target.starts_with("socket:") {
                files.push(target);
            }
        }
        threads.sort();
        files.sort();
        Ok((threads, files))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // A killed daemon's mounts, and one that hangs, must not stay.
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
        }
        if let Err(error) = leftovers::clear(&self.dir) {
            process::tell(format_args!("clearing {}: {error:#}", self.dir.display()));
        }
    }
}
