//! What a power cut could have left: directories drawn from a journal at a place in it.
//!
//! The model is a file system with a journal, as ext4 is, taken at its worst:
//! - A completed sync of a file covers what was written to it, and its length, before the sync *began*; not its name.
//!   A completed sync of a directory covers its names, not what they stand for. `syncfs` covers everything before it
//!   began.
//! - Of a file's units of 512 bytes each is as it was at the last sync that covered it, or as after any write since,
//!   whatever the others are. The length is any that the file has had since. Where the file has grown and
//!   a unit was not written, there are zeros.
//! - Names change one call at a time: a rename is made or not made, also from one directory to another. Two
//!   models of which calls survive: *in order*, as in ext4, where they share one journal: all up to some call, and
//!   a sync of any directory covers every call before it; and *any order*: any of those that no sync of
//!   their own directory covers, but for one name in the order in which they came.
//! - After a sync that failed, what it was to write is in doubt for ever: the system takes it for written, so that a
//!   later success proves nothing of it. Only where it is written again does a later sync count.
//!
//! Stricter than ext4 is that the sync of a new file does not bring its name along, and that names are lost out of
//! order; other file systems do both. Not drawn are bytes of other files that were deleted (ext4, XFS and btrfs show
//! zeros), and units that cannot be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::{Covers, Entry, Event, Journal, Kind, Node, ROOT};

/// What a disk writes whole.
pub const UNIT: usize = 512;

/// Numbers drawn from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// Another seed, other numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % (end.max(1) as u64)) as usize
    }

    /// So often out of a hundred.
    pub fn percent(&mut self, often: u32) -> bool {
        self.below(100) < often as usize
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What an image has lost of what was done before the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Units that are not as they were last written.
    pub units: u32,
    /// Files that have not their last length.
    pub lengths: u32,
    /// Changes of names that were not made.
    pub names: u32,
}

impl Lost {
    /// Whether it has lost anything.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A directory as it could have been left.
#[derive(Debug, Clone, Default)]
pub struct Image {
    directories: Vec<PathBuf>,
    files: BTreeMap<PathBuf, (Node, Vec<u8>)>,
    /// What it has lost.
    pub lost: Lost,
}

#[derive(Debug, Clone)]
struct Version {
    event: usize,
    bytes: [u8; UNIT],
    /// A sync of it failed.
    doubtful: bool,
}

#[derive(Debug, Clone, Default)]
struct FileState {
    /// As it is in memory.
    cached: Vec<u8>,
    /// As it is on disk for certain; as long as its length there.
    durable: Vec<u8>,
    /// What units may be instead, in order.
    units: BTreeMap<usize, Vec<Version>>,
    /// What the length may be instead.
    lengths: Vec<(usize, usize)>,
}

fn unit_of(bytes: &[u8], unit: usize) -> [u8; UNIT] {
    let mut out = [0; UNIT];
    let from = (unit * UNIT).min(bytes.len());
    let until = ((unit + 1) * UNIT).min(bytes.len());
    out[..until - from].copy_from_slice(&bytes[from..until]);
    out
}

impl FileState {
    fn push(&mut self, event: usize, unit: usize) {
        let bytes = unit_of(&self.cached, unit);
        self.units.entry(unit).or_default().push(Version { event, bytes, doubtful: false });
    }

    fn write(&mut self, event: usize, position: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let position = position as usize;
        let end = position + bytes.len();
        if end > self.cached.len() {
            self.cached.resize(end, 0);
            self.lengths.push((event, end));
        }
        self.cached[position..end].copy_from_slice(bytes);
        for unit in position / UNIT..=(end - 1) / UNIT {
            self.push(event, unit);
        }
    }

    fn truncate(&mut self, event: usize, length: u64) {
        let (before, length) = (self.cached.len(), length as usize);
        if before == length {
            return;
        }
        self.cached.resize(length, 0);
        self.lengths.push((event, length));
        for unit in length / UNIT..before.div_ceil(UNIT) {
            self.push(event, unit);
        }
    }

    /// A sync that began at `begun` covers it.
    fn synced(&mut self, begun: usize) {
        if let Some((_, length)) = self.lengths.iter().rev().find(|(event, _)| *event < begun) {
            self.durable.resize(*length, 0);
        }
        self.lengths.retain(|(event, _)| *event >= begun);
        for (unit, versions) in &mut self.units {
            let Some(last) = versions.iter().rposition(|v| v.event < begun && !v.doubtful) else { continue };
            let from = (unit * UNIT).min(self.durable.len());
            let until = ((unit + 1) * UNIT).min(self.durable.len());
            self.durable[from..until].copy_from_slice(&versions[last].bytes[..until - from]);
            versions.drain(..=last);
        }
        self.units.retain(|_, versions| !versions.is_empty());
    }

    fn sync_failed(&mut self, begun: usize) {
        for versions in self.units.values_mut() {
            for version in versions.iter_mut().filter(|version| version.event < begun) {
                version.doubtful = true;
            }
        }
    }

    /// What may be there: each choice is the last one so often out of a hundred, and any otherwise.
    fn draw(&self, draw: &mut Draw, last_unit: u32, last_length: u32, lost: &mut Lost) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut length = bytes.len();
        if !self.lengths.is_empty() {
            let chosen =
                if draw.percent(last_length) { self.lengths.len() } else { draw.below(self.lengths.len()) };
            if let Some(at) = chosen.checked_sub(1) {
                length = self.lengths[at].1;
            }
            lost.lengths += u32::from(length != self.cached.len());
        }
        bytes.resize(length, 0);
        for (unit, versions) in &self.units {
            let chosen = if draw.percent(last_unit) { versions.len() } else { draw.below(versions.len()) };
            let from = (unit * UNIT).min(length);
            let until = ((unit + 1) * UNIT).min(length);
            if let Some(at) = chosen.checked_sub(1) {
                bytes[from..until].copy_from_slice(&versions[at].bytes[..until - from]);
            }
            let now = unit_of(&self.cached, *unit);
            lost.units += u32::from(bytes[from..until] != now[..until - from]);
        }
        bytes
    }
}

/// Which calls that change names survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    InOrder,
    Any,
}

#[derive(Debug, Clone)]
struct Pending {
    event: usize,
    entries: Vec<Entry>,
    /// For each entry: its directory was synced.
    covered: Vec<bool>,
}

type Names = BTreeMap<(Node, String), Node>;

#[derive(Debug, Clone)]
struct NameState {
    order: Order,
    durable: Names,
    pending: Vec<Pending>,
}

fn apply(names: &mut Names, entries: &[Entry]) {
    for entry in entries {
        let place = (entry.directory, entry.name.clone());
        match entry.node {
            Some(node) => drop(names.insert(place, node)),
            None => drop(names.remove(&place)),
        }
    }
}

impl NameState {
    fn synced(&mut self, covers: Covers, begun: usize) {
        let mut durable = vec![false; self.pending.len()];
        for (pending, durable) in self.pending.iter_mut().zip(&mut durable) {
            if pending.event >= begun {
                break;
            }
            for (entry, covered) in pending.entries.iter().zip(&mut pending.covered) {
                *covered |= covers == Covers::All || covers == Covers::Node(entry.directory);
            }
            *durable = match self.order {
                Order::Any => pending.covered.iter().all(|covered| *covered),
                Order::InOrder => pending.covered.iter().any(|covered| *covered),
            };
        }
        // What must have come before.
        let mut needed: BTreeSet<(Node, &str)> = BTreeSet::new();
        let mut behind = false;
        for (pending, durable) in self.pending.iter().zip(&mut durable).rev() {
            let mut places = pending.entries.iter().map(|entry| (entry.directory, entry.name.as_str()));
            *durable |= match self.order {
                Order::Any => places.clone().any(|place| needed.contains(&place)),
                Order::InOrder => behind,
            };
            if *durable {
                behind = true;
                needed.extend(&mut places);
            }
        }
        let mut durable = durable.into_iter();
        let names = &mut self.durable;
        self.pending.retain(|pending| {
            let gone = durable.next().unwrap_or(false);
            if gone {
                apply(names, &pending.entries);
            }
            !gone
        });
    }

    fn draw(&self, draw: &mut Draw, kept: u32, lost: &mut Lost) -> Names {
        let mut names = self.durable.clone();
        match self.order {
            Order::InOrder => {
                let all = self.pending.len();
                let count = if draw.percent(kept) { all } else { draw.below(all + 1) };
                for pending in &self.pending[..count] {
                    apply(&mut names, &pending.entries);
                }
                lost.names += (all - count) as u32;
            }
            Order::Any => {
                let mut stopped: BTreeSet<(Node, &str)> = BTreeSet::new();
                for pending in &self.pending {
                    let places =
                        || pending.entries.iter().map(|entry| (entry.directory, entry.name.as_str()));
                    if places().any(|place| stopped.contains(&place)) || !draw.percent(kept) {
                        stopped.extend(places());
                        lost.names += 1;
                    } else {
                        apply(&mut names, &pending.entries);
                    }
                }
            }
        }
        names
    }
}

/// Draws images from a journal, further and further on.
#[derive(Debug)]
pub struct Images<'a> {
    journal: &'a Journal,
    at: usize,
    files: BTreeMap<Node, FileState>,
    names: [NameState; 2],
}

impl<'a> Images<'a> {
    /// Before anything was recorded.
    pub fn new(journal: &'a Journal) -> Self {
        let files = journal.nodes.iter().enumerate().filter_map(|(node, kind)| match kind {
            Kind::File(bytes) => {
                let state =
                    FileState { cached: bytes.clone(), durable: bytes.clone(), ..FileState::default() };
                Some((node, state))
            }
            Kind::Directory => None,
        });
        let names = |order| NameState { order, durable: journal.names.clone(), pending: Vec::new() };
        Self { journal, at: 0, files: files.collect(), names: [names(Order::InOrder), names(Order::Any)] }
    }

    /// Goes on to a place in the journal.
    pub fn advance(&mut self, at: usize) {
        while self.at < at.min(self.journal.events.len()) {
            self.step();
            self.at += 1;
        }
    }

    fn step(&mut self) {
        let at = self.at;
        match &self.journal.events[at] {
            Event::Write { file, position, bytes } => {
                self.files.entry(*file).or_default().write(at, *position, bytes);
            }
            Event::Truncate { file, length } => self.files.entry(*file).or_default().truncate(at, *length),
            Event::Names(entries) => {
                for names in &mut self.names {
                    let covered = vec![false; entries.len()];
                    names.pending.push(Pending { event: at, entries: entries.clone(), covered });
                }
            }
            Event::SyncBegun(_) => {}
            Event::SyncEnded(begun) => {
                let covers = self.covers(*begun);
                for (node, file) in &mut self.files {
                    if covers == Covers::All || covers == Covers::Node(*node) {
                        file.synced(*begun);
                    }
                }
                for names in &mut self.names {
                    names.synced(covers, *begun);
                }
            }
            Event::SyncFailed(begun) => {
                let covers = self.covers(*begun);
                for (node, file) in &mut self.files {
                    if covers == Covers::All || covers == Covers::Node(*node) {
                        file.sync_failed(*begun);
                    }
                }
            }
        }
    }

    fn covers(&self, begun: usize) -> Covers {
        match self.journal.events[begun] {
            Event::SyncBegun(covers) => covers,
            _ => Covers::Node(ROOT),
        }
    }

    /// What a power cut at this place could have left: in the middle of the write that comes next, if one does.
    pub fn power_cut(&self, seed: u64) -> Image {
        let mut draw = Draw::new(seed);
        const OFTEN: [u32; 6] = [0, 10, 50, 90, 98, 100];
        let (units, lengths, kept) = (*draw.pick(&OFTEN), *draw.pick(&OFTEN), *draw.pick(&OFTEN));
        let mut lost = Lost::default();
        let names = &self.names[draw.below(self.names.len())];
        let names = names.draw(&mut draw, kept, &mut lost);
        let torn = match self.journal.events.get(self.at) {
            Some(Event::Write { file, position, bytes }) => {
                let mut state = self.files.get(file).cloned().unwrap_or_default();
                state.write(self.at, *position, &bytes[..draw.below(bytes.len() + 1)]);
                Some((*file, state))
            }
            _ => None,
        };
        let mut image = Image { lost, ..Image::default() };
        image.build(&names, ROOT, Path::new(""), &mut |node, lost| {
            let torn = torn.as_ref().filter(|(file, _)| *file == node).map(|(_, state)| state);
            let state = torn.or_else(|| self.files.get(&node));
            state.map(|state| state.draw(&mut draw, units, lengths, lost)).unwrap_or_default()
        });
        image
    }

    /// What a kill of the process at this place leaves: everything that was done.
    pub fn kill(&self) -> Image {
        let mut names = self.names[0].durable.clone();
        for pending in &self.names[0].pending {
            apply(&mut names, &pending.entries);
        }
        let mut image = Image::default();
        let cached = |node: Node| self.files.get(&node).map(|state| state.cached.clone()).unwrap_or_default();
        image.build(&names, ROOT, Path::new(""), &mut |node, _| cached(node));
        image
    }
}

impl Image {
    fn build(
        &mut self,
        names: &Names,
        directory: Node,
        path: &Path,
        content: &mut impl FnMut(Node, &mut Lost) -> Vec<u8>,
    ) {
        let inside = names.range((directory, String::new())..(directory + 1, String::new()));
        for ((_, name), node) in inside {
            let path = path.join(name);
            // A directory has names in it or none; which of the two a node is, its path tells.
            if names.range((*node, String::new())..(*node + 1, String::new())).next().is_some() {
                self.directories.push(path.clone());
                self.build(names, *node, &path, content);
            } else {
                let bytes = content(*node, &mut self.lost);
                self.files.insert(path, (*node, bytes));
            }
        }
    }

    /// Writes it into a directory that is there and empty.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write(&self, journal: &Journal, to: &Path) -> io::Result<()> {
        for directory in &self.directories {
            fs::create_dir(to.join(directory))?;
        }
        for (path, (node, bytes)) in &self.files {
            match journal.nodes[*node] {
                Kind::Directory => fs::create_dir(to.join(path))?,
                Kind::File(_) => fs::write(to.join(path), bytes)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
