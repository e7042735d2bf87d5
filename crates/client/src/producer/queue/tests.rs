//! The queue against a model of a server and of a network that loses answers and delivers late: whatever
//! happens, what is said of a record is true of the log.

use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_record::Limits;
use tokio::sync::{Semaphore, oneshot::error::TryRecvError};

use super::*;
use crate::{
    error::Code,
    fake::{Partition, item},
    producer::{
        record::{DeliveryError, Outcome},
        tracker::Tracker,
    },
};

/// A producer, its queue, the network and the server, all driven by one random number generator.
struct World {
    rng: StdRng,
    now: Instant,
    queue: Queue,
    identity: Identity,
    named: bool,
    log: Partition,
    tracker: Arc<Tracker>,
    room: Arc<Semaphore>,
    /// On their way to the server, by connection; the last one is the present one.
    requests: Vec<VecDeque<(u64, Batch)>>,
    /// On their way back, on the present connection.
    answers: VecDeque<(u64, Verdict)>,
    records: Vec<(String, oneshot::Receiver<Answer>)>,
    faults: bool,
    renewals: u32,
}

fn identity(id: u64, epoch: u64) -> Identity {
    Identity { id: ProducerId::new(id).unwrap(), epoch: ProducerEpoch::new(epoch).unwrap() }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let named = rng.random();
        let config = QueueConfig {
            compression: Compression::None,
            linger: Duration::from_millis(rng.random_range(0..20)),
            batch_bytes: rng.random_range(100..400),
            in_flight: rng.random_range(1..10),
            deadline: Duration::from_millis(rng.random_range(100..3000)),
        };
        Self {
            rng,
            now: Instant::now(),
            queue: Queue::new("logs".into(), PartitionIndex(0), config, Some(Sequence::ZERO)),
            identity: identity(if named { ProducerId::NAMED_BIT | 1 } else { 1 }, 1),
            named,
            log: Partition::default(),
            tracker: Tracker::new(),
            room: Arc::new(Semaphore::new(1 << 24)),
            requests: vec![VecDeque::new()],
            answers: VecDeque::new(),
            records: Vec::new(),
            faults: true,
            renewals: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..20 if self.faults => self.push(),
            20..45 => self.send(),
            45..70 => self.serve(),
            70..88 => self.deliver(),
            88..90 if self.faults => self.disconnect(),
            90..93 => self.serve_late(),
            93..99 => {
                self.now += Duration::from_millis(self.rng.random_range(0..60));
                self.queue.expire(self.now);
            }
            _ => {}
        }
        self.renew();
    }

    fn push(&mut self) {
        let value = format!("{}-{}", self.records.len(), "x".repeat(self.rng.random_range(0..100)));
        let record = NewRecord { value: Some(value.clone().into()), ..NewRecord::default() };
        let (waiter, answer) = oneshot::channel();
        let room = self.room.clone().try_acquire_many_owned(1).unwrap();
        self.queue.push(&record, waiter, room, || self.tracker.enter(), self.now).unwrap();
        self.records.push((value, answer));
    }

    fn send(&mut self) {
        if let Some(outgoing) = self.queue.take(self.now, !self.queue.needs_renewal(), self.identity) {
            let present = self.requests.last_mut().unwrap();
            present.push_back((outgoing.uid, outgoing.batch));
        }
    }

    /// The server takes one request of the present connection.
    fn serve(&mut self) {
        let Some((uid, batch)) = self.requests.last_mut().unwrap().pop_front() else { return };
        let refusal = |code, reason| ClientError::from(item(code, reason, &[]));
        let fault = if self.faults { self.rng.random_range(0..30) } else { 99 };
        let verdict = match fault {
            0 => Verdict::Refused(refusal(Code::ResourceExhausted, reason::BACKPRESSURE)),
            1 => Verdict::Rejected(refusal(Code::InvalidArgument, "TIMESTAMP_TOO_FAR")),
            _ => match self.log.append(&batch) {
                Ok(_) if fault == 2 => Verdict::Unknown(refusal(Code::Unavailable, reason::APPEND_UNKNOWN)),
                Ok((base, duplicate)) => Verdict::Stored {
                    base: Some(Offset::new(base).unwrap()),
                    append_time: Timestamp(1),
                    duplicate,
                },
                Err(error) => Verdict::OutOfOrder(error.into()),
            },
        };
        self.answers.push_back((uid, verdict));
    }

    /// The server takes one request of a connection that is gone for the producer, but not for the server.
    fn serve_late(&mut self) {
        let gone = self.requests.len() - 1;
        if gone > 0 {
            let connection = self.rng.random_range(0..gone);
            if let Some((_, batch)) = self.requests[connection].pop_front() {
                // Nobody hears the answer.
                let _ = self.log.append(&batch);
            }
        }
    }

    fn deliver(&mut self) {
        if let Some((uid, verdict)) = self.answers.pop_front() {
            self.queue.answered(uid, verdict, self.now);
        }
    }

    fn disconnect(&mut self) {
        self.answers.clear();
        self.requests.push(VecDeque::new());
        self.queue.disconnected();
    }

    fn renew(&mut self) {
        if !self.queue.needs_renewal() || self.queue.has_numbered() {
            return;
        }
        self.renewals += 1;
        // A new identity comes with a new stream.
        self.answers.clear();
        self.requests.push(VecDeque::new());
        let Identity { id, epoch } = self.identity;
        let next = if self.named {
            self.identity = identity(id.get(), u64::from(epoch.get()) + 1);
            self.log.fence(self.identity.id, self.identity.epoch.get()).map(|last| last.wrapping_add(1))
        } else {
            self.identity = identity(id.get() + 1, 0);
            None
        };
        self.queue.renew(Some(next.unwrap_or(Sequence::ZERO)));
    }

    /// Lets everything come to an end, the late requests too.
    fn settle(&mut self) {
        self.faults = false;
        for _ in 0..200_000 {
            if !self.queue.has_work() {
                break;
            }
            self.step();
            self.now += Duration::from_millis(1);
        }
        assert!(!self.queue.has_work(), "nothing moves: {:?}", self.queue);
        for connection in &mut self.requests {
            for (_, batch) in connection.drain(..) {
                let _ = self.log.append(&batch);
            }
        }
    }

    /// What became of the records: delivered, not stored, unknown.
    fn check(&mut self, seed: u64) -> [usize; 3] {
        let batches = self.log.batches.iter();
        let stored: Vec<String> = batches
            .flat_map(|batch| batch.records(&Limits::default()).unwrap())
            .map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap())
            .collect();
        let mut counts = [0; 3];
        let mut last = None;
        for (value, answer) in &mut self.records {
            let places: Vec<_> = (0u64..).zip(&stored).filter(|(_, stored)| *stored == value).collect();
            match answer.try_recv() {
                Ok(Ok(delivery)) => {
                    assert_eq!(places.len(), 1, "seed {seed}: {value} was delivered once");
                    assert_eq!(delivery.offset.map(Offset::get), Some(places[0].0), "seed {seed}: {value}");
                    assert!(last < delivery.offset, "seed {seed}: {value} is out of order");
                    last = delivery.offset;
                    counts[0] += 1;
                }
                Ok(Err(DeliveryError { outcome: Outcome::NotStored, .. })) => {
                    assert!(places.is_empty(), "seed {seed}: {value} was said not to be stored");
                    counts[1] += 1;
                }
                Ok(Err(DeliveryError { outcome: Outcome::Unknown, .. })) => {
                    assert!(places.len() <= 1, "seed {seed}: {value} is there {} times", places.len());
                    counts[2] += 1;
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => {
                    panic!("seed {seed}: {value} has no answer")
                }
            }
        }
        assert!(self.tracker.is_empty(), "seed {seed}: a flush would wait for ever");
        counts
    }
}

/// One seed runs alone with `RIMSTONE_SEED`.
#[test]
fn what_is_said_of_a_record_is_true_of_the_log() {
    let seeds = match std::env::var("RIMSTONE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..1500).collect::<Vec<u64>>(),
    };
    let (mut counts, mut renewals) = ([0; 3], 0);
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        world.settle();
        for (sum, count) in counts.iter_mut().zip(world.check(seed)) {
            *sum += count;
        }
        renewals += world.renewals;
    }
    println!("delivered, not stored, unknown: {counts:?}; {renewals} renewals");
    // The test has seen what it is about.
    assert!(counts.iter().all(|count| *count > 0) && renewals > 0, "{counts:?}, {renewals} renewals");
}

#[test]
fn a_batch_closes_when_it_is_full_or_has_waited() {
    let mut world = World::new(0);
    world.queue.config.linger = Duration::from_millis(50);
    world.queue.config.batch_bytes = 200;
    world.push();
    assert!(!world.queue.is_sendable(world.now, true));
    assert_eq!(world.queue.next_timer(world.now, true), Some(world.now + Duration::from_millis(50)));
    assert!(world.queue.is_sendable(world.now + Duration::from_millis(50), true));
    for _ in 0..5 {
        world.push();
    }
    assert!(world.queue.is_sendable(world.now, true), "a full batch does not wait");
    assert!(!world.queue.is_sendable(world.now, false), "while a renewal is due nothing is numbered");
}

#[test]
fn sequences_wrap_with_batches_under_way() {
    let mut world = World::new(0);
    world.faults = false;
    let last = Sequence::MAX;
    world.queue.next = Some(last);
    world.queue.config.batch_bytes = 1;
    for _ in 0..3 {
        world.push();
    }
    let mut firsts = Vec::new();
    while let Some(outgoing) = world.queue.take(world.now, true, world.identity) {
        firsts.push(outgoing.batch.header().producer.unwrap().base);
    }
    assert_eq!(firsts, [last.get(), 0, 1]);
    assert_eq!(world.queue.numbered_up_to(Sequence::ZERO), (2, 3));
}
