//! What does not come in time.

use super::*;

#[test]
fn a_silent_worker_costs_a_reader_no_more_than_the_deadline() {
    let bench = Bench::new(Duration::from_millis(50));
    let started = Instant::now();
    let read = bench.read(&[1]);
    assert!(answered(&read).unwrap_err().contains("did not arrive within 50ms"));
    assert!(started.elapsed() >= Duration::from_millis(50));
    // What comes late serves those who come later.
    bench.deliver(1);
    assert_eq!(answered(&bench.read(&[1])).unwrap(), content(1));
    // The thread that ended the first read has gone or not: a second one ends too.
    assert!(answered(&bench.read(&[2])).is_err());
}

#[test]
fn who_came_later_has_time_left_when_an_order_is_too_late() {
    let bench = Bench::new(SOON);
    let read = bench.read(&[1]);
    bench.answer(1, Err(ChunkError::Late("asleep".to_owned())));
    assert!(waits(&read));
    assert_eq!(bench.worker.ordered(), [1, 1]);
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
}

#[test]
fn time_without_a_worker_is_not_a_readers_but_not_for_ever() {
    // A busy machine may sleep for twice as long: it ends after three deadlines.
    let deadline = Duration::from_secs(1);
    let bench = Bench::new(deadline);
    let read = bench.read(&[1]);
    bench.front.left_alone();
    std::thread::sleep(deadline * 5 / 4);
    assert!(waits(&read));
    bench.front.order_again();
    assert_eq!(bench.worker.ordered(), [1, 1]);
    assert!(bench.worker.last().until > Instant::now());
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
    bench.front.left_alone();
    let started = Instant::now();
    assert!(answered(&bench.read(&[2])).is_err());
    assert!(started.elapsed() > deadline * 3, "{:?}", started.elapsed());
}

/// As the kernel does with the pages of a read-ahead that failed: it asks again for each, one after the other.
#[test]
fn readers_that_come_one_after_the_other_do_not_wait_for_the_deadline_each() {
    // A busy machine may sleep for half a second longer, and look a second late.
    let deadline = Duration::from_secs(2);
    let bench = Bench::with(deadline, Duration::from_secs(1), 100);
    let first = bench.read(&[1]);
    std::thread::sleep(deadline * 3 / 4);
    // It comes while the first one waits, and so is given up when that has been over for longer than failures are remembered.
    let second = bench.read(&[1]);
    assert!(answered(&first).is_err() && waits(&second));
    assert!(answered(&second).is_err());
    assert!(answered(&bench.read(&[1])).unwrap_err().contains("others have waited"));
}
