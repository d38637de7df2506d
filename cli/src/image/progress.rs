//! Progress of long work: bars on a terminal, plain lines in a pipe. Both go to standard error, for standard output is
//! what a command gives.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::stdout;

/// How often a task says in plain lines how far it is: often enough to tell slow from dead, and no flood in a log.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Bars are drawn at least this often, so that the speed shown does not freeze when nothing arrives.
const TICK: Duration = Duration::from_millis(200);

/// Where the tasks of a command show how far they are. Clones show in the same place.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// `None`: plain lines.
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Bars if standard error is a terminal, plain lines otherwise.
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Begins a task of `total` bytes; 0 where nobody knows yet.
    pub(crate) fn task(&self, name: impl Into<String>, total: u64) -> Task {
        let name = name.into();
        let Some(bars) = &self.bars else {
            return Task { name, shown: TaskView::Lines(Mutex::new(Lines::new(total))) };
        };
        let bar = bars.add(ProgressBar::new(total).with_style(style(total)).with_prefix(name.clone()));
        bar.enable_steady_tick(TICK);
        Task { name, shown: TaskView::Bar(bar) }
    }
}

fn style(total: u64) -> ProgressStyle {
    let template = if total > 0 {
        "{prefix:24!} {wide_bar} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13} {eta:>4}"
    } else {
        "{prefix:24!} {spinner} {bytes:>11} {bytes_per_sec:>13}"
    };
    ProgressStyle::with_template(template).expect("the template is one of the two above")
}

/// Work that shows how far it is. One that is dropped unfinished stays where it was.
#[derive(Debug)]
pub(crate) struct Task {
    name: String,
    shown: TaskView,
}

#[derive(Debug)]
enum TaskView {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

impl Task {
    /// So many more bytes are done.
    pub(crate) fn advance(&self, bytes: u64) {
        match &self.shown {
            TaskView::Bar(bar) => bar.inc(bytes),
            TaskView::Lines(lines) => self.line(lines, |lines| lines.done += bytes),
        }
    }

    /// So many bytes are done, out of `total` (0 where nobody knows).
    pub(crate) fn set(&self, done: u64, total: u64) {
        match &self.shown {
            TaskView::Bar(bar) => {
                if bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(style(total));
                }
                bar.set_position(done);
            }
            TaskView::Lines(lines) => self.line(lines, |lines| (lines.done, lines.total) = (done, total)),
        }
    }

    /// All is done.
    pub(crate) fn finish(self) {
        match &self.shown {
            TaskView::Bar(bar) => {
                bar.set_length(bar.position());
                bar.finish();
            }
            TaskView::Lines(lines) => {
                let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                let seconds = lines.started.elapsed().as_secs_f64();
                stdout::note(&format!("{}: {} in {seconds:.1} s", self.name, HumanBytes(lines.done)));
            }
        }
    }

    fn line(&self, lines: &Mutex<Lines>, change: impl FnOnce(&mut Lines)) {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut lines);
        if lines.shown.elapsed() >= LINE_INTERVAL {
            lines.shown = Instant::now();
            stdout::note(&format!("{}: {}", self.name, lines.text()));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let TaskView::Bar(bar) = &self.shown
            && !bar.is_finished()
        {
            bar.abandon();
        }
    }
}

/// The state of a task that is shown in plain lines.
#[derive(Debug)]
struct Lines {
    done: u64,
    total: u64,
    started: Instant,
    shown: Instant,
}

impl Lines {
    fn new(total: u64) -> Self {
        let now = Instant::now();
        Self { done: 0, total, started: now, shown: now }
    }

    fn text(&self) -> String {
        if self.total == 0 {
            return HumanBytes(self.done).to_string();
        }
        let percent = self.done.saturating_mul(100) / self.total;
        format!("{percent}% ({} of {})", HumanBytes(self.done), HumanBytes(self.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_of_what_is_done() {
        let mut lines = Lines::new(4 << 20);
        lines.done = 1 << 20;
        assert_eq!(lines.text(), "25% (1.00 MiB of 4.00 MiB)");
        lines.total = 0;
        assert_eq!(lines.text(), "1.00 MiB");
    }

    #[test]
    fn every_style_is_a_template() {
        style(0);
        style(1);
    }
}
