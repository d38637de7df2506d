//! Where blobs were redirected to: remembered for a while, so that a thousand ranges of one blob ask the registry once
//! a minute and not a thousand times. They are good for those alone to whom the registry gave them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::Url;

/// Signed URLs of object stores are good for minutes at least; one that ended earlier is forgotten when it is refused.
const KEPT: Duration = Duration::from_secs(60);

/// How many are kept before old ones are looked for: blobs that are read at the same time.
const KEPT_BEFORE_SWEEP: usize = 1024;

/// Targets of redirects, by the URL at the registry.
#[derive(Default)]
pub(super) struct Redirects(Mutex<HashMap<Url, (Url, Instant)>>);

impl Redirects {
    pub(super) fn get(&self, from: &Url) -> Option<Url> {
        let known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.get(from).filter(|(_, since)| since.elapsed() < KEPT).map(|(to, _)| to.clone())
    }

    pub(super) fn remember(&self, from: &Url, to: &Url) {
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.len() >= KEPT_BEFORE_SWEEP {
            known.retain(|_, (_, since)| since.elapsed() < KEPT);
        }
        if known.len() < KEPT_BEFORE_SWEEP {
            known.insert(from.clone(), (to.clone(), Instant::now()));
        }
    }

    pub(super) fn forget(&self, from: &Url) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(from);
    }
}
