//! What was run so far: counts per schedule, in a file that later runs add to.
//!
//! Not here: the runs.

use std::{collections::BTreeMap, fs, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    schedule::WALK,
    world::{Report, Walk},
};

/// Counts of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Runs.
    pub rounds: u64,
    /// Runs that failed, by seed.
    pub failed: Vec<u64>,
    /// Faults that fired, by kind.
    pub fired: BTreeMap<String, u64>,
    /// Records sent.
    pub sent: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records of which nobody was told what became of them.
    pub unknown: u64,
    /// The seed behind the highest that was run: where a later run goes on.
    pub next_seed: u64,
    /// Walks over every n-th call that began with the first and have come to their end.
    #[serde(default)]
    pub walks: u64,
    /// The last number of each of them.
    #[serde(default)]
    pub lengths: Vec<u64>,
    /// The walk that has not ended yet began with the first call, and has left out none.
    #[serde(default)]
    pub from_first: bool,
}

/// Counts of all schedules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// By name.
    pub schedules: BTreeMap<String, Row>,
}

impl Tally {
    /// What a file holds; nothing if there is none.
    ///
    /// # Errors
    /// If it holds something else.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is no tally", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.persist(path)?;
        Ok(())
    }

    /// Counts a run.
    pub fn count(&mut self, schedule: &str, seed: u64, report: Option<&Report>) {
        let row = self.schedules.entry(schedule.to_owned()).or_default();
        row.rounds += 1;
        row.from_first = seed % WALK == 1 || row.from_first && seed == row.next_seed;
        row.next_seed = row.next_seed.max(seed + 1);
        if report.is_none_or(|report| !report.wrong.is_empty()) {
            row.failed.push(seed);
        }
        let Some(report) = report else {
            row.from_first = false;
            return;
        };
        for (kind, count) in &report.fired {
            *row.fired.entry(kind.clone()).or_default() += count;
        }
        row.sent += report.counts.sent as u64;
        row.acknowledged += report.counts.acknowledged as u64;
        row.unknown += report.counts.unknown as u64;
        match report.walk {
            // The next one begins at the first call.
            Some(Walk { ended: Some(last), .. }) => {
                if row.from_first {
                    row.walks += 1;
                    row.lengths.push(last);
                }
                row.next_seed = (seed / WALK + 1) * WALK + 1;
            }
            Some(Walk { next, ended: None }) => row.next_seed = seed / WALK * WALK + next,
            None => {}
        }
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        for (name, theirs) in &other.schedules {
            let ours = self.schedules.entry(name.clone()).or_default();
            ours.rounds += theirs.rounds;
            ours.failed.extend(&theirs.failed);
            for (kind, count) in &theirs.fired {
                *ours.fired.entry(kind.clone()).or_default() += count;
            }
            ours.sent += theirs.sent;
            ours.acknowledged += theirs.acknowledged;
            ours.unknown += theirs.unknown;
            ours.walks += theirs.walks;
            ours.lengths.extend(&theirs.lengths);
            ours.next_seed = ours.next_seed.max(theirs.next_seed);
        }
    }

    /// As a table of Markdown.
    pub fn markdown(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::from(
            "| schedule | runs | failed | faults that fired | records acknowledged |\n|---|---|---|---|---|\n",
        );
        for (name, row) in &self.schedules {
            let fired: Vec<_> = row.fired.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let fired = if fired.is_empty() { "none".to_owned() } else { fired.join(", ") };
            let (failed, acknowledged) = (row.failed.len(), row.acknowledged);
            let rounds = match row.walks {
                0 => row.rounds.to_string(),
                walks => {
                    let lengths: Vec<_> = row.lengths.iter().map(u64::to_string).collect();
                    format!("{} ({walks} whole walks, up to n = {})", row.rounds, lengths.join(", "))
                }
            };
            writeln!(out, "| {name} | {rounds} | {failed} | {fired} | {acknowledged} |")
                .expect("a string takes everything");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_over_files_and_runs() {
        let home = tempfile::tempdir().expect("a folder can be made");
        let path = home.path().join("more/tally.json");
        let mut tally = Tally::read(&path).expect("no file is an empty tally");
        let mut report = Report::default();
        report.fired.insert("SIGKILL".to_owned(), 3);
        tally.count("kills", 7, Some(&report));
        tally.count("kills", 8, None);
        tally.write(&path).expect("it can be written");
        let mut again = Tally::read(&path).expect("it can be read");
        assert_eq!(again, tally);
        again.merge(&tally);
        let row = &again.schedules["kills"];
        assert_eq!((row.rounds, row.fired["SIGKILL"], row.next_seed, row.failed.len()), (4, 6, 9, 2));
        assert!(again.markdown().contains("| kills | 4 | 2 | 6 SIGKILL | 0 |"));
    }

    #[test]
    fn a_walk_counts_as_whole_if_no_number_of_it_was_left_out() {
        let walked = |next, ended| Report { walk: Some(Walk { next, ended }), ..Report::default() };
        let mut tally = Tally::default();
        tally.count("nth", 2 * WALK + 1, Some(&walked(9, None)));
        assert_eq!(tally.schedules["nth"].next_seed, 2 * WALK + 9);
        tally.count("nth", 2 * WALK + 9, Some(&walked(4, Some(12))));
        // One that begins in the middle, and one with a run that came to nothing.
        tally.count("nth", 3 * WALK + 5, Some(&walked(1, Some(11))));
        tally.count("nth", 4 * WALK + 1, None);
        tally.count("nth", 4 * WALK + 9, Some(&walked(1, Some(11))));
        let row = &tally.schedules["nth"];
        assert_eq!((row.walks, &row.lengths[..], row.next_seed), (1, &[12][..], 5 * WALK + 1));
        assert!(tally.markdown().contains("5 (1 whole walks, up to n = 12)"));
    }
}
