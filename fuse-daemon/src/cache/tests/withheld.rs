//! A cache that tells nobody what it holds, for tests of what does without.

use super::*;

impl Cache {
    /// Does something while whoever wants to know what the cache holds, or which chunks its blobs have, waits.
    pub(crate) fn withheld<T>(&self, act: impl FnOnce() -> T) -> T {
        let blobs = self.inner.lock();
        let open: Vec<_> = blobs.open.values().filter_map(Weak::upgrade).collect();
        let _known: Vec<_> = open.iter().map(|blob| blob.known_mut()).collect();
        act()
    }
}
