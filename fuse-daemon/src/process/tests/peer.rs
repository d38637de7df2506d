//! The worker's end, as a test has it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use registry::client::{Client, ClientConfig};

use crate::cache::Generation;
use crate::front::ChunkKey;
use crate::process::launch::{Launch, LaunchedWorker};
use crate::process::message::{FromWorker, Guards, Start, TO_WORKER_LIMIT, ToWorker};
use crate::process::serve::RunningWorker;
use crate::process::wire::{Receiver, Sender};
use crate::sys::Arena;

/// What a worker does, given its socket.
pub(super) type Act = fn(Peer);

/// See the module.
pub(super) struct Peer {
    pub(super) socket: Arc<UnixStream>,
    pub(super) sender: Arc<Sender>,
    pub(super) receiver: Receiver,
    pub(super) start: Start,
    pub(super) memory: OwnedFd,
}

impl Peer {
    pub(super) fn new(socket: OwnedFd) -> Self {
        let socket = Arc::new(UnixStream::from(socket));
        let mut receiver = Receiver::new(Arc::clone(&socket), TO_WORKER_LIMIT, true);
        let first = receiver.next().unwrap().unwrap();
        let ToWorker::Start(start) = serde_json::from_slice(&first).unwrap() else { panic!("no start") };
        let memory = receiver.descriptor().unwrap();
        let sender = Arc::new(Sender::new(Arc::clone(&socket)));
        Self { socket, sender, receiver, start: *start, memory }
    }

    pub(super) fn ready(&self) {
        self.sender.send(&FromWorker::Ready { guards: Guards::default() }, None);
    }

    /// The next order's chunks, once it is ready.
    pub(super) fn order(&mut self) -> Vec<ChunkKey> {
        self.ready();
        loop {
            let message = self.receiver.next().unwrap().unwrap();
            if let ToWorker::Fetch(order) = serde_json::from_slice(&message).unwrap() {
                return order.order().keys().collect();
            }
        }
    }

    pub(super) fn deliver(&self, chunk: ChunkKey, at: u64, len: u32) {
        self.deliver_together(&[chunk], at, len);
    }

    /// Chunks of one blob, of `len` bytes each.
    pub(super) fn deliver_together(&self, chunks: &[ChunkKey], at: u64, len: u32) {
        let Some(ChunkKey { blob, generation: Generation(generation), .. }) = chunks.first().copied() else {
            return;
        };
        let chunks = chunks.iter().map(|key| (key.chunk.0, len)).collect();
        let from = "somebody".to_owned();
        self.sender.send(&FromWorker::Delivered { blob, generation, chunks, at, from }, None);
    }

    pub(super) fn raw(&self, bytes: &[u8]) {
        use std::io::Write as _;
        (&*self.socket).write_all(bytes).unwrap();
    }

    /// Until the front hangs up.
    pub(super) fn wait(mut self) {
        while let Ok(Some(_)) = self.receiver.next() {}
    }
}

/// Works as the process does, without its guards.
pub(super) fn honest(mut peer: Peer) {
    let client = Client::new(ClientConfig::default()).unwrap();
    let arena = Arena::map(peer.memory, peer.start.memory_bytes as usize).unwrap();
    let (names, sender) = (Arc::default(), Sender::new(peer.socket));
    let served = RunningWorker::new(&peer.start, &client, names, arena, sender).unwrap();
    served.sender.send(&FromWorker::Ready { guards: Guards::default() }, None);
    served.run(&mut peer.receiver).unwrap();
}

/// Workers that act one after the other; the last for ever. Those that `crash` look like processes that ended over a fault.
pub(super) fn workers(acts: Vec<Act>, crash: bool) -> (Launch, Arc<AtomicUsize>) {
    let launched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&launched);
    let launch = move |socket| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let act = acts[number.min(acts.len() - 1)];
        let process = || std::process::Command::new("sh").args(["-c", "kill -SEGV $$"]).spawn();
        let process = crash.then(process).transpose()?;
        let pid = process.as_ref().map(|process| Pid::from_raw(process.id().cast_signed()));
        std::thread::spawn(move || {
            // It has ended over its fault before the act does: else the front would kill it first.
            if let Some(pid) = pid {
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
            }
            act(Peer::new(socket));
        });
        Ok(LaunchedWorker(process))
    };
    (Box::new(launch), launched)
}
