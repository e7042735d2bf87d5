//! Taking the oldest segments away: what retention asks for, moving log start, unlinking.
//!
//! Not here: the rules of retention (`retention`), making log start durable (`snapshot`).

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use rimstone_types::{Offset, Timestamp};

use super::Log;
use crate::{
    config::LogConfig,
    error::FileError,
    files,
    frame::Totals,
    reader::LogReader,
    retention::{self, RetentionPlan, SegmentFacts},
    segment::Segment,
    snapshot,
};

impl Log {
    /// Log start after a trim to `start`, clamped to what is durable; never backwards.
    pub fn clamp_start(&self, start: Offset) -> Offset {
        let now = Offset::new(self.shared.start.load(Ordering::Acquire)).unwrap_or(Offset::MAX);
        start.min(self.durable.offset).max(now)
    }

    /// Whether whole segments lie below `start`: a kill may have left them there.
    pub fn has_segments_below(&self, start: Offset) -> bool {
        self.shared.segments.load().get(1).is_some_and(|second| second.base <= start)
    }

    /// Publishes a log start that the caller has made durable, and takes the segments below it out of the log.
    /// The caller removes what is not needed any more: readers that hold bytes of the segments keep them.
    pub fn advance_start(&mut self, start: Offset) -> Trimmed {
        let (directory, durable_snapshot) = (self.directory.clone(), self.durable_snapshot);
        let segments = self.take_out_below(start);
        Trimmed { directory, durable_snapshot, segments }
    }

    fn take_out_below(&mut self, start: Offset) -> Vec<Arc<Segment>> {
        self.shared.start.store(start.get(), Ordering::Release);
        let segments = self.shared.segments.load_full();
        // A segment goes when the next one begins at or below the log start; so the active one stays.
        let gone = segments.windows(2).take_while(|pair| pair[1].base <= start).count();
        // What is staged or being written must not go either.
        let gone =
            segments[..gone].iter().take_while(|segment| segment.base < self.written.segment.base).count();
        if gone == 0 {
            return Vec::new();
        }
        self.shared.segments.store(Arc::new(segments[gone..].to_vec()));
        segments[..gone].to_vec()
    }

    /// Which log start retention asks for, how many segments lie below it, and whether more is due than one pass
    /// takes. Reads seals: to be called outside the lock, on a thread that may block.
    pub fn plan_retention(reader: &LogReader, config: &LogConfig, now: Timestamp) -> RetentionPlan {
        let segments = reader.shared().segments.load_full();
        let mut facts = Vec::with_capacity(segments.len());
        // Newest first: what is damaged, or lies before a hole, goes no sooner than the next one that is whole. What can
        // be read of it may be its older part, and of the rest nobody knows more than that it is older than that one.
        let mut behind =
            segments.last().and_then(|active| active.known_totals()).and_then(|totals| age(&totals));
        for pair in segments.windows(2).rev() {
            let max_time = match pair[0].totals_up_to(pair[1].base) {
                Ok(totals) => age(&totals),
                Err(readable) => {
                    let readable = readable.and_then(|totals| age(&totals));
                    behind.map(|behind| readable.map_or(behind, |readable| readable.max(behind)))
                }
            };
            behind = max_time;
            facts.push(SegmentFacts {
                base: pair[0].base,
                next: pair[1].base,
                bytes: pair[0].end(),
                max_time,
            });
        }
        facts.reverse();
        let active = segments.last().map_or(0, |segment| segment.end());
        retention::plan(&facts, active, reader.start(), config, now)
    }
}

/// The time that a segment with these totals is judged by. Without a record it goes by when its batches were taken;
/// without a batch, by nothing.
fn age(totals: &Totals) -> Option<Timestamp> {
    let time = if totals.records == 0 { totals.last_append } else { totals.max_time };
    (totals.frames > 0).then_some(time)
}

/// What a log does not need any more behind a new log start.
#[derive(Debug)]
#[must_use = "the files are still there"]
pub struct Trimmed {
    directory: PathBuf,
    durable_snapshot: Option<Offset>,
    segments: Vec<Arc<Segment>>,
}

impl Trimmed {
    /// How many segments these are.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Unlinks the files, outside the lock, and answers for each segment how many bytes it had, or why its files are
    /// still there; the next trim after a start removes them then.
    pub fn unlink(self) -> impl Iterator<Item = Result<u64, FileError>> {
        // Before records go, and only now that log and snapshot are durable: so the oldest one is always the one
        // that deleted records rest on.
        if let Some(durable) = self.durable_snapshot {
            snapshot::remove_before(&self.directory, durable);
        }
        self.segments.into_iter().map(|segment| {
            files::remove_file(segment.path())?;
            files::remove_file(&segment.index_path())?;
            Ok(segment.end())
        })
    }
}
