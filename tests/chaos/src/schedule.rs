//! The matrix: each schedule is a way to hurt the server, from a seed. It counts the faults that fired, and a run in
//! which none did shows nothing and fails.
//!
//! Not here: the clients, what is checked.

mod kills;

use std::{future::Future, path::Path, pin::Pin};

use anyhow::ensure;

use crate::world::{Report, Shape, World};

/// What a schedule does once clients work: faults, and starts of the server. It leaves a server that runs.
type Act = for<'a> fn(&'a mut World) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

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
    /// Whether at least one fault must fire in each run.
    fires: bool,
    act: Act,
}

const fn always() -> Option<String> {
    None
}

fn plain(_: u64) -> Shape {
    Shape::default()
}

/// All rows.
pub const SCHEDULES: &[Schedule] = &[
    Schedule {
        name: "quiet",
        about: "no fault at all: a healthy server loses nothing either",
        why_not: always,
        shape: plain,
        fires: false,
        act: |world| Box::pin(kills::quiet(world)),
    },
    Schedule {
        name: "kills",
        about: "SIGKILL at random moments, at starts too",
        why_not: always,
        shape: plain,
        fires: true,
        act: |world| Box::pin(kills::kills(world)),
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
        let shape = (self.shape)(seed);
        let mut world = World::new(home, seed, &shape).await?;
        let outcome = self.act_out(&mut world, &shape).await;
        if outcome.is_err() {
            world.keep_history();
        }
        world.close().await;
        outcome
    }

    async fn act_out(&self, world: &mut World, shape: &Shape) -> anyhow::Result<Report> {
        world.begin(shape, None);
        (self.act)(world).await?;
        let report = world.finish().await?;
        ensure!(!self.fires || !report.fired.is_empty(), "no fault fired");
        Ok(report)
    }
}
