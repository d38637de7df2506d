//! Whether a mount may have a blob's bytes: once one of its own sources has said that it has the blob.
//!
//! What is cached of a blob came from somebody's source, with somebody's credentials. A mount whose own sources do not give
//! it the blob must not read it, though all that it takes is to name its digest in an image.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::BlobId;
use crate::front::Until;

/// What came of asking: nothing more, or why no source has said that it has the blob.
pub type Clearance = Result<(), Refusal>;

/// Why no source has said that it has a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// In the sources' words.
    pub reason: Arc<str>,
    /// Whether one of them had not answered when the time was over.
    pub is_late: bool,
}

/// Whoever is told of an answer.
pub type Told = Box<dyn FnOnce(Clearance) + Send>;

/// What is called at a time.
pub type Later = Box<dyn FnOnce() + Send>;

/// Asks a mount's own sources.
pub trait Asker: Send + Sync {
    /// Asks for a blob. `told` is called once, about as soon as `until` is over, and may block: on a thread that is allowed to.
    fn ask(&self, blob: BlobId, until: Instant, told: Told);

    /// Calls `then` at that time, on such a thread.
    fn at(&self, time: Instant, then: Later);
}

/// The blobs of a mount, in the order of the image's blob indexes.
pub struct Gates {
    asker: Arc<dyn Asker>,
    gates: Vec<Gate>,
    /// How long after a reader's time was over the next ones are not kept waiting.
    memory: Duration,
}

struct Gate {
    blob: BlobId,
    is_open: AtomicBool,
    waiting: Mutex<GateWaiters>,
}

#[derive(Default)]
struct GateWaiters {
    /// Until when the sources may answer, if they are asked. Whoever asked tells those who wait.
    asked_until: Option<Instant>,
    waiters: Vec<GateWaiter>,
    /// When a reader's time was over, the last one's.
    last_over: Option<Instant>,
}

struct GateWaiter {
    until: Until,
    /// Whether a program stands still meanwhile.
    is_reader: bool,
    told: Told,
}

impl GateWaiters {
    /// Takes out the readers whose time is over; if the question's is, all others who are none too.
    fn take_over(&mut self, is_unanswered: bool) -> Vec<GateWaiter> {
        let now = Instant::now();
        let is_over =
            |waiter: &GateWaiter| waiter.until.time() <= now || (is_unanswered && !waiter.is_reader);
        let (over, left) = self.waiters.drain(..).partition(is_over);
        self.waiters = left;
        let over: Vec<GateWaiter> = over;
        if over.iter().any(|waiter| waiter.is_reader) {
            self.last_over = Some(now);
        }
        over
    }

    /// When the time of the next of them is over, if that is before the question's.
    fn next_over(&self) -> Option<Instant> {
        let asked_until = self.asked_until?;
        self.waiters.iter().map(|waiter| waiter.until.time()).filter(|until| *until < asked_until).min()
    }
}

impl Gates {
    /// Gates of `blobs`, each with whether it has been answered for before. For `memory` after a reader has waited in vain, others
    /// do not wait: the kernel asks again for each page of a read-ahead that failed.
    pub fn new(
        asker: Arc<dyn Asker>,
        blobs: impl IntoIterator<Item = (BlobId, bool)>,
        memory: Duration,
    ) -> Arc<Self> {
        let gate =
            |(blob, is_open)| Gate { blob, is_open: AtomicBool::new(is_open), waiting: Mutex::default() };
        Arc::new(Self { asker, gates: blobs.into_iter().map(gate).collect(), memory })
    }

    /// Whether the blob of this index may be read.
    pub(super) fn is_open(&self, index: usize) -> bool {
        self.gates.get(index).is_none_or(|gate| gate.is_open.load(Ordering::Acquire))
    }

    /// Asks for all that is not open, before somebody waits for it.
    pub fn ask_ahead(self: &Arc<Self>, until: &Until) {
        for index in 0..self.gates.len() {
            if !self.is_open(index) {
                self.wait(
                    index,
                    GateWaiter { until: until.clone(), is_reader: false, told: Box::new(|_| {}) },
                );
            }
        }
    }

    /// Calls `told` when all of these may be read, or one may not for now, or a reader's time is over.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        indexes: Vec<usize>,
        until: Until,
        told: impl FnOnce(Clearance) + Send + 'static,
    ) {
        self.wait_for_all(indexes, until, true, Box::new(told));
    }

    /// The same for what no program waits for.
    pub(super) fn wait_for_idle(
        self: &Arc<Self>,
        indexes: Vec<usize>,
        until: Until,
        told: impl FnOnce(Clearance) + Send + 'static,
    ) {
        self.wait_for_all(indexes, until, false, Box::new(told));
    }

    fn wait_for_all(self: &Arc<Self>, indexes: Vec<usize>, until: Until, is_reader: bool, told: Told) {
        let all = Arc::new(All { missing: AtomicUsize::new(indexes.len()), told: Mutex::new(Some(told)) });
        if indexes.is_empty() {
            return all.answer(Ok(()));
        }
        for index in indexes {
            let all = Arc::clone(&all);
            let told = Box::new(move |answer| all.one(answer));
            self.wait(index, GateWaiter { until: until.clone(), is_reader, told });
        }
    }

    fn wait(self: &Arc<Self>, index: usize, waiter: GateWaiter) {
        let Some(gate) = self.gates.get(index) else { return (waiter.told)(Ok(())) };
        let mut waiting = gate.lock();
        if gate.is_open.load(Ordering::Acquire) {
            drop(waiting);
            return (waiter.told)(Ok(()));
        }
        if waiter.is_reader && waiting.last_over.is_some_and(|over| over.elapsed() < self.memory) {
            drop(waiting);
            return (waiter.told)(Err(late("others have waited for an answer")));
        }
        let until = waiter.until.time();
        waiting.waiters.push(waiter);
        // Whoever comes later has more time than the question that is under way.
        if waiting.asked_until.is_none() {
            waiting.asked_until = Some(until);
            drop(waiting);
            self.ask(index, until);
        }
    }

    fn ask(self: &Arc<Self>, index: usize, until: Instant) {
        let Some(gate) = self.gates.get(index) else { return };
        let gates = Arc::clone(self);
        self.asker.ask(gate.blob, until, Box::new(move |answer| gates.answered(index, &answer)));
    }

    fn answered(self: &Arc<Self>, index: usize, answer: &Clearance) {
        let Some(gate) = self.gates.get(index) else { return };
        let is_late = answer.as_ref().is_err_and(|refusal| refusal.is_late);
        let (told, again) = {
            let mut waiting = gate.lock();
            if answer.is_ok() {
                gate.is_open.store(true, Ordering::Release);
            }
            let told = if is_late { waiting.take_over(true) } else { std::mem::take(&mut waiting.waiters) };
            // The deadline is each reader's own: those who came later have time left.
            waiting.asked_until = waiting.waiters.iter().map(|waiter| waiter.until.time()).max();
            (told, waiting.asked_until)
        };
        if let Some(until) = again {
            self.ask(index, until);
            self.watch(index);
        }
        told.into_iter().for_each(|waiter| (waiter.told)(answer.clone()));
    }

    /// Tells readers whose time is over before the question's.
    fn watch(self: &Arc<Self>, index: usize) {
        let next = self.gates.get(index).and_then(|gate| gate.lock().next_over());
        let Some(time) = next else { return };
        let gates = Arc::clone(self);
        let tell = move || {
            let Some(gate) = gates.gates.get(index) else { return };
            let over = gate.lock().take_over(false);
            over.into_iter().for_each(|waiter| (waiter.told)(Err(late("no answer in time"))));
            gates.watch(index);
        };
        self.asker.at(time, Box::new(tell));
    }
}

fn late(reason: &str) -> Refusal {
    Refusal { reason: reason.into(), is_late: true }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateWaiters> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for several answers.
struct All {
    missing: AtomicUsize,
    told: Mutex<Option<Told>>,
}

impl All {
    fn one(&self, answer: Clearance) {
        if answer.is_err() || self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answer(answer);
        }
    }

    fn answer(&self, answer: Clearance) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(told) = told {
            told(answer);
        }
    }
}

impl std::fmt::Debug for Gates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let closed: Vec<_> = (0..self.gates.len()).filter(|index| !self.is_open(*index)).collect();
        f.debug_struct("Gates").field("closed", &closed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is asked, and what is to be called later, until a test does it.
    #[derive(Default)]
    struct Held {
        asked: Mutex<Vec<(Instant, Told)>>,
        later: Mutex<Vec<(Instant, Later)>>,
    }

    impl Asker for Held {
        fn ask(&self, _blob: BlobId, until: Instant, told: Told) {
            self.asked.lock().unwrap().push((until, told));
        }

        fn at(&self, time: Instant, then: Later) {
            self.later.lock().unwrap().push((time, then));
        }
    }

    impl Held {
        fn asked(&self) -> Vec<Instant> {
            self.asked.lock().unwrap().iter().map(|(until, _)| *until).collect()
        }

        fn answer(&self, answer: Clearance) {
            let (_, told) = self.asked.lock().unwrap().remove(0);
            told(answer);
        }

        /// It is later: the time at which something was to be called.
        fn wake(&self) -> Instant {
            let (time, then) = self.later.lock().unwrap().remove(0);
            then();
            time
        }
    }

    fn gates(open: &[bool]) -> (Arc<Held>, Arc<Gates>) {
        let held = Arc::new(Held::default());
        let blobs = open.iter().enumerate().map(|(number, open)| {
            let digits = format!("{number:064x}");
            (digits.parse().unwrap(), *open)
        });
        (held.clone(), Gates::new(held, blobs, Duration::from_secs(60)))
    }

    fn refusal(is_late: bool) -> Clearance {
        Err(Refusal { reason: "refused".into(), is_late })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// What a reader of these blobs is told, once it is.
    fn read(gates: &Arc<Gates>, indexes: &[usize], until: Instant) -> std::sync::mpsc::Receiver<Clearance> {
        let (sender, receiver) = std::sync::mpsc::channel();
        gates.wait_for(indexes.to_vec(), Until::at(until), move |answer| sender.send(answer).unwrap());
        receiver
    }

    #[test]
    fn all_who_wait_for_a_blob_are_told_by_one_question() {
        let (held, gates) = gates(&[false, true, false]);
        let (one, other) = (read(&gates, &[0], soon()), read(&gates, &[0, 1], soon()));
        assert!(one.try_recv().is_err() && held.asked().len() == 1);
        held.answer(Ok(()));
        assert_eq!((one.try_recv().unwrap(), other.try_recv().unwrap()), (Ok(()), Ok(())));
        assert!(gates.is_open(0) && !gates.is_open(2));
        // Nothing is asked for twice that was answered.
        assert_eq!(read(&gates, &[0, 1], soon()).try_recv().unwrap(), Ok(()));
        assert!(held.asked().is_empty());
    }

    #[test]
    fn a_refusal_is_told_at_once_and_the_next_reader_has_it_asked_again() {
        let (held, gates) = gates(&[false, false]);
        let reader = read(&gates, &[0, 1], soon());
        held.answer(refusal(false));
        assert_eq!(reader.try_recv().unwrap(), refusal(false));
        assert!(!gates.is_open(0));
        held.answer(Ok(()));
        let again = read(&gates, &[0, 1], soon());
        assert!(again.try_recv().is_err());
        held.answer(Ok(()));
        assert_eq!(again.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn who_came_later_has_time_left_when_the_sources_are_silent() {
        let (held, gates) = gates(&[false]);
        let (early, late) = (Instant::now(), soon());
        gates.ask_ahead(&Until::at(early));
        let (over, waits) = (read(&gates, &[0], early), read(&gates, &[0], late));
        held.answer(refusal(true));
        assert_eq!(over.try_recv().unwrap(), refusal(true));
        assert!(waits.try_recv().is_err());
        assert_eq!(held.asked(), [late]);
        // As the kernel does, which reads each page of a read-ahead that failed.
        assert!(read(&gates, &[0], soon()).try_recv().unwrap().is_err());
        held.answer(Ok(()));
        assert_eq!(waits.try_recv().unwrap(), Ok(()));
        assert_eq!(read(&gates, &[0], soon()).try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn a_question_that_no_reader_waits_for_is_no_reason_to_refuse_the_first() {
        let (held, gates) = gates(&[false]);
        let (sender, idle) = std::sync::mpsc::channel();
        gates.wait_for_idle(vec![0], Until::at(soon()), move |answer| sender.send(answer).unwrap());
        held.answer(refusal(true));
        assert_eq!(idle.try_recv().unwrap(), refusal(true));
        assert!(held.asked().is_empty());
        let reader = read(&gates, &[0], soon());
        held.answer(Ok(()));
        assert_eq!(reader.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn of_those_who_are_asked_for_again_nobody_waits_longer_than_his_time() {
        let (held, gates) = gates(&[false]);
        gates.ask_ahead(&Until::at(Instant::now()));
        let (soon_over, late) = (Instant::now() + Duration::from_millis(100), soon());
        let (one, other) = (read(&gates, &[0], soon_over), read(&gates, &[0], late));
        held.answer(refusal(true));
        assert_eq!(held.asked(), [late]);
        assert!(one.try_recv().is_err());
        std::thread::sleep(soon_over.saturating_duration_since(Instant::now()));
        assert_eq!(held.wake(), soon_over);
        assert!(one.try_recv().unwrap().is_err() && other.try_recv().is_err());
        assert!(held.later.lock().unwrap().is_empty());
        // The question goes on.
        held.answer(Ok(()));
        assert_eq!(other.try_recv().unwrap(), Ok(()));
    }
}
