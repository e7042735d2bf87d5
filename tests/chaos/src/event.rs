//! What the clients of a run write down, one JSON line an event. A call is two events of the same `op`: what was
//! asked, and what came of it. Times are of the machine's monotonic clock.
//!
//! Not here: what must be true of a history ([`crate::check`]).

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rimstone_tests::group::event::now_ns;
use serde::{Deserialize, Serialize};

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in nanoseconds.
    pub at_ns: u64,
    /// Who.
    pub process: String,
    /// Which call; 0 for what is none.
    pub op: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// Who numbered a batch, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The producer's id.
    pub producer: u64,
    /// Its epoch.
    pub epoch: u32,
    /// The sequence of the first record, or the number of the request.
    pub sequence: u32,
    /// Whether it is the number of a request, which may become several batches.
    pub by_request: bool,
}

/// A record as somebody saw it: its offset, and its number unless a byte of it is wrong.
pub type Seen = (u64, Option<u64>);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are told by their names")]
pub enum What {
    /// Asked: append the records `first..first + count`.
    Send {
        topic: String,
        /// Absent: the server or the client library chooses.
        partition: Option<u32>,
        stamp: Option<Stamp>,
        first: u64,
        count: u32,
    },
    /// The append is acknowledged: partition and offset of each record. An offset is absent for a duplicate that is
    /// too old to be known.
    Sent { places: Vec<(u32, Option<u64>)>, duplicate: bool },
    /// A partition was read from `from` on; contiguous within a session.
    Polled {
        topic: String,
        partition: u32,
        session: u64,
        from: u64,
        records: Vec<Seen>,
        next: u64,
        /// The log start and the high watermark, where the answer says them.
        start: Option<u64>,
        end: Option<u64>,
    },
    /// A partition could not be read.
    PollFailed { topic: String, partition: u32, from: u64, reason: String, lost: Option<(u64, u64)> },
    /// A group's member was given a partition.
    Assigned {
        group: String,
        topic: String,
        partition: u32,
        session: u64,
        committed: Option<u64>,
        start: u64,
    },
    /// Asked: commit the next offset to read.
    Commit { group: String, topic: String, partition: u32, offset: u64 },
    /// Asked: what a group has committed.
    AskOffsets { group: String },
    /// The answer: every partition with a commit.
    Offsets { offsets: Vec<(String, u32, Option<u64>)> },
    /// Asked: make a topic.
    Create { topic: String },
    /// Asked: delete a topic.
    Delete { topic: String },
    /// Asked: delete what lies below an offset.
    Trim { topic: String, partition: u32, before: u64 },
    /// What was asked is done, and durable.
    Done,
    /// What was asked did not happen.
    Refused { why: String },
    /// What was asked may have happened or not.
    Unknown { why: String },
    /// A client saw what must not be.
    Violation { rule: u8, what: String },
    /// A fault was made.
    Fault { what: String },
    /// The server's process is gone, however it ended, and all of its connections with it.
    Ended,
    /// From now on the device of the data fails, or is well again: meanwhile it may be that nothing can be read.
    Device { fails: bool },
    /// There will be no more faults: everything has to settle.
    FaultsEnd,
    /// A client has nothing open any more.
    Settled,
}

/// Takes the events of all clients of a run. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    events: Arc<Mutex<Vec<Event>>>,
    ops: Arc<AtomicU64>,
}

impl Recorder {
    /// Writes down what is about to be asked; the number of the call.
    pub fn ask(&self, process: &str, what: What) -> u64 {
        let op = self.ops.fetch_add(1, Ordering::Relaxed) + 1;
        self.push(process, op, what);
        op
    }

    /// Writes down what came of a call.
    pub fn answer(&self, process: &str, op: u64, what: What) {
        self.push(process, op, what);
    }

    /// Writes down what is no call.
    pub fn note(&self, process: &str, what: What) {
        self.push(process, 0, what);
    }

    fn push(&self, process: &str, op: u64, what: What) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // Stamped under the lock, so that the order of lines is the order of times.
        events.push(Event { at_ns: now_ns(), process: process.to_owned(), op, what });
    }

    /// Everything so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Writes a history to a file.
///
/// # Errors
/// Those of the file.
pub fn write_history(path: &Path, events: &[Event]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for event in events {
        serde_json::to_writer(&mut file, event)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

/// What a file holds.
///
/// # Errors
/// Those of the file, and a line that is no event.
pub fn read_history(path: &Path) -> io::Result<Vec<Event>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_comes_back_from_its_file() {
        let recorder = Recorder::default();
        let stamp = Some(Stamp { producer: 1, epoch: 2, sequence: 3, by_request: false });
        let send = What::Send { topic: "t".to_owned(), partition: Some(0), stamp, first: 9, count: 2 };
        let op = recorder.ask("p", send);
        recorder.answer("p", op, What::Sent { places: vec![(0, Some(4)), (0, None)], duplicate: true });
        recorder.note("p", What::Settled);
        let events = recorder.events();
        assert!(events.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
        let home = tempfile::tempdir().expect("a folder can be made");
        let path = home.path().join("history");
        write_history(&path, &events).expect("a file can be written");
        assert_eq!(read_history(&path).expect("it can be read"), events);
    }
}
