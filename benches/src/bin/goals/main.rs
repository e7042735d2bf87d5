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

use clap::Parser;
use rimstone_benches::{
    lab::Lab,
    options::{self, Options},
    table::{Table, shown, unless_interrupted},
};

use crate::rows::{ALL, Experiment};

/// Measures every row beside its reference; ends with 1 if one falls short or cannot be measured.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// A file system in memory
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm")]
    memory: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { options, memory } = Arguments::parse();
    let chosen = chosen(&options.only)?;
    if options.list {
        for experiment in chosen {
            for row in experiment.rows {
                println!("{:16}  {}", experiment.key, row.name);
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let quick = options.quick;
    let lab = Lab::new(&options.rimstone, &["reference"], &options.directory, &memory, quick)?;
    let pairs = options.pairs();
    let machine = lab.machine()?;
    println!("{machine}");
    let begun = Instant::now();
    let table = unless_interrupted(async {
        let mut table = Table { quick, ..Table::default() };
        for experiment in chosen {
            table.measure(experiment.rows, pairs, || experiment.run(&lab)).await;
        }
        Ok(table)
    })
    .await?;
    table.tell(&machine, pairs, options.markdown.as_deref())?;
    eprintln!("{} in all", shown(begun.elapsed()));
    Ok(if table.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The experiments that were asked for, in the order of the table; all of them if none was.
fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Experiment>> {
    options::chosen(only, ALL.iter().collect(), |experiment| experiment.key.to_owned())
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
        assert_eq!((arguments.options.only.len(), arguments.options.pairs()), (2, 7));
        assert!(Arguments::try_parse_from(["goals", "--pairs", "0"]).is_err());
    }
}
