//! A daemon in a process of its own that speaks the control protocol and serves plain directories as images.
//!
//! It is this very test program, started again with one test selected: a process that can be found, watched and killed as
//! the real one. A bootstrap is JSON that says what to show, and what to do wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuse_daemon::control::protocol::{Answer, Call, ErrorKind, Failure, Reply, Request, VERSION};
use fuse_daemon::control::{
    BlobId, CacheTotals, Handover, Kept, MountRequest, MountStatus, Negotiated, Removed, Status, Summary,
};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use snapshotter::DaemonConfig;

/// Names the daemon's directory to the process started as one.
const DIRECTORY: &str = "SNAPSHOTTER_TEST_DAEMON";

/// How long is waited for others that should come.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is written in place of a bootstrap.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Bootstrap {
    /// Shown as the image.
    pub(crate) directory: PathBuf,
    /// Said to be read from.
    pub(crate) blobs: Vec<String>,
    /// Time that mounting takes.
    pub(crate) delay_ms: u64,
    /// Mounting and unmounting wait as long as this file is there.
    pub(crate) held_by: Option<PathBuf>,
    /// Unmounting ends once so many have been under way at the same time, or after [`PATIENCE`].
    pub(crate) umounts_with: usize,
    /// Whether mounting fails.
    pub(crate) broken: bool,
    /// Whether another daemon can go on with it.
    pub(crate) hands_over: bool,
    /// How many adoptions are refused before one succeeds, by all daemons together.
    pub(crate) refused_adoptions: usize,
    /// Adoptions are refused as long as this file is there.
    pub(crate) refused_while: Option<PathBuf>,
    /// Whether another attempt would be refused as well.
    pub(crate) refused_for_good: bool,
    /// Adopting waits as long as this file is there.
    pub(crate) adoption_held_by: Option<PathBuf>,
    /// How many adoptions end their daemon before one succeeds.
    pub(crate) fatal_adoptions: usize,
    /// Whether it is killed then, rather than failing.
    pub(crate) killed: bool,
}

impl Bootstrap {
    fn wait_while_held(&self) {
        wait_while_there(self.held_by.as_ref());
    }

    fn blobs(&self) -> Vec<BlobId> {
        self.blobs.iter().map(|blob| blob.parse().unwrap()).collect()
    }
}

fn wait_while_there(file: Option<&PathBuf>) {
    while file.is_some_and(|file| file.exists()) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that the cache is said to hold of any blob.
pub(crate) const CACHED_BYTES: u64 = 12_345;

/// Names the repositories that it is to say were refused, one a line.
const REFUSED: &str = "refused";

/// Has the cache be full.
const FULL: &str = "full";

/// What the cache may take.
const QUOTA_BYTES: u64 = 1_000_000;

/// What may give way of each image that was unmounted.
const IMAGE_BYTES: u64 = 70_000;

/// How many images have to be unmounted for a full cache to have room: an eighth of it.
pub(crate) const IMAGES_FOR_ROOM: u64 = 2;

/// Has daemons be of before it was asked for a summary, or the cache's totals.
const OLD: &str = "old";

/// Where each look at the cache is noted, with how many images were unmounted then.
const LOOKS: &str = "looks";

/// The bootstrap that is made.
const MADE: &str = "made";

/// Has the daemon in `dir` say that its cache is full.
pub(crate) fn fill(dir: &Path) {
    File::create(dir.join(FULL)).unwrap();
}

/// Has daemons in `dir` know no request that is newer than their status.
pub(crate) fn be_old(dir: &Path) {
    File::create(dir.join(OLD)).unwrap();
}

/// How many images were unmounted at each look at the cache of daemons in `dir`.
pub(crate) fn looks(dir: &Path) -> Vec<u64> {
    let text = fs::read_to_string(dir.join(LOOKS)).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Has the daemon in `dir` say that a registry refused what it was shown for a repository.
pub(crate) fn refuse(dir: &Path, repository: &str) {
    // In one piece.
    let temporary = dir.join("refused.new");
    fs::write(&temporary, repository).unwrap();
    fs::rename(temporary, dir.join(REFUSED)).unwrap();
}

/// Has daemons in `dir` make this bootstrap whatever of; without, they cannot.
pub(crate) fn will_make(dir: &Path, bootstrap: &Bootstrap) {
    fs::write(dir.join(MADE), serde_json::to_vec(bootstrap).unwrap()).unwrap();
}

/// How to start it, with its socket and its record of requests in `dir`.
pub(crate) fn config(dir: &Path) -> DaemonConfig {
    let program = std::env::current_exe().unwrap();
    DaemonConfig {
        socket: dir.join("daemon.sock").try_into().unwrap(),
        command: Some("/usr/bin/env".into()),
        args: vec![
            format!("{DIRECTORY}={}", dir.display()),
            program.display().to_string(),
            "--exact".to_owned(),
            "fake_daemon::process".to_owned(),
        ],
        log: Some(dir.join("daemon.log")),
        ..DaemonConfig::default()
    }
}

/// The requests that daemons in `dir` were sent, other than for their status.
pub(crate) fn requests(dir: &Path) -> Vec<Request> {
    let text = fs::read_to_string(dir.join("requests")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many mounts daemons in `dir` were unmounting at once, at most.
pub(crate) fn most_unmounting(dir: &Path) -> usize {
    let text = fs::read_to_string(dir.join("unmounting")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).max().unwrap_or(0)
}

/// Whether anybody has the descriptor of a mount that was handed over by a daemon in `dir`.
pub(crate) fn is_held(dir: &Path, id: &str) -> bool {
    let Ok(file) = File::open(descriptor(dir, id)) else { return false };
    file.try_lock().is_err()
}

/// The file whose descriptor stands for that of a mount: locked as long as it is open anywhere.
fn descriptor(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("descriptor-{id}"))
}

/// The daemon itself. As a test among others it has nothing to do.
#[test]
fn process() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let socket = dir.join("daemon.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = Arc::new(FakeDaemon {
        dir,
        mounts: Mutex::default(),
        coming: Mutex::default(),
        unmounting: AtomicUsize::new(0),
        unmounted: AtomicU64::new(0),
        most_unmounting: AtomicUsize::new(0),
    });
    for stream in listener.incoming() {
        let daemon = Arc::clone(&daemon);
        std::thread::spawn(move || daemon.answer(stream.unwrap()));
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
}

struct FakeDaemon {
    dir: PathBuf,
    mounts: Mutex<BTreeMap<String, (MountRequest, Bootstrap)>>,
    coming: Mutex<BTreeSet<String>>,
    unmounting: AtomicUsize,
    unmounted: AtomicU64,
    most_unmounting: AtomicUsize,
}

impl FakeDaemon {
    fn answer(&self, stream: UnixStream) {
        let (line, adopted) = read_line(&stream);
        // Somebody who only looked whether the socket answers.
        let Ok(call) = serde_json::from_slice::<Call>(&line) else { return };
        let looks = matches!(
            call.request,
            Request::Status | Request::Summary | Request::CacheTotals | Request::Renewals { .. }
        );
        if !looks {
            self.record("requests", &call.request);
        }
        let (answered, descriptor) = match call.request {
            Request::Handover { id } => self.hand_over(&id),
            Request::Adopt(handover) => (self.adopt(handover, adopted), None),
            request => (self.perform(request), None),
        };
        let mut line = serde_json::to_vec(&Reply::new(VERSION, answered)).unwrap();
        line.push(b'\n');
        match descriptor {
            Some(file) => {
                let rights = [file.as_raw_fd()];
                let message = [ControlMessage::ScmRights(&rights)];
                let socket = stream.as_raw_fd();
                // It is short enough to be sent at once.
                sendmsg::<()>(socket, &[IoSlice::new(&line)], &message, MsgFlags::empty(), None).unwrap();
            }
            None => drop((&stream).write_all(&line)),
        }
    }

    fn record(&self, file: &str, value: &impl Serialize) {
        let mut record = File::options().create(true).append(true).open(self.dir.join(file)).unwrap();
        // In one piece: others write to it at the same time.
        record.write_all(format!("{}\n", serde_json::to_string(value).unwrap()).as_bytes()).unwrap();
    }

    fn perform(&self, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::Summary | Request::CacheTotals if self.dir.join(OLD).exists() => {
                Err(Failure { kind: ErrorKind::Invalid, message: "the request is not known".to_owned() })
            }
            Request::Summary => Ok(Answer::Summary(Summary::from(self.status()))),
            Request::CacheTotals => {
                self.record(LOOKS, &self.unmounted.load(Ordering::SeqCst));
                Ok(Answer::CacheTotals(self.cache()))
            }
            Request::Mount(request) => self.mount(request),
            Request::AddBackends { id, backends } => {
                let mut mounts = self.mounts.lock().unwrap();
                let Some((request, _)) = mounts.get_mut(&id) else {
                    return Err(Failure { kind: ErrorKind::Unknown, message: id });
                };
                request.backends.extend(backends);
                Ok(Answer::Done)
            }
            Request::HandOut { .. } => Ok(Answer::Done),
            Request::MakeBootstrap(request) => match fs::copy(self.dir.join(MADE), &request.target) {
                Ok(_) => Ok(Answer::Done),
                Err(error) => Err(Failure { kind: ErrorKind::Bootstrap, message: error.to_string() }),
            },
            Request::Renewals { wait_seconds } => {
                let until = Instant::now() + Duration::from_secs(wait_seconds);
                let file = self.dir.join(REFUSED);
                while !file.exists() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
                let refused = fs::read_to_string(&file).unwrap_or_default();
                let _ = fs::remove_file(&file);
                Ok(Answer::Renewals { repositories: refused.lines().map(str::to_owned).collect() })
            }
            Request::Keep { .. } => Ok(Answer::Kept(Kept::default())),
            Request::Pin { .. } => Ok(Answer::Done),
            Request::Umount { id } => {
                let mounted = self.mounts.lock().unwrap().remove(&id);
                if let Some((mount, bootstrap)) = mounted {
                    let at_once = self.unmounting.fetch_add(1, Ordering::SeqCst) + 1;
                    self.record("unmounting", &at_once);
                    self.most_unmounting.fetch_max(at_once, Ordering::SeqCst);
                    bootstrap.wait_while_held();
                    let late = Instant::now() + PATIENCE;
                    while self.most_unmounting.load(Ordering::SeqCst) < bootstrap.umounts_with
                        && Instant::now() < late
                    {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    self.unmounting.fetch_sub(1, Ordering::SeqCst);
                    self.unmounted.fetch_add(1, Ordering::SeqCst);
                    match umount2(&mount.mountpoint, MntFlags::MNT_DETACH) {
                        // Somebody else was first.
                        Ok(()) | Err(Errno::EINVAL) => {}
                        Err(errno) => panic!("{errno}"),
                    }
                }
                Ok(Answer::Done)
            }
            Request::Status => Ok(Answer::Status(self.status())),
            Request::Usage { blobs } => Ok(Answer::Usage { bytes: vec![CACHED_BYTES; blobs.len()] }),
            Request::RemoveBlobs { digests } => {
                let mounts = self.mounts.lock().unwrap();
                let used: BTreeSet<_> =
                    mounts.values().flat_map(|(_, bootstrap)| bootstrap.blobs()).collect();
                let (in_use, removed) = digests.iter().copied().partition(|blob| used.contains(blob));
                Ok(Answer::Removed(Removed { removed, in_use }))
            }
            Request::Cached | Request::Prune | Request::Verify { .. } | Request::Trace { .. } => {
                Err(Failure { kind: ErrorKind::Invalid, message: "nobody asks for this".to_owned() })
            }
            Request::Handover { .. } | Request::Adopt(_) => unreachable!("they have descriptors"),
            Request::Upgrade => Ok(Answer::Upgrade { version: "test".to_owned() }),
            Request::Shutdown => Ok(Answer::Shutdown { in_use: Vec::new() }),
        }
    }

    fn hand_over(&self, id: &str) -> (Result<Answer, Failure>, Option<File>) {
        let mounts = self.mounts.lock().unwrap();
        let Some((mount, _)) = mounts.get(id).filter(|(_, bootstrap)| bootstrap.hands_over) else {
            // As a daemon answers that is older than this request.
            let message = "the request is not known".to_owned();
            return (Err(Failure { kind: ErrorKind::Invalid, message }), None);
        };
        let file = File::create(descriptor(&self.dir, id)).unwrap();
        file.lock_shared().unwrap();
        let negotiated = Negotiated { minor: 0, flags: 0, max_readahead: 0 };
        let device = fs::metadata(&mount.mountpoint).unwrap().dev();
        (Ok(Answer::Handover(Handover { mount: mount.clone(), device, negotiated })), Some(file))
    }

    fn adopt(&self, handover: Handover, descriptor: Option<PathBuf>) -> Result<Answer, Failure> {
        let request = handover.mount;
        assert_eq!(descriptor, Some(self::descriptor(&self.dir, &request.id)));
        let bootstrap: Bootstrap = serde_json::from_slice(&fs::read(&request.bootstrap).unwrap()).unwrap();
        let adoptions =
            requests(&self.dir).iter().filter(|request| matches!(request, Request::Adopt(_))).count();
        if adoptions <= bootstrap.fatal_adoptions {
            if bootstrap.killed {
                raise(Signal::SIGKILL).unwrap();
            }
            std::process::exit(1);
        }
        let is_refused = bootstrap.refused_while.as_ref().is_some_and(|file| file.exists());
        if is_refused || adoptions <= bootstrap.refused_adoptions || !is_mounted(&request.mountpoint) {
            let kind = if bootstrap.refused_for_good { ErrorKind::Bootstrap } else { ErrorKind::Failed };
            return Err(Failure { kind, message: "cannot be taken over".to_owned() });
        }
        let id = request.id.clone();
        self.coming.lock().unwrap().insert(id.clone());
        wait_while_there(bootstrap.adoption_held_by.as_ref());
        self.mounts.lock().unwrap().insert(id.clone(), (request, bootstrap));
        self.coming.lock().unwrap().remove(&id);
        Ok(Answer::Done)
    }

    fn mount(&self, request: MountRequest) -> Result<Answer, Failure> {
        if let Some((mounted, _)) = self.mounts.lock().unwrap().get(&request.id)
            && is_mounted(&request.mountpoint)
        {
            return if *mounted == request {
                Ok(Answer::Done)
            } else {
                Err(Failure { kind: ErrorKind::Conflict, message: "other content".to_owned() })
            };
        }
        let bootstrap: Option<Bootstrap> =
            fs::read(&request.bootstrap).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(bootstrap) = bootstrap.filter(|bootstrap| !bootstrap.broken) else {
            let message = format!("{} is no bootstrap", request.bootstrap.display());
            return Err(Failure { kind: ErrorKind::Bootstrap, message });
        };
        std::thread::sleep(Duration::from_millis(bootstrap.delay_ms));
        bootstrap.wait_while_held();
        fs::create_dir_all(&request.mountpoint).unwrap();
        let (from, to) = (&bootstrap.directory, &request.mountpoint);
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, to, None::<&str>, read_only, None::<&str>).unwrap();
        self.mounts.lock().unwrap().insert(request.id.clone(), (request, bootstrap));
        Ok(Answer::Done)
    }

    fn cache(&self) -> CacheTotals {
        let may_give_way = self.unmounted.load(Ordering::SeqCst) * IMAGE_BYTES;
        CacheTotals {
            blobs: 1,
            bytes: if self.dir.join(FULL).exists() { QUOTA_BYTES } else { 0 },
            quota_bytes: Some(QUOTA_BYTES),
            evictable_bytes: (!self.dir.join(OLD).exists()).then_some(may_give_way),
        }
    }

    fn status(&self) -> Status {
        let mount = |(request, bootstrap): &(MountRequest, Bootstrap)| MountStatus {
            id: request.id.clone(),
            bootstrap: request.bootstrap.clone(),
            mountpoint: request.mountpoint.clone(),
            image: request.image.clone(),
            backends: request.backends.clone(),
            blobs: bootstrap.blobs(),
            chunks: Default::default(),
        };
        let coming = self.coming.lock().unwrap().iter().cloned().collect();
        let mounts = self.mounts.lock().unwrap();
        Status {
            version: "test".to_owned(),
            pid: std::process::id(),
            coming,
            mounts: mounts.values().map(mount).collect(),
            worker: None,
            cache: Some(self.cache()),
            waiting: Vec::new(),
            sources: Vec::new(),
        }
    }
}

/// A line, and which file's descriptor came with it.
fn read_line(stream: &UnixStream) -> (Vec<u8>, Option<PathBuf>) {
    let (mut line, mut file) = (Vec::new(), None);
    while line.last() != Some(&b'\n') {
        let mut bytes = [0; 4096];
        let mut space = nix::cmsg_space!(RawFd);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
        for message in received.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(descriptors) = message else { continue };
            for descriptor in descriptors {
                file = Some(fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap());
                nix::unistd::close(descriptor).unwrap();
            }
        }
        let count = received.bytes;
        if count == 0 {
            break;
        }
        line.extend_from_slice(&bytes[..count]);
    }
    (line, file)
}
