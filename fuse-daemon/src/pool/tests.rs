use std::sync::mpsc;
use std::time::Duration;

use rafs::blob::ChunkIndex;
use rafs::digest::DigestAlgorithm;

use super::*;
use crate::cache::Generation;
use crate::control::BlobId;

fn key(chunk: u32) -> ChunkKey {
    let blob = BlobId(DigestAlgorithm::Sha256.digest(b"blob"));
    ChunkKey { blob, generation: Generation(1), chunk: ChunkIndex(chunk) }
}

#[test]
fn what_a_reader_waits_for_is_decoded_first() {
    let pool = Pool::new("test", 1).unwrap();
    let (started, start) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let (order, done) = mpsc::channel();
    let job = |name: u32| {
        let order = order.clone();
        Job { chunks: vec![key(name)], run: Box::new(move || order.send(name).unwrap()) }
    };
    // Holds the only thread until all is queued.
    let hold = Box::new(move || {
        started.send(()).unwrap();
        gate.recv().unwrap();
    });
    pool.submit(Job { chunks: vec![], run: hold }, true);
    start.recv().unwrap();
    pool.submit(job(1), false);
    pool.submit(job(2), false);
    pool.submit(job(3), true);
    pool.promote(key(2));
    go.send(()).unwrap();
    assert_eq!([(); 3].map(|()| done.recv().unwrap()), [3, 2, 1]);
}

#[test]
fn a_bug_in_a_job_does_not_cost_the_thread() {
    let pool = Pool::new("test", 1).unwrap();
    let (sender, done) = mpsc::channel();
    pool.submit(Job { chunks: vec![key(1)], run: Box::new(|| panic!("a bug, as this test wants it")) }, true);
    pool.submit(Job { chunks: vec![], run: Box::new(move || sender.send(()).unwrap()) }, false);
    done.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn what_was_read_ahead_leaves_threads_to_readers() {
    let pool = Pool::new("test", 2).unwrap();
    let (sender, events) = mpsc::channel();
    let (release, gate) = mpsc::channel::<()>();
    let hold = {
        let sender = sender.clone();
        move || {
            sender.send("ahead").unwrap();
            gate.recv().unwrap();
        }
    };
    pool.submit(Job { chunks: vec![], run: Box::new(hold) }, false);
    assert_eq!(events.recv().unwrap(), "ahead");
    let (second, third) = (sender.clone(), sender);
    pool.submit(Job { chunks: vec![], run: Box::new(move || second.send("more ahead").unwrap()) }, false);
    pool.submit(Job { chunks: vec![], run: Box::new(move || third.send("demanded").unwrap()) }, true);
    assert_eq!(events.recv().unwrap(), "demanded");
    release.send(()).unwrap();
    assert_eq!(events.recv().unwrap(), "more ahead");
}
