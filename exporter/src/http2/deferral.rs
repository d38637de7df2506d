//! A flush that waits for one turn of the task: what others that are about to run have to send goes along with it.

use std::task::Context;

/// How often a flush waits for more at most, before all is sent: a stream of small messages is not to be held up until there are many.
const TURNS: u32 = 16;

/// Whether what was written is to be sent yet.
#[derive(Debug, Default)]
pub(crate) struct Deferral {
    /// Whether all that is unsent was flushed: then the task runs once more.
    flushed: bool,
    /// How often it has waited for more.
    turns: u32,
}

impl Deferral {
    /// More was written.
    pub(crate) fn written(&mut self) {
        self.flushed = false;
    }

    /// Nothing is left unsent.
    pub(crate) fn sent(&mut self) {
        *self = Self::default();
    }

    /// Whether a flush waits, for which the task of `cx` is then woken.
    pub(crate) fn waits(&mut self, cx: &Context<'_>) -> bool {
        if self.flushed || self.turns == TURNS {
            return false;
        }
        (self.flushed, self.turns) = (true, self.turns + 1);
        cx.waker().wake_by_ref();
        true
    }

    /// Whether a flush waits that nothing was written after: who then waits for an answer has to have sent the question.
    pub(crate) fn is_due(&self) -> bool {
        self.flushed
    }
}
