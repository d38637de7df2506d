//! Ranges of blobs that are brought whole, since nobody can use less of them: bootstraps, tables of contents, chunk information.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio::time::Instant;

use super::WorkerState;
use super::budget::{Memory, Turn};
use super::race::race;
use super::sources::Source;
use crate::control::BlobId;

/// The memory of what was brought whole, and its backend's turn. Both last until it is done with.
pub(super) struct HeldWhole {
    memory: Memory,
    _turn: Turn,
    /// Who delivered it, range by range.
    delivered_by: Vec<Arc<Source>>,
}

impl HeldWhole {
    /// Who delivered it: whom to ask last if it turns out to be wrong.
    pub(super) fn delivered_by(&self) -> &[Arc<Source>] {
        &self.delivered_by
    }
}

/// Backends that delivered what is wrong, and what was wrong with it: they are not asked again for the same.
#[derive(Default)]
pub(super) struct WrongSources(Vec<(Arc<Source>, String)>);

impl WrongSources {
    pub(super) fn add(&mut self, source: &Arc<Source>, reason: String) {
        self.0.push((Arc::clone(source), reason));
    }

    /// Those that have not delivered anything wrong.
    pub(super) fn others_of(&self, mut sources: Vec<Arc<Source>>) -> Vec<Arc<Source>> {
        sources.retain(|source| !self.0.iter().any(|(refused, _)| Arc::ptr_eq(refused, source)));
        sources
    }

    /// What was wrong with what these delivered, and what became of the others in the end.
    pub(super) fn and(&self, last: String) -> String {
        let refused = self.0.iter().map(|(source, reason)| format!("{}: {reason}", source.name));
        refused.chain([last]).collect::<Vec<_>>().join("; ")
    }
}

/// What one backend delivered.
struct Delivered {
    source: Arc<Source>,
    bytes: Vec<u8>,
    memory: Memory,
    /// Where there was none before.
    turn: Option<Turn>,
}

impl WorkerState {
    /// Brings a range from whichever of these backends has it first. Nothing is verified.
    ///
    /// `footprint` is how many bytes are in memory until whoever asks is done: with this range, and with all others that are brought
    /// with the same `held`, which waits for no second turn.
    pub(super) async fn bring_whole(
        &self,
        blob: BlobId,
        sources: Vec<Arc<Source>>,
        range: &Range<u64>,
        footprint: u64,
        held: &mut Option<HeldWhole>,
    ) -> Result<Vec<u8>, String> {
        let moved = Mutex::new(Instant::now());
        let progressed = || *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let footprint = usize::try_from(footprint).unwrap_or(usize::MAX);
        let (known, progressed) = (held.as_ref(), &progressed);
        let attempt = |source: Arc<Source>| async move {
            let (memory, turn) = match known {
                Some(held) => (held.memory.more(), None),
                None => (self.budget.whole_memory(), Some(self.budget.whole_turn(&source, footprint).await)),
            };
            let delivered = Delivered { source, bytes: Vec::new(), memory, turn };
            self.collect(blob, range, delivered, progressed).await
        };
        let fault = |source: &Arc<Source>, _| self.sources.demote(blob, source);
        let moved = || *moved.lock().unwrap_or_else(PoisonError::into_inner);
        let Delivered { source, bytes, memory, turn } =
            race(sources, self.config.patience, attempt, moved, fault).await?;
        match (held.as_mut(), turn) {
            (Some(held), _) => held.memory.join(memory),
            (None, turn) => {
                *held = turn.map(|turn| HeldWhole { memory, _turn: turn, delivered_by: Vec::new() })
            }
        }
        held.iter_mut().for_each(|held| held.delivered_by.push(Arc::clone(&source)));
        Ok(bytes)
    }

    async fn collect(
        &self,
        blob: BlobId,
        range: &Range<u64>,
        mut delivered: Delivered,
        progressed: &impl Fn(),
    ) -> Result<Delivered, String> {
        // Not all of what may be asked of the backend, however large it is: readers would wait for the end of it.
        let permits = self.sources.permits(self.budget.counted_whole(range.end.saturating_sub(range.start)));
        let source = Arc::clone(&delivered.source);
        let _share = source.share.acquire_many(permits).await.map_err(|error| error.to_string())?;
        let mut stream = source.read(blob, range.clone());
        while let Some(more) = stream.next().await {
            let more = more.map_err(|error| error.to_string())?;
            delivered.memory.grow(more.len());
            delivered.bytes.extend_from_slice(&more);
            progressed();
        }
        Ok(delivered)
    }
}
