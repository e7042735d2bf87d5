//! A recorder of every change that is made below a directory, and what a power cut could have left of them ([`image`]).
//! For tests: without the feature `recording` nothing of it is there.
//!
//! The changes themselves are really made, so the code under test sees the file system that it always sees. Each
//! recorder has a root and hears only of what lies below it; tests that run at the same time do not see each
//! other. Syncs are recorded when they begin and when they end: what is written meanwhile is not covered. Calls can be
//! made to fail, and the whole directory can be frozen, as if the process had been killed.
//!
//! Not here: what must hold of an image (`rimstone-store`, `sectors`).

pub mod image;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

/// A file or a directory; 0 is the root.
pub type Node = usize;
/// The root of what is recorded.
pub const ROOT: Node = 0;

/// A call, before it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call<'a> {
    /// A file is made, or emptied.
    Create {
        path: &'a Path,
    },
    /// A file is made if it is not there.
    Open {
        path: &'a Path,
    },
    Write {
        file: &'a File,
        chunks: &'a [&'a [u8]],
        position: u64,
    },
    Truncate {
        file: &'a File,
        length: u64,
    },
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    Link {
        from: &'a Path,
        to: &'a Path,
    },
    Unlink {
        path: &'a Path,
    },
    MakeDirectory {
        path: &'a Path,
    },
    RemoveDirectory {
        path: &'a Path,
    },
    Sync {
        on: &'a File,
    },
    SyncFileSystem {
        on: &'a File,
    },
}

/// What a sync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covers {
    /// A file's bytes and length, or a directory's names.
    Node(Node),
    /// Everything.
    All,
}

/// What a directory's name stands for after a change; nothing: it is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The directory.
    pub directory: Node,
    /// The name in it.
    pub name: String,
    /// What it stands for.
    pub node: Option<Node>,
}

/// One entry of the journal.
#[derive(Debug, Clone)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// The file.
        file: Node,
        /// Where.
        position: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A file was cut, or made longer by zeros.
    Truncate {
        /// The file.
        file: Node,
        /// Its length after.
        length: u64,
    },
    /// Names changed, all of these or none.
    Names(Vec<Entry>),
    /// A sync began.
    SyncBegun(Covers),
    /// The sync that began at this place of the journal was a success.
    SyncEnded(usize),
    /// The sync that began at this place of the journal failed.
    SyncFailed(usize),
}

/// What there is of a node.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A file, with what was in it when recording began.
    File(Vec<u8>),
    /// A directory.
    Directory,
}

/// Everything that was done below a root since recording began; what was there before counts as durable.
#[derive(Debug, Clone)]
pub struct Journal {
    /// All nodes.
    pub nodes: Vec<Kind>,
    /// The names that were there when recording began.
    pub names: BTreeMap<(Node, String), Node>,
    /// What happened.
    pub events: Vec<Event>,
}

/// Which calls a fault counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// Writes.
    Write,
    /// Making files.
    Create,
    /// Cutting files.
    Truncate,
    /// Renaming.
    Rename,
    /// Taking names away.
    Unlink,
    /// Making directories.
    MakeDirectory,
    /// Any sync.
    Sync,
}

/// A failure to come.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Of which calls.
    pub kind: CallKind,
    /// So many of them go through before.
    pub after: usize,
    /// Of a write, so many bytes get through.
    pub short: usize,
    /// What the system says.
    pub error: i32,
}

/// Failures for as long as it is in force.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// Of which calls; syncs are not refused.
    pub kind: CallKind,
    /// On files whose names end so.
    pub name_ends: &'static str,
    /// Of a write, so many bytes get through.
    pub short: usize,
    /// What the system says.
    pub error: i32,
}

/// Is told before each recorded call, at a place of the journal. No lock of the recorder is held.
pub trait Observer: Send + Sync {
    /// A change is about to be made. Locks of the caller may be held.
    fn change(&self);
    /// A sync has begun and is not over. May change what is recorded.
    fn sync(&self);
}

/// Hears of all changes below a root.
pub struct Recorder {
    root: PathBuf,
    state: Mutex<State>,
    observer: Mutex<Option<Arc<dyn Observer>>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("root", &self.root).finish_non_exhaustive()
    }
}

struct State {
    journal: Journal,
    /// The names as they are.
    live: BTreeMap<(Node, String), Node>,
    inodes: HashMap<(u64, u64), Node>,
    faults: Vec<Fault>,
    refusal: Option<Refusal>,
    fired: usize,
    frozen: bool,
}

static INSTALLED: RwLock<Vec<Weak<Recorder>>> = RwLock::new(Vec::new());
/// How many are installed, so that code without any does not take the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Recorder {
    /// Records all changes below a directory, which must be there, until it is dropped.
    ///
    /// # Errors
    /// Those of reading what is there.
    pub fn install(root: &Path) -> io::Result<Arc<Self>> {
        let root = root.canonicalize()?;
        let mut state = State {
            journal: Journal { nodes: vec![Kind::Directory], names: BTreeMap::new(), events: Vec::new() },
            live: BTreeMap::new(),
            inodes: HashMap::new(),
            faults: Vec::new(),
            refusal: None,
            fired: 0,
            frozen: false,
        };
        state.inodes.insert(inode(&fs::metadata(&root)?), ROOT);
        state.load(&root, ROOT)?;
        state.journal.names = state.live.clone();
        let recorder = Arc::new(Self { root, state: Mutex::new(state), observer: Mutex::new(None) });
        let mut installed = INSTALLED.write();
        installed.retain(|other| other.strong_count() > 0);
        installed.push(Arc::downgrade(&recorder));
        COUNT.store(installed.len(), Ordering::Release);
        Ok(recorder)
    }

    /// Who is told of calls.
    pub fn observe(&self, observer: Option<Arc<dyn Observer>>) {
        *self.observer.lock() = observer;
    }

    /// The place behind the last entry of the journal.
    pub fn position(&self) -> usize {
        self.state.lock().journal.events.len()
    }

    /// What was recorded so far.
    pub fn journal(&self) -> Journal {
        self.state.lock().journal.clone()
    }

    /// A call to come fails.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Calls fail from now on, until faults are cleared.
    pub fn refuse(&self, refusal: Refusal) {
        self.state.lock().refusal = Some(refusal);
    }

    /// How many faults have come since they were last taken back.
    #[must_use]
    pub fn fired(&self) -> usize {
        self.state.lock().fired
    }

    /// Faults that have not come are taken back. Answers how many came.
    pub fn clear_faults(&self) -> usize {
        let mut state = self.state.lock();
        state.faults.clear();
        state.refusal = None;
        std::mem::take(&mut state.fired)
    }

    /// From now on every call fails and changes nothing: the process was killed, and what is in memory does not
    /// know it yet. Or the next process may go on.
    pub fn freeze(&self, frozen: bool) {
        self.state.lock().frozen = frozen;
    }

    fn told(&self, sync: bool) {
        let observer = self.observer.lock().clone();
        match observer {
            Some(observer) if sync => observer.sync(),
            Some(observer) => observer.change(),
            None => {}
        }
    }
}

/// Whether an open file lies below a directory, or lay there when its name was taken away. Its inode does not tell: that
/// of a file that is gone may be another's now.
fn lies_below(file: &File, root: &Path) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).is_ok_and(|path| path.starts_with(root))
}

fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Call<'_> {
    fn kind(&self) -> Option<CallKind> {
        Some(match self {
            Call::Write { .. } => CallKind::Write,
            Call::Create { .. } | Call::Open { .. } => CallKind::Create,
            Call::Truncate { .. } => CallKind::Truncate,
            Call::Rename { .. } => CallKind::Rename,
            Call::Unlink { .. } => CallKind::Unlink,
            Call::MakeDirectory { .. } => CallKind::MakeDirectory,
            Call::Sync { .. } | Call::SyncFileSystem { .. } => CallKind::Sync,
            Call::Link { .. } | Call::RemoveDirectory { .. } => return None,
        })
    }

    fn concerns(&self, recorder: &Recorder) -> bool {
        match *self {
            Call::Create { path }
            | Call::Open { path }
            | Call::Unlink { path }
            | Call::MakeDirectory { path }
            | Call::RemoveDirectory { path }
            | Call::Rename { from: path, .. }
            | Call::Link { from: path, .. } => path.starts_with(&recorder.root),
            Call::Write { file, .. }
            | Call::Truncate { file, .. }
            | Call::Sync { on: file }
            | Call::SyncFileSystem { on: file } => lies_below(file, &recorder.root),
        }
    }
}

/// Makes a call, and tells the recorder that it concerns.
pub(crate) fn observe<T>(call: Call<'_>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return make();
    }
    let recorders: Vec<_> = INSTALLED.read().iter().filter_map(Weak::upgrade).collect();
    let Some(recorder) = recorders.iter().find(|recorder| call.concerns(recorder)) else { return make() };
    match call {
        Call::Sync { on } | Call::SyncFileSystem { on } => recorder.sync(&call, on, make),
        _ => recorder.change(&call, make),
    }
}

impl Recorder {
    fn sync<T>(&self, call: &Call<'_>, on: &File, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = {
            let mut state = self.state.lock();
            if state.frozen {
                return Err(dead());
            }
            let covers = match call {
                Call::SyncFileSystem { .. } => Covers::All,
                _ => Covers::Node(state.node(on)?),
            };
            state.journal.events.push(Event::SyncBegun(covers));
            state.journal.events.len() - 1
        };
        self.told(true);
        let mut state = self.state.lock();
        if state.frozen {
            return Err(dead());
        }
        if let Some(fault) = state.fault(CallKind::Sync) {
            state.journal.events.push(Event::SyncFailed(begun));
            return Err(io::Error::from_raw_os_error(fault.error));
        }
        let result = make();
        state.journal.events.push(match result {
            Ok(_) => Event::SyncEnded(begun),
            Err(_) => Event::SyncFailed(begun),
        });
        result
    }

    fn change<T>(&self, call: &Call<'_>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.told(false);
        let mut state = self.state.lock();
        if state.frozen {
            return Err(dead());
        }
        if let Some(fault) = state.refused(call).or_else(|| state.fault(call.kind()?)) {
            if let Call::Write { file, chunks, position } = *call {
                let all = chunks.concat();
                let bytes = &all[..fault.short.min(all.len())];
                file.write_all_at(bytes, position)?;
                let file = state.node(file)?;
                state.journal.events.push(Event::Write { file, position, bytes: bytes.to_vec() });
            }
            return Err(io::Error::from_raw_os_error(fault.error));
        }
        // What is to be known of before it is changed.
        let there = match *call {
            Call::Create { path } | Call::Open { path } => state.find(&self.root, path),
            _ => None,
        };
        let made = make()?;
        state.record(&self.root, call, there)?;
        Ok(made)
    }
}

/// What a call of a process says that was killed.
fn dead() -> io::Error {
    io::Error::other("the process was killed")
}

impl State {
    fn load(&mut self, path: &Path, directory: Node) -> io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata()?;
            let known = self.inodes.get(&inode(&metadata)).copied();
            let kind = match (known, metadata.is_dir()) {
                (Some(_), _) => None,
                (None, true) => Some(Kind::Directory),
                (None, false) => Some(Kind::File(fs::read(entry.path())?)),
            };
            let node = known.unwrap_or(self.journal.nodes.len());
            self.journal.nodes.extend(kind);
            self.inodes.insert(inode(&metadata), node);
            self.live.insert((directory, name), node);
            if metadata.is_dir() {
                self.load(&entry.path(), node)?;
            }
        }
        Ok(())
    }

    fn refused(&mut self, call: &Call<'_>) -> Option<Fault> {
        let Refusal { kind, name_ends, short, error } = self.refusal?;
        let name = match *call {
            Call::Write { file, .. } | Call::Truncate { file, .. } => {
                let node = self.node(file).ok()?;
                let (_, name) = self.live.iter().find(|(_, live)| **live == node)?.0;
                name.clone()
            }
            Call::Create { path }
            | Call::Open { path }
            | Call::Unlink { path }
            | Call::MakeDirectory { path }
            | Call::Rename { from: path, .. } => path.file_name()?.to_string_lossy().into_owned(),
            _ => return None,
        };
        let hit = call.kind() == Some(kind) && name.ends_with(name_ends);
        self.fired += usize::from(hit);
        hit.then_some(Fault { kind, after: 0, short, error })
    }

    fn fault(&mut self, kind: CallKind) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| fault.kind == kind)?;
        if self.faults[at].after > 0 {
            self.faults[at].after -= 1;
            return None;
        }
        self.fired += 1;
        Some(self.faults.remove(at))
    }

    fn node(&self, file: &File) -> io::Result<Node> {
        let inode = inode(&file.metadata()?);
        self.inodes
            .get(&inode)
            .copied()
            .ok_or_else(|| io::Error::other("a file that the recorder does not know"))
    }

    /// The directory that a path lies in, and its name there.
    fn place(&self, root: &Path, path: &Path) -> io::Result<(Node, String)> {
        let unknown = || io::Error::other(format!("{} is not known to the recorder", path.display()));
        let inside = path.strip_prefix(root).map_err(|_| unknown())?;
        let mut directory = ROOT;
        let mut names: Vec<String> = Vec::new();
        for component in inside.components() {
            match component {
                Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
                _ => return Err(unknown()),
            }
        }
        let last = names.pop().ok_or_else(unknown)?;
        for name in names {
            directory = *self.live.get(&(directory, name)).ok_or_else(unknown)?;
        }
        Ok((directory, last))
    }

    fn find(&self, root: &Path, path: &Path) -> Option<Node> {
        self.place(root, path).ok().and_then(|place| self.live.get(&place).copied())
    }

    fn add(&mut self, root: &Path, path: &Path, kind: Kind) -> io::Result<()> {
        let (directory, name) = self.place(root, path)?;
        let node = self.journal.nodes.len();
        self.journal.nodes.push(kind);
        self.inodes.insert(inode(&fs::metadata(path)?), node);
        self.names(vec![Entry { directory, name, node: Some(node) }]);
        Ok(())
    }

    fn names(&mut self, entries: Vec<Entry>) {
        for entry in &entries {
            let place = (entry.directory, entry.name.clone());
            match entry.node {
                Some(node) => drop(self.live.insert(place, node)),
                None => drop(self.live.remove(&place)),
            }
        }
        self.journal.events.push(Event::Names(entries));
    }

    /// A call that was made.
    fn record(&mut self, root: &Path, call: &Call<'_>, there: Option<Node>) -> io::Result<()> {
        let free = |(directory, name)| Entry { directory, name, node: None };
        match *call {
            Call::Create { path } => match there {
                Some(file) => self.journal.events.push(Event::Truncate { file, length: 0 }),
                None => self.add(root, path, Kind::File(Vec::new()))?,
            },
            Call::Open { path } => {
                if there.is_none() {
                    self.add(root, path, Kind::File(Vec::new()))?;
                }
            }
            Call::Write { file, chunks, position } => {
                let event = Event::Write { file: self.node(file)?, position, bytes: chunks.concat() };
                self.journal.events.push(event);
            }
            Call::Truncate { file, length } => {
                let event = Event::Truncate { file: self.node(file)?, length };
                self.journal.events.push(event);
            }
            Call::Rename { from, to } => {
                let (from, to) = (self.place(root, from)?, self.place(root, to)?);
                let node = self.live.get(&from).copied();
                let given = Entry { directory: to.0, name: to.1, node };
                self.names(vec![free(from), given]);
            }
            Call::Link { from, to } => {
                let node = self.find(root, from);
                let (directory, name) = self.place(root, to)?;
                self.names(vec![Entry { directory, name, node }]);
            }
            Call::Unlink { path } | Call::RemoveDirectory { path } => {
                let place = self.place(root, path)?;
                self.names(vec![free(place)]);
            }
            Call::MakeDirectory { path } => self.add(root, path, Kind::Directory)?,
            Call::Sync { .. } | Call::SyncFileSystem { .. } => {}
        }
        Ok(())
    }
}
