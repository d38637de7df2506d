//! Asking several backends for one thing. The next is asked when one fails, and beside one that does not get on, which may
//! still win: how long a backend may take is the reader's deadline and no part of it.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::sources::Source;

/// What became of a source that did not deliver.
pub(super) enum Fault {
    /// It said no.
    Failed,
    /// It has not got on for a while.
    Stalled,
}

/// The first success of `attempt`, or the failures of all. `moved` says when something last went forward; `fault` is told
/// who failed or stalled.
pub(super) async fn race<T, F: Future<Output = Result<T, String>>>(
    sources: Vec<Arc<Source>>,
    patience: Duration,
    attempt: impl Fn(Arc<Source>) -> F,
    moved: impl Fn() -> Instant,
    fault: impl Fn(&Arc<Source>, Fault),
) -> Result<T, String> {
    let mut next = sources.into_iter();
    let mut failures: Vec<String> = Vec::new();
    let mut running = FuturesUnordered::new();
    let mut last_started = Instant::now();
    let mut last: Option<Arc<Source>> = None;
    let start = |source: Arc<Source>| {
        let run = attempt(Arc::clone(&source));
        async move { (source, run.await) }
    };
    loop {
        if running.is_empty() {
            let Some(source) = next.next() else { return Err(given_up(&failures)) };
            last_started = Instant::now();
            last = Some(Arc::clone(&source));
            running.push(start(source));
        }
        // Patience begins again with each source and with each byte, whoever sent it: a slow source is not left while it delivers.
        let stalls = moved().max(last_started) + patience;
        tokio::select! {
            Some((source, result)) = running.next() => match result {
                Ok(success) => return Ok(success),
                Err(error) => {
                    fault(&source, Fault::Failed);
                    failures.push(format!("{}: {error}", source.name));
                }
            },
            () = sleep_until(stalls), if next.len() > 0 => {
                if moved().max(last_started) + patience > Instant::now() {
                    continue;
                }
                if let Some(source) = next.next() {
                    last.iter().for_each(|stalled| fault(stalled, Fault::Stalled));
                    last_started = Instant::now();
                    last = Some(Arc::clone(&source));
                    running.push(start(source));
                }
            }
        }
    }
}

fn given_up(failures: &[String]) -> String {
    if failures.is_empty() { "no source of the blob is known".to_owned() } else { failures.join("; ") }
}
