//! A recording producer: sends lines through the project's own client, at a steady pace and as far as the test
//! allows, and keeps every acknowledgement.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rimstone_client::{Delivery, DeliveryError, Pending, Producer};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use crate::{history::Read, input::Line, wait::PATIENCE};

/// Small batches, so that a kill finds many of them on their way.
const BATCH_BYTES: usize = 4 << 10;

/// Lines sent in each millisecond: a steady stream, so that a kill finds some on their way.
const LINES_PER_TICK: usize = 5;

/// Records on their way at one time; bounds the channel between sending and recording.
const OPEN_RECORDS: usize = 4096;

/// One acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The number of the line.
    pub number: u64,
    /// Where it is stored.
    pub delivery: Delivery,
}

/// A produce under way.
#[derive(Debug)]
pub struct Feed {
    gate: watch::Sender<usize>,
    sent: watch::Receiver<usize>,
    counted: watch::Receiver<usize>,
    acks: Arc<Mutex<Vec<Ack>>>,
    sending: JoinHandle<()>,
    recording: JoinHandle<Result<(), DeliveryError>>,
}

impl Feed {
    /// Begins to send `lines`, of which none may go out yet: see [`Feed::allow`].
    ///
    /// # Panics
    /// If the endpoint is none.
    pub fn start(endpoint: &str, topic: &str, lines: &[Line]) -> Self {
        let producer = Producer::builder(endpoint)
            .linger(Duration::from_millis(1))
            .batch_bytes(BATCH_BYTES)
            .deadline(PATIENCE)
            .build()
            .expect("the address of a server is an address");
        let (gate, allowed) = watch::channel(0);
        let (count, counted) = watch::channel(0);
        let (count_sent, sent) = watch::channel(0);
        let (open, taken) = mpsc::channel(OPEN_RECORDS);
        let acks = Arc::new(Mutex::new(Vec::with_capacity(lines.len())));
        let sending = send(producer, topic.to_owned(), lines.to_vec(), allowed, open, count_sent);
        let sending = tokio::spawn(sending);
        let recording = tokio::spawn(record(taken, Arc::clone(&acks), count));
        Self { gate, sent, counted, acks, sending, recording }
    }

    /// So many lines, from the first on, may go out.
    pub fn allow(&self, lines: usize) {
        self.gate.send_replace(lines);
    }

    /// How many lines were sent.
    pub fn sent(&self) -> usize {
        *self.sent.borrow()
    }

    /// How many lines are acknowledged.
    pub fn acknowledged(&self) -> usize {
        *self.counted.borrow()
    }

    /// Waits until so many lines are acknowledged.
    ///
    /// # Panics
    /// If that does not come about.
    pub async fn acknowledged_at_least(&self, lines: usize) -> usize {
        let mut counted = self.counted.clone();
        let reached = counted.wait_for(|count| *count >= lines);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        let reached = reached.unwrap_or_else(|_| {
            panic!("{} lines acknowledged, {lines} waited for", self.acknowledged());
        });
        *reached.expect("the recording task ends with its last line, or with an error that finish shows")
    }

    /// Every acknowledgement so far.
    pub fn acks(&self) -> Vec<Ack> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets every line go out, and waits until all are acknowledged.
    ///
    /// # Panics
    /// If one is not.
    pub async fn finish(self) -> Vec<Ack> {
        self.allow(usize::MAX);
        // A line has its own deadline, after which it fails with a reason: this waits longer.
        let recorded = tokio::time::timeout(2 * PATIENCE, self.recording).await;
        let (sent, acknowledged) = (*self.sent.borrow(), *self.counted.borrow());
        recorded
            .unwrap_or_else(|_| {
                panic!("{acknowledged} lines of {sent} sent are acknowledged, and then nothing")
            })
            .expect("recording does not panic")
            .unwrap_or_else(|error| {
                panic!("{acknowledged} lines of {sent} are acknowledged, then: {error:?}")
            });
        crate::wait::soon(self.sending).await.expect("sending does not panic");
        Arc::try_unwrap(self.acks)
            .expect("the tasks have ended")
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(
    producer: Producer,
    topic: String,
    lines: Vec<Line>,
    mut allowed: watch::Receiver<usize>,
    open: mpsc::Sender<(u64, Pending)>,
    count: watch::Sender<usize>,
) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for (index, line) in lines.iter().enumerate() {
        if index % LINES_PER_TICK == 0 {
            ticks.tick().await;
        }
        if allowed.wait_for(|lines| *lines > index).await.is_err() {
            return;
        }
        let pending = producer.send(&topic, line.record()).await.expect("a line can be sent");
        count.send_replace(index + 1);
        if open.send((line.number, pending)).await.is_err() {
            return;
        }
    }
    drop(open);
    // What failed is seen by the recording task.
    drop(producer.close().await);
}

async fn record(
    mut open: mpsc::Receiver<(u64, Pending)>,
    acks: Arc<Mutex<Vec<Ack>>>,
    count: watch::Sender<usize>,
) -> Result<(), DeliveryError> {
    while let Some((number, pending)) = open.recv().await {
        let delivery = pending.await?;
        acks.lock().unwrap_or_else(PoisonError::into_inner).push(Ack { number, delivery });
        count.send_modify(|count| *count += 1);
    }
    Ok(())
}

/// Asserts that every acknowledged line is where its acknowledgement says.
///
/// # Panics
/// If one is not.
pub fn assert_kept(acks: &[Ack], records: &[Read]) {
    let places: std::collections::HashMap<_, _> =
        records.iter().map(|record| ((record.partition, record.offset), record.number)).collect();
    let numbers: std::collections::HashSet<_> = records.iter().map(|record| record.number).collect();
    for ack in acks {
        match ack.delivery.offset {
            Some(offset) => {
                let found = places.get(&(ack.delivery.partition.0, offset.get()));
                assert_eq!(found, Some(&ack.number), "what was acknowledged at {:?}", ack.delivery);
            }
            None => assert!(numbers.contains(&ack.number), "line {} was acknowledged", ack.number),
        }
    }
}
