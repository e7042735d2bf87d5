//! Opening a partition: after a clean stop from its caches, otherwise from the log itself.
//!
//! The *attested end* is the highest durable end that anything claims: the witness, or any frame with a valid
//! check, whatever lies before it. An invalid frame below it is damaged acknowledged data and stays where it
//! is; above it, it is a torn tail, and it and everything behind it is set aside. What lies above it and is
//! whole is written again and synced before it is published: after a kill, or a failed sync, cached bytes can
//! pass every check and not be on disk.
//!
//! A sector that the disk cannot read is damage below the attested end. Above it, it is no torn tail, for a torn
//! write leaves sectors that can be read: such a partition is not opened, and nothing of it is changed.

use std::{io, path::Path, sync::Arc};

use rimstone_record::{Batch, BatchHeader};
use rimstone_types::{Numbering, Offset, PartitionId, Timestamp};

use crate::{
    checkpoint::Checkpoint,
    compaction::startup,
    config::LogConfig,
    error::{FileError, LogReadError, OpenLogError},
    files,
    frame::{Content, FRAME_PROBE_LENGTH, Frame, FrameWriter, LogPosition, SEGMENT_HEADER_LENGTH},
    index::IndexFile,
    log::{Found, Log, new_segment},
    planted::{self, Bug},
    producers::{Claim, ProducerTable},
    reader::STORED,
    segment::{Access, Cold, HEADERS_WINDOW, IndexBuilder, Opened, Readable, SCAN_WINDOW, Segment},
    snapshot,
    staging::{Head, capacity},
    walk::{Source, Step, Walker},
};

/// How much is copied at a time when a tail is written again.
const REWRITE_PIECE: usize = 1 << 20;

/// What is known before a partition is opened.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// The last run stopped cleanly: caches may be believed where they fit.
    pub clean: bool,
    /// The durable end that the witness has for this partition.
    pub witness: Option<LogPosition>,
    /// The clock.
    pub now: Timestamp,
}

/// What opening did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Opened from its caches.
    pub from_caches: bool,
    /// Bytes of segment files that were walked over.
    pub scanned_bytes: u64,
    /// Bytes of a torn tail that were set aside.
    pub torn_bytes: u64,
    /// Bytes above the attested end that were written again.
    pub rewritten_bytes: u64,
    /// Damaged ranges found below the attested end.
    pub damaged_ranges: u32,
    /// Offsets in the segments that these lie in, or behind.
    pub suspects: Vec<Offset>,
    /// Segments that did not count, for another stands for their offsets: left by a crash in a compaction, or set aside.
    pub superseded: u32,
}

/// The end of what can be kept.
struct End {
    /// Index of its segment.
    number: usize,
    position: u64,
    offset: Offset,
    /// The segment ends with a seal there.
    sealed: bool,
    /// The file is shorter than what is attested, or than what was deleted, so that nothing can go on in it.
    lost: bool,
}

impl Log {
    /// Opens a partition that is there.
    ///
    /// # Errors
    /// [`OpenLogError`]: `Unusable` if there is no segment, or one is of a newer format; nothing was changed then.
    pub fn open(
        directory: &Path,
        id: PartitionId,
        config: LogConfig,
        options: OpenOptions,
    ) -> Result<(Self, OpenReport), OpenLogError> {
        Self::open_from(directory, id, config, options, None)
    }

    /// Opens a partition that is there; what a checkpoint tells of the active segment is not read again.
    ///
    /// # Errors
    /// As [`Log::open`]. A checkpoint that does not fit the log is no error.
    pub fn open_from(
        directory: &Path,
        id: PartitionId,
        config: LogConfig,
        options: OpenOptions,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(Self, OpenReport), OpenLogError> {
        let bases = match files::list_offsets(directory, files::SEGMENT_SUFFIX) {
            Ok(bases) => bases,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                return Err(OpenLogError::Missing(directory.display().to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        if bases.is_empty() {
            return Err(OpenLogError::Unusable {
                path: directory.display().to_string(),
                reason: "there is no segment file in it, not even the first one that every partition has"
                    .to_owned(),
            });
        }
        let mut segments = Vec::with_capacity(bases.len());
        for base in bases {
            let mut segment = Segment::open(directory, base)?;
            if segment.broken.is_none() && segment.header.partition != id {
                segment.broken = Some(format!("its header names partition {}", segment.header.partition));
            }
            segments.push(segment);
        }
        let superseded = startup::remove_superseded(directory, id, &mut segments)?;
        let mut report = OpenReport { superseded, ..OpenReport::default() };
        let mut found = None;
        if options.clean {
            found = from_caches(directory, &config, options.witness, &mut segments)?;
            report.from_caches = found.is_some();
        }
        let found = match found {
            Some(head) => finish(directory, segments, head, true)?,
            None => {
                let recovery = Recovery {
                    directory,
                    id,
                    config: &config,
                    options,
                    checkpoint: checkpoint.as_ref(),
                    segments,
                    report: &mut report,
                };
                recovery.run()?
            }
        };
        let mut log = Self::assemble(directory, id, config, found);
        if let Some(checkpoint) = checkpoint {
            log.resume_checkpoints(&checkpoint);
        }
        Ok((log, report))
    }
}

/// The state of a cleanly closed partition, if its caches are there and fit; the last segment is taken then.
fn from_caches(
    directory: &Path,
    config: &LogConfig,
    witness: Option<LogPosition>,
    segments: &mut Vec<Segment>,
) -> Result<Option<(Head, ProducerTable)>, FileError> {
    let Some(last) = segments.last() else { return Ok(None) };
    let path = last.index_path();
    let Some(index) = IndexFile::open(&path)? else { return Ok(None) };
    let header = index.header;
    if last.broken.is_some()
        || header.salt != last.header.salt
        || header.base != last.base
        || header.end != last.end()
    {
        return Ok(None);
    }
    let next = header.totals.next_offset;
    // A stop leaves the end in the witness: another one there means that files are missing.
    if witness != Some(LogPosition { segment: last.base, position: header.end, offset: next }) {
        return Ok(None);
    }
    let Some((offset, producers)) = snapshot::newest(directory, next, &config.producers)? else {
        return Ok(None);
    };
    if offset != next {
        return Ok(None);
    }
    let builder = IndexBuilder::resumed(last.base, config.index_interval_bytes, header.totals);
    let last = segments.pop().expect("there is a last one");
    let frames =
        FrameWriter { salt: last.header.salt, position: header.end, previous_check: header.last_check };
    // Its entries are looked at when they are needed.
    let known = (header.end, Vec::new());
    let segment = last.resumed(capacity(config.segment_bytes), header.end, known, header.totals);
    let last_append = header.totals.last_append;
    let head = Head { segment: Arc::new(segment), frames, index: builder, last_append, must_roll: false };
    Ok(Some((head, producers)))
}

/// Puts the log together: older segments, the active one, log start.
fn finish(
    directory: &Path,
    older: Vec<Segment>,
    (mut head, producers): (Head, ProducerTable),
    clean: bool,
) -> Result<Found, FileError> {
    let mut segments: Vec<Arc<Segment>> = older.into_iter().map(Arc::new).collect();
    if head.last_append == Timestamp::MIN {
        // An empty active segment: append times go on from the one before.
        let before = segments.iter().rev().find(|segment| segment.broken.is_none());
        if let Some(Ok(totals)) = before.map(|segment| segment.totals(Access::Blocking)) {
            head.last_append = totals.last_append;
        }
    }
    segments.push(Arc::clone(&head.segment));
    let first = segments[0].base;
    let start = snapshot::read_log_start(directory)?.unwrap_or(first).min(head.next_offset());
    // Those before a durable one are removed when it is written; after a crash they may be back, and what is there may
    // be in the page cache only.
    let (oldest, found_snapshot) = snapshot::ends(directory)?;
    let durable_snapshot = oldest.filter(|_| clean);
    Ok(Found { segments, head, start, producers, durable_snapshot, found_snapshot })
}

/// What is known of the last segment: its index from a place on, totals, and the check of its last frame.
struct Known {
    from: u64,
    builder: IndexBuilder,
    last_check: u32,
}

/// What a rebuild begins with.
struct Base {
    /// The producers are known as of here.
    from: Offset,
    producers: ProducerTable,
    /// The first segment to read.
    number: usize,
    known: Known,
}

struct Recovery<'a> {
    directory: &'a Path,
    id: PartitionId,
    config: &'a LogConfig,
    options: OpenOptions,
    checkpoint: Option<&'a Checkpoint>,
    segments: Vec<Segment>,
    report: &'a mut OpenReport,
}

impl Recovery<'_> {
    fn run(mut self) -> Result<Found, OpenLogError> {
        files::remove_temporary_files(self.directory)?;
        let attested = self.attested_end().map_err(open_error)?;
        let log_start = snapshot::read_log_start(self.directory)?.unwrap_or(Offset::ZERO);
        let mut end = self.valid_end(attested, log_start).map_err(open_error)?;
        if end.offset < log_start {
            // All offsets below it were given out, and deleted with whatever could tell so: they are not given out again.
            end.offset = log_start;
            end.lost = true;
        }
        let set_aside = self.set_aside(&end)?;
        snapshot::remove_ahead(self.directory, end.offset)?;
        self.rewrite(attested, &end)?;
        let (producers, known) = self.rebuild(&end).map_err(open_error)?;
        let head = self.head(&end, known, set_aside)?;
        Ok(finish(self.directory, self.segments, (head, producers), false)?)
    }

    fn start_of_log(&self) -> LogPosition {
        let first = self.segments[0].base;
        LogPosition { segment: first, position: SEGMENT_HEADER_LENGTH as u64, offset: first }
    }

    /// The highest durable end that the witness or any valid frame claims. Read from the witnessed end on; all
    /// of the log only if there is no witness for it.
    fn attested_end(&mut self) -> Result<LogPosition, LogReadError> {
        let start = self.start_of_log();
        let mut attested = self.options.witness.unwrap_or(start).max(start);
        attested = attested.max(startup::attested(&self.segments).unwrap_or(start));
        let from = attested;
        for segment in &self.segments {
            if segment.base < from.segment || segment.broken.is_some() {
                continue;
            }
            let position =
                if segment.base == from.segment { from.position } else { SEGMENT_HEADER_LENGTH as u64 };
            let (source, end) = (Opened::new(segment)?, segment.end());
            let mut walker =
                Walker::new(source, segment.header.salt, position, end, HEADERS_WINDOW).over_headers();
            loop {
                match walker.step()? {
                    Step::Frame(_, frame) => attested = attested.max(frame.durable),
                    Step::Invalid(..) if walker.resync()? => {}
                    Step::Invalid(..) | Step::End => break,
                }
            }
            self.report.scanned_bytes += segment.end().saturating_sub(position);
        }
        Ok(attested)
    }

    /// Where the attested end lies in what is there, or what stands for it.
    fn attested_place(&mut self, attested: LogPosition, log_start: Offset) -> End {
        if attested.offset <= log_start {
            // All below the log start was durable, and was deleted in any order: what is left of it says nothing. The log
            // is what begins with the segment of the log start.
            let below = self.segments.partition_point(|segment| segment.base <= log_start);
            if let Some(number) = below.checked_sub(1)
                && self.segments[number].base > attested.segment
                && self.segments[number].broken.is_none()
            {
                let (offset, position) = (self.segments[number].base, SEGMENT_HEADER_LENGTH as u64);
                return End { number, position, offset, sealed: false, lost: false };
            }
        }
        let number =
            self.segments.partition_point(|segment| segment.base <= attested.segment).saturating_sub(1);
        let segment = &self.segments[number];
        let lost =
            segment.base != attested.segment || segment.broken.is_some() || segment.end() < attested.position;
        let mut end =
            End { number, position: attested.position, offset: attested.offset, sealed: false, lost };
        if segment.base != attested.segment {
            // The position is one in another file: all of this one lies before it.
            end.position = segment.end();
        }
        if lost && attested.offset > log_start {
            tracing::error!(
                partition = %self.id, segment = %attested.segment, position = attested.position,
                "acknowledged data is missing: the segment file is gone, shorter or unreadable; the log goes on behind it"
            );
            self.report.damaged_ranges += 1;
            self.report.suspects.push(segment.base);
        }
        end
    }

    /// Where whole, linked frames end that begin at the attested end.
    fn valid_end(&mut self, attested: LogPosition, log_start: Offset) -> Result<End, LogReadError> {
        for segment in &self.segments {
            if segment.broken.is_some() && segment.base >= attested.segment {
                // An error if that is so because it cannot be read.
                Readable(segment).load(0, SEGMENT_HEADER_LENGTH)?;
            }
        }
        let mut end = self.attested_place(attested, log_start);
        if end.lost {
            return Ok(end);
        }
        let mut previous_check = None;
        loop {
            let segment = &self.segments[end.number];
            let source = Readable(segment);
            let mut walker =
                Walker::new(source, segment.header.salt, end.position, segment.end(), SCAN_WINDOW);
            while !end.sealed {
                let Step::Frame(at, frame) = walker.step()? else { return Ok(end) };
                if previous_check.is_some_and(|check| check != frame.previous_check) {
                    return Ok(end);
                }
                match frame.content {
                    Content::Batch(header) => {
                        if header.base_offset != end.offset
                            || Batch::verify(walker.payload(at, &frame)?, &STORED).is_err()
                        {
                            return Ok(end);
                        }
                        end.offset = header.next_offset();
                    }
                    Content::Seal(totals) if totals.next_offset == end.offset => end.sealed = true,
                    Content::Seal(_) => return Ok(end),
                }
                end.position = at + frame.size();
                previous_check = Some(frame.check);
            }
            match self.segments.get(end.number + 1) {
                Some(next) if next.broken.is_none() && next.base == end.offset => {
                    previous_check = Some(next.header.check());
                    end.number += 1;
                    end.position = SEGMENT_HEADER_LENGTH as u64;
                    end.sealed = false;
                }
                _ => return Ok(end),
            }
        }
    }

    /// Moves everything behind the end out of the way. Answers whether the end's own file was cut.
    fn set_aside(&mut self, end: &End) -> Result<bool, OpenLogError> {
        let later = self.segments.split_off(end.number + 1);
        for segment in later {
            // A segment that lies wholly behind lost data is kept only if it is attested, and then it is the end.
            let torn = segment.path().with_extension(files::TORN_SUFFIX);
            tracing::debug!(partition = %self.id, file = %torn.display(), bytes = segment.end(), "a segment behind the torn tail was set aside");
            self.report.torn_bytes += segment.end();
            files::rename(segment.path(), &torn)
                .map_err(|error| FileError::new("rename", segment.path(), error))?;
            files::remove_file(&segment.index_path())?;
        }
        let segment = &self.segments[end.number];
        let torn = segment.end().saturating_sub(end.position);
        if torn == 0 || end.lost {
            if self.report.torn_bytes > 0 {
                files::sync_directory(self.directory)?;
            }
            return Ok(false);
        }
        self.report.torn_bytes += torn;
        let name = format!("{:020}-{}.{}", segment.base.get(), end.position, files::TORN_SUFFIX);
        let file = files::open_read_write(segment.path())?;
        let copied = files::copy_tail(&file, end.position, &self.directory.join(&name));
        if let Err(error) = copied {
            tracing::warn!(partition = %self.id, %error, "the torn tail could not be copied before it is cut");
        }
        tracing::debug!(partition = %self.id, file = name, bytes = torn, "a torn tail was set aside");
        files::truncate(&file, end.position)
            .and_then(|()| files::sync_all(&file))
            .map_err(|error| FileError::new("truncate", segment.path(), error))?;
        files::sync_directory(self.directory)?;
        Ok(true)
    }

    /// Writes what lies between the attested end and the end again, so that it is on disk and not only in the
    /// page cache, and syncs it.
    fn rewrite(&mut self, attested: LogPosition, end: &End) -> Result<(), FileError> {
        if end.lost || (self.segments[end.number].base, end.position) == (attested.segment, attested.position)
        {
            return Ok(());
        }
        let mut buffer = vec![0; REWRITE_PIECE];
        for (number, segment) in self.segments.iter().enumerate().take(end.number + 1) {
            if segment.base < attested.segment {
                continue;
            }
            let mut at = if segment.base == attested.segment { attested.position } else { 0 };
            let until = if number == end.number { end.position } else { segment.end() };
            let file = files::open_read_write(segment.path())?;
            while at < until {
                let length = usize::try_from(until - at).unwrap_or(usize::MAX).min(REWRITE_PIECE);
                let read = files::read_at(&file, segment.path(), &mut buffer[..length], at)?;
                if read == 0 {
                    break;
                }
                files::write_at(&file, &buffer[..read], at)
                    .map_err(|error| FileError::new("rewrite", segment.path(), error))?;
                at += read as u64;
                self.report.rewritten_bytes += read as u64;
            }
            if !planted::is(Bug::UnsyncedTail) {
                files::sync_all(&file).map_err(|error| FileError::new("sync", segment.path(), error))?;
            }
        }
        files::sync_directory(self.directory)
    }

    /// What there is to begin with: the checkpoint, if the log leads on from it, with the producers of a snapshot that is
    /// not older; else the newest snapshot.
    fn base(&self, end: &End) -> Result<Base, LogReadError> {
        let newest = snapshot::newest(self.directory, end.offset, &self.config.producers)?;
        if let Some(base) = self.checkpointed(end)? {
            // The frames do not tell of producers that were forgotten behind it; the snapshot made of that does.
            return Ok(match newest {
                Some((from, producers)) if from >= base.from => Base { from, producers, ..base },
                _ => base,
            });
        }
        let (from, producers) =
            newest.unwrap_or_else(|| (Offset::ZERO, ProducerTable::new(self.config.producers.clone())));
        let number =
            self.segments.partition_point(|segment| segment.base <= from).saturating_sub(1).min(end.number);
        let last = &self.segments[end.number];
        let known = Known {
            from: SEGMENT_HEADER_LENGTH as u64,
            builder: IndexBuilder::new(last.base, self.config.index_interval_bytes),
            last_check: last.header.check(),
        };
        Ok(Base { from, producers, number, known })
    }

    /// The frame behind a checkpoint names the check of the one before, which stands for all before it: if that is
    /// the checkpoint's, it tells of this very log. At the end of the log the end itself is what has to be right.
    fn checkpointed(&self, end: &End) -> Result<Option<Base>, LogReadError> {
        let last = &self.segments[end.number];
        let Some(checkpoint) = self.checkpoint else { return Ok(None) };
        let at = checkpoint.at;
        if end.lost
            || last.broken.is_some()
            || at.segment != last.base
            || checkpoint.salt != last.header.salt
            || at.position < SEGMENT_HEADER_LENGTH as u64
        {
            return Ok(None);
        }
        let leads_on = if at.position == end.position {
            at.offset == end.offset
        } else {
            let until = end.position.min(last.end());
            match Walker::new(Cold(last), last.header.salt, at.position, until, FRAME_PROBE_LENGTH).step()? {
                Step::Frame(_, frame) => {
                    let next = match frame.content {
                        Content::Batch(header) => header.base_offset,
                        Content::Seal(totals) => totals.next_offset,
                    };
                    frame.previous_check == checkpoint.last_check && next == at.offset
                }
                Step::Invalid(..) | Step::End => false,
            }
        };
        if !leads_on {
            return Ok(None);
        }
        let Some(producers) = checkpoint.producers(&self.config.producers) else { return Ok(None) };
        let interval = self.config.index_interval_bytes;
        let known = Known {
            from: at.position,
            builder: IndexBuilder::resumed(last.base, interval, checkpoint.totals),
            last_check: checkpoint.last_check,
        };
        Ok(Some(Base { from: at.offset, producers, number: end.number, known }))
    }

    /// The producers, and the index and totals of the last segment.
    fn rebuild(&mut self, end: &End) -> Result<(ProducerTable, Known), LogReadError> {
        let Base { from, mut producers, number: first, mut known } = self.base(end)?;
        for (number, segment) in self.segments.iter().enumerate().take(end.number + 1).skip(first) {
            if segment.broken.is_some() {
                continue;
            }
            let is_last = number == end.number;
            let until = if is_last { end.position.min(segment.end()) } else { segment.end() };
            let start = if is_last { known.from } else { SEGMENT_HEADER_LENGTH as u64 };
            let mut walker =
                Walker::new(Opened::new(segment)?, segment.header.salt, start, until, HEADERS_WINDOW)
                    .over_headers();
            self.report.scanned_bytes += until.saturating_sub(start);
            loop {
                let (at, frame) = match walker.step()? {
                    Step::Frame(at, frame) => (at, frame),
                    Step::Invalid(at, error) => {
                        tracing::error!(partition = %self.id, segment = %segment.path().display(), at, %error, "acknowledged data is damaged");
                        self.report.damaged_ranges += 1;
                        self.report.suspects.push(segment.base);
                        if walker.resync()? { continue } else { break }
                    }
                    Step::End => break,
                };
                let Content::Batch(header) = frame.content else { break };
                if is_last {
                    known.builder.add(at, &frame, &header);
                    known.last_check = frame.check;
                }
                if header.base_offset >= from
                    && let Some(claim) = claim_of(&mut walker, at, &frame, &header)?
                {
                    producers.replay(&claim, header.base_offset, header.last_offset(), frame.append_time);
                }
            }
        }
        known.builder.totals.next_offset = end.offset;
        Ok((producers, known))
    }

    /// Where appending goes on: behind the end, in a new segment from the next batch on; at once in a new one
    /// if the end's cannot be gone on with.
    fn head(
        &mut self,
        end: &End,
        Known { from, builder, last_check }: Known,
        cut: bool,
    ) -> Result<Head, OpenLogError> {
        let empty = builder.totals.frames == 0 && end.position == SEGMENT_HEADER_LENGTH as u64;
        let last_append = builder.totals.last_append;
        // Only what recovery itself has judged is replaced: an empty segment whose tail was torn off gets a new
        // salt under the same name.
        if end.sealed || end.lost || (empty && cut) {
            let (segment, frames) =
                new_segment(self.directory, self.id, end.offset, self.config, self.options.now);
            if self.segments[end.number].base == end.offset {
                // The new one takes its name in one step: a partition is never without a segment.
                let old = self.segments.remove(end.number);
                if end.sealed || end.lost {
                    // Unreadable, and attested to hold nothing: kept under another name.
                    files::keep_aside(old.path())?;
                }
            }
            files::replace_file(segment.path(), &segment.header.encode(), true)?;
            let index = IndexBuilder::new(end.offset, self.config.index_interval_bytes);
            return Ok(Head { segment: Arc::new(segment), frames, index, last_append, must_roll: false });
        }
        let segment = self.segments.remove(end.number);
        let frames =
            FrameWriter { salt: segment.header.salt, position: end.position, previous_check: last_check };
        let capacity = capacity(self.config.segment_bytes);
        let mut index = builder;
        let entries = std::mem::take(&mut index.entries);
        let segment = segment.resumed(capacity, end.position, (from, entries), index.totals);
        Ok(Head { segment: Arc::new(segment), frames, index, last_append, must_roll: !empty })
    }
}

/// What a stored batch says of its producer; by request, its content is hashed again.
fn claim_of<S: crate::walk::Source>(
    walker: &mut Walker<S>,
    at: u64,
    frame: &Frame,
    header: &BatchHeader,
) -> Result<Option<Claim>, LogReadError> {
    let Some(stamp) = header.producer else { return Ok(None) };
    let record_count = header.last_offset_delta.saturating_add(1);
    let content_hash = match stamp.numbering {
        Numbering::Dense => None,
        // Compaction took records away: what is left is not the content, and only a snapshot knows it.
        Numbering::ByRequest if header.record_count < record_count => None,
        // A batch whose body is damaged keeps its number; its content cannot be recognised any more.
        Numbering::ByRequest => Some(
            Batch::verify(walker.payload(at, frame)?, &STORED)
                .and_then(|batch| batch.content_hash(&STORED))
                .unwrap_or_default(),
        ),
    };
    Ok(Some(Claim { stamp, record_count, content_hash }))
}

fn open_error(error: LogReadError) -> OpenLogError {
    match error {
        LogReadError::File(error) => error.into(),
        other => OpenLogError::Unusable { path: String::new(), reason: other.to_string() },
    }
}
