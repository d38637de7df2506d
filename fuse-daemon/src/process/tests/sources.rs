//! What is told of sources, by workers that work and by those that say what they like.

use futures::FutureExt as _;

use super::*;
use crate::control::SourceState;
use crate::worker::SourceReport;

#[test]
fn a_source_that_fails_is_told_until_it_answers() {
    let bench = Bench::new(&[honest], SOON);
    let sources = || bench.runtime.block_on(bench.worker.sources());
    assert!(sources().is_empty());
    let file = bench.blobs.join(bench.blob().id().0.to_string());
    let gone = file.with_extension("gone");
    std::fs::rename(&file, &gone).unwrap();
    let _kept = bench.register();
    bench.read(0).unwrap_err();
    let [failing] = &sources()[..] else { panic!("one source") };
    assert_eq!((failing.state, failing.answered_ago_ms), (SourceState::Fails, None));
    assert!(failing.requests > 0 && failing.failures == failing.requests, "{failing:?}");
    let failed = failing.failed.clone().unwrap();
    assert!(failed.reason.contains("No such file"), "{failed:?}");
    std::fs::rename(&gone, &file).unwrap();
    assert!(bench.read(1).unwrap() == content(1));
    let [answering] = &sources()[..] else { panic!("one source") };
    assert_eq!((answering.state, answering.failures), (SourceState::Answers, failing.failures));
    assert_eq!((answering.bytes, &answering.failed.as_ref().unwrap().reason), (CHUNK as u64, &failed.reason));
    assert!(answering.answered_ago_ms.unwrap() <= answering.failed.as_ref().unwrap().ago_ms, "{answering:?}");
}

/// Says of sources what it likes: more than there are first, then what no terminal should be sent.
fn gossip(mut peer: Peer) {
    peer.ready();
    let worst = SourceReport {
        requests: u64::MAX,
        is_answered: Some(false),
        failed_ms: Some(u64::MAX),
        reason: Some("\u{1b}[2J\n".repeat(5000)),
        ..SourceReport::default()
    };
    let mut count = 0;
    while let Ok(Some(message)) = peer.receiver.next() {
        if let ToWorker::Sources { number, registrations } = serde_json::from_slice(&message).unwrap() {
            count += 1;
            let sources = match count {
                1 => vec![None; registrations.len() + 1],
                2 => Vec::new(),
                _ => vec![Some(worst.clone()); registrations.len()],
            };
            // An answer that nobody has asked for as well.
            for number in [number, u64::MAX] {
                peer.sender.send(&FromWorker::Sources { number, sources: sources.clone() }, None);
            }
        }
    }
}

#[test]
fn what_a_worker_says_of_sources_is_cut_short_and_put_on_one_line() {
    let bench = Bench::new(&[gossip], SOON);
    let _kept = bench.register();
    let until = Instant::now() + SOON;
    while bench.worker.condition().guards.is_none() {
        assert!(Instant::now() < until, "no worker came");
        std::thread::yield_now();
    }
    let sources = || bench.runtime.block_on(bench.worker.sources());
    for _ in 0..2 {
        let [unknown] = &sources()[..] else { panic!("one source") };
        assert_eq!((unknown.state, unknown.requests), (SourceState::Unknown, 0));
        assert_eq!(unknown.backend, BackendSpec::Directory { path: bench.blobs.clone() });
    }
    let [told] = &sources()[..] else { panic!("one source") };
    let reason = &told.failed.as_ref().unwrap().reason;
    assert_eq!((told.state, reason.chars().count()), (SourceState::Fails, 256));
    assert!(!reason.contains(char::is_control), "{reason:?}");
    assert_eq!(bench.worker.condition().restarts, 0);
}

#[test]
fn sources_are_named_while_there_is_no_worker() {
    let never: Act = |peer| peer.wait();
    let bench = Bench::new(&[never], SOON);
    let _kept = bench.register();
    let _entered = bench.runtime.enter();
    // What is not there when it is first looked for would have to be waited for.
    let sources = bench.worker.sources().now_or_never().expect("nobody waits for one");
    let [unknown] = &sources[..] else { panic!("one source") };
    assert_eq!(unknown.state, SourceState::Unknown);
    bench.worker.figures().now_or_never().expect("nobody waits for one to scrape metrics");
}
