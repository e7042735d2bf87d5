//! What a member of a group writes down. Times are of the machine's monotonic clock, so those of several
//! processes can be compared. A line is written with one call before the next step is taken: a kill loses none
//! that anybody could have acted upon.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of the machine's monotonic clock.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).expect("the monotonic clock is not negative");
    let rest = u64::try_from(now.tv_nsec).expect("nanoseconds are not negative");
    seconds * 1_000_000_000 + rest
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by [`now_ns`].
    pub at_ns: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened at a member. One topic; partitions are its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// About to join; 0: anew.
    Join {
        /// The epoch that the member has.
        epoch: u32,
    },
    /// The server has answered that.
    Joined {
        /// The member's epoch.
        epoch: u32,
        /// False: it owns nothing.
        resumed: bool,
    },
    /// A partition is the member's from now on.
    Start {
        /// The member's epoch.
        epoch: u32,
        /// Which.
        partition: u32,
        /// Where reading begins.
        offset: Option<u64>,
        /// What was committed.
        committed: Option<u64>,
    },
    /// A partition is to be given back.
    Stop {
        /// The member's epoch.
        epoch: u32,
        /// Which.
        partition: u32,
    },
    /// A record was worked on.
    Done {
        /// Its partition.
        partition: u32,
        /// Its offset.
        offset: u64,
        /// The number of its line.
        number: u64,
    },
    /// About to commit; the result may never be known.
    Commit {
        /// Counted up by this process.
        id: u64,
        /// Which partition.
        partition: u32,
        /// The next offset to read.
        offset: u64,
    },
    /// The server has answered a commit.
    Committed {
        /// Which commit.
        id: u64,
        /// Why it was refused; absent: it is durable.
        refused: Option<String>,
    },
    /// About to confirm a stop: the partition is no longer the member's.
    Stopped {
        /// Which.
        partition: u32,
    },
    /// About to send a heartbeat.
    Beat,
    /// The server has answered the first heartbeat of this stream that was not answered yet.
    Alive {
        /// The member's epoch.
        epoch: u32,
    },
    /// About to leave: nothing is the member's any more.
    Leave,
    /// The stream has ended; the membership has not.
    Broken {
        /// How.
        why: String,
    },
    /// The server has shut the member out: nothing is its own any more.
    Fenced {
        /// How.
        why: String,
    },
    /// A partition cannot be read.
    Problem {
        /// Which.
        partition: u32,
        /// The reason.
        why: String,
    },
}

/// Where a member writes.
#[derive(Debug)]
pub struct Recorder {
    file: File,
}

impl Recorder {
    /// Begins a new file.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        Ok(Self { file })
    }

    /// Writes an event, stamped with the time before the writing.
    ///
    /// # Errors
    /// If the file takes nothing.
    pub fn record(&mut self, what: What) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Event { at_ns: now_ns(), what })?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// What a file holds. A line that a kill has cut short is left out.
///
/// # Panics
/// If a whole line is no event.
pub fn read_events(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let event = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()))
    };
    text[..whole].lines().map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_comes_back_and_a_line_that_was_cut_short_is_left_out() {
        let home = tempfile::tempdir().expect("a folder can be made");
        let path = home.path().join("history");
        let mut recorder = Recorder::create(&path).expect("a file can be made");
        let done = What::Done { partition: 1, offset: 2, number: 3 };
        let refused = What::Committed { id: 4, refused: Some("MEMBER_FENCED".to_owned()) };
        for what in [&done, &refused] {
            recorder.record(what.clone()).expect("a file takes a line");
        }
        recorder.file.write_all(b"{\"at_ns\":1,\"ev").expect("a file takes a line");
        let events = read_events(&path);
        assert_eq!(events.iter().map(|event| &event.what).collect::<Vec<_>>(), [&done, &refused]);
        assert!(0 < events[0].at_ns && events[0].at_ns <= events[1].at_ns);
        // Counted without being read: see `Crowd::done`.
        assert!(std::fs::read_to_string(&path).expect("it is text").contains(r#""event":"done""#));
    }
}
