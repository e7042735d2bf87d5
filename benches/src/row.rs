//! A row: a figure, what it is compared with, and whether it falls short.

use std::fmt;

use crate::stats::median;

/// What is asked of a figure, or of its ratio to the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
    /// Nothing: it is told because it explains another row.
    Told,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes a second.
    BytesPerSecond,
    /// So many a second.
    PerSecond,
    /// A time.
    Seconds,
    /// A size.
    Bytes,
    /// A number without a unit.
    Plain,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What is measured.
    pub name: &'static str,
    /// In which unit.
    pub unit: Unit,
    /// What is asked of it.
    pub goal: Goal,
    /// What the reference is; `None`: the goal is a figure of this unit, not a ratio.
    pub reference: Option<&'static str>,
}

/// What one pair of runs gave for a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Of what is under test.
    pub figure: f64,
    /// Of its reference, in the same unit.
    pub reference: Option<f64>,
}

impl Sample {
    /// A figure without a reference.
    pub fn alone(figure: f64) -> Self {
        Self { figure, reference: None }
    }

    /// A figure and that of its reference.
    pub fn beside(figure: f64, reference: f64) -> Self {
        Self { figure, reference: Some(reference) }
    }
}

/// How a row came out.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// In the median of all pairs.
    Reached,
    /// Not in the median, but in some pairs.
    Near,
    /// In no pair.
    Short,
    /// There is no goal.
    Told,
    /// It could not be measured.
    Failed(String),
}

/// A row with its samples.
#[derive(Debug)]
pub struct Measured {
    /// Which row.
    pub row: Row,
    /// One for each pair.
    pub samples: Vec<Sample>,
    /// Why it could not be measured.
    pub failure: Option<String>,
}

impl Measured {
    /// The ratio of each pair: to the reference, or to the goal where that is a figure.
    fn ratios(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| self.ratio(sample)).collect()
    }

    fn ratio(&self, sample: &Sample) -> f64 {
        match (self.row.reference, self.row.goal) {
            (Some(_), _) => sample.figure / sample.reference.unwrap_or(f64::NAN),
            (None, Goal::AtLeast(goal) | Goal::AtMost(goal)) => sample.figure / goal,
            (None, Goal::Told) => f64::NAN,
        }
    }

    /// Whether one ratio is what was asked for.
    fn holds(&self, ratio: f64) -> bool {
        let bound = |goal: f64| if self.row.reference.is_some() { goal } else { 1.0 };
        match self.row.goal {
            Goal::AtLeast(goal) => ratio >= bound(goal),
            Goal::AtMost(goal) => ratio <= bound(goal),
            Goal::Told => true,
        }
    }

    /// How it came out. A row falls short only if the whole interval of its ratios does.
    pub fn verdict(&self) -> Verdict {
        if let Some(failure) = &self.failure {
            return Verdict::Failed(failure.clone());
        }
        if self.row.goal == Goal::Told {
            return Verdict::Told;
        }
        let ratios = self.ratios();
        // What is not a number holds nothing.
        match (self.holds(median(&ratios)), ratios.iter().any(|ratio| self.holds(*ratio))) {
            (true, _) => Verdict::Reached,
            (false, true) => Verdict::Near,
            (false, false) => Verdict::Short,
        }
    }

    /// The row as it is printed.
    pub fn cells(&self) -> [String; 8] {
        let unit = self.row.unit;
        let figures: Vec<f64> = self.samples.iter().map(|sample| sample.figure).collect();
        let references: Vec<f64> = self.samples.iter().filter_map(|sample| sample.reference).collect();
        let ratios = self.ratios();
        let best = match self.row.goal {
            Goal::AtMost(_) => figures.iter().copied().fold(f64::INFINITY, f64::min),
            _ => figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        let some = |values: &[f64], text: String| {
            if values.is_empty() || values.iter().all(|value| value.is_nan()) { "-".to_owned() } else { text }
        };
        let spread = format!(
            "{:.2}..{:.2}",
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        );
        [
            self.row.name.to_owned(),
            self.row.goal(),
            some(&figures, unit.show(median(&figures))),
            some(&figures, unit.show(best)),
            some(&references, unit.show(median(&references))),
            some(&ratios, format!("{:.2}", median(&ratios))),
            some(&ratios, spread),
            self.verdict().to_string(),
        ]
    }
}

impl Row {
    fn goal(&self) -> String {
        let (sign, goal) = match self.goal {
            Goal::AtLeast(goal) => (">=", goal),
            Goal::AtMost(goal) => ("<=", goal),
            Goal::Told => return self.reference.map_or("-".to_owned(), |of| format!("(to {of})")),
        };
        match self.reference {
            Some(of) => format!("{sign} {goal} of {of}"),
            None => format!("{sign} {}", self.unit.show(goal)),
        }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::BytesPerSecond if value >= 1e9 => format!("{:.2} GB/s", value / 1e9),
            Self::BytesPerSecond => format!("{:.1} MB/s", value / 1e6),
            Self::PerSecond if value >= 1e6 => format!("{:.2} M/s", value / 1e6),
            Self::PerSecond if value >= 1e3 => format!("{:.1} k/s", value / 1e3),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Seconds if value < 1e-5 => format!("{:.3} us", value * 1e6),
            Self::Seconds if value < 1e-2 => format!("{:.0} us", value * 1e6),
            Self::Seconds => format!("{:.1} ms", value * 1e3),
            Self::Bytes if value >= 1_048_576.0 => format!("{:.1} MiB", value / 1_048_576.0),
            Self::Bytes => format!("{:.1} KiB", value / 1024.0),
            Self::Plain => format!("{value:.3}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached => f.write_str("reached"),
            Self::Near => f.write_str("near"),
            Self::Short => f.write_str("SHORT"),
            Self::Told => f.write_str("-"),
            Self::Failed(_) => f.write_str("FAILED"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(goal: Goal, reference: Option<&'static str>, samples: Vec<Sample>) -> Measured {
        let row = Row { name: "row", unit: Unit::BytesPerSecond, goal, reference };
        Measured { row, samples, failure: None }
    }

    fn pairs(pairs: &[(f64, f64)]) -> Vec<Sample> {
        pairs.iter().map(|(figure, reference)| Sample::beside(*figure, *reference)).collect()
    }

    #[test]
    fn ratios_are_taken_within_a_pair() {
        // Machine twice as fast in the second pair: medians apart from each other would say 2.
        let row = measured(
            Goal::AtLeast(0.9),
            Some("the reference"),
            pairs(&[(100e6, 100e6), (190e6, 200e6), (100e6, 95e6)]),
        );
        assert_eq!(row.verdict(), Verdict::Reached);
        assert_eq!(
            row.cells(),
            [
                "row",
                ">= 0.9 of the reference",
                "100.0 MB/s",
                "190.0 MB/s",
                "100.0 MB/s",
                "1.00",
                "0.95..1.05",
                "reached"
            ]
        );
    }

    #[test]
    fn a_row_falls_short_only_if_every_pair_does() {
        let at_least =
            |samples: &[(f64, f64)]| measured(Goal::AtLeast(0.9), Some("r"), pairs(samples)).verdict();
        assert_eq!(at_least(&[(8.0, 10.0), (8.5, 10.0), (8.9, 10.0)]), Verdict::Short);
        assert_eq!(at_least(&[(8.0, 10.0), (8.5, 10.0), (9.0, 10.0)]), Verdict::Near);
        assert_eq!(at_least(&[(8.0, 10.0), (9.0, 10.0), (9.0, 10.0)]), Verdict::Reached);
        let at_most =
            |samples: &[(f64, f64)]| measured(Goal::AtMost(1.5), Some("r"), pairs(samples)).verdict();
        assert_eq!(at_most(&[(1.6, 1.0), (1.7, 1.0), (9.0, 1.0)]), Verdict::Short);
        assert_eq!(at_most(&[(1.4, 1.0), (1.7, 1.0), (9.0, 1.0)]), Verdict::Near);
        assert_eq!(at_most(&[(1.4, 1.0), (1.5, 1.0), (9.0, 1.0)]), Verdict::Reached);
    }

    #[test]
    fn a_goal_without_a_reference_is_a_figure() {
        let alone = |goal, figures: &[f64]| {
            measured(goal, None, figures.iter().map(|figure| Sample::alone(*figure)).collect())
        };
        let row = alone(Goal::AtLeast(1.2e9), &[1.1e9, 1.5e9, 1.3e9]);
        assert_eq!(row.verdict(), Verdict::Reached);
        assert_eq!(row.cells()[1..4], [">= 1.20 GB/s", "1.30 GB/s", "1.50 GB/s"]);
        assert_eq!(row.cells()[4..7], ["-", "1.08", "0.92..1.25"]);
        assert_eq!(alone(Goal::AtLeast(1.2e9), &[1.1e9, 1.0e9]).verdict(), Verdict::Short);
        assert_eq!(alone(Goal::AtMost(8192.0), &[9000.0, 8000.0, 8500.0]).verdict(), Verdict::Near);
        assert_eq!(alone(Goal::AtMost(8192.0), &[9000.0, 8000.0]).cells()[3], "0.0 MB/s");
    }

    #[test]
    fn what_was_not_measured_is_not_reached() {
        let row = measured(Goal::AtLeast(0.9), Some("r"), Vec::new());
        assert_eq!(row.verdict(), Verdict::Short);
        let row = measured(Goal::AtMost(0.9), Some("r"), vec![Sample::alone(1.0)]);
        assert_eq!(row.verdict(), Verdict::Short);
        assert_eq!(row.cells()[5..], ["-", "-", "SHORT"]);
        let failed = Measured { failure: Some("why".to_owned()), ..row };
        assert_eq!(failed.verdict(), Verdict::Failed("why".to_owned()));
        let told = measured(Goal::Told, Some("r"), pairs(&[(2.0, 1.0)]));
        assert_eq!((told.verdict(), told.cells()[5].as_str()), (Verdict::Told, "2.00"));
    }

    #[test]
    fn figures_are_shown_in_their_units() {
        for (unit, value, text) in [
            (Unit::BytesPerSecond, 1.234e9, "1.23 GB/s"),
            (Unit::PerSecond, 5.1e6, "5.10 M/s"),
            (Unit::PerSecond, 66_000.0, "66.0 k/s"),
            (Unit::PerSecond, 12.0, "12/s"),
            (Unit::Seconds, 3e-7, "0.300 us"),
            (Unit::Seconds, 35e-5, "350 us"),
            (Unit::Seconds, 0.03, "30.0 ms"),
            (Unit::Bytes, 8192.0, "8.0 KiB"),
            (Unit::Bytes, 12_582_912.0, "12.0 MiB"),
            (Unit::Plain, 0.4, "0.400"),
        ] {
            assert_eq!(unit.show(value), text);
        }
    }
}
