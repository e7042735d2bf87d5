//! One partition that the member owns. Pure.

use std::sync::Arc;

use rimstone_types::{LogEnds, Offset};
use tokio::sync::{Notify, watch};

use crate::consumer::hand::Hand;

/// Up to which number the commits of a partition are answered, and how the last one ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answered {
    pub(crate) number: u64,
    pub(crate) error: Option<crate::ClientError>,
}

/// How far giving a partition back has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nobody has asked for it.
    No,
    /// The application has been told, or will be, and has not let go.
    Told,
    /// As soon as nothing is in hand and no commit is open.
    Released,
}

/// A partition that the member owns.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) hand: Arc<Hand>,
    /// The next offset to be handed out; `None`: nowhere, until a seek.
    pub(crate) next: Option<Offset>,
    /// Where the server goes on: behind what is here.
    pub(crate) fetched: Option<Offset>,
    /// Something was handed out, or sought: there is a position worth a commit.
    pub(crate) touched: bool,
    /// The last offset that was to be committed since the assignment or the last seek.
    pub(crate) floor: Option<Offset>,
    /// What was committed before that.
    pub(crate) committed: Option<Offset>,
    /// Counts the commits.
    pub(crate) commits: u64,
    pub(crate) answered: watch::Sender<Answered>,
    /// The end that readers see, as last heard.
    pub(crate) end: Offset,
    /// Up to here there was something when the partition was assigned; `None` once that was handed out.
    pub(crate) catch_up: Option<Offset>,
    /// What records must carry to count.
    pub(crate) seek_id: u64,
    /// The server is to be told where to go on.
    pub(crate) seek_due: bool,
    pub(crate) paused: bool,
    pub(crate) told_paused: bool,
    pub(crate) stop: Stop,
    /// The stop came on this stream. Each stream asks for itself: an answer to another one's question could be
    /// taken for that of a later stop.
    pub(crate) stop_came: bool,
    pub(crate) generation: u64,
}

impl Owned {
    pub(crate) fn new(
        start: Option<Offset>,
        committed: Option<Offset>,
        ends: LogEnds,
        generation: u64,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            hand: Hand::new(wake),
            next: start,
            fetched: start,
            touched: false,
            floor: None,
            committed,
            commits: 0,
            answered: watch::Sender::default(),
            end: ends.stable,
            catch_up: Some(ends.stable),
            seek_id: 0,
            seek_due: false,
            paused: false,
            told_paused: false,
            stop: Stop::No,
            stop_came: false,
            generation,
        }
    }

    /// Whether records of it may be handed out.
    pub(crate) fn is_read(&self) -> bool {
        self.stop == Stop::No && !self.paused && !self.seek_due
    }

    /// What counts as processed: everything before the lowest record in hand, or before the next one.
    pub(crate) fn processed(&self) -> Option<Offset> {
        if !self.touched {
            return None;
        }
        self.hand.lowest().or(self.next)
    }

    /// Reading goes on elsewhere.
    pub(crate) fn seek(&mut self, to: Offset) {
        self.hand.sought();
        self.committed = self.floor.take().or(self.committed);
        self.touched = true;
        self.catch_up = None;
        self.go_on_at(to);
    }

    /// What is on its way does not count any more; reading goes on at `offset`.
    pub(crate) fn go_on_at(&mut self, offset: Offset) {
        self.next = Some(offset);
        self.fetched = Some(offset);
        self.seek_due = true;
    }

    /// A new stream knows of no seek and no pause, and has not asked for a stop; where to go on it is told when
    /// joining.
    pub(crate) fn on_new_stream(&mut self) {
        self.seek_id = 0;
        self.seek_due = false;
        self.told_paused = false;
        self.stop_came = false;
    }

    /// Whether this stream was told, or is to be told, where to go on.
    pub(crate) fn is_sought(&self) -> bool {
        self.seek_due || self.seek_id > 0
    }

    /// Whether everything that was there when the partition was assigned has been handed out; answers so once.
    pub(crate) fn catches_up(&mut self) -> bool {
        let caught_up = matches!((self.next, self.catch_up), (Some(next), Some(end)) if next >= end);
        if caught_up {
            self.catch_up = None;
        }
        caught_up
    }
}
