//! What the process tells whoever started it: systemd, for a unit with `Type=notify`. Elsewhere nothing is told.

use sd_notify::NotifyState;

/// All is set up: what waits for this unit may start.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process ends what is under way; what it waits for is `status`.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
