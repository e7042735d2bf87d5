//! How far it is to the goals: every row is measured together with its reference, in pairs one after another, so that
//! a machine that gets slower or faster meanwhile changes both. A row falls short only if every pair does.
//!
//! | room | what |
//! |---|---|
//! | `rows` | the rows, and how one pair of runs measures them |
//! | `resources` | what an idle server costs |
//! | `row` | ratio, spread, verdict |
//! | `lab` | servers and clients, each a process of its own |
//!
//! Not here: load (`rimstone bench`) and what others can do (`reference`), which are run as programs.
#![forbid(unsafe_code)]

mod lab;
mod resources;
mod row;
mod rows;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;

use crate::{
    lab::Lab,
    row::{Measured, Verdict},
    rows::{ALL, Experiment},
};

/// Measures every row beside its reference; ends with 1 if one falls short or cannot be measured.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs for each row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Only rows whose names contain this; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Shows the rows and measures nothing
    #[arg(long)]
    list: bool,
    /// Tiny runs, to see that every row works. The figures mean nothing, and none falls short
    #[arg(long)]
    quick: bool,
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
    let chosen: Vec<_> = ALL.iter().filter(|experiment| arguments.chose(experiment)).collect();
    ensure!(!chosen.is_empty(), "no row contains {:?}; --list shows them", arguments.only);
    if arguments.list {
        for row in chosen.iter().flat_map(|experiment| experiment.rows) {
            println!("{}", row.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lab = arguments.lab()?;
    println!("{}", machine(&lab)?);
    let mut measured = Vec::new();
    for experiment in chosen {
        measured.extend(measure(&lab, experiment, arguments.pairs).await);
    }
    print(&measured);
    let failed = measured.iter().any(|row| matches!(row.verdict(), Verdict::Failed(_)));
    let short = !lab.quick && measured.iter().any(|row| row.verdict() == Verdict::Short);
    if lab.quick {
        println!("A quick run: the figures mean nothing.");
    }
    Ok(if failed || short { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Arguments {
    fn chose(&self, experiment: &Experiment) -> bool {
        let named = |text: &String| experiment.rows.iter().any(|row| row.name.contains(text));
        self.only.is_empty() || self.only.iter().any(named)
    }

    fn lab(&self) -> anyhow::Result<Lab> {
        let here = std::env::current_exe()?;
        let reference = here.parent().context("a program lies in a directory")?.join("reference");
        for program in [&self.rimstone, &reference] {
            ensure!(program.is_file(), "{} is not there: cargo build --release", program.display());
        }
        Ok(Lab {
            rimstone: self.rimstone.canonicalize()?,
            reference,
            disk: self.directory.canonicalize().context("--directory")?,
            memory: self.memory.clone(),
            quick: self.quick,
        })
    }
}

/// All pairs of an experiment.
async fn measure(lab: &Lab, experiment: &Experiment, pairs: u32) -> Vec<Measured> {
    let rows = experiment.rows.iter();
    let mut measured: Vec<_> =
        rows.map(|row| Measured { row: *row, samples: Vec::new(), failure: None }).collect();
    for pair in 1..=pairs {
        eprintln!("{} ({pair} of {pairs})", experiment.rows[0].name);
        match experiment.run(lab).await {
            Ok(samples) => {
                for (measured, sample) in measured.iter_mut().zip(samples) {
                    measured.samples.push(sample);
                }
            }
            Err(error) => {
                // What failed once is not measured: the other pairs would say something else.
                for measured in &mut measured {
                    measured.failure = Some(format!("{error:#}"));
                }
                break;
            }
        }
    }
    measured
}

fn print(measured: &[Measured]) {
    let head = ["ROW", "GOAL", "FIGURE", "BEST", "REFERENCE", "RATIO", "SPREAD", ""].map(str::to_owned);
    let cells: Vec<_> = std::iter::once(head).chain(measured.iter().map(Measured::cells)).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..8).map(width).collect();
    for row in &cells {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        println!("{}", line.trim_end());
    }
    for row in measured {
        if let Verdict::Failed(why) = row.verdict() {
            println!("{}: {why}", row.row.name);
        }
    }
}

/// What the figures were taken on.
fn machine(lab: &Lab) -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let system = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cpu = cpu.trim_start_matches([' ', '\t', ':']);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default().trim();
    Ok(format!(
        "{cores} processors ({cpu}), {memory}, {} {}, data in {}",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        lab.disk.display()
    ))
}
