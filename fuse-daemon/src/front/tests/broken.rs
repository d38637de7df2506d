//! A disk that cannot read what the cache has, or does not take what comes.

use nix::libc::{EIO, EROFS};

use super::*;
use crate::cache::faults::{Fault, plan, plan_reads};

const ONCE: Fault = Fault { after: 0, for_good: false, torn: false, errno: EIO };
const FOR_GOOD: Fault = Fault { for_good: true, ..ONCE };

#[test]
fn what_the_disk_cannot_read_is_fetched_again_and_kept() {
    let bench = Bench::new(SOON);
    [1, 2].into_iter().for_each(|chunk| bench.store(chunk));
    plan_reads(Some(ONCE));
    let read = bench.read(&[1, 2]);
    assert!(waits(&read));
    assert_eq!(bench.worker.ordered(), [1]);
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), contents(&[1, 2]));
    assert_eq!(bench.read(&[1, 2]).try_recv().unwrap().unwrap(), contents(&[1, 2]), "from the cache");
    assert_eq!(bench.worker.ordered(), [1]);
}

#[test]
fn a_disk_that_stays_bad_costs_a_read_one_fetch_and_no_reader_an_error() {
    let bench = Bench::new(SOON);
    bench.store(1);
    plan_reads(Some(FOR_GOOD));
    let read = bench.read(&[1]);
    // It comes while the chunk is on its way.
    let other = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1]);
    bench.deliver(1);
    assert_eq!([&read, &other].map(|read| answered(read).unwrap()), [content(1), content(1)]);
    // One that was not there, next to one that is.
    let read = bench.read(&[1, 3]);
    assert_eq!(bench.worker.ordered(), [1, 3]);
    bench.deliver(3);
    assert!(waits(&read));
    assert_eq!(bench.worker.ordered(), [1, 3, 1, 3]);
    [1, 3].into_iter().for_each(|chunk| bench.deliver(chunk));
    assert_eq!(answered(&read).unwrap(), contents(&[1, 3]));
    assert_eq!(bench.worker.ordered(), [1, 3, 1, 3]);
    // Nobody has it, and the disk reads it again.
    plan_reads(Some(ONCE));
    let read = bench.read(&[1]);
    bench.answer(1, Err(ChunkError::Fetch("down".to_owned())));
    assert!(answered(&read).is_err());
    plan_reads(None);
    assert_eq!(answered(&bench.read(&[1])).unwrap(), content(1));
}

#[test]
fn who_could_not_read_a_chunk_is_given_it_though_it_is_there_again() {
    let bench = Bench::new(SOON);
    bench.store(1);
    let (sender, outcome) = mpsc::channel();
    let wanted = vec![Want { blob: bench.blob(), chunk: ChunkIndex(1) }];
    let done = move |result: Result<Vec<Loose>, ReadError>| {
        sender.send(result.map(|loose| loose.len()).map_err(|error| error.to_string())).unwrap();
    };
    bench.front.ensure_until(wanted, bench.front.deadline(), Urgency::Reread, Box::new(done));
    assert_eq!(bench.worker.ordered(), [1]);
    bench.deliver(1);
    assert_eq!(outcome.recv_timeout(SOON).unwrap(), Ok(1));
}

#[test]
fn what_a_broken_disk_does_not_take_is_read_all_the_same() {
    // A block fails, or the file system takes nothing since one did.
    for errno in [EIO, EROFS] {
        takes_nothing(errno);
    }
}

fn takes_nothing(errno: i32) {
    let bench = Bench::with(SOON, SOON, 4);
    bench.store(1);
    plan_reads(Some(FOR_GOOD));
    plan(Some(Fault { errno, ..FOR_GOOD }));
    let read = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 2, 3]);
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
    // Nothing comes along with what readers wait for, and what nobody reads is not kept.
    let brought = bench.bring(&[11]);
    let read = bench.read(&[21]);
    assert_eq!(bench.worker.ordered(), [1, 2, 3, 11, 21]);
    [11, 21].into_iter().for_each(|chunk| bench.deliver(chunk));
    assert!(!brought.recv_timeout(SOON).unwrap() && !bench.front.is_full());
    assert_eq!(answered(&read).unwrap(), content(21));
    plan(None);
    plan_reads(None);
    let read = bench.read(&[21]);
    bench.deliver(21);
    assert_eq!(answered(&read).unwrap(), content(21));
    assert!(bench.blob().is_ready(ChunkIndex(21)) && !bench.front.is_refused());
}
