//! What a worker's words come to, beside chunks: answers to those who asked it, and its own questions.

use std::sync::Arc;

use registry::client::AccessSource as _;

use super::RemoteState;
use crate::control::BackendSpec;
use crate::process::connection::{Listener, WorkerConnection};
use crate::process::errand::Brought;
use crate::process::message::{Question, ToWorker, WorkerAnswer};
use crate::process::{files, given};

impl Listener for RemoteState {
    fn brought(&self, number: u64, outcome: Result<Brought, String>) {
        let mut state = self.lock();
        let Some(errand) = state.errands.remove(&number) else { return };
        // Under the lock under which a worker ends: what it has counted is not counted as the next one's.
        if let Ok(Brought::Totals(said)) = &outcome {
            state.hosts.told(said.clone());
        }
        drop(state);
        errand.end(outcome);
    }

    fn asked(&self, connection: &Arc<WorkerConnection>, number: u64, question: Question) {
        let connection = Arc::clone(connection);
        let refused = |reason: &str| {
            let answer = WorkerAnswer::Refused { reason: reason.to_owned() };
            connection.sender.send(&ToWorker::Answer { number, answer }, None);
        };
        if !self.concerns(&question) {
            return refused("no image is read from there");
        }
        let Ok(permit) = Arc::clone(&self.asked).try_acquire_owned() else {
            return refused("too many questions at once");
        };
        match question {
            Question::File { directory, blob } => drop(self.runtime.spawn_blocking(move || {
                let (answer, file) = match files::open(&directory, blob) {
                    Ok((file, bytes)) => (WorkerAnswer::File { bytes }, Some(file)),
                    Err(error) => (WorkerAnswer::Refused { reason: error.to_string() }, None),
                };
                connection.sender.send(&ToWorker::Answer { number, answer }, file);
                drop(permit);
            })),
            Question::Renew { registry, repository } => {
                let backend = BackendSpec::Registry { repository: format!("{registry}/{repository}") };
                self.lock().hosts.refused(&backend);
                let (accesses, me) = (Arc::clone(&self.accesses), self.me.clone());
                self.runtime.spawn(async move {
                    accesses.renew(&registry, &repository).await;
                    if let Some(shared) = me.upgrade() {
                        shared.give_all();
                    }
                    connection.sender.send(&ToWorker::Answer { number, answer: WorkerAnswer::Renewed }, None);
                    drop(permit);
                });
            }
        }
    }
}

impl RemoteState {
    /// Whether a question is about a backend of a mounted image.
    fn concerns(&self, question: &Question) -> bool {
        let state = self.lock();
        let mut known = state.registrations.values();
        match question {
            Question::File { directory, blob } => known.any(|known| {
                matches!(&known.backend, BackendSpec::Directory { path } if path == directory)
                    && known.blobs.contains(blob)
            }),
            Question::Renew { registry, repository } => known.any(|known| {
                given::repository(&known.backend)
                    .is_some_and(|known| known.host() == registry && known.name() == repository)
            }),
        }
    }
}
