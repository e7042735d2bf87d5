//! System calls that kill, fail or wait, by `strace -D`: the tracer is a process beside the server, which stays the
//! driver's own child. strace counts per call and per thread; what it did is in its log.
//!
//! Not here: kills at every n-th call ([`super::walk`]).

use std::{
    collections::HashMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;
use rand::{RngExt as _, seq::IndexedRandom as _};
use rimstone_tests::server::Setup;

use crate::{clients::Doors, world::World};

/// Why calls cannot be injected here.
pub(super) fn why_not() -> Option<String> {
    let has_strace =
        Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_strace {
        return Some("strace is not there".to_owned());
    }
    (!rustix::process::geteuid().is_root()).then(|| "tracing needs root".to_owned())
}

/// A server whose calls are injected.
#[derive(Debug)]
pub(super) struct Traced {
    log: PathBuf,
}

impl Traced {
    /// How such a server is started; `what` as strace's `inject` has it, several parted
    /// by semicolons.
    pub(super) fn setup(home: &Path, setup: Setup, what: &str) -> (Setup, Self) {
        let log = home.join("strace.txt");
        drop(fs::remove_file(&log));
        let parts: Vec<&str> = what.split(';').collect();
        let calls: Vec<_> = parts.iter().filter_map(|part| part.split(':').next()).collect();
        // strace 6.1 sends no signals where a filter chooses the calls; everything else is faster with one.
        let filter = (!what.contains("signal=")).then(|| "--seccomp-bpf".to_owned());
        let words = ["strace", "-D", "-f", "-qq", "-y"].map(str::to_owned).into_iter().chain(filter);
        let words = words.chain([
            "-o".to_owned(),
            log.display().to_string(),
            "-e".to_owned(),
            format!("trace={}", calls.join(",")),
        ]);
        let injections = parts.iter().flat_map(|part| ["-e".to_owned(), format!("inject={part}")]);
        let words = words.chain(injections);
        // What is injected may come while it starts.
        (setup.under(words).may_be_unwell(), Self { log })
    }

    /// How many calls it has injected so far.
    pub(super) fn injected(&self) -> usize {
        fs::read_to_string(&self.log).map_or(0, |text| text.matches("(INJECTED)").count())
    }
}

/// The calls that were made to fail, with what they were called on. Where another thread came between, a call has two lines,
/// and the first one has the words.
fn injected_calls(log: &str) -> Vec<&str> {
    let (mut begun, mut calls) = (HashMap::new(), Vec::new());
    for line in log.lines() {
        let thread = line.split_whitespace().next().unwrap_or_default();
        if line.contains("<unfinished") {
            begun.insert(thread, line);
        } else if line.contains("(INJECTED)") {
            let whole = begun.get(thread).filter(|_| line.contains(" resumed>"));
            calls.push(*whole.unwrap_or(&line));
        }
    }
    calls
}

/// Records that may be acknowledged before the call comes that is to fail or to be slow: as good as for ever.
const MOST_MEANWHILE: u64 = 50_000;
/// How often any call is chosen to fail, and how often one is chosen at most.
const TRIES: u32 = 12;
const TRIES_MAX: u32 = 40;

/// A sync fails once. The server must say so until it is started again, also if later syncs succeed; after that, or
/// right after the next start, the power may go.
pub(super) async fn sync_fails(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..3 {
        world.acknowledge_more(60).await?;
        world.kill_or_stop().await;
        let n = world.random.random_range(3..40);
        let what = format!("syncfs,fdatasync:error=EIO:when={n}");
        let (setup, traced) = Traced::setup(&world.home.clone(), world.setup(), &what);
        if let Some(failure) = world.try_start_as(setup).await {
            // A start that cannot sync may refuse, and says why.
            if !failure.output.contains("Input/output error") {
                bail!("the server did not start: {}\n{}", failure.status, failure.output);
            }
            world.fired("EIO at a start's sync");
            world.start().await?;
            continue;
        }
        let load = world.load.clone();
        let goal = load.acknowledged() + MOST_MEANWHILE;
        world.until("a sync fails", || traced.injected() > 0 || load.acknowledged() > goal).await?;
        if traced.injected() == 0 {
            world.kill();
            world.start().await?;
            continue;
        }
        let log = fs::read_to_string(&traced.log)?;
        let calls = injected_calls(&log);
        let of_all = calls.iter().any(|call| call.contains("syncfs("));
        world.fired(if of_all { "EIO from syncfs" } else { "EIO from fdatasync" });
        // Of a segment that records wait for; a file that is not in use yet, or a cache, may fail for itself.
        let of_segment = calls.iter().any(|call| call.contains(".log>"));
        if (of_all || of_segment) && !says_unhealthy(world).await? {
            world.wrong("a failed sync is not told: the server calls itself healthy");
        }
        // Readers at the end meanwhile.
        world.moment(30_000).await;
        if world.mount.is_some() && world.random.random() {
            // What only the page cache has is served by the next start, and then the power goes.
            world.kill();
            world.start().await?;
            world.moment(20_000).await;
            super::power::cut(world).await?;
        } else if world.mount.is_some() {
            super::power::cut(world).await?;
        } else {
            world.kill();
        }
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}

/// Whether the server comes to say that it is not healthy.
async fn says_unhealthy(world: &mut World) -> anyhow::Result<bool> {
    let mut doors = Doors::to(&world.load.endpoint);
    for _ in 0..200 {
        let answer =
            crate::clients::within(doors.admin.describe_server(rimstone_proto::v1::DescribeServerRequest {}))
                .await?;
        if answer.into_inner().health != "healthy" {
            return Ok(true);
        }
        world.moment(10_000).await;
    }
    Ok(false)
}

/// Calls that fail, once or again and again: rolled back, refused, or the partition refuses writes from then on.
pub(super) async fn calls_fail(world: &mut World) -> anyhow::Result<()> {
    const CALLS: &[&str] = &[
        "pwritev",
        "pwrite64",
        "rename,renameat2",
        "ftruncate",
        "unlink,unlinkat",
        "linkat,link",
        "mkdir,mkdirat",
    ];
    const ERRORS: &[&str] = &["EIO", "ENOSPC"];
    // Some calls are rare: then common ones, until one has failed.
    let mut fired = 0;
    for tried in 0..TRIES_MAX {
        if fired == 3 || tried >= TRIES && fired > 0 {
            break;
        }
        world.acknowledge_more(60).await?;
        world.kill_or_stop().await;
        let (calls, nth) = if tried < TRIES { (CALLS, 20) } else { (&CALLS[..3], 4) };
        let call = calls.choose(&mut world.random).expect("there are some");
        let error = ERRORS.choose(&mut world.random).expect("there are some");
        let n = world.random.random_range(1..nth);
        let step = *["", "+5", "+1"].choose(&mut world.random).expect("there are some");
        let what = format!("{call}:error={error}:when={n}{step}");
        let kind = format!("{error} from {}", call.split(',').next().unwrap_or(call));
        let (setup, traced) = Traced::setup(&world.home.clone(), world.setup(), &what);
        match world.try_start_as(setup).await {
            // A start may refuse, by an error; never by a signal.
            Some(failure) if failure.status.signal().is_none() && traced.injected() > 0 => {}
            Some(failure) => bail!("the server did not start: {}\n{}", failure.status, failure.output),
            None => {
                let load = world.load.clone();
                let (goal, begun) = (load.acknowledged() + 300, std::time::Instant::now());
                // With every write failing nothing more is acknowledged.
                let failed = || traced.injected() > 0 && load.acknowledged() > goal;
                let enough = || failed() || begun.elapsed().as_millis() > 700;
                world.until("a call fails", enough).await?;
            }
        }
        let injected = traced.injected() as u64;
        if injected > 0 {
            world.fired(&kind);
            fired += 1;
        }
        world.kill_or_stop_forgiving().await;
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}

/// A disk that takes its time: nothing is lost, nobody waits for ever; sometimes the power goes meanwhile.
pub(super) async fn slow(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..2 {
        world.acknowledge_more(60).await?;
        world.kill_or_stop().await;
        let delay = world.random.random_range(20..400) * 1_000;
        let what = format!("syncfs,fdatasync:delay_enter={delay}:when=6+1");
        let (setup, traced) = Traced::setup(&world.home.clone(), world.setup(), &what);
        if let Some(failure) = world.try_start_as(setup).await {
            bail!("the server did not start: {}\n{}", failure.status, failure.output);
        }
        let load = world.load.clone();
        let goal = load.acknowledged() + MOST_MEANWHILE;
        let delays = world.random.random_range(2..5);
        let enough = || traced.delays() >= delays || load.acknowledged() > goal;
        world.until("syncs are slow", enough).await?;
        if traced.delays() > 0 {
            world.fired("slow syncs");
        }
        // In the middle of one.
        world.moment(delay).await;
        if world.mount.is_some() {
            super::power::cut(world).await?;
        } else {
            world.kill_or_stop().await;
        }
        world.start().await?;
    }
    world.acknowledge_more(100).await?;
    Ok(())
}

impl Traced {
    /// How many calls were delayed.
    fn delays(&self) -> usize {
        fs::read_to_string(&self.log).map_or(0, |text| text.matches("(DELAYED)").count())
    }
}
