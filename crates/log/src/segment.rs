//! One segment file: its published end, its index, its map. Shared by the writer and all readers.
//!
//! Not here: which segments there are (`log`), what their frames mean (`reader`, `recovery`).

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rimstone_types::{Offset, Timestamp};

use crate::{
    buffers,
    error::{FileError, LogReadError, OpenLogError},
    files,
    frame::{Content, Frame, FrameError, SEAL_FRAME_LENGTH, SEGMENT_HEADER_LENGTH, SegmentHeader, Totals},
    index::{self, IndexEntry, IndexFile, IndexHeader},
    map::Map,
    planted::{self, Bug},
    walk::{Source, Step, Walker},
};

/// How many ends of reads are remembered, so that readers who go on where they stopped need no index.
const HINTS: usize = 8;
/// How much is loaded at a time when a whole segment is walked.
pub(crate) const SCAN_WINDOW: usize = 1 << 20;
/// How much is loaded at a time of small frames of which only the headers are wanted.
pub(crate) const HEADERS_WINDOW: usize = 128 << 10;

/// Whether a read may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only what is in memory; otherwise [`LogReadError::NotResident`].
    Resident,
    /// May block on the disk: not on a thread that must not wait.
    Blocking,
    /// The same in small steps, since writers wait for the disk as well (ADR 0021).
    InSteps,
}

/// A segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base: Offset,
    pub(crate) header: SegmentHeader,
    path: PathBuf,
    capacity: u64,
    /// Frames below it are whole and published. `Release` by the writer after the bytes are in the file.
    end: AtomicU64,
    state: RwLock<State>,
    map: Mutex<Option<Arc<Map>>>,
    writer: Mutex<Option<Arc<File>>>,
    hints: Mutex<([(Offset, u64); HINTS], usize)>,
    /// Read since the last sweep: a map that nobody uses is given back.
    touched: AtomicBool,
    /// Its totals were counted over damage: what is damaged is not in them.
    pieced: AtomicBool,
    /// What makes the file unreadable as a whole.
    pub(crate) broken: Option<String>,
    /// Compaction, or accepting a loss, gave its name to another or took it away.
    replaced: AtomicBool,
    /// The file, opened before that: who still reads this segment goes on in what it was. None if it was missing.
    kept: RwLock<Option<Arc<File>>>,
}

#[derive(Debug)]
struct State {
    index: Index,
    totals: Option<Totals>,
}

#[derive(Debug)]
enum Index {
    /// Of the segment that is written to, and of one whose file could not be written.
    Memory(Vec<IndexEntry>),
    /// In the index file, searched there; rebuilt if it is missing or wrong.
    File,
    /// From some place on in memory; below it in the index file, if that was written there. Of a segment that a
    /// start goes on with.
    Tail {
        /// The place.
        from: u64,
        entries: Vec<IndexEntry>,
    },
}

/// What is known of an index as of one moment.
#[derive(Debug)]
pub(crate) struct KnownIndex {
    header: IndexHeader,
    /// Below this place, the entries are in the index file.
    behind: Option<u64>,
    entries: Vec<IndexEntry>,
}

/// Where a search in the index says to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) position: u64,
    pub(crate) records_before: u64,
}

impl Segment {
    /// A segment that is being made: nothing is published yet.
    pub(crate) fn new(directory: &Path, header: SegmentHeader, capacity: u64) -> Self {
        let path = files::offset_path(directory, header.base, files::SEGMENT_SUFFIX);
        let state = State { index: Index::Memory(Vec::new()), totals: Some(Totals::empty(header.base)) };
        Self::with_state(path, header, capacity, SEGMENT_HEADER_LENGTH as u64, state, None)
    }

    /// A sealed segment, or one whose tail recovery will look at: its length and header are read, no more.
    /// One whose header is damaged is there all the same, and broken.
    ///
    /// # Errors
    /// [`OpenLogError`]: `Unusable` for a newer format.
    pub(crate) fn open(directory: &Path, base: Offset) -> Result<Self, OpenLogError> {
        let path = files::offset_path(directory, base, files::SEGMENT_SUFFIX);
        let file = files::open_read(&path)?;
        let length = file.metadata().map_err(|error| FileError::new("stat", &path, error))?.len();
        let mut bytes = [0; SEGMENT_HEADER_LENGTH];
        let read = files::read_around(&file, &path, &mut bytes, 0)?;
        let (header, broken) = match SegmentHeader::decode(&bytes[..read]) {
            Ok(header) if header.base == base => (header, None),
            Ok(header) => (header, Some(format!("its header names base offset {}", header.base))),
            Err(error @ FrameError::Version { .. }) => {
                return Err(OpenLogError::Unusable {
                    path: path.display().to_string(),
                    reason: error.to_string(),
                });
            }
            Err(error) => (SegmentHeader::unknown(base), Some(format!("its header is damaged: {error}"))),
        };
        let state = State { index: Index::File, totals: None };
        Ok(Self::with_state(path, SegmentHeader { base, ..header }, length, length, state, broken))
    }

    fn with_state(
        path: PathBuf,
        header: SegmentHeader,
        capacity: u64,
        end: u64,
        state: State,
        broken: Option<String>,
    ) -> Self {
        Self {
            base: header.base,
            header,
            path,
            capacity,
            end: AtomicU64::new(end),
            state: RwLock::new(state),
            map: Mutex::new(None),
            writer: Mutex::new(None),
            hints: Mutex::new(([(Offset::MAX, 0); HINTS], 0)),
            touched: AtomicBool::new(false),
            pieced: AtomicBool::new(false),
            broken,
            replaced: AtomicBool::new(false),
            kept: RwLock::new(None),
        }
    }

    /// A segment that compaction has written, whole and durable.
    pub(crate) fn compacted(
        path: PathBuf,
        header: SegmentHeader,
        end: u64,
        entries: Vec<IndexEntry>,
        totals: Totals,
    ) -> Self {
        let state = State { index: Index::Memory(entries), totals: Some(totals) };
        Self::with_state(path, header, end, end, state, None)
    }

    /// Its name is about to be another file's, or nobody's: keeps the file, opened before, at hand for those who
    /// read it. `None`: there is none.
    pub(crate) fn keep_file(&self, file: Option<File>) {
        *self.kept.write() = file.map(Arc::new);
        self.replaced.store(true, Ordering::Release);
    }

    /// It has its name still.
    pub(crate) fn is_kept(&self) {
        self.replaced.store(false, Ordering::Release);
        *self.kept.write() = None;
    }

    /// Another file has its name, or is about to get it.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// Does something with the file, opened for reading.
    fn with_file<T>(&self, read: impl FnOnce(&File) -> Result<T, FileError>) -> Result<T, FileError> {
        let kept = || self.kept.read().clone();
        if let Some(file) = kept() {
            return read(&file);
        }
        let opened = files::open_read(&self.path);
        // Once more: if the name went to another file before it was opened, the old one was kept before that.
        match kept() {
            Some(file) => read(&file),
            None if self.is_replaced() => {
                Err(FileError::new("open", &self.path, std::io::ErrorKind::NotFound.into()))
            }
            None => read(&opened?),
        }
    }

    /// The same segment with more room, a known end, and an index that is known from `from` on: recovery and a
    /// clean start make it.
    pub(crate) fn resumed(
        self,
        capacity: u64,
        end: u64,
        (from, entries): (u64, Vec<IndexEntry>),
        totals: Totals,
    ) -> Self {
        let index = match from <= SEGMENT_HEADER_LENGTH as u64 {
            true => Index::Memory(entries),
            false => Index::Tail { from, entries },
        };
        let state = State { index, totals: Some(totals) };
        Self::with_state(self.path, self.header, capacity.max(end), end, state, self.broken)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.path.with_extension(files::INDEX_SUFFIX)
    }

    /// The end of its frames, `Acquire`.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// The writer has put frames up to `end` into the file.
    pub(crate) fn publish(&self, end: u64, entries: &[IndexEntry], totals: Totals) {
        let mut state = self.state.write();
        if let Index::Memory(known) | Index::Tail { entries: known, .. } = &mut state.index {
            known.extend_from_slice(entries);
        }
        state.totals = Some(totals);
        drop(state);
        self.end.store(end, Ordering::Release);
    }

    /// Nothing more will be written: its index goes to its file, a cache that is not synced, and out of memory.
    pub(crate) fn finish(&self, last_check: u32) {
        if let Some(known) = self.known_index(last_check) {
            self.write_index(known);
        }
        *self.writer.lock() = None;
    }

    /// What is to go to the index file, if anything.
    pub(crate) fn known_index(&self, last_check: u32) -> Option<KnownIndex> {
        let state = self.state.read();
        let end = self.end();
        let (behind, entries) = match &state.index {
            Index::File => return None,
            Index::Tail { from, entries } if entries.is_empty() && *from == end => return None,
            Index::Tail { from, entries } => (Some(*from), entries.clone()),
            Index::Memory(entries) => (None, entries.clone()),
        };
        let (salt, base, totals) = (self.header.salt, self.base, state.totals?);
        let header = IndexHeader { salt, base, end, last_check, entries: 0, totals };
        Some(KnownIndex { header, behind, entries })
    }

    /// Writes the index file; who reads does not wait for it. Failing is no harm: it stays in memory, and is rebuilt after
    /// a restart.
    pub(crate) fn write_index(&self, known: KnownIndex) {
        let KnownIndex { header, behind, mut entries } = known;
        if let Some(from) = behind {
            // Without what lies below, it is rebuilt when somebody reads there.
            let Some(mut whole) = self.file_entries(from) else { return };
            whole.append(&mut entries);
            entries = whole;
        }
        match files::replace_file(&self.index_path(), &index::encode(header, &entries), false) {
            Ok(()) => {
                let mut state = self.state.write();
                // What was written to the segment meanwhile is not in the file.
                if state.totals == Some(header.totals) {
                    state.index = Index::File;
                }
            }
            Err(error) => tracing::warn!(%error, "an index file was not written; it will be rebuilt"),
        }
    }

    /// The entries of the index file, if it was written when the segment ended at `end`.
    fn file_entries(&self, end: u64) -> Option<Vec<IndexEntry>> {
        let path = self.index_path();
        let file = IndexFile::open(&path).ok()??;
        let fits =
            file.header.salt == self.header.salt && file.header.base == self.base && file.header.end == end;
        fits.then(|| file.entries(&path).ok()?)?
    }

    /// The totals, if they are in memory.
    pub(crate) fn known_totals(&self) -> Option<Totals> {
        self.state.read().totals
    }

    /// The totals: from memory, else from the seal, else by walking the whole file.
    pub(crate) fn totals(&self, access: Access) -> Result<Totals, LogReadError> {
        if let Some(totals) = self.state.read().totals {
            return Ok(totals);
        }
        if access == Access::Resident {
            return Err(LogReadError::NotResident);
        }
        let totals = match self.read_seal()? {
            Some(totals) => totals,
            None => self.rebuild()?.1,
        };
        self.state.write().totals = Some(totals);
        Ok(totals)
    }

    /// The seal, if the file ends with a valid one.
    pub(crate) fn read_seal(&self) -> Result<Option<Totals>, LogReadError> {
        let end = self.end();
        let Some(at) = end.checked_sub(SEAL_FRAME_LENGTH as u64) else { return Ok(None) };
        let bytes = self.pread(at, SEAL_FRAME_LENGTH, files::read_around)?;
        Ok(match Frame::decode(&bytes, self.header.salt, at) {
            Ok(Frame { content: Content::Seal(totals), .. }) => Some(totals),
            _ => None,
        })
    }

    /// Walks the whole file for its index and totals, over damage.
    fn rebuild(&self) -> Result<(Vec<IndexEntry>, Totals), LogReadError> {
        let end = self.end();
        let source = Cold(self);
        let start = SEGMENT_HEADER_LENGTH as u64;
        let mut walker = Walker::new(source, self.header.salt, start, end, SCAN_WINDOW);
        let mut builder = IndexBuilder::new(self.base, REBUILT_INTERVAL);
        loop {
            match walker.step()? {
                Step::Frame(at, frame) => {
                    if let Content::Batch(batch) = frame.content {
                        builder.add(at, &frame, &batch);
                    }
                }
                Step::Invalid(..) => {
                    self.pieced.store(true, Ordering::Release);
                    if !walker.resync()? {
                        break;
                    }
                }
                Step::End => break,
            }
        }
        Ok((builder.entries, builder.totals))
    }

    /// The totals, if they tell of all that lies below `next`; otherwise of what can be read, if of anything.
    pub(crate) fn totals_up_to(&self, next: Offset) -> Result<Totals, Option<Totals>> {
        if self.broken.is_some() {
            return Err(None);
        }
        let totals = self.totals(Access::Blocking).map_err(|_| None)?;
        let whole = totals.next_offset == next && !self.is_pieced();
        if whole { Ok(totals) } else { Err(Some(totals)) }
    }

    /// Whether its totals were counted over damage, without what lies there.
    pub(crate) fn is_pieced(&self) -> bool {
        self.pieced.load(Ordering::Acquire)
    }

    /// The last index entry of the prefix for which `within` holds; the start of the segment if there is none.
    pub(crate) fn search(
        &self,
        access: Access,
        within: impl Fn(&IndexEntry) -> bool,
    ) -> Result<Found, LogReadError> {
        let from = match &self.state.read().index {
            Index::Memory(entries) => return Ok(found(index::search(entries, within))),
            Index::Tail { entries, .. } if entries.first().is_some_and(&within) => {
                return Ok(found(index::search(entries, within)));
            }
            Index::Tail { from, .. } => Some(*from),
            Index::File => None,
        };
        if access == Access::Resident {
            return Err(LogReadError::NotResident);
        }
        let path = self.index_path();
        if let Some(file) = IndexFile::open(&path)?
            && (planted::is(Bug::TrustIndex) || self.is_index(&file.header, from))
            && let Ok(entry) = file.search(&path, &within)?
        {
            return Ok(found(entry));
        }
        Ok(found(index::search(&self.replace_index()?, within)))
    }

    /// Whether an index file is this segment's, and, with a place, was written when the segment ended there.
    fn is_index(&self, header: &IndexHeader, end: Option<u64>) -> bool {
        header.salt == self.header.salt
            && header.base == self.base
            && end.is_none_or(|end| header.end == end)
            && header.end <= self.end()
    }

    /// The same, when an entry has led to a place where nothing is. What the writer has put into memory is right: what lies
    /// there is damaged, and the entry before it counts. A file is rebuilt.
    pub(crate) fn search_before(
        &self,
        place: u64,
        within: impl Fn(&IndexEntry) -> bool,
    ) -> Result<Found, LogReadError> {
        if let Index::Memory(entries) | Index::Tail { entries, .. } = &self.state.read().index
            && entries.first().is_some_and(|first| u64::from(first.position) <= place)
        {
            let before = entries.partition_point(|entry| u64::from(entry.position) < place);
            return Ok(found(index::search(&entries[..before], within)));
        }
        Ok(found(index::search(&self.replace_index()?, within)))
    }

    /// Rebuilds the index from the log: the file that is there is missing or wrong.
    pub(crate) fn replace_index(&self) -> Result<Vec<IndexEntry>, LogReadError> {
        let end = self.end();
        let (entries, totals) = self.rebuild()?;
        if self.is_replaced() {
            // The index file is the new segment's.
            self.state.write().index = Index::Memory(entries.clone());
            return Ok(entries);
        }
        let mut state = self.state.write();
        if let Index::Tail { from, entries: tail } = &mut state.index {
            // More may have been written to it meanwhile, and what is known of that goes on.
            let mut whole = entries;
            whole.retain(|entry| u64::from(entry.position) < *from);
            whole.append(tail);
            tracing::info!(segment = %self.path.display(), entries = whole.len(), "the index of a recovered segment was rebuilt");
            state.index = Index::Memory(whole.clone());
            return Ok(whole);
        }
        if let Index::Memory(known) = &state.index {
            // The writer's, or written by nobody: what it has is right, and no file tells of a segment that grows.
            return Ok(known.clone());
        }
        drop(state);
        tracing::warn!(segment = %self.path.display(), entries = entries.len(), "an index was rebuilt from the log");
        let header =
            IndexHeader { salt: self.header.salt, base: self.base, end, last_check: 0, entries: 0, totals };
        if let Err(error) = files::replace_file(&self.index_path(), &index::encode(header, &entries), false) {
            tracing::warn!(%error, "the rebuilt index was not written");
            self.state.write().index = Index::Memory(entries.clone());
        }
        Ok(entries)
    }

    /// Where a reader that stopped before `offset` stopped.
    pub(crate) fn hint(&self, offset: Offset) -> Option<u64> {
        self.hints.lock().0.iter().find(|(next, _)| *next == offset).map(|(_, position)| *position)
    }

    /// Nothing is where a reader stopped before `offset`: it is damaged there, or somebody has changed the file.
    pub(crate) fn forget_hint(&self, offset: Offset) {
        for hint in self.hints.lock().0.iter_mut().filter(|(next, _)| *next == offset) {
            *hint = (Offset::MAX, 0);
        }
    }

    pub(crate) fn remember(&self, next: Offset, position: u64) {
        let mut hints = self.hints.lock();
        let slot = hints.1 % HINTS;
        hints.0[slot] = (next, position);
        hints.1 = hints.1.wrapping_add(1);
    }

    /// The file for writing, opened when first needed.
    pub(crate) fn writer(&self) -> Result<Arc<File>, FileError> {
        let mut writer = self.writer.lock();
        if let Some(file) = &*writer {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(files::open_read_write(&self.path)?);
        *writer = Some(Arc::clone(&file));
        Ok(file)
    }

    pub(crate) fn set_writer(&self, file: Arc<File>) {
        *self.writer.lock() = Some(file);
    }

    /// Gives the descriptor back. Only when a sync has covered what was written through it.
    pub(crate) fn release_writer(&self) -> bool {
        self.writer.lock().take().is_some()
    }

    /// Whether a page under the map could not be read; then the file is read with `pread` until the map is made
    /// anew.
    pub(crate) fn map_is_damaged(&self) -> bool {
        self.map.lock().as_ref().is_some_and(|map| map.is_damaged())
    }

    /// Gives the map back if nobody has read through it since the last call.
    pub(crate) fn sweep_map(&self) {
        if !self.touched.swap(false, Ordering::Relaxed) {
            *self.map.lock() = None;
        }
    }

    fn map(&self) -> Result<Option<Arc<Map>>, FileError> {
        self.touched.store(true, Ordering::Relaxed);
        let mut map = self.map.lock();
        if let Some(map) = &*map {
            return Ok((!map.is_damaged()).then(|| Arc::clone(map)));
        }
        match self.with_file(|file| Ok(Map::new(file, self.capacity)))? {
            Ok(new) => {
                *map = Some(Arc::clone(&new));
                Ok(Some(new))
            }
            Err(error) => {
                tracing::debug!(segment = %self.path.display(), %error, "not mapped; read with pread");
                Ok(None)
            }
        }
    }

    /// With zeros where the disk cannot read.
    fn pread(&self, at: u64, length: usize, read: files::ReadFile) -> Result<Bytes, LogReadError> {
        Ok(self.with_file(|file| buffers::fill(length, |buffer| read(file, &self.path, buffer, at)))?)
    }

    /// A source of bytes below `end`, which was loaded with [`Segment::end`].
    pub(crate) fn source(&self, access: Access, end: u64) -> Published<'_> {
        Published { segment: self, access, end }
    }
}

/// Where an entry says to begin: at the start of the segment without one.
fn found(entry: Option<IndexEntry>) -> Found {
    entry.map_or(Found { position: SEGMENT_HEADER_LENGTH as u64, records_before: 0 }, |entry| Found {
        position: u64::from(entry.position),
        records_before: u64::from(entry.records_before),
    })
}

/// The interval of rebuilt indexes: the default of `index.interval.bytes`.
const REBUILT_INTERVAL: u64 = 4096;

/// Published bytes: through the map where they are in memory, by `pread` where they are not.
#[derive(Debug)]
pub(crate) struct Published<'a> {
    segment: &'a Segment,
    access: Access,
    end: u64,
}

impl Published<'_> {
    fn is_resident(&self, map: &Map, at: u64, length: usize) -> bool {
        #[cfg(test)]
        if files::bad_sectors::hit(&self.segment.path, at, length).is_err() {
            return false;
        }
        map.is_resident(at, length)
    }
}

impl Source for Published<'_> {
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        let length = length.min(usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX));
        if let Some(map) = self.segment.map()?
            && self.is_resident(&map, at, length)
            && let Some(bytes) = map.bytes(at, length, self.end)
        {
            return Ok(bytes);
        }
        match self.access {
            Access::Resident => Err(LogReadError::NotResident),
            // Fewer where somebody has cut the file short: what is gone is damage, and the checks name it.
            Access::Blocking => self.segment.pread(at, length, files::read_around),
            Access::InSteps => self.segment.pread(at, length, files::read_in_steps),
        }
    }
}

/// The file as it lies there, published or not; zeros where the disk cannot read.
#[derive(Debug)]
pub(crate) struct Cold<'a>(pub(crate) &'a Segment);

impl Source for Cold<'_> {
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        self.0.pread(at, length, files::read_in_steps)
    }
}

/// The file as it lies there, opened once; zeros where the disk cannot read.
#[derive(Debug)]
pub(crate) struct Opened<'a>(&'a Path, File);

impl<'a> Opened<'a> {
    pub(crate) fn new(segment: &'a Segment) -> Result<Self, FileError> {
        Ok(Self(&segment.path, files::open_read(&segment.path)?))
    }
}

impl Source for Opened<'_> {
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        Ok(buffers::fill(length, |buffer| files::read_around(&self.1, self.0, buffer, at))?)
    }
}

/// The file as it lies there; an error where the disk cannot read.
#[derive(Debug)]
pub(crate) struct Readable<'a>(pub(crate) &'a Segment);

impl Source for Readable<'_> {
    fn load(&self, at: u64, length: usize) -> Result<Bytes, LogReadError> {
        let mut buffer = vec![0; length];
        let read = self.0.with_file(|file| files::read_at(file, &self.0.path, &mut buffer, at))?;
        buffer.truncate(read);
        Ok(buffer.into())
    }
}

/// Gathers index entries and totals while frames go by.
#[derive(Debug, Clone)]
pub(crate) struct IndexBuilder {
    base: Offset,
    interval: u64,
    last_entry_at: Option<u64>,
    pub(crate) entries: Vec<IndexEntry>,
    pub(crate) totals: Totals,
}

impl IndexBuilder {
    pub(crate) fn new(base: Offset, interval: u64) -> Self {
        Self { base, interval, last_entry_at: None, entries: Vec::new(), totals: Totals::empty(base) }
    }

    /// Goes on where `totals` stop. The next frame gets an entry.
    pub(crate) fn resumed(base: Offset, interval: u64, totals: Totals) -> Self {
        Self { base, interval, last_entry_at: None, entries: Vec::new(), totals }
    }

    pub(crate) fn add(&mut self, at: u64, frame: &Frame, batch: &rimstone_record::BatchHeader) {
        if let Some(entry) = self.entry(at, batch.base_offset, frame.append_time) {
            self.entries.push(entry);
        }
        let next = batch.base_offset.saturating_add(u64::from(batch.last_offset_delta) + 1);
        self.totals.add(batch, next, frame.append_time);
    }

    /// The entry for a frame that is about to be counted, if one is due.
    pub(crate) fn entry(&mut self, at: u64, base: Offset, append_time: Timestamp) -> Option<IndexEntry> {
        if self.last_entry_at.is_some_and(|last| at - last < self.interval) {
            return None;
        }
        let entry = IndexEntry {
            offset_delta: u32::try_from(base.since(self.base)).ok()?,
            position: u32::try_from(at).ok()?,
            records_before: u32::try_from(self.totals.records).ok()?,
            max_time_before: self.totals.max_time,
            append_time,
        };
        self.last_entry_at = Some(at);
        Some(entry)
    }
}
