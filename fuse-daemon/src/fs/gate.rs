//! Whether a mount may have a blob's bytes: once one of its own sources has said that it has the blob.
//!
//! What is cached of a blob came from somebody's source, with somebody's credentials. A mount whose own sources do not give
//! it the blob must not read it, though all that it takes is to name its digest in an image.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::BlobId;

/// What came of asking: nothing more, or why no source has said that it has the blob.
pub type Answer = Result<(), Arc<str>>;

/// Whoever is told of an answer.
pub type Told = Box<dyn FnOnce(Answer) + Send>;

/// Asks a mount's own sources.
pub trait Asker: Send + Sync {
    /// Asks for a blob. `told` is called once, within a deadline, and may block: on a thread that is allowed to.
    fn ask(&self, blob: BlobId, told: Told);
}

/// The blobs of a mount, in the order of the image's blob indexes.
pub struct Gates {
    asker: Arc<dyn Asker>,
    gates: Vec<Gate>,
}

struct Gate {
    blob: BlobId,
    is_open: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Whether somebody asks, who tells those who wait.
    is_asked: bool,
    told: Vec<Told>,
}

impl Gates {
    /// Gates of `blobs`, each with whether it has been answered for before.
    pub fn new(asker: Arc<dyn Asker>, blobs: impl IntoIterator<Item = (BlobId, bool)>) -> Arc<Self> {
        let gate =
            |(blob, is_open)| Gate { blob, is_open: AtomicBool::new(is_open), waiting: Mutex::default() };
        Arc::new(Self { asker, gates: blobs.into_iter().map(gate).collect() })
    }

    /// Whether the blob of this index may be read.
    pub(super) fn is_open(&self, index: usize) -> bool {
        self.gates.get(index).is_none_or(|gate| gate.is_open.load(Ordering::Acquire))
    }

    /// Asks for all that is not open, before somebody waits for it.
    pub fn ask_ahead(self: &Arc<Self>) {
        for index in 0..self.gates.len() {
            if !self.is_open(index) {
                self.wait(index, Box::new(|_| {}));
            }
        }
    }

    /// Calls `told` when all of these may be read, or one may not for now.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        indexes: Vec<usize>,
        told: impl FnOnce(Answer) + Send + 'static,
    ) {
        let all = Arc::new(All {
            missing: AtomicUsize::new(indexes.len()),
            told: Mutex::new(Some(Box::new(told))),
        });
        if indexes.is_empty() {
            return all.answer(Ok(()));
        }
        for index in indexes {
            let all = Arc::clone(&all);
            self.wait(index, Box::new(move |answer| all.one(answer)));
        }
    }

    fn wait(self: &Arc<Self>, index: usize, told: Told) {
        let Some(gate) = self.gates.get(index) else { return told(Ok(())) };
        {
            let mut waiting = gate.lock();
            if gate.is_open.load(Ordering::Acquire) {
                drop(waiting);
                return told(Ok(()));
            }
            waiting.told.push(told);
            if std::mem::replace(&mut waiting.is_asked, true) {
                return;
            }
        }
        let gates = Arc::clone(self);
        self.asker.ask(gate.blob, Box::new(move |answer| gates.answered(index, &answer)));
    }

    fn answered(&self, index: usize, answer: &Answer) {
        let Some(gate) = self.gates.get(index) else { return };
        let told = {
            let mut waiting = gate.lock();
            if answer.is_ok() {
                gate.is_open.store(true, Ordering::Release);
            }
            waiting.is_asked = false;
            std::mem::take(&mut waiting.told)
        };
        told.into_iter().for_each(|told| told(answer.clone()));
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for several answers.
struct All {
    missing: AtomicUsize,
    told: Mutex<Option<Told>>,
}

impl All {
    fn one(&self, answer: Answer) {
        if answer.is_err() || self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answer(answer);
        }
    }

    fn answer(&self, answer: Answer) {
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

    /// Keeps what it is asked, until a test answers.
    #[derive(Default)]
    struct Held(Mutex<Vec<Told>>);

    impl Asker for Held {
        fn ask(&self, _blob: BlobId, told: Told) {
            self.0.lock().unwrap().push(told);
        }
    }

    fn gates(open: &[bool]) -> (Arc<Held>, Arc<Gates>) {
        let held = Arc::new(Held::default());
        let blobs = open.iter().enumerate().map(|(number, open)| {
            let digits = format!("{number:064x}");
            (digits.parse().unwrap(), *open)
        });
        (held.clone(), Gates::new(held, blobs))
    }

    fn answer(held: &Held, answer: Answer) {
        let told = held.0.lock().unwrap().remove(0);
        told(answer);
    }

    /// What a reader of these blobs is told, once it is.
    fn read(gates: &Arc<Gates>, indexes: &[usize]) -> std::sync::mpsc::Receiver<Answer> {
        let (sender, receiver) = std::sync::mpsc::channel();
        gates.wait_for(indexes.to_vec(), move |answer| sender.send(answer).unwrap());
        receiver
    }

    #[test]
    fn all_who_wait_for_a_blob_are_told_by_one_question() {
        let (held, gates) = gates(&[false, true, false]);
        let (one, other) = (read(&gates, &[0]), read(&gates, &[0, 1]));
        assert!(one.try_recv().is_err() && held.0.lock().unwrap().len() == 1);
        answer(&held, Ok(()));
        assert_eq!((one.try_recv().unwrap(), other.try_recv().unwrap()), (Ok(()), Ok(())));
        assert!(gates.is_open(0) && !gates.is_open(2));
        // Nothing is asked for twice that was answered.
        assert_eq!(read(&gates, &[0, 1]).try_recv().unwrap(), Ok(()));
        assert!(held.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_refusal_is_told_at_once_and_the_next_reader_has_it_asked_again() {
        let (held, gates) = gates(&[false, false]);
        let reader = read(&gates, &[0, 1]);
        answer(&held, Err("refused".into()));
        assert_eq!(reader.try_recv().unwrap(), Err("refused".into()));
        assert!(!gates.is_open(0));
        answer(&held, Ok(()));
        let again = read(&gates, &[0, 1]);
        assert!(again.try_recv().is_err());
        answer(&held, Ok(()));
        assert_eq!(again.try_recv().unwrap(), Ok(()));
    }
}
