//! What is around the server: a network that loses answers, a clock that jumps, too few descriptors, little memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rand::RngExt as _;
use rimstone_tests::server::Setup;
use tokio::net::TcpStream;

use rimstone_proto::v1;

use crate::{
    clients::{Doors, unix_ms, within},
    world::World,
};

/// Where Debian's package `faketime` has its library.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Where the first version of cgroups has its memory controller.
const CGROUPS: &str = "/sys/fs/cgroup/memory";

/// Of a server that is to live with little.
const MEMORY: u64 = 96 << 20;

pub(super) fn why_no_faketime() -> Option<String> {
    (!Path::new(FAKETIME).exists()).then(|| format!("{FAKETIME} is not there (package faketime)"))
}

/// Why there is no memory cgroup to be had here.
pub fn why_no_cgroup() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("cgroups need root".to_owned());
    }
    let there = Path::new(CGROUPS).join("memory.limit_in_bytes").exists();
    (!there).then(|| format!("{CGROUPS} has no memory controller"))
}

pub(super) fn why_no_prlimit() -> Option<String> {
    let there = Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success());
    (!there).then(|| "prlimit is not there".to_owned())
}

/// Connections of producers break, and the answers of the last moments with them.
pub(super) async fn answers_lost(world: &mut World) -> anyhow::Result<()> {
    world.acknowledge_more(30).await?;
    for _ in 0..4 {
        let proxy = world.proxy.as_ref().context("this run has a proxy")?;
        let (cuts, before) = (proxy.counter(), proxy.cuts());
        proxy.hurt(true);
        let wanted = world.random.random_range(3..12);
        let cut = || cuts.load(std::sync::atomic::Ordering::Relaxed) >= before + wanted;
        world.until("connections are cut", cut).await?;
        world.fired("answers lost");
        if world.random.random_bool(0.3) {
            world.kill();
            world.fired("SIGKILL");
            world.start().await?;
        }
        world.proxy.as_ref().context("this run has a proxy")?.hurt(false);
        world.acknowledge_more(100).await?;
    }
    Ok(())
}

fn with_clock(setup: Setup, file: &Path) -> Setup {
    setup
        .environment("LD_PRELOAD", FAKETIME)
        .environment("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

/// The wall clock jumps, under a running server and between two. It never goes back further than create times may lie
/// in the future.
pub(super) async fn clock_jumps(world: &mut World) -> anyhow::Result<()> {
    let file = world.home.join("clock");
    let mut offset: i64 = 0;
    let set = |offset: i64| fs::write(&file, format!("{offset:+}\n"));
    set(offset)?;
    world.acknowledge_more(60).await?;
    world.kill_or_stop().await;
    let setup = with_clock(world.setup(), &file);
    world.start_as(setup.clone()).await?;
    for _ in 0..6 {
        let more = world.random.random_range(40..200);
        world.acknowledge_more(more).await?;
        // Hours and days forward, and most of an hour back.
        offset = match world.random.random_range(0..4) {
            0 => -3_000,
            1 => 0,
            2 => offset.max(0) + world.random.random_range(3_600..80_000),
            _ => offset.max(0) + 40 * 86_400,
        };
        let kind = if world.random.random_bool(0.3) {
            world.kill_or_stop().await;
            set(offset)?;
            world.start_as(setup.clone()).await?;
            "clock jump between starts"
        } else {
            set(offset)?;
            "clock jump"
        };
        has_jumped(world, offset).await?;
        world.fired(kind);
    }
    world.acknowledge_more(100).await?;
    world.kill_or_stop().await;
    world.start().await?;
    Ok(())
}

/// Waits until the server's own clock is so far from ours.
async fn has_jumped(world: &mut World, offset: i64) -> anyhow::Result<()> {
    /// The server may answer a little late.
    const NEAR_MS: i64 = 60_000;
    const LOOKS: usize = 100;
    let mut doors = Doors::to(&world.load.endpoint);
    for _ in 0..LOOKS {
        if let Ok(answer) = within(doors.lag.get_lag(v1::GetLagRequest::default())).await {
            let ahead = answer.into_inner().measured_ms - unix_ms();
            if (ahead - offset * 1_000).abs() < NEAR_MS {
                return Ok(());
            }
        }
        world.moment(50_000).await;
    }
    bail!("the server's clock did not jump by {offset} s")
}

/// More connections than the server has descriptors for; when they are gone it goes on.
pub(super) async fn few_descriptors(world: &mut World) -> anyhow::Result<()> {
    for _ in 0..2 {
        world.acknowledge_more(60).await?;
        world.kill_or_stop().await;
        let limit = world.random.random_range(110..200);
        let setup = world.setup().under(["prlimit".to_owned(), format!("--nofile={limit}:{limit}")]);
        if let Some(failure) = world.try_start_as(setup).await {
            bail!("the server did not start: {}\n{}", failure.status, failure.output);
        }
        world.acknowledge_more(30).await?;
        let endpoint = world.load.endpoint.clone();
        let mut held = Vec::new();
        for _ in 0..limit {
            // Where nobody accepts any more the queue of the socket takes them.
            let connecting = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(&endpoint));
            if let Ok(Ok(stream)) = connecting.await {
                held.push(stream);
            }
        }
        world.fired("no descriptors");
        world.moment(200_000).await;
        if world.has_ended().is_some() {
            world.wrong("I4: the server has ended for want of descriptors");
        }
        drop(held);
        world.acknowledge_more(60).await?;
        world.kill_or_stop().await;
        world.start().await?;
    }
    world.acknowledge_more(60).await?;
    Ok(())
}

/// A memory cgroup, removed when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Of so many bytes, page cache included.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        let group = Path::new(CGROUPS).join(format!("rimstone-chaos-{}", std::process::id()));
        fs::create_dir_all(&group)?;
        let group = Self(group);
        fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string())?;
        Ok(group)
    }

    /// The same server in it.
    pub fn around(&self, setup: Setup) -> Setup {
        let enter = format!("echo $$ > {}/tasks; exec \"$@\"", self.0.display());
        setup.under(["sh", "-c", &enter, "sh"])
    }

    /// What one of its files says.
    ///
    /// # Errors
    /// If it says something else.
    pub fn number(&self, file: &str) -> anyhow::Result<u64> {
        let path = self.0.join(file);
        fs::read_to_string(&path)?.trim().parse().with_context(|| path.display().to_string())
    }

    /// Bytes that its processes have of their own: what is no page cache.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn own(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.stat"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("rss "));
        line.context("memory.stat has a line rss")?.parse().context("a number of bytes")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

/// All of the load in little memory, page cache included: the server is not killed for it.
pub(super) async fn little_memory(world: &mut World) -> anyhow::Result<()> {
    let group = Cgroup::new(MEMORY)?;
    world.acknowledge_more(60).await?;
    world.kill_or_stop().await;
    let setup = group.around(world.setup());
    world.start_as(setup).await?;
    if !world.acknowledge_more(4_000).await? {
        world.wrong("I4: the server has ended for want of memory");
    }
    world.fired("little memory");
    world.kill_or_stop().await;
    world.start().await?;
    world.acknowledge_more(60).await?;
    Ok(())
}
