//! A line on the terminal that shows how a phase goes.

use std::{
    io::{self, IsTerminal as _},
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    task::JoinHandle,
    time::{Instant, interval},
};

use super::{meter::Meter, report::rate};

/// Often enough to look alive, too seldom to cost anything.
const EVERY: Duration = Duration::from_millis(250);

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: Option<(ProgressBar, JoinHandle<()>)>,
}

impl Progress {
    pub(crate) fn begin(quiet: bool, name: &'static str, meter: &Arc<Meter>) -> Self {
        if quiet || !io::stderr().is_terminal() {
            return Self { shown: None };
        }
        let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is written here");
        let bar = ProgressBar::new_spinner().with_style(style);
        crate::logs::pass_above(&bar);
        let task = tokio::spawn(move_bar(bar.clone(), name, meter.clone()));
        Self { shown: Some((bar, task)) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((bar, task)) = &self.shown {
            task.abort();
            bar.finish_and_clear();
        }
    }
}

async fn move_bar(bar: ProgressBar, name: &'static str, meter: Arc<Meter>) {
    let mut ticks = interval(EVERY);
    let (mut before, mut at) = (meter.so_far(), Instant::now());
    loop {
        ticks.tick().await;
        let (now, so_far) = (Instant::now(), meter.so_far());
        let seconds = (now - at).as_secs_f64().max(1e-3);
        let line = line(name, &meter, now, so_far, before, seconds);
        (before, at) = (so_far, now);
        bar.set_message(line);
        bar.tick();
    }
}

fn line(
    name: &str,
    meter: &Meter,
    now: Instant,
    so_far: (u64, u64),
    before: (u64, u64),
    seconds: f64,
) -> String {
    let window = meter.window();
    if now < window.from {
        return format!("{name}: warming up, {:.0} s", (window.from - now).as_secs_f64());
    }
    let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let mut line = format!(
        "{name}: {} records, {:.0} records/s, {}",
        so_far.0,
        per_second(so_far.0, before.0),
        rate(per_second(so_far.1, before.1)),
    );
    if let Some(until) = window.until {
        line.push_str(&format!(", {:.0} s left", until.saturating_duration_since(now).as_secs_f64()));
    }
    let errors = meter.errors_so_far();
    if errors > 0 {
        line.push_str(&format!(", {errors} errors"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::meter::Window;

    #[tokio::test(start_paused = true)]
    async fn the_line_says_how_fast_and_how_long() {
        let from = Instant::now() + Duration::from_secs(1);
        let meter = Meter::new(Window { from, until: Some(from + Duration::from_secs(10)) });
        let now = Instant::now();
        assert_eq!(line("produce", &meter, now, (0, 0), (0, 0), 1.0), "produce: warming up, 1 s");
        let now = from + Duration::from_secs(4);
        assert_eq!(
            line("produce", &meter, now, (3000, 3_000_000), (1000, 1_000_000), 0.5),
            "produce: 3000 records, 4000 records/s, 4.0 MB/s, 6 s left"
        );
    }
}
