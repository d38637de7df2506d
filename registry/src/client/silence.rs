//! How long a registry may be silent while a blob is pushed to it.
//!
//! ```text
//!   small operations           `operation` for all attempts together
//!   one attempt at a piece     `idle` without a byte
//!   all attempts at a piece    the limit, less the silence in which attempts before have ended; pauses between them do not count
//!   storing the blob           the same, and longer by the blob's size
//! ```
//!
//! A registry that is slow is not silent: whatever moves counts. Only while it stores a blob nothing does.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::config::ClientConfig;
use super::{Error, Target};

/// The least part of the time that one attempt gets, however many there may be.
const ATTEMPTS_LIMIT: u32 = 6;

/// Registries in front of object stores copy and hash what they store at such a rate, if they are slow.
const STORED_PER_SECOND: u64 = 16 << 20;

/// How long a registry may be silent while a blob is pushed to it, over all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilenceLimit {
    /// For how long no byte of the blob may be taken and nothing answered. To store a blob a registry gets a second more for each 16 MiB.
    pub after: Duration,
    /// The setting that says so: part of the error.
    pub setting: &'static str,
}

impl SilenceLimit {
    /// `config` with deadlines by which all attempts at one thing fit in. Those that are shorter stay.
    pub(super) fn applied_to(self, config: &ClientConfig) -> ClientConfig {
        let mut config = config.clone();
        let attempts = config.retries.attempts.clamp(1, ATTEMPTS_LIMIT);
        config.timeouts.idle = config.timeouts.idle.min(self.after / attempts);
        config.timeouts.operation = config.timeouts.operation.min(self.after);
        config
    }
}

/// How long nothing has moved, over all attempts at what is done now.
pub(super) struct Silence {
    limit: Option<SilenceLimit>,
    quiet: Mutex<Quiet>,
}

struct Quiet {
    /// When the last byte moved, or the last attempt began.
    since: Instant,
    /// For how long nothing had moved when the attempts before ended.
    before: Duration,
    /// What storing may take in addition.
    storing: Duration,
}

impl Silence {
    pub(super) fn new(limit: Option<SilenceLimit>) -> Self {
        Self { limit, quiet: Mutex::new(Quiet::begin(Instant::now(), Duration::ZERO)) }
    }

    /// Something moved.
    pub(super) fn moved(&self) {
        self.lock().moved(Instant::now());
    }

    /// One more attempt begins: what moves in it does not make up for the silence before.
    pub(super) fn attempt(&self) {
        self.lock().attempt(Instant::now());
    }

    /// For so long nobody is going to wait for the registry.
    pub(super) fn pause(&self, pause: Duration) {
        self.lock().pause(pause);
    }

    /// An attempt came to something.
    pub(super) fn progressed(&self) {
        self.lock().progressed(Instant::now());
    }

    /// Runs `operation`, at whose end `stored_bytes` are stored, until nothing has moved for too long.
    pub(super) async fn bound<T>(
        &self,
        target: &Target,
        stored_bytes: u64,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let Some(limit) = self.limit else { return operation.await };
        let storing = Duration::from_secs(stored_bytes / STORED_PER_SECOND);
        *self.lock() = Quiet::begin(Instant::now(), storing);
        let mut operation = std::pin::pin!(operation);
        loop {
            let deadline = self.lock().deadline(limit);
            match timeout_at(deadline, &mut operation).await {
                Ok(result) => return result,
                Err(_) if self.lock().deadline(limit) > deadline => {}
                Err(_) => {
                    let (target, setting) = (Box::new(target.clone()), limit.setting);
                    return Err(Error::Silent { target, after: limit.after + storing, setting });
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Quiet {
    fn begin(now: Instant, storing: Duration) -> Self {
        Self { since: now, before: Duration::ZERO, storing }
    }

    fn moved(&mut self, now: Instant) {
        self.since = now;
    }

    fn attempt(&mut self, now: Instant) {
        self.before += now.saturating_duration_since(self.since);
        self.since = now;
    }

    fn pause(&mut self, pause: Duration) {
        self.since += pause;
    }

    fn progressed(&mut self, now: Instant) {
        (self.since, self.before) = (now, Duration::ZERO);
    }

    fn deadline(&self, limit: SilenceLimit) -> Instant {
        self.since + (limit.after + self.storing).saturating_sub(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Retries, Timeouts};

    const LIMIT: SilenceLimit = SilenceLimit { after: Duration::from_secs(60), setting: "a.setting" };

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn all_attempts_together_fit_and_what_is_shorter_stays() {
        let limited = |attempts, after| {
            let retries = Retries { attempts, ..Retries::default() };
            let config = ClientConfig { retries, ..ClientConfig::default() };
            SilenceLimit { after: seconds(after), ..LIMIT }.applied_to(&config).timeouts
        };
        let default = Timeouts::default();
        assert_eq!((limited(5, 60).idle, limited(5, 60).operation), (seconds(12), seconds(60)));
        // Many attempts are no reason to give each no time.
        assert_eq!((limited(1000, 60).idle, limited(0, 60).idle), (seconds(10), default.idle));
        assert_eq!(limited(5, 3600), default);
    }

    #[test]
    fn what_moves_counts_and_the_silence_of_attempts_before_stays() {
        let begin = Instant::now();
        let at = |number| begin + seconds(number);
        let mut quiet = Quiet::begin(begin, Duration::ZERO);
        let mut until = |change: &dyn Fn(&mut Quiet)| {
            change(&mut quiet);
            (quiet.deadline(LIMIT) - begin).as_secs()
        };
        assert_eq!(until(&|_| {}), 60);
        assert_eq!(until(&|quiet| quiet.moved(at(50))), 110);
        // It ends after 20 seconds of silence, and what moves in the next one is the same bytes again.
        assert_eq!(until(&|quiet| quiet.attempt(at(70))), 110);
        assert_eq!(until(&|quiet| quiet.moved(at(100))), 140);
        assert_eq!(until(&|quiet| quiet.pause(seconds(5))), 145);
        // And one after 10 more.
        assert_eq!(until(&|quiet| quiet.attempt(at(115))), 145);
        assert_eq!(until(&|quiet| quiet.moved(at(120))), 150);
        assert_eq!(until(&|quiet| quiet.progressed(at(130))), 190);
    }

    #[tokio::test]
    async fn what_never_ends_is_ended_with_the_name_of_the_setting_and_what_is_stored_may_take_longer() {
        let limit = SilenceLimit { after: Duration::from_millis(50), ..LIMIT };
        for (stored_bytes, after) in [(0, "50ms"), (STORED_PER_SECOND, "1.05s")] {
            let endless = std::future::pending::<Result<(), Error>>();
            let begin = Instant::now();
            let bound = Silence::new(Some(limit));
            let error = bound.bound(&Target::host("a.host"), stored_bytes, endless).await.unwrap_err();
            let expected =
                format!("registry a.host: GET : no byte moved for {after}, with all attempts: see a.setting");
            assert_eq!(error.to_string(), expected);
            assert!(begin.elapsed() >= limit.after + Duration::from_secs(stored_bytes / STORED_PER_SECOND));
        }
    }
}
