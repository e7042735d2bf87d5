//! What `produce` tells of its progress and of its end.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use rimstone_types::ByteCount;
use tokio::time::Instant;

use crate::{
    logs,
    output::{count, note},
};

/// How often progress is shown: often enough to look alive, too seldom to cost anything.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// How often a line is printed.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressKind {
    /// A bar if standard error is a terminal
    Auto,
    /// A bar
    Bar,
    /// A line each second, for logs and scripts
    Lines,
    /// Nothing
    None,
}

/// What has been taken and what has been answered.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Records handed to the producer.
    pub(crate) sent: AtomicU64,
    /// Records stored.
    pub(crate) stored: AtomicU64,
    /// Bytes of their lines.
    pub(crate) stored_bytes: AtomicU64,
    /// Of the stored: those that an earlier try had stored.
    pub(crate) duplicates: AtomicU64,
}

impl Tally {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Whether nothing is stored.
    pub(crate) fn is_empty(&self) -> bool {
        Self::get(&self.stored) == 0
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// One line on what was stored in this time.
    pub(crate) fn summary(&self, elapsed: Duration) -> String {
        let stored = Self::get(&self.stored);
        let bytes = Self::get(&self.stored_bytes);
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let mut line = format!(
            "stored {}, {}, in {seconds:.1} s: {:.0} records/s, {}/s",
            count(stored, "record"),
            ByteCount(bytes),
            stored as f64 / seconds,
            ByteCount((bytes as f64 / seconds) as u64),
        );
        let duplicates = Self::get(&self.duplicates);
        if duplicates > 0 {
            // Writing to a string cannot fail.
            let _ = write!(line, " ({duplicates} were sent again and had been stored before)");
        }
        line
    }
}

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    pub(crate) fn begin(kind: ProgressKind, length: Option<u64>, tally: &Arc<Tally>) -> Self {
        let bar = match kind {
            ProgressKind::Bar => true,
            ProgressKind::Auto => io::stderr().is_terminal(),
            ProgressKind::Lines => {
                return Self { bar: None, task: Some(tokio::spawn(print_lines(tally.clone()))) };
            }
            ProgressKind::None => false,
        };
        if !bar {
            return Self { bar: None, task: None };
        }
        let bar = match length {
            Some(length) => ProgressBar::new(length)
                .with_style(style("{bar:40} {percent:>3}%  {msg}  {bytes_per_sec}  {eta_precise} left")),
            None => ProgressBar::new_spinner().with_style(style("{spinner} {msg}  {bytes_per_sec}")),
        };
        logs::pass_above(&bar);
        let task = tokio::spawn(move_bar(bar.clone(), tally.clone()));
        Self { bar: Some(bar), task: Some(task) }
    }

    /// Takes it from the screen.
    pub(crate) fn end(self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is written above")
}

async fn move_bar(bar: ProgressBar, tally: Arc<Tally>) {
    let mut ticks = tokio::time::interval(BAR_EVERY);
    loop {
        ticks.tick().await;
        let (stored, sent) = (Tally::get(&tally.stored), Tally::get(&tally.sent));
        bar.set_message(format!("{stored} stored, {} under way", sent.saturating_sub(stored)));
        // One byte a line went with its end.
        bar.set_position(Tally::get(&tally.stored_bytes) + stored);
    }
}

async fn print_lines(tally: Arc<Tally>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + LINE_EVERY, LINE_EVERY);
    loop {
        ticks.tick().await;
        let (stored, sent) = (Tally::get(&tally.stored), Tally::get(&tally.sent));
        note(format!("stored {stored} of {sent} sent"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_how_many_how_much_and_how_fast() {
        let tally = Tally::default();
        Tally::add(&tally.stored, 1000);
        Tally::add(&tally.stored_bytes, 4096);
        assert_eq!(
            tally.summary(Duration::from_secs(2)),
            "stored 1000 records, 4.0 KiB, in 2.0 s: 500 records/s, 2.0 KiB/s"
        );
        Tally::add(&tally.duplicates, 3);
        assert!(
            tally.summary(Duration::from_secs(2)).ends_with("(3 were sent again and had been stored before)")
        );
    }
}
