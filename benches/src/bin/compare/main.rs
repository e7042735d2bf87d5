//! Rimstone beside Redis Streams and NATS JetStream, from Debian's packages, on the same disk in the same run: one
//! after the other, in pairs. There are no goals here, only ratios.
//!
//! | room | what |
//! |---|---|
//! | `peer` | the other servers: where they are, how they are started |
//! | `rows` | the rows, and how one pair of runs measures them |
//!
//! Not here: the clients of the other servers (`peers`), ours (`rimstone bench`).
#![forbid(unsafe_code)]

mod peer;
mod rows;

use std::{process::ExitCode, time::Instant};

use anyhow::ensure;
use clap::Parser;
use rimstone_benches::{
    lab::Lab,
    options::{self, Options},
    table::{Table, shown, unless_interrupted},
};

use crate::{peer::Peer, rows::Experiment};

/// Measures Rimstone beside other servers; ends with 1 if a row cannot be measured.
///
/// A server that is not installed is left out, or, with CI=true in the environment, a failure.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { options } = Arguments::parse();
    let chosen = chosen(&options.only)?;
    if options.list {
        chosen.iter().for_each(|experiment| println!("{}", experiment.key()));
        return Ok(ExitCode::SUCCESS);
    }
    let here = installed(std::env::var_os("CI").is_some_and(|ci| ci == "true"))?;
    let chosen: Vec<_> = chosen.into_iter().filter(|experiment| here.contains(&experiment.peer)).collect();
    if chosen.is_empty() {
        println!("Nothing to compare with: skipped.");
        return Ok(ExitCode::SUCCESS);
    }
    // No row of this table is about memory.
    let (directory, quick) = (&options.directory, options.quick);
    let lab = Lab::new(&options.rimstone, &["peers"], directory, directory, quick)?;
    let pairs = options.pairs();
    let mut machine = lab.machine()?;
    for peer in [Peer::RedisAlways, Peer::Nats] {
        if here.contains(&peer) {
            machine.push_str(&format!("; {}", peer.version().await?));
        }
    }
    println!("{machine}");
    println!("{}", rows::NOTE);
    let begun = Instant::now();
    let table = unless_interrupted(async {
        let mut table = Table { quick, ..Table::default() };
        for experiment in chosen {
            table.measure(&experiment.rows(), pairs, || experiment.run(&lab)).await;
        }
        Ok(table)
    })
    .await?;
    table.tell(
        &format!("{machine}. {}", rows::NOTE.trim_end_matches('.')),
        pairs,
        options.markdown.as_deref(),
    )?;
    eprintln!("{} in all", shown(begun.elapsed()));
    Ok(if table.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<Experiment>> {
    options::chosen(only, rows::all(), Experiment::key)
}

/// The servers that are installed; says which are not, and fails because of them if it must not go on without.
fn installed(all_needed: bool) -> anyhow::Result<Vec<Peer>> {
    let (here, missing): (Vec<Peer>, Vec<Peer>) =
        Peer::ALL.into_iter().partition(|peer| peer.program().is_some());
    let mut packages: Vec<_> = missing.iter().map(|peer| peer.package()).collect();
    packages.dedup();
    for package in &packages {
        println!("{package} is not installed (apt-get install {package}): its rows are skipped");
    }
    ensure!(packages.is_empty() || !all_needed, "not installed: {}", packages.join(", "));
    Ok(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_keys_and_by_how_these_begin() {
        let keys = |only: &[&str]| -> Vec<String> {
            let only: Vec<_> = only.iter().map(|text| (*text).to_owned()).collect();
            chosen(&only).expect("they are there").iter().map(Experiment::key).collect()
        };
        assert_eq!(keys(&[]).len(), rows::all().len());
        assert_eq!(keys(&["redis-always-100", "nats-1k"]), ["nats-1k", "redis-always-100"]);
        assert!(keys(&["redis"]).iter().all(|key| key.starts_with("redis-")));
        let error = chosen(&["kafka".to_owned()]).expect_err("no such row").to_string();
        assert!(error.contains("kafka") && error.contains("nats-single"), "{error}");
    }

    #[test]
    fn every_experiment_has_rows_and_a_key_of_its_own() {
        let mut keys: Vec<_> = rows::all().iter().map(Experiment::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), rows::all().len());
        assert!(rows::all().iter().all(|experiment| !experiment.rows().is_empty()));
    }
}
