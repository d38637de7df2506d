//! How the backends of mounts answer, as the worker says: it alone talks to them.
//!
//! Which backends there are is the front's own knowledge, and it asks by numbers that it has given them. Of the worker's word it takes
//! numbers, and errors that it cuts short and puts on one line.

use std::time::Duration;

use tokio::time::Instant;

use super::errand::Brought;
use super::hosts::HostCount;
use super::message::{ToWorker, clip};
use super::remote::RemoteWorker;
use crate::control::{BackendSpec, SOURCES_LIMIT, SourceFailure, SourceState, SourceStatus};
use crate::worker::{REASON_LIMIT, SourceReport};

/// Backends that are asked about in one message: what is said of them fits into one, see
/// [`FROM_WORKER_LIMIT`](super::message::FROM_WORKER_LIMIT).
const AT_ONCE: usize = 32;

/// How long the worker may take to say it: it has it in memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is counted of a host.
#[derive(Clone, Debug)]
pub(crate) struct SourceFigures {
    pub(crate) count: HostCount,
    /// How each of its backends answers that blobs of mounts are read from.
    pub(crate) states: Vec<SourceState>,
}

impl RemoteWorker {
    /// How all backends answer, those first that do not: [`SOURCES_LIMIT`] of them at most.
    pub(crate) async fn sources(&self) -> Vec<SourceStatus> {
        let mut sources = self.all_sources(Instant::now() + PATIENCE).await;
        // Of one state they stay in order of their names.
        sources.sort_by_key(|source| source.state);
        sources.truncate(SOURCES_LIMIT);
        sources
    }

    /// What is counted of all backends, by host.
    pub(crate) async fn figures(&self) -> Vec<SourceFigures> {
        let until = Instant::now() + PATIENCE;
        let (sources, ()) = tokio::join!(self.all_sources(until), self.count_hosts(until));
        let (backends, states): (Vec<_>, Vec<_>) =
            sources.into_iter().map(|source| (source.backend, source.state)).unzip();
        let (counts, places) = self.shared.counts(&backends);
        let figures = counts.into_iter().map(|count| SourceFigures { count, states: Vec::new() });
        let mut figures: Vec<SourceFigures> = figures.collect();
        for (place, state) in places.into_iter().zip(states) {
            figures[place].states.push(state);
        }
        figures
    }

    /// Has the worker say what it counts of hosts.
    async fn count_hosts(&self, until: Instant) {
        if self.shared.current().is_none() {
            return;
        }
        let order = |number, _| ToWorker::Totals { number };
        match self.shared.ask("what it counts of hosts", until, || Ok(None), order).await {
            Ok((Brought::Totals(_), _)) => {}
            Ok(_) => tracing::warn!("the worker was asked what it counts of hosts, and said something else"),
            Err(error) => tracing::warn!(%error, "the worker does not say what it counts of hosts"),
        }
    }

    /// How all backends answer, in order of their names.
    async fn all_sources(&self, until: Instant) -> Vec<SourceStatus> {
        let backends: Vec<(BackendSpec, u64)> = self.shared.backends().into_iter().collect();
        let asked = backends.chunks(AT_ONCE).map(|some| self.reports(some, until));
        let reports = futures::future::join_all(asked).await.concat();
        let known = backends.into_iter().zip(reports);
        known.map(|((backend, _), report)| status(backend, report)).collect()
    }

    /// What the worker says of some backends; nothing, if it does not.
    async fn reports(&self, backends: &[(BackendSpec, u64)], until: Instant) -> Vec<Option<SourceReport>> {
        let nothing = vec![None; backends.len()];
        // The next one would have seen nothing of them yet.
        if self.shared.current().is_none() {
            return nothing;
        }
        let order = |number, _| ToWorker::Sources {
            number,
            registrations: backends.iter().map(|(_, registration)| *registration).collect(),
        };
        match self.shared.ask("what it says of backends", until, || Ok(None), order).await {
            Ok((Brought::Sources(reports), _)) if reports.len() == backends.len() => reports,
            Ok(_) => {
                tracing::warn!("the worker was asked how backends answer, and said something else");
                nothing
            }
            Err(error) => {
                tracing::warn!(%error, "the worker does not say how backends answer");
                nothing
            }
        }
    }
}

/// What is told of a backend.
fn status(backend: BackendSpec, report: Option<SourceReport>) -> SourceStatus {
    let state = match &report {
        None => SourceState::Unknown,
        Some(SourceReport { silent_ms: Some(_), .. }) => SourceState::Silent,
        Some(SourceReport { is_answered: Some(false), .. }) => SourceState::Fails,
        Some(SourceReport { is_answered: Some(true), .. }) => SourceState::Answers,
        Some(SourceReport { is_answered: None, .. }) => SourceState::Unasked,
    };
    let SourceReport { requests, failures, bytes, answered_ms, failed_ms, reason, silent_ms, .. } =
        report.unwrap_or_default();
    let failed = failed_ms.map(|ago_ms| {
        let reason = clip(&reason.unwrap_or_default());
        SourceFailure { ago_ms, reason: reason.chars().take(REASON_LIMIT).collect() }
    });
    SourceStatus {
        backend,
        state,
        requests,
        failures,
        bytes,
        answered_ago_ms: answered_ms,
        failed,
        silent_ms,
    }
}
