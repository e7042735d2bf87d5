//! The rows of a run, measured pair by pair and printed: as text, and as Markdown for a page.

use std::{
    future::Future,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::row::{Measured, Row, Sample, Verdict};

const HEAD: [&str; 8] = ["ROW", "GOAL", "FIGURE", "BEST", "REFERENCE", "RATIO", "SPREAD", ""];

/// All rows of a run.
#[derive(Debug, Default)]
pub struct Table {
    /// In the order in which they were measured.
    pub rows: Vec<Measured>,
    /// A quick run says whether everything works, and judges nothing.
    pub quick: bool,
}

impl Table {
    /// Measures some rows together, pair after pair; `pair` gives a sample for each row, and is tried twice in a quick run.
    pub async fn measure<F: Future<Output = anyhow::Result<Vec<Sample>>>>(
        &mut self,
        rows: &[Row],
        pairs: u32,
        pair: impl Fn() -> F,
    ) {
        let begun = Instant::now();
        let mut measured: Vec<_> =
            rows.iter().map(|row| Measured { row: *row, samples: Vec::new(), failure: None }).collect();
        for number in 1..=pairs {
            eprintln!("{} ({number} of {pairs})", rows.first().map_or("", |row| row.name));
            let mut outcome = pair().await;
            if let (true, Err(error)) = (self.quick, &outcome) {
                // A machine that stands still for a moment leaves a tiny run without a figure: that says nothing.
                eprintln!("  once more: {error:#}");
                outcome = pair().await;
            }
            let failure = match outcome {
                Ok(samples) if samples.len() == measured.len() => {
                    for (measured, sample) in measured.iter_mut().zip(samples) {
                        measured.samples.push(sample);
                    }
                    continue;
                }
                Ok(samples) => format!("{} samples for {} rows", samples.len(), rows.len()),
                Err(error) => format!("{error:#}"),
            };
            // What failed once is not measured: the other pairs would say something else.
            for measured in &mut measured {
                measured.failure = Some(failure.clone());
            }
            break;
        }
        eprintln!("  {:.0} s", begun.elapsed().as_secs_f64());
        self.rows.extend(measured);
    }

    /// Whether a run is to end well: every row was measured, and none falls short, unless the run was a quick one.
    pub fn passes(&self) -> bool {
        !self.rows.is_empty()
            && self.rows.iter().all(|row| match row.verdict() {
                Verdict::Reached | Verdict::Near | Verdict::Told => true,
                Verdict::Short => self.quick,
                Verdict::Failed(_) => false,
            })
    }

    fn cells(&self) -> Vec<[String; 8]> {
        let mut cells = vec![HEAD.map(str::to_owned)];
        for row in &self.rows {
            let mut row_cells = row.cells();
            if self.quick && !matches!(row.verdict(), Verdict::Failed(_)) {
                "not judged".clone_into(&mut row_cells[7]);
            }
            cells.push(row_cells);
        }
        cells
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for row in &self.rows {
            if let Verdict::Failed(why) = row.verdict() {
                notes.push(format!("{}: {why}", row.row.name));
            }
        }
        if self.quick {
            notes.push("A quick run: the figures mean nothing.".to_owned());
        }
        notes
    }

    /// For a terminal: columns.
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
        let mut text = String::new();
        for row in &cells {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for note in self.notes() {
            text.push_str(&note);
            text.push('\n');
        }
        text
    }

    /// For a page: what it was measured on, and a Markdown table.
    pub fn markdown(&self, machine: &str, pairs: u32) -> String {
        let mut text = format!("{machine}. Medians of {pairs} pairs.\n\n");
        for (number, row) in self.cells().iter().enumerate() {
            let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let line = cells.join(" | ");
            if number == 0 {
                // Heads of a page are not shouted.
                text.push_str(&format!("| {} |\n|{}\n", line.to_lowercase(), "---|".repeat(HEAD.len())));
            } else {
                text.push_str(&format!("| {line} |\n"));
            }
        }
        for note in self.notes() {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }

    /// Prints the table, and writes it to a file of Markdown if there is to be one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tell(&self, machine: &str, pairs: u32, markdown: Option<&Path>) -> anyhow::Result<()> {
        print!("{}", self.text());
        if let Some(path) = markdown {
            std::fs::write(path, self.markdown(machine, pairs))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Runs something until it is done or somebody interrupts; what it had started ends either way, because it is dropped.
///
/// # Errors
/// It was interrupted.
pub async fn unless_interrupted<T>(run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = run => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

/// `1 min 05 s`.
pub fn shown(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Goal, Unit};

    const POSSIBLE: Row = Row {
        name: "possible",
        unit: Unit::BytesPerSecond,
        goal: Goal::AtLeast(0.9),
        reference: Some("r|r"),
    };
    const IMPOSSIBLE: Row =
        Row { name: "impossible", unit: Unit::PerSecond, goal: Goal::AtLeast(1e30), reference: None };

    fn table(row: Row, samples: &[Sample], quick: bool) -> Table {
        Table { rows: vec![Measured { row, samples: samples.to_vec(), failure: None }], quick }
    }

    #[test]
    fn a_goal_that_nothing_reaches_fails_the_run_unless_it_is_quick() {
        let figures: Vec<_> = (1..=5).map(|n| Sample::alone(f64::from(n) * 1e6)).collect();
        assert!(!table(IMPOSSIBLE, &figures, false).passes());
        assert!(table(IMPOSSIBLE, &figures, true).passes());
        assert!(table(IMPOSSIBLE, &figures, true).text().contains("not judged"));
        // One bad row among good ones is enough.
        let mut both = table(POSSIBLE, &[Sample::beside(1.0, 1.0)], false);
        assert!(both.passes());
        both.rows.extend(table(IMPOSSIBLE, &figures, false).rows);
        assert!(!both.passes());
        assert!(!Table::default().passes(), "nothing was measured");
    }

    #[test]
    fn a_row_fails_the_run_only_if_its_whole_interval_is_short() {
        let spread = |ratios: &[f64]| {
            let samples: Vec<_> = ratios.iter().map(|ratio| Sample::beside(*ratio, 1.0)).collect();
            table(POSSIBLE, &samples, false).passes()
        };
        assert!(!spread(&[0.5, 0.89, 0.7, 0.8, 0.6]));
        assert!(spread(&[0.5, 0.9, 0.7, 0.8, 0.6]));
    }

    #[tokio::test]
    async fn a_failure_ends_a_row_and_the_run_fails_quick_or_not() {
        for quick in [false, true] {
            let mut table = Table { quick, ..Table::default() };
            let tried = std::cell::Cell::new(0);
            table
                .measure(&[POSSIBLE, IMPOSSIBLE], 5, || {
                    tried.set(tried.get() + 1);
                    std::future::ready(Err(anyhow::anyhow!("no disk")))
                })
                .await;
            let tries = if quick { 2 } else { 1 };
            assert_eq!((tried.get(), table.rows.len(), table.passes()), (tries, 2, false));
            assert!(table.text().contains("impossible: no disk"), "{}", table.text());
        }
        // What works at the second try has worked, in a quick run.
        let mut table = Table { quick: true, ..Table::default() };
        let tried = std::cell::Cell::new(0);
        table
            .measure(&[POSSIBLE], 1, || {
                tried.set(tried.get() + 1);
                let failed = tried.get() == 1;
                std::future::ready(if failed {
                    Err(anyhow::anyhow!("stalled"))
                } else {
                    Ok(vec![Sample::alone(1.0)])
                })
            })
            .await;
        assert_eq!((tried.get(), table.rows[0].samples.len(), table.passes()), (2, 1, true));
        let mut table = Table::default();
        table.measure(&[POSSIBLE, IMPOSSIBLE], 3, || std::future::ready(Ok(vec![Sample::alone(1.0)]))).await;
        assert!(table.text().contains("1 samples for 2 rows"), "{}", table.text());
        let mut table = Table::default();
        table.measure(&[POSSIBLE], 3, || std::future::ready(Ok(vec![Sample::beside(1.0, 1.0)]))).await;
        assert_eq!((table.rows[0].samples.len(), table.passes()), (3, true));
    }

    #[test]
    fn a_page_has_the_same_cells() {
        let table = table(POSSIBLE, &[Sample::beside(2e9, 1e9)], false);
        assert_eq!(
            table.markdown("2 processors", 5),
            "2 processors. Medians of 5 pairs.\n\n\
             | row | goal | figure | best | reference | ratio | spread |  |\n\
             |---|---|---|---|---|---|---|---|\n\
             | possible | >= 0.9 of r\\|r | 2.00 GB/s | 2.00 GB/s | 1.00 GB/s | 2.00 | 2.00..2.00 | reached |\n"
        );
        assert_eq!(shown(Duration::from_secs(65)), "1 min 05 s");
    }
}
