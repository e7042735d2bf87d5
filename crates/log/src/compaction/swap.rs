//! Where a pass touches the log: what it may work on, and putting a group that is written in place of the old one.

use std::{
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use rimstone_types::{Offset, Timestamp};

use super::{
    Compaction, CompactionError, CompactionSettings, Dirtiness, Facts, Plan, Sieve, groups, output::Output,
    plan,
};
use crate::{
    error::{FileError, LogReadError},
    files,
    log::Log,
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
}

impl Compactable {
    /// How dirty the log is.
    pub fn dirtiness(&self) -> Dirtiness {
        self.plan.dirtiness
    }

    /// Bytes of the largest group of neighbours that become one segment of at most so many bytes: about what is
    /// written before anything goes.
    pub fn room_bytes(&self, segment_bytes: u64) -> u64 {
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
}

/// A group that has its name, durably; the log is to be told, and then the old files go.
#[derive(Debug)]
pub struct Replaced {
    segment: Arc<Segment>,
    last_check: u32,
    replaces: Vec<Arc<Segment>>,
}

impl Replacement {
    /// Gives the new segment its name. `durable_snapshot` is what [`Log::may_replace`] answered.
    ///
    /// # Errors
    /// [`CompactionError::File`]: nothing has changed. [`CompactionError::Unknown`]: it has its name, but perhaps
    /// not after a power cut: nothing may rest on it.
    pub fn install(self, durable_snapshot: Offset) -> Result<Replaced, CompactionError> {
        let Self { output, replaces, directory } = self;
        // All or none: what is kept for nothing would stay open.
        let opened: Vec<File> =
            replaces.iter().map(|segment| files::open_read(segment.path())).collect::<Result<_, _>>()?;
        // The numbers of requests whose content goes are in that snapshot: it must stay the oldest one.
        snapshot::remove_before(&directory, durable_snapshot);
        for (segment, file) in replaces.iter().zip(opened) {
            segment.keep_file(Some(file));
        }
        let installed = output.install();
        if let Err(CompactionError::File(_)) = &installed {
            for segment in &replaces {
                segment.keep_file(None);
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

impl Log {
    /// What can be compacted, and how dirty it is. Reads seals: to be called outside the lock, on a thread that may
    /// block. Nothing that reaches above `until` is looked at: the base of the segment that the durable end lies in,
    /// or less.
    ///
    /// # Errors
    /// [`FileError`] where a file cannot be read.
    pub fn compactable(
        reader: &LogReader,
        until: Offset,
        settings: &CompactionSettings,
        now: Timestamp,
    ) -> Result<Compactable, FileError> {
        let segments = reader.shared().segments.load_full();
        let mut facts = Vec::with_capacity(segments.len());
        for pair in segments.windows(2) {
            let (segment, next) = (&pair[0], pair[1].base);
            // A segment that is not whole stays, and so does what lies behind it.
            if segment.broken.is_some() || next > until {
                break;
            }
            let totals = match segment.totals(Access::Blocking) {
                Ok(totals) if totals.next_offset == next => totals,
                Ok(_) | Err(LogReadError::Damaged { .. }) => break,
                Err(LogReadError::File(error)) if error.is_missing() => break,
                Err(LogReadError::File(error)) => return Err(error),
                Err(_) => break,
            };
            facts.push(Facts {
                base: segment.base,
                next,
                bytes: segment.end(),
                first_append: totals.first_append,
                last_append: totals.last_append,
                cleaned: segment.header.cleaned_end(),
            });
        }
        let plan = plan(&facts, until, settings, now);
        facts.truncate(plan.segments);
        Ok(Compactable { segments: segments[..plan.segments].to_vec(), facts, plan })
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
            .filter(|base| *base < end)
            .collect();
        let salts = &self.config().salts.0;
        let seed = u64::from(salts()) << 32 | u64::from(salts());
        let sieve = Sieve::new(settings, self.reader().start(), now, numbered, seed);
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

    /// Bytes of sealed segments that compaction has cleaned, and of those that it has not.
    pub fn cleaned_size(&self) -> (u64, u64) {
        let segments = self.shared.segments.load();
        let (mut clean, mut dirty) = (0, 0);
        for pair in segments.windows(2) {
            let whole = dirty == 0 && pair[0].header.cleaned_end() == pair[1].base;
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
