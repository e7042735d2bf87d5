//! The matrix: each schedule is a way to hurt the server, from a seed. It counts the faults that fired, and a run in
//! which none did shows nothing and fails.
//!
//! Not here: the clients, what is checked.

mod around;
mod damage;
mod inject;
mod kills;
mod power;
mod walk;

pub use around::{Cgroup, why_no_cgroup};

use std::{future::Future, path::Path, pin::Pin};

use anyhow::ensure;

use crate::{
    proxy::Proxy,
    world::{Disk, Report, Shape, World},
};

/// What a schedule does once clients work: faults, and starts of the server. It leaves a server that runs. The number
/// is that of a walk.
type Act = for<'a> fn(&'a mut World, u64) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A row of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Its name.
    pub name: &'static str,
    /// What it does, and what must hold.
    pub about: &'static str,
    /// Why this machine cannot run it; `None` if it can.
    pub why_not: fn() -> Option<String>,
    /// What its runs are made of, by seed.
    shape: fn(u64) -> Shape,
    /// When a fault must fire.
    pub fires: Fires,
    act: Act,
}

/// When a fault must fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fires {
    /// Never: there is none.
    Never,
    /// In each run.
    Always,
    /// In each run. A fault comes at the n-th call of a kind, and n is counted up, some numbers a run, until no call
    /// of that number comes any more. The last five digits of the seed are the n to begin with.
    Walk,
}

/// Of a seed of a walk: where the walk's number ends.
pub const WALK: u64 = 100_000;

const fn always() -> Option<String> {
    None
}

fn plain(_: u64) -> Shape {
    Shape::default()
}

fn short_with_syncfs(_: u64) -> Shape {
    Shape { sync: Some("auto"), short: true, ..Shape::default() }
}

fn short_with_fdatasync(_: u64) -> Shape {
    Shape { sync: Some("fdatasync"), short: true, ..Shape::default() }
}

/// One walk with `syncfs`, the next without.
fn short(seed: u64) -> Shape {
    if (seed / WALK).is_multiple_of(2) { short_with_syncfs(seed) } else { short_with_fdatasync(seed) }
}

fn behind_a_proxy(_: u64) -> Shape {
    Shape { proxied: true, ..Shape::default() }
}

fn on_ext4(_: u64) -> Shape {
    Shape { disk: Disk::Ext4(96), ..Shape::default() }
}

fn on_a_small_disk(seed: u64) -> Shape {
    let disk = if seed.is_multiple_of(2) { Disk::Ext4(32) } else { Disk::Tmpfs(32) };
    Shape { disk, ..Shape::default() }
}

/// All rows.
pub const SCHEDULES: &[Schedule] = &[
    Schedule {
        name: "quiet",
        about: "no fault at all: a healthy server loses nothing either",
        why_not: always,
        shape: plain,
        fires: Fires::Never,
        act: |world, _| Box::pin(kills::quiet(world)),
    },
    Schedule {
        name: "kills",
        about: "SIGKILL at random moments, at starts too",
        why_not: always,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(kills::kills(world)),
    },
    Schedule {
        name: "nth-syncfs",
        about: "SIGKILL at the n-th syncfs, for every n of a short run",
        why_not: walk::why_not,
        shape: short_with_syncfs,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "syncfs", n)),
    },
    Schedule {
        name: "nth-fdatasync",
        about: "SIGKILL at the n-th fdatasync, for every n of a short run",
        why_not: walk::why_not,
        shape: short_with_fdatasync,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "fdatasync", n)),
    },
    Schedule {
        name: "nth-pwritev",
        about: "SIGKILL at the n-th pwritev, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "pwritev", n)),
    },
    Schedule {
        name: "nth-pwrite64",
        about: "SIGKILL at the n-th pwrite64, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "pwrite64", n)),
    },
    Schedule {
        name: "nth-rename",
        about: "SIGKILL at the n-th rename, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "rename", n)),
    },
    Schedule {
        name: "nth-unlink",
        about: "SIGKILL at the n-th unlink, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "unlink", n)),
    },
    Schedule {
        name: "nth-ftruncate",
        about: "SIGKILL at the n-th ftruncate, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "ftruncate", n)),
    },
    Schedule {
        name: "nth-fsync",
        about: "SIGKILL at the n-th fsync, for every n of a short run",
        why_not: walk::why_not,
        shape: short,
        fires: Fires::Walk,
        act: |world, n| Box::pin(walk::kill_at(world, "fsync", n)),
    },
    Schedule {
        name: "sync-fails",
        about: "EIO from a sync, then a kill: told, never tried again, nothing acknowledged is lost",
        why_not: inject::why_not,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(inject::sync_fails(world)),
    },
    Schedule {
        name: "sync-fails-cut",
        about: "EIO from a sync, then a power cut, at once or after the next start",
        why_not: || inject::why_not().or_else(power::why_not),
        shape: on_ext4,
        fires: Fires::Always,
        act: |world, _| Box::pin(inject::sync_fails(world)),
    },
    Schedule {
        name: "calls-fail",
        about: "EIO and ENOSPC from writes, renames, truncations, removals",
        why_not: inject::why_not,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(inject::calls_fail(world)),
    },
    Schedule {
        name: "slow",
        about: "a disk whose syncs take up to 0.4 s",
        why_not: inject::why_not,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(inject::slow(world)),
    },
    Schedule {
        name: "slow-cut",
        about: "the same, and the power goes in the middle of a sync",
        why_not: || inject::why_not().or_else(power::why_not),
        shape: on_ext4,
        fires: Fires::Always,
        act: |world, _| Box::pin(inject::slow(world)),
    },
    Schedule {
        name: "power",
        about: "power cuts of an ext4, also right after the start that follows a kill",
        why_not: power::why_not,
        shape: on_ext4,
        fires: Fires::Always,
        act: |world, _| Box::pin(power::cuts(world)),
    },
    Schedule {
        name: "read-only",
        about: "the file system gives up and is read-only",
        why_not: power::why_not,
        shape: on_ext4,
        fires: Fires::Always,
        act: |world, _| Box::pin(power::gives_up(world)),
    },
    Schedule {
        name: "full",
        about: "the disk is full, also with short writes, and has room again",
        why_not: power::why_not,
        shape: on_a_small_disk,
        fires: Fires::Always,
        act: |world, _| Box::pin(power::full(world)),
    },
    Schedule {
        name: "answers-lost",
        about: "a proxy that delays, swallows answers and cuts connections; kills too",
        why_not: always,
        shape: behind_a_proxy,
        fires: Fires::Always,
        act: |world, _| Box::pin(around::answers_lost(world)),
    },
    Schedule {
        name: "clock",
        about: "a wall clock that jumps by days forward and most of an hour back",
        why_not: around::why_no_faketime,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(around::clock_jumps(world)),
    },
    Schedule {
        name: "descriptors",
        about: "more connections than descriptors",
        why_not: around::why_no_prlimit,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(around::few_descriptors(world)),
    },
    Schedule {
        name: "memory",
        about: "a memory cgroup of 96 MiB, page cache included",
        why_not: around::why_no_cgroup,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(around::little_memory(world)),
    },
    Schedule {
        name: "damage",
        about: "after a run: files of every kind with flipped bits, cut, emptied, zeroed, removed, exchanged, longer",
        why_not: always,
        shape: plain,
        fires: Fires::Always,
        act: |world, _| Box::pin(kills::quiet(world)),
    },
];

/// The row of this name.
pub fn find(name: &str) -> Option<&'static Schedule> {
    SCHEDULES.iter().find(|schedule| schedule.name == name)
}

impl Schedule {
    /// One run in this folder.
    ///
    /// # Errors
    /// If it could not be brought to its end; what is wrong with the data is in the report.
    pub async fn run(&self, home: &Path, seed: u64) -> anyhow::Result<Report> {
        self.run_with(home, seed, &[]).await
    }

    /// The same of a server with more settings.
    ///
    /// # Errors
    /// As [`Schedule::run`].
    pub async fn run_with(
        &self,
        home: &Path,
        seed: u64,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Report> {
        let mut shape = (self.shape)(seed);
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        shape.settings.extend(settings);
        let mut world = World::new(home, seed, &shape).await?;
        let outcome = self.act_out(&mut world, &shape, seed).await;
        if outcome.is_err() {
            world.keep_history();
        }
        world.close().await;
        outcome
    }

    async fn act_out(&self, world: &mut World, shape: &Shape, seed: u64) -> anyhow::Result<Report> {
        if shape.proxied {
            world.proxy = Some(Proxy::start(world.load.endpoint.clone(), seed).await?);
        }
        let through = world.proxy.as_ref().map(Proxy::endpoint);
        world.begin(shape, through);
        (self.act)(world, seed % WALK).await?;
        let (mut report, facts) = world.finish().await?;
        if self.name == "damage" && report.wrong.is_empty() {
            damage::cases(world, &facts).await?;
            report = world.report().clone();
        }
        // What went wrong before the first one is the news.
        let fired = self.fires == Fires::Never || !report.fired.is_empty();
        ensure!(fired || !report.wrong.is_empty(), "no fault fired");
        Ok(report)
    }
}
