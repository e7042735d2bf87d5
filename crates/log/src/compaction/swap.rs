//! Where a pass touches the log: what it may work on, and putting a group that is written in place of the old one.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use rimstone_types::{Offset, Timestamp};

use super::{
    Compaction, CompactionError, CompactionSettings, Dirtiness, Facts, Obstacle, ObstacleReason, Plan, Sieve,
    groups, output::Output, plan,
};
use crate::{
    error::{FileError, LogReadError},
    files,
    frame::Totals,
    log::Log,
    planted::{self, Bug},
    reader::LogReader,
    segment::{Access, Segment},
    snapshot,
};

/// What of a log can be compacted: looked up outside the lock, for it may read seals.
#[derive(Debug)]
pub struct Compactable {
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) facts: Vec<Facts>,
    pub(super) plan: Plan,
    pub(super) obstacles: Vec<Obstacle>,
}

impl Compactable {
    /// How dirty the log is.
    pub fn dirtiness(&self) -> Dirtiness {
        self.plan.dirtiness
    }

    /// What is passed by, oldest first.
    pub fn obstacles(&self) -> &[Obstacle] {
        &self.obstacles
    }

    /// Bytes of the largest group of neighbours that become one segment of at most so many bytes: about what is
    /// written before anything goes.
    pub fn room_bytes(&self, segment_bytes: u64) -> u64 {
        if self.plan.tombstones_only {
            return self.facts.iter().map(|facts| facts.bytes).max().unwrap_or(0);
        }
        let bytes = |group: Range<usize>| self.facts[group].iter().map(|facts| facts.bytes).sum();
        groups(&self.facts, segment_bytes).into_iter().map(bytes).max().unwrap_or(0)
    }
}

/// A group that is written and on disk under another name.
#[derive(Debug)]
pub struct Replacement {
    pub(super) output: Output,
    pub(super) replaces: Vec<Arc<Segment>>,
    pub(super) directory: PathBuf,
    /// Files that are gone are no failure.
    pub(super) may_be_missing: bool,
}

/// A group that has its name, durably; the log is to be told, and then the old files go.
#[derive(Debug)]
pub struct Replaced {
    segment: Arc<Segment>,
    last_check: u32,
    replaces: Vec<Arc<Segment>>,
}

impl Replacement {
    /// Of a file that is finished, in place of neighbours, whose files somebody may have removed.
    pub(crate) fn new(output: Output, replaces: Vec<Arc<Segment>>, directory: &Path) -> Self {
        Self { output, replaces, directory: directory.to_owned(), may_be_missing: true }
    }

    /// Gives the new segment its name. `durable_snapshot` is what [`Log::may_replace`] answered.
    ///
    /// # Errors
    /// [`CompactionError::File`]: nothing has changed. [`CompactionError::Unknown`]: it has its name, but perhaps
    /// not after a power cut: nothing may rest on it.
    pub fn install(self, durable_snapshot: Offset) -> Result<Replaced, CompactionError> {
        let Self { output, replaces, directory, may_be_missing } = self;
        // All or none: what is kept for nothing would stay open.
        let open = |segment: &Arc<Segment>| match files::open_read(segment.path()) {
            Err(error) if error.is_missing() && may_be_missing => Ok(None),
            opened => opened.map(Some),
        };
        let opened: Vec<Option<File>> = replaces.iter().map(open).collect::<Result<_, FileError>>()?;
        // The numbers of requests whose content goes are in that snapshot: it must stay the oldest one.
        snapshot::remove_before(&directory, durable_snapshot);
        for (segment, file) in replaces.iter().zip(opened) {
            segment.keep_file(file);
        }
        let installed = output.install();
        if let Err(CompactionError::File(_)) = &installed {
            for segment in &replaces {
                segment.is_kept();
            }
        }
        let (segment, last_check) = installed?;
        Ok(Replaced { segment: Arc::new(segment), last_check, replaces })
    }
}

impl Replaced {
    /// Removes the old files, after the log was told.
    pub fn clean_up(self) {
        self.segment.finish(self.last_check);
        for old in &self.replaces[1..] {
            for path in [old.path().to_owned(), old.index_path()] {
                if let Err(error) = files::remove_file(&path) {
                    tracing::warn!(%error, "a superseded file was not removed; the next start does");
                }
            }
        }
    }
}

/// The totals of a segment that is whole, as far as that can be told without reading all of it.
fn whole(segment: &Segment, next: Offset, damage: Option<&String>) -> Result<Totals, ObstacleReason> {
    if let Some(reason) = &segment.broken {
        return Err(ObstacleReason::Header(reason.clone()));
    }
    if let Some(damage) = damage {
        return Err(ObstacleReason::Damaged(damage.clone()));
    }
    match segment.totals(Access::Blocking) {
        Ok(totals) if totals.next_offset == next => Ok(totals),
        Ok(Totals { next_offset: end, .. }) => Err(ObstacleReason::Hole { end, next }),
        Err(LogReadError::File(error)) => Err(ObstacleReason::Unreadable(error.to_string())),
        Err(error) => Err(ObstacleReason::Damaged(error.to_string())),
    }
}

/// The oldest segments, if their files are gone though the log begins in them: they may be put back.
fn missing_before(segments: &[Arc<Segment>], start: Offset) -> Option<Obstacle> {
    let next = segments.first()?.base;
    let reason = ObstacleReason::Hole { end: start, next };
    (start < next).then_some(Obstacle { segment: start, reason })
}

impl Log {
    /// What can be compacted, and how dirty it is. Reads seals: to be called outside the lock, on a thread that may
    /// block. Nothing that reaches above `until` is looked at: the base of the segment that the durable end lies in,
    /// or less. `damaged` are segments, by their base offsets, in which an earlier pass has met damage, and what that was.
    /// Those and whatever else is not whole are passed by.
    pub fn compactable(
        reader: &LogReader,
        until: Offset,
        damaged: &BTreeMap<Offset, String>,
        settings: &CompactionSettings,
        now: Timestamp,
    ) -> Compactable {
        let all = reader.shared().segments.load_full();
        let (mut segments, mut facts) = (Vec::new(), Vec::new());
        let mut obstacles: Vec<Obstacle> = missing_before(&all, reader.start()).into_iter().collect();
        for pair in all.windows(2).take_while(|pair| pair[1].base <= until) {
            let (segment, next) = (&pair[0], pair[1].base);
            let totals = match whole(segment, next, damaged.get(&segment.base)) {
                Ok(totals) => totals,
                // Gone by now.
                Err(_) if next <= reader.start() => continue,
                Err(reason) => {
                    obstacles.push(Obstacle { segment: segment.base, reason });
                    continue;
                }
            };
            segments.push(Arc::clone(segment));
            facts.push(Facts {
                base: segment.base,
                next,
                bytes: segment.end(),
                first_append: totals.first_append,
                last_append: totals.last_append,
                cleaned: segment.header.cleaned_behind(obstacles.len()),
                horizon: totals.delete_horizon.filter(|_| obstacles.is_empty()),
            });
        }
        let plan = plan(&facts, until, settings, now);
        facts.truncate(plan.segments);
        segments.truncate(plan.segments);
        Compactable { segments, facts, plan, obstacles }
    }

    /// `false`: a look at the files would find nothing to do at this time. Costs no look.
    pub fn may_be_compactable(&self, settings: &CompactionSettings, now: Timestamp) -> bool {
        self.shared.segments.load().windows(2).any(|pair| {
            let known = pair[0].known_totals();
            let horizon = known.and_then(|totals| totals.delete_horizon);
            // Whether all that it passed by is still in the way is for a look to tell.
            pair[0].header.cleaned_behind(0) != pair[1].base
                || known.is_none()
                || horizon.is_some_and(|horizon| settings.is_overdue(horizon, now))
        })
    }

    /// Begins a pass over what was found. Before its first group is replaced, a durable snapshot of the producers
    /// must be there that is not older than this.
    pub fn begin_compaction(
        &self,
        found: Compactable,
        settings: &CompactionSettings,
        now: Timestamp,
    ) -> Compaction {
        let end = found.facts.last().map_or(Offset::ZERO, |facts| facts.next);
        let numbered: Vec<Offset> = self
            .producers()
            .iter()
            .flat_map(|(_, entry)| entry.batches().map(|batch| batch.base_offset))
            .filter(|base| *base < end && !planted::is(Bug::ForgottenProducers))
            .collect();
        let salts = &self.config().salts.0;
        let seed = u64::from(salts()) << 32 | u64::from(salts());
        let sieve = Sieve::new(settings, &found.plan, self.reader().start(), now, numbered, seed)
            .behind(found.obstacles.first().map(|obstacle| obstacle.segment));
        Compaction::new(self.shared.id, self.directory(), self.config(), self.reader(), found, sieve, now)
    }

    /// Whether the segments of a group are still there, and state of their producers is durable: what
    /// [`Replacement::install`] needs. Nothing may trim the log from here until [`Log::replaced`].
    ///
    /// # Errors
    /// [`CompactionError::Overtaken`], [`CompactionError::NoSnapshot`].
    pub fn may_replace(&self, replacement: &Replacement) -> Result<Offset, CompactionError> {
        if self.find(&replacement.replaces).is_none() {
            return Err(CompactionError::Overtaken);
        }
        let end = replacement.output.next_offset();
        match self.durable_snapshot() {
            Some(snapshot) if snapshot >= end => Ok(snapshot),
            _ if planted::is(Bug::ForgottenProducers) => Ok(Offset::ZERO),
            _ => Err(CompactionError::NoSnapshot(end)),
        }
    }

    /// Publishes a group that has its name.
    pub fn replaced(&mut self, replaced: &Replaced) {
        let Some(first) = self.find(&replaced.replaces) else { return };
        let mut segments = Vec::clone(&self.shared.segments.load());
        segments.splice(first..first + replaced.replaces.len(), [Arc::clone(&replaced.segment)]);
        self.shared.segments.store(Arc::new(segments));
        // Behind the segments: who reads the number before them counts again.
        self.shared.generation.fetch_add(1, Ordering::Release);
    }

    /// Bytes of sealed segments that compaction has cleaned, and of those that it has not, but for those that it passes
    /// by.
    pub fn cleaned_size(&self, obstacles: &[Obstacle]) -> (u64, u64) {
        let segments = self.shared.segments.load();
        let (mut clean, mut dirty) = (0, 0);
        for pair in segments.windows(2) {
            if obstacles.iter().any(|obstacle| obstacle.segment == pair[0].base) {
                continue;
            }
            let before = obstacles.iter().filter(|obstacle| obstacle.segment < pair[0].base).count();
            let whole = dirty == 0 && pair[0].header.cleaned_behind(before) == pair[1].base;
            *if whole { &mut clean } else { &mut dirty } += pair[0].end();
        }
        (clean, dirty)
    }

    fn find(&self, group: &[Arc<Segment>]) -> Option<usize> {
        let segments = self.shared.segments.load();
        let oldest = group.first()?;
        let first = segments.iter().position(|segment| Arc::ptr_eq(segment, oldest))?;
        let there = segments.get(first..first + group.len())?;
        there.iter().zip(group).all(|(there, wanted)| Arc::ptr_eq(there, wanted)).then_some(first)
    }
}
