//! What power cuts and kills leave, and whether everything that was acknowledged or seen is in it.
//!
//! A run is a seeded schedule over a store whose directory is recorded: producers with numbers and without,
//! readers, rolls, retention, compaction, topics that come and go, clean stops, kills, syncs and writes that fail. It
//! goes through several lives, each of which begins with what a power cut has left of the one before. From
//! the journal of each life images are drawn ([`rimstone_log::recording::image`]), at places all over it, in
//! the middle of writes and syncs; each is opened twice, with appends in between.
//!
//! The same seed makes the same run. Not here: the real process and real file systems (`tests/`).

mod client;
mod examine;
mod history;
mod life;
mod lookups;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicI64},
};

use rimstone_log::recording::image::{Draw, Images, Lost};

use self::{
    examine::{Look, examine},
    history::{Cut, History},
    life::Life,
};
use crate::{SyncPreference, local::STEPPED};

/// When runs take place.
const BEGIN: i64 = 1_700_000_000_000;
/// Lives of a run.
const LIVES: u32 = 3;
/// Out of a hundred images, so many are of a kill.
const KILLS: u32 = 6;

/// How much is done for a seed.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Steps of a schedule in each life.
    pub steps: usize,
    /// Images of each life.
    pub images: usize,
    /// Leaves the image of a violation where it is, as it was drawn and as it was then.
    pub keep: bool,
}

impl Default for Effort {
    fn default() -> Self {
        Self { steps: 150, images: 100, keep: false }
    }
}

/// What was done, and how much of it counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Images that were opened.
    pub images: u64,
    /// Of power cuts.
    pub power_cuts: u64,
    /// Of these, images that had lost something.
    pub fired: u64,
    /// What they had lost.
    pub lost: Lost,
    /// Changes to the disk and syncs that were recorded.
    pub events: u64,
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Passes of compaction that replaced something.
    pub compactions: u64,
    /// Log starts that were moved.
    pub trims: u64,
    /// Topics that were deleted.
    pub deleted: u64,
    /// Starts after a kill or a stop.
    pub restarts: u64,
    /// Calls that were made to fail.
    pub faults: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.power_cuts += other.power_cuts;
        self.fired += other.fired;
        self.lost.units += other.lost.units;
        self.lost.lengths += other.lost.lengths;
        self.lost.names += other.lost.names;
        self.events += other.events;
        self.acknowledged += other.acknowledged;
        self.compactions += other.compactions;
        self.trims += other.trims;
        self.deleted += other.deleted;
        self.restarts += other.restarts;
        self.faults += other.faults;
    }
}

/// Something that must not be.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed} ({sync}), life {life}, place {place} of the journal, image {image}: {what}")]
pub struct Violation {
    /// The seed of the run.
    pub seed: u64,
    /// How the store synced, which the seed chooses.
    pub sync: &'static str,
    /// Which of its lives.
    pub life: u32,
    /// Where in its journal.
    pub place: usize,
    /// The seed of the image, or what else it was.
    pub image: String,
    /// What was found.
    pub what: String,
}

/// A directory of a run, empty; on a file system in memory where there is one, for nothing of it must outlive the run.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let builder = tempfile::Builder::new().prefix("rimstone-sectors-").to_owned();
        Ok(Self(if memory.is_dir() { builder.tempdir_in(memory)? } else { builder.tempdir()? }))
    }

    fn root(&self, name: &str) -> io::Result<PathBuf> {
        let root = self.0.path().join(name);
        fs::create_dir(&root)?;
        root.canonicalize()
    }
}

/// Runs the schedule of one seed, and looks at its images.
///
/// # Errors
/// [`Violation`], the first that was found.
pub fn run(seed: u64, effort: Effort) -> Result<Summary, Box<Violation>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without I/O needs nothing that could be missing");
    let before = STEPPED.replace(true);
    // Without the budget of a task that shares its thread: nobody else is there.
    let done = runtime.block_on(tokio::task::unconstrained(lives(seed, effort)));
    STEPPED.set(before);
    done
}

async fn lives(seed: u64, effort: Effort) -> Result<Summary, Box<Violation>> {
    let mut draw = Draw::new(seed);
    let sync = *draw.pick(&[SyncPreference::Fdatasync, SyncPreference::Syncfs]);
    let time = Arc::new(AtomicI64::new(BEGIN));
    let mut summary = Summary::default();
    let mut history = History::default();
    let sync_name = if sync == SyncPreference::Syncfs { "syncfs" } else { "fdatasync" };
    let failed = |life, place, image: String, what| {
        Box::new(Violation { seed, sync: sync_name, life, place, image, what })
    };
    let here = |error: io::Error| failed(0, 0, "none".to_owned(), error.to_string());
    let scratch = Scratch::new().map_err(here)?;
    let mut root = scratch.root("0").map_err(here)?;
    let mut cut = Cut::Power;
    for number in 0..LIVES {
        let begun = Life::begin(&root, number, history, cut, draw.number(), sync, &time).await;
        let mut life = begun.map_err(|what| failed(number, 0, "the next life".to_owned(), what))?;
        for _ in 0..effort.steps {
            let stepped = life.step().await;
            let place = life.recorder().position();
            stepped.map_err(|what| failed(number, place, "none, it was seen in the run".to_owned(), what))?;
        }
        let recorder = Arc::clone(life.recorder());
        let (known, done) = life.end();
        recorder.observe(None);
        let journal = recorder.journal();
        drop(recorder);
        summary += Summary {
            events: journal.events.len() as u64,
            acknowledged: done.acked as u64,
            compactions: done.compactions as u64,
            trims: done.trims as u64,
            deleted: done.deleted as u64,
            restarts: done.restarts as u64,
            faults: done.faults as u64,
            ..Summary::default()
        };
        // All over it, and half of them where something was promised a moment ago.
        let promises = known.promises(number);
        let mut places: Vec<usize> = (0..effort.images)
            .map(|_| match draw.percent(50) && !promises.is_empty() {
                true => *draw.pick(&promises),
                false => draw.below(journal.events.len() + 1),
            })
            .collect();
        places.sort_unstable();
        let mut images = Images::new(&journal);
        for place in places {
            images.advance(place);
            let image_seed = draw.number();
            let look = Look {
                at: (number, place),
                cut: if draw.percent(KILLS) { Cut::Kill } else { Cut::Power },
                sync,
                seed: image_seed,
            };
            let image = match look.cut {
                Cut::Kill => images.kill(),
                Cut::Power => images.power_cut(image_seed),
            };
            summary.images += 1;
            summary.power_cuts += u64::from(look.cut == Cut::Power);
            summary.fired += u64::from(image.lost.any());
            summary.lost.units += image.lost.units;
            summary.lost.lengths += image.lost.lengths;
            summary.lost.names += image.lost.names;
            let to = scratch.root("image").map_err(here)?;
            image.write(&journal, &to).map_err(here)?;
            let mut then = known.as_of(look.at);
            let name = || format!("{image_seed:#x} ({:?})", look.cut);
            if let Err(mut what) = examine(&to.join("data"), &mut then, look, &time).await {
                if effort.keep {
                    let drawn = scratch.root("drawn").map_err(here)?;
                    image.write(&journal, &drawn).map_err(here)?;
                    what = format!("{what}; kept in {}", scratch.0.keep().display());
                }
                return Err(failed(number, place, name(), what));
            }
            fs::remove_dir_all(&to).map_err(here)?;
        }
        // The next life goes on with what a cut somewhere in the last third has left.
        let all = journal.events.len();
        let place = all - draw.below(all / 3 + 1);
        let mut images = Images::new(&journal);
        images.advance(place);
        root = scratch.root(&(number + 1).to_string()).map_err(here)?;
        images.power_cut(draw.number()).write(&journal, &root).map_err(here)?;
        history = known.as_of((number, place));
        cut = Cut::Power;
    }
    Ok(summary)
}
