//! Which files were read, in the order in which each was first.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rafs::bootstrap::Nid;

/// Files that are remembered at most: some 2 MB for each mount.
const FILES: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct FirstReads(Mutex<ReadOrder>);

#[derive(Debug, Default)]
struct ReadOrder {
    seen: HashSet<Nid>,
    order: Vec<Nid>,
}

impl FirstReads {
    /// A file is read.
    pub(super) fn note(&self, nid: Nid) {
        let mut order = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if order.order.len() < FILES && order.seen.insert(nid) {
            order.order.push(nid);
        }
    }

    /// The files, in order.
    pub(super) fn files(&self) -> Vec<Nid> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).order.clone()
    }
}
