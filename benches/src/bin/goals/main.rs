//! How far it is to the goals: every row is measured together with its reference, in pairs one after another, so that
//! a machine that gets slower or faster meanwhile changes both. A row falls short only if every pair does.
//!
//! | room | what |
//! |---|---|
//! | `rows` | the rows, and how one pair of runs measures them |
//! | `resources` | what an idle server costs |
//!
//! Not here: load (`rimstone bench`) and what others can do (`reference`), which are run as programs; processes, ratios
//! and verdicts, which the package's library has.
#![forbid(unsafe_code)]

mod resources;
mod rows;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::bail;
use clap::Parser;
use rimstone_benches::{
    lab::Lab,
    table::{Table, shown, unless_interrupted},
};

use crate::rows::{ALL, Experiment};

/// Enough that a row that falls short in all of them does so for a reason.
const PAIRS_DEFAULT: u32 = 5;

/// Measures every row beside its reference; ends with 1 if one falls short or cannot be measured.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs for each row [default: 5, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: Option<u32>,
    /// Only these: keys that --list shows, or how they begin, with commas between them
    #[arg(long, value_name = "KEY,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Shows the keys and their rows, and measures nothing
    #[arg(long)]
    list: bool,
    /// Tiny runs, to see that every row works. The figures mean nothing, and none falls short
    #[arg(long)]
    quick: bool,
    /// Writes the table to this file as well, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// The program under test
    #[arg(long, value_name = "FILE", default_value = "target/release/rimstone")]
    rimstone: PathBuf,
    /// Where data is written: on the disk under test
    #[arg(long, value_name = "DIRECTORY", default_value = "target")]
    directory: PathBuf,
    /// A file system in memory
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm")]
    memory: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let chosen = chosen(&arguments.only)?;
    if arguments.list {
        for experiment in chosen {
            for row in experiment.rows {
                println!("{:16}  {}", experiment.key, row.name);
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { rimstone, directory, memory, quick, .. } = &arguments;
    let lab = Lab::new(rimstone, &["reference"], directory, memory, *quick)?;
    let pairs = arguments.pairs.unwrap_or(if *quick { 1 } else { PAIRS_DEFAULT });
    let machine = lab.machine()?;
    println!("{machine}");
    let begun = Instant::now();
    let table = unless_interrupted(async {
        let mut table = Table { quick: *quick, ..Table::default() };
        for experiment in chosen {
            table.measure(experiment.rows, pairs, || experiment.run(&lab)).await;
        }
        Ok(table)
    })
    .await?;
    table.tell(&machine, pairs, arguments.markdown.as_deref())?;
    eprintln!("{} in all", shown(begun.elapsed()));
    Ok(if table.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The experiments that were asked for, in the order of the table; all of them if none was.
fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Experiment>> {
    for text in only {
        if text.is_empty() || !ALL.iter().any(|experiment| experiment.key.starts_with(text)) {
            let keys: Vec<_> = ALL.iter().map(|experiment| experiment.key).collect();
            bail!("--only: nothing is called {text:?}; there are {}", keys.join(", "));
        }
    }
    let named = |key: &str| only.is_empty() || only.iter().any(|text| key.starts_with(text));
    Ok(ALL.iter().filter(|experiment| named(experiment.key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(only: &[&str]) -> Vec<&'static str> {
        let only: Vec<_> = only.iter().map(|text| (*text).to_owned()).collect();
        chosen(&only).expect("they are there").iter().map(|experiment| experiment.key).collect()
    }

    #[test]
    fn rows_are_chosen_by_keys_and_by_how_these_begin() {
        assert_eq!(keys(&[]).len(), ALL.len());
        assert_eq!(keys(&["consume-cold", "produce-1k"]), ["produce-1k", "consume-cold"]);
        assert_eq!(keys(&["produce"]), ["produce-1k", "produce-tmpfs", "produce-100"]);
        let error = chosen(&["produce-1k".to_owned(), "nothing".to_owned()]).expect_err("no such row");
        assert!(
            error.to_string().contains("nothing") && error.to_string().contains("idle-server"),
            "{error}"
        );
        assert!(chosen(&[String::new()]).is_err());
        let mut all = keys(&[]);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALL.len(), "two have the same key");
    }

    #[test]
    fn arguments_are_as_they_are_told() {
        let arguments = Arguments::parse_from(["goals", "--only", "produce-1k,consume-1k", "--pairs", "7"]);
        assert_eq!((arguments.only.len(), arguments.pairs), (2, Some(7)));
        assert!(Arguments::try_parse_from(["goals", "--pairs", "0"]).is_err());
    }
}
