//! What test programs with a `main` of their own share: values that are made once, and tests that say what they lack.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use libtest_mimic::{Completion, Failed, Trial};
use test_support::needs::is_ci;

use crate::peers::Peers;

/// A value made at its first use; every later use sees the same value or the same error.
#[derive(Debug)]
pub struct Lazy<T>(OnceLock<Result<T, String>>);

impl<T> Lazy<T> {
    /// Not made yet.
    #[expect(clippy::new_without_default, reason = "a cell has no default that means more")]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value.
    pub fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        let made = self.0.get_or_init(|| make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow!("{error}"))
    }
}

/// A test that works on peers.
pub type TestOnPeers = fn(&Peers) -> Result<()>;

/// Tests that work on peers, by their names. `require` fails where something is missing that all of them need.
pub fn trials_on_peers(
    tests: &[(&str, TestOnPeers)],
    require: impl FnOnce(&Peers) -> Result<()>,
) -> Vec<Trial> {
    let peers = Peers::of_user().and_then(|peers| require(&peers).map(|()| peers));
    let missing = peers.as_ref().err().map(|error| format!("{error:#}"));
    let trials = tests.iter().map(|&(name, test)| {
        let peers = peers.as_ref().ok().cloned();
        trial(name, missing.as_deref(), move || test(&peers.context("no peers")?))
    });
    trials.collect()
}

/// A test. Where the machine lacks something for it, which is `missing`, it says `skipped: needs …`; with `CI=true` it
/// fails instead.
pub fn trial(name: &str, missing: Option<&str>, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let needs = missing.map(|missing| format!("needs {missing}"));
    Trial::ignorable_test(name, move || match needs {
        Some(needs) if is_ci() => Err(Failed::from(needs)),
        Some(needs) => {
            println!("skipped: {needs}");
            Ok(Completion::Ignored { reason: Some(needs) })
        }
        None => match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    })
}
