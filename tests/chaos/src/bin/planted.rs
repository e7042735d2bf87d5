//! Proves the schedules: ten bugs are planted one after the other (the feature `planted`), and for each the general
//! schedules are run, from seed 1 on, until one of them says that something is wrong. Afterwards the same schedules and seeds
//! are run by the same programs without a bug, and must find nothing.
//!
//! No schedule knows of any bug. Not here: the bugs (`rimstone_log::planted`), what is run and checked.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

/// Ten bugs, and whether the schedules catch them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The example `sectors` of rimstone-store, with the features `recording` and `planted`.
    #[arg(long)]
    sectors: PathBuf,
    /// The program `rimstone`, with the feature `planted`.
    #[arg(long)]
    server: PathBuf,
    /// The program `rimstone-chaos`.
    #[arg(long)]
    chaos: PathBuf,
    /// Only these bugs.
    #[arg(long, value_delimiter = ',')]
    bug: Vec<String>,
    /// Only the one schedule that is known to catch each bug, from the known seed on.
    #[arg(long)]
    quick: bool,
    /// Seeds of the schedules below the process that are tried for each bug.
    #[arg(long, default_value_t = 40)]
    sector_seeds: u64,
    /// Seeds of each schedule around the process that are tried for each bug.
    #[arg(long, default_value_t = 4)]
    chaos_seeds: u64,
    /// Where runs work.
    #[arg(long, default_value = "target/planted")]
    home: PathBuf,
}

/// A bug, and what it may show under.
struct Row {
    bug: &'static str,
    /// Schedules of `rimstone-chaos`; those below the process are tried for all bugs but one that lies above the store.
    chaos: &'static [&'static str],
    /// What catches it soonest, and from which seed on a short run looks.
    quick: (&'static str, u64),
}

/// The schedules below the process (`store::sectors`).
const SECTORS: &str = "sectors";
/// Seeds that a short run tries: what depends on threads may take more than the one that is known.
const QUICK_SEEDS: u64 = 8;

const ROWS: [Row; 10] = [
    Row { bug: "ack-before-sync", chaos: &["power", "slow-cut"], quick: (SECTORS, 1) },
    Row { bug: "retry-sync", chaos: &["sync-fails", "sync-fails-cut"], quick: (SECTORS, 3) },
    Row { bug: "publish-before-write", chaos: &["calls-fail", "full"], quick: (SECTORS, 1) },
    // ext4 makes the name of a new file durable with the file.
    Row { bug: "no-directory-sync", chaos: &[], quick: (SECTORS, 2) },
    Row { bug: "trust-index", chaos: &["damage"], quick: (SECTORS, 1) },
    Row { bug: "empty-catalog", chaos: &["damage"], quick: ("damage", 1) },
    Row { bug: "early-duplicate", chaos: &["slow-cut", "power"], quick: (SECTORS, 1) },
    Row { bug: "forgotten-producers", chaos: &["power"], quick: (SECTORS, 8) },
    Row { bug: "serve-past-durable", chaos: &["power", "slow-cut"], quick: (SECTORS, 1) },
    Row { bug: "unsynced-tail", chaos: &["power", "sync-fails-cut"], quick: (SECTORS, 1) },
];

/// A run that said that something is wrong.
struct Caught {
    schedule: &'static str,
    seed: u64,
    what: String,
}

fn main() -> ExitCode {
    match Driver::new(Arguments::parse()).and_then(|driver| driver.all()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rimstone-planted: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Programs of its own, so that a build meanwhile does not put others in their place.
struct Driver {
    arguments: Arguments,
    home: PathBuf,
    sectors: PathBuf,
    server: PathBuf,
    chaos: PathBuf,
}

impl Driver {
    fn new(arguments: Arguments) -> anyhow::Result<Self> {
        let home = std::path::absolute(&arguments.home)?;
        fs::create_dir_all(&home)?;
        let own = |path: &Path| -> anyhow::Result<PathBuf> {
            let copy = home.join(path.file_name().context("a program has a name")?);
            fs::copy(path, &copy).with_context(|| format!("{} is not there", path.display()))?;
            Ok(copy)
        };
        let (sectors, server) = (own(&arguments.sectors)?, own(&arguments.server)?);
        let chaos = own(&arguments.chaos)?;
        let driver = Self { arguments, home, sectors, server, chaos };
        driver.all_are_known()?;
        Ok(driver)
    }

    /// The programs know these ten and no others.
    fn all_are_known(&self) -> anyhow::Result<()> {
        let mut names = ROWS.map(|row| row.bug).join(", ");
        names.insert_str(0, "there are ");
        let mut sectors = Command::new(&self.sectors);
        let mut server = Command::new(&self.server);
        server.args(["serve", "--memory", "--listen", "127.0.0.1:0", "--web", "127.0.0.1:0"]);
        for program in [&mut sectors, &mut server] {
            let output = program.env("RIMSTONE_PLANTED", "no-such-bug").output()?;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            ensure!(
                !output.status.success() && said.contains(&names),
                "a bug that is none is not refused: {said}"
            );
        }
        Ok(())
    }

    /// Whether every bug is caught, and nothing is found without one.
    fn all(&self) -> anyhow::Result<bool> {
        let chosen =
            |row: &&Row| self.arguments.bug.is_empty() || self.arguments.bug.iter().any(|bug| bug == row.bug);
        let (mut caught, mut missed) = (Vec::new(), Vec::new());
        for row in ROWS.iter().filter(chosen) {
            let found = self.hunt(row)?;
            if found.is_empty() {
                missed.push(row.bug);
            }
            caught.extend(found.into_iter().map(|found| (row.bug, found)));
        }
        let good = self.control(&caught)?;
        println!("\n| bug | schedule | seed | what it said |\n|---|---|---|---|");
        for (bug, Caught { schedule, seed, what }) in &caught {
            println!("| `{bug}` | `{schedule}` | {seed} | {} |", what.replace('|', "/"));
        }
        if !missed.is_empty() {
            println!("NOT CAUGHT: {}", missed.join(", "));
        }
        Ok(good && missed.is_empty())
    }

    /// Every schedule that catches a bug; of a short run the one that is known to.
    fn hunt(&self, row: &Row) -> anyhow::Result<Vec<Caught>> {
        let mut caught = Vec::new();
        let schedules: Vec<(&'static str, u64, u64)> = if self.arguments.quick {
            vec![(row.quick.0, row.quick.1, QUICK_SEEDS)]
        } else {
            let around = row.chaos.iter().map(|schedule| (*schedule, 1, self.arguments.chaos_seeds));
            let below = (row.quick.0 == SECTORS).then_some((SECTORS, 1, self.arguments.sector_seeds));
            below.into_iter().chain(around).collect()
        };
        for (schedule, first, most) in schedules {
            let begun = Instant::now();
            let found = (first..first + most)
                .map(|seed| (seed, self.run(schedule, seed, Some(row.bug))))
                .find_map(|(seed, outcome)| match outcome {
                    Ok(None) => None,
                    Ok(Some(what)) => Some(Ok(Caught { schedule, seed, what })),
                    Err(error) => Some(Err(error)),
                });
            let seconds = begun.elapsed().as_secs();
            match found.transpose()? {
                Some(found) => {
                    println!(
                        "{}: caught by {schedule}, seed {}: {} ({seconds} s)",
                        row.bug, found.seed, found.what
                    );
                    caught.push(found);
                }
                None => println!(
                    "{}: not caught by {schedule}, seeds {first} to {} ({seconds} s)",
                    row.bug,
                    first + most - 1
                ),
            }
        }
        Ok(caught)
    }

    /// The same without a bug.
    fn control(&self, caught: &[(&str, Caught)]) -> anyhow::Result<bool> {
        let runs: BTreeSet<_> = caught.iter().map(|(_, found)| (found.schedule, found.seed)).collect();
        let mut good = true;
        for (schedule, seed) in runs {
            let begun = Instant::now();
            let found = self.run(schedule, seed, None)?;
            let seconds = begun.elapsed().as_secs();
            match found {
                None => println!("no bug: {schedule}, seed {seed} passes ({seconds} s)"),
                Some(what) => {
                    println!("NO BUG IS PLANTED, and {schedule}, seed {seed} says: {what}");
                    good = false;
                }
            }
        }
        Ok(good)
    }

    /// One run of one schedule; what it found, in one line.
    fn run(&self, schedule: &'static str, seed: u64, bug: Option<&str>) -> anyhow::Result<Option<String>> {
        let mut command = if schedule == SECTORS {
            let mut command = Command::new(&self.sectors);
            // As many images as one seed has, at least.
            command.args(["1", &seed.to_string()]).env("RIMSTONE_PLANTED", bug.unwrap_or_default());
            command
        } else {
            let mut command = Command::new(&self.chaos);
            command.args(["run", "--schedule", schedule, "--from", &seed.to_string(), "--home"]);
            command.arg(&self.home).env("RIMSTONE_BINARY", self.server_with(bug)?);
            command
        };
        let output = command.env_remove("RIMSTONE_SEED").output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("SKIPPED") {
            bail!("{schedule} cannot be run here: {said}");
        }
        if output.status.success() {
            return Ok(None);
        }
        // The history of what was wanted is of no use to anybody.
        if bug.is_some() {
            drop(fs::remove_dir_all(self.home.join(format!("{schedule}-{seed}"))));
        }
        Ok(Some(first_wrong(schedule, seed, &said).with_context(|| {
            format!(
                "{schedule}, seed {seed}: {}: {said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
        })?))
    }

    /// The server with a bug, as a program by itself: the driver of the schedules gives its servers no environment but
    /// their settings.
    fn server_with(&self, bug: Option<&str>) -> anyhow::Result<PathBuf> {
        let Some(bug) = bug else { return Ok(self.server.clone()) };
        let path = self.home.join(format!("rimstone-{bug}"));
        let text = format!("#!/bin/sh\nRIMSTONE_PLANTED={bug} exec '{}' \"$@\"\n", self.server.display());
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

/// The first thing that a run calls wrong.
fn first_wrong(schedule: &str, seed: u64, said: &str) -> Option<String> {
    /// Characters of a line; the run itself has the rest.
    const SHOWN: usize = 200;
    let own = format!("{schedule} seed {seed}: ");
    let line = if schedule == SECTORS {
        said.lines().find(|line| line.starts_with("seed ") && line.contains(", life "))?
    } else {
        // Named below the line that counts, or, of a run that came to no end, in it.
        let mut lines = said.lines().skip_while(|line| !line.starts_with(&own));
        let head = lines.next()?;
        match lines.next() {
            Some(line) if line.starts_with("  ") && !line.starts_with("  again:") => line.trim(),
            _ => head.trim_start_matches(&own),
        }
    };
    Some(line.chars().take(SHOWN).collect())
}
