//! SIGKILL at the n-th system call of a kind, for every n of a short run: a start over what the last kill has left, some
//! work of every client, a clean stop; now and then with torn ends of files, too. Calls are counted over all threads of the server, by `kill_at.py`, which begins it;
//! strace counts for each thread by itself, and kills at the n-th call of whichever comes to n first.
//!
//! Not here: calls that fail or wait ([`super::inject`]).

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, ensure};
use rand::RngExt as _;
use rimstone_tests::workspace_root;

use crate::world::{Walk, World};

/// Lives of the server in a run, each with a number of its own.
const LIVES: usize = 8;
/// A number that has not come in so many lives in a row does not come any more.
const TRIES: u64 = 3;
/// What each producer may begin in a life that is counted.
const UNITS: u64 = 4;
/// What it does after the start that follows a kill, before the next.
const UNITS_BETWEEN: u64 = 1;

/// How often files have torn ends, where nothing else is asked for.
const TORN: f64 = 0.3;
/// The most bytes that a torn end has.
const TEAR: usize = 60;

/// Why calls cannot be counted here.
pub(super) fn why_not() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the numbers of system calls are those of x86-64".to_owned());
    }
    let there = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        return Some("python3 is not there".to_owned());
    }
    (!rustix::process::geteuid().is_root()).then(|| "tracing needs root".to_owned())
}

/// Some steps of a walk. After each kill the server is started twice, with appends in between.
pub(super) async fn kill_at(world: &mut World, call: &str, first: u64) -> anyhow::Result<()> {
    ensure!(first > 0, "the first call is number 1");
    ensure!(world.round(UNITS).await?, "the server has ended by itself");
    let (mut n, mut missed) = (first, 0);
    let mut walk = Walk { next: first, ended: None };
    for _ in 0..LIVES {
        // Nothing else makes a start cut files.
        if call == "ftruncate" || world.random.random_bool(TORN) {
            world.kill();
            tear(world)?;
        } else {
            world.kill_or_stop().await;
        }
        if life(world, call, n).await? {
            world.fired(&format!("SIGKILL at {call}"));
            (n, missed) = (n + 1, 0);
        } else {
            missed += 1;
        }
        if missed == TRIES {
            if n == 1 {
                bail!("a short run makes no {call} at all");
            }
            walk.ended = walk.ended.or(Some(n - 1));
            // What is left of this run goes over the first calls again.
            (n, missed) = (1, 0);
        }
        walk.next = n;
        world.start().await?;
        ensure!(world.round(UNITS_BETWEEN).await?, "the server has ended by itself");
    }
    world.walked(walk);
    Ok(())
}

/// A start, what each producer may do, a stop; whether the n-th call was the end of it.
async fn life(world: &mut World, call: &str, n: u64) -> anyhow::Result<bool> {
    let log = world.home.join("calls.txt");
    drop(fs::remove_file(&log));
    let script = workspace_root().join("tests/chaos/src/schedule/kill_at.py");
    let words = ["python3".into(), script.into(), log.clone().into(), call.into(), n.to_string().into()];
    let words: [std::ffi::OsString; 5] = words;
    let setup = world.setup().under(words);
    let status = match world.try_start_as(setup).await {
        Some(failure) if was_killed(&log) => Some(failure.status),
        Some(failure) => bail!("the server did not start: {}\n{}", failure.status, failure.output),
        None if world.round(UNITS).await? => world.stop_as_it_may().await,
        None => None,
    };
    let killed = was_killed(&log);
    if !killed && status.is_none_or(|status| !status.success()) {
        world.wrong(format!("I4: the server has ended by itself: {status:?}"));
    }
    Ok(killed)
}

/// Bytes at the end of what was written last, as of a write that a power cut let through in part: the last segment of
/// each partition, the checkpoints.
fn tear(world: &mut World) -> anyhow::Result<()> {
    let data = world.data();
    let mut last: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for file in super::damage::files(&data)? {
        let of_log = file.extension().is_some_and(|suffix| suffix == "log");
        if of_log || file.ends_with("checkpoints") {
            last.insert(file.parent().map(Path::to_path_buf).unwrap_or_default(), file);
        }
    }
    for file in last.values() {
        let mut torn = vec![0; world.random.random_range(1..=TEAR)];
        world.random.fill(&mut torn[..]);
        OpenOptions::new().append(true).open(data.join(file))?.write_all(&torn)?;
    }
    Ok(())
}

/// Whether the counter says that it has.
fn was_killed(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.contains("-th "))
}
