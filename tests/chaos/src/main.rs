//! Runs schedules of faults against the `rimstone` program (`RIMSTONE_BINARY` names another one), and counts.
#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use futures::FutureExt as _;
use rand::RngExt as _;
use rimstone_chaos::{
    schedule::{Fires, SCHEDULES, Schedule, WALK, find, why_no_cgroup},
    tally::Tally,
    world::Report,
};

/// Faults from seeds against a real server, and a checker of what it keeps.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names the schedules.
    List,
    /// Runs schedules, in turn.
    Run(Run),
    /// Much data, read again by a server in a memory cgroup.
    History {
        /// How much data.
        #[arg(long, default_value_t = 10)]
        gib: u64,
        /// How much memory.
        #[arg(long, default_value_t = 256)]
        mib: u64,
        /// Where; it takes as much room as there is data, and is removed.
        #[arg(long, default_value = "target/chaos/history")]
        home: PathBuf,
    },
    /// Adds up tallies and shows them as Markdown.
    Tally {
        /// Files that runs have written.
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Which, by name; all if none is given.
    #[arg(long, value_delimiter = ',')]
    schedule: Vec<String>,
    /// The first seed. Without it: where the tally stands, or at random.
    #[arg(long)]
    from: Option<u64>,
    /// Runs of each schedule.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Begins no new run after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Where counts are added up.
    #[arg(long)]
    tally: Option<PathBuf>,
    /// Where runs work, and failed ones are kept.
    #[arg(long, default_value = "target/chaos")]
    home: PathBuf,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
}

/// A walk that nobody has begun begins at one of the first calls, so that a single run finds one.
const WALK_BEGINS: u64 = 12;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::List => {
            for schedule in SCHEDULES {
                println!("{:16} {}", schedule.name, schedule.about);
            }
            Ok(true)
        }
        Command::Tally { files } => add_up(&files).map(|()| true),
        Command::Run(run) => all(&run),
        Command::History { gib, mib, home } => history(&home, gib, mib).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rimstone-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn add_up(files: &[PathBuf]) -> anyhow::Result<()> {
    let mut sum = Tally::default();
    for file in files {
        sum.merge(&Tally::read(file)?);
    }
    print!("{}", sum.markdown());
    Ok(())
}

fn history(home: &Path, gib: u64, mib: u64) -> anyhow::Result<()> {
    if let Some(why) = why_no_cgroup() {
        anyhow::bail!("this machine cannot run it: {why}");
    }
    let home = std::path::absolute(home)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seen = runtime.block_on(rimstone_chaos::history::run(&home, gib, mib))?;
    println!("{gib} GiB in {mib} MiB: {seen:#?}");
    Ok(())
}

/// Whether nothing was wrong.
fn all(run: &Run) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let begun = Instant::now();
    let chosen: Vec<&Schedule> = if run.schedule.is_empty() {
        SCHEDULES.iter().collect()
    } else {
        let named = run.schedule.iter().map(|name| find(name).with_context(|| format!("no schedule {name}")));
        named.collect::<Result<_, _>>()?
    };
    let mut able = Vec::new();
    for schedule in chosen {
        match (schedule.why_not)() {
            None => able.push(schedule),
            Some(why) => {
                let is_ci = std::env::var("CI").as_deref() == Ok("true");
                ensure!(!is_ci, "{} would be skipped under CI=true: {why}", schedule.name);
                println!("SKIPPED {}: {why}", schedule.name);
            }
        }
    }
    let mut tally = run.tally.as_ref().map_or_else(|| Ok(Tally::default()), |path| Tally::read(path))?;
    let anywhere: u64 = rand::rng().random_range(0..1 << 32);
    if run.seconds.is_some() && !able.is_empty() {
        // Where time ends a run early it is not always the same schedules that are left out.
        let first = usize::try_from(anywhere).unwrap_or_default() % able.len();
        able.rotate_left(first);
    }
    let mut good = true;
    for round in 0..run.rounds {
        for schedule in &able {
            if run.seconds.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds)) {
                return Ok(good);
            }
            let stands = tally.schedules.get(schedule.name).map(|row| row.next_seed);
            let seed = match (run.from, stands) {
                (Some(from), _) => from + round,
                (None, Some(next)) => next,
                // In a short time only few numbers come: others each time.
                (None, None) if schedule.fires == Fires::Walk => {
                    let begins = if run.seconds.is_some() { anywhere % WALK_BEGINS } else { 0 };
                    anywhere / WALK * WALK + 1 + begins
                }
                (None, None) => anywhere,
            };
            let report = one(&runtime, schedule, run, seed);
            tally.count(schedule.name, seed, report.as_ref());
            if let Some(last) = report.as_ref().and_then(|report| report.walk?.ended) {
                println!("{}: the walk ends with {last}", schedule.name);
            }
            if let Some(path) = &run.tally {
                tally.write(path)?;
            }
            if report.is_none_or(|report| !report.wrong.is_empty()) {
                good = false;
                if !run.keep_going {
                    return Ok(false);
                }
            }
        }
    }
    Ok(good)
}

/// One run; `None` if it could not be brought to its end.
fn one(runtime: &tokio::runtime::Runtime, schedule: &Schedule, run: &Run, seed: u64) -> Option<Report> {
    let name = schedule.name;
    let home =
        std::path::absolute(run.home.join(format!("{name}-{seed}"))).expect("a path has an absolute one");
    let begun = Instant::now();
    let running = std::panic::AssertUnwindSafe(schedule.run(&home, seed)).catch_unwind();
    let outcome = runtime.block_on(running).unwrap_or_else(|_| Err(anyhow::anyhow!("the driver panicked")));
    let seconds = begun.elapsed().as_secs_f64();
    let again = format!("rimstone-chaos run --schedule {name} --from {seed}");
    match outcome {
        Ok(report) => {
            let fired: Vec<_> = report.fired.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let at: Vec<_> = report.at_faults.iter().map(|(done, sent)| format!("{done}/{sent}")).collect();
            let counts = &report.counts;
            println!(
                "{name} seed {seed}: [{}], acknowledged/sent at faults {}; in the end {} of {} acknowledged, {} unknown, {} \
                 refused, {} duplicates, {} polled, {} commits, {} kept; settled in {:.1} s; {} wrong; {seconds:.1} s",
                fired.join(", "),
                at.join(" "),
                counts.acknowledged,
                counts.sent,
                counts.unknown,
                counts.refused,
                counts.duplicates,
                counts.polled,
                counts.commits,
                counts.kept,
                report.settled.as_secs_f64(),
                report.wrong.len(),
            );
            if report.wrong.is_empty() {
                drop(std::fs::remove_dir_all(&home));
            } else {
                const SHOWN: usize = 20;
                report.wrong.iter().take(SHOWN).for_each(|wrong| println!("  {wrong}"));
                println!("  again: {again}; kept: {}", home.display());
            }
            Some(report)
        }
        Err(error) => {
            println!(
                "{name} seed {seed}: {error:#}; {seconds:.1} s\n  again: {again}; kept: {}",
                home.display()
            );
            None
        }
    }
}
