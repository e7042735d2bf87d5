//! A server for tests, in memory, that follows the rules of idempotence and breaks connections on purpose.
//! It shares no code with the real one.

mod doors;
mod sessions;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_proto::v1::{
    self, admin_service_server::AdminServiceServer, consume_service_server::ConsumeServiceServer,
    produce_service_server::ProduceServiceServer,
};
use rimstone_record::{Batch, Limits, ProducerStamp, Record};
use rimstone_types::{Offset, ProducerId, Sequence};
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Runtime,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(crate) use self::sessions::{Group, Place, Said, SessionFaults};
use crate::error::reason;

/// Why what was stored here can be read.
const WRITTEN: &str = "it was verified when it was stored";

/// The value of a record of a test, which is text.
fn text(record: Record) -> String {
    let value = record.value.expect("tests write no tombstones");
    String::from_utf8(value.to_vec()).expect("tests write text")
}

/// How often each fault happens: one time in so many appends; 0 never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Refuses with `BACKPRESSURE`.
    pub(crate) backpressure: u32,
    /// Answers `APPEND_UNDONE`, having stored nothing.
    pub(crate) undone: u32,
    /// Stores and answers `APPEND_UNKNOWN`.
    pub(crate) unknown: u32,
    /// Breaks the connection before storing.
    pub(crate) cut_before: u32,
    /// Stores, and breaks the connection instead of answering.
    pub(crate) cut_after: u32,
    /// Breaks the connection, and stores what had arrived a little later, as a slow server does.
    pub(crate) cut_late: u32,
    /// Skips an answer, and goes on with the next one on the same stream.
    pub(crate) skip_answer: u32,
}

/// What one partition knows of a producer: 64 batches, the way the rules ask for it at least.
#[derive(Debug, Clone, Default)]
struct Remembered {
    epoch: u16,
    last: Option<Sequence>,
    window: Vec<(u16, Sequence, Sequence, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Partition {
    /// Batches with their base offsets stamped.
    pub(crate) batches: Vec<Batch>,
    pub(crate) start: u64,
    pub(crate) end: u64,
    producers: HashMap<ProducerId, Remembered>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) topics: HashMap<String, Vec<Partition>>,
    pub(crate) faults: Faults,
    /// Every append to these is refused so, until taken out.
    pub(crate) refuse: HashMap<(String, u32), v1::ItemError>,
    /// Never answer appends, as a server does whose disk hangs.
    pub(crate) hang: bool,
    /// Take produce streams and do not open them, until it is taken back.
    pub(crate) hold_opens: bool,
    /// Refuse, as a partition does that could not be opened, every open that asks for this topic.
    pub(crate) unavailable: Option<String>,
    /// Ends a produce stream when a message is longer; 0 never.
    pub(crate) message_max: usize,
    /// Breaks a `Read` after about so many messages; 0 never.
    pub(crate) cut_reads: u32,
    pub(crate) groups: BTreeMap<String, Group>,
    pub(crate) session_faults: SessionFaults,
    /// How many joins were held back (`SessionFaults::hold_joins`).
    pub(crate) joins_held: u32,
    names: HashMap<String, (u64, u32)>,
    next_id: u64,
    rng: StdRng,
    /// How many faults really fired.
    pub(crate) fired: u64,
    pub(crate) inits: u64,
}

impl World {
    fn chance(&mut self, one_in: u32) -> bool {
        let fires = one_in > 0 && self.rng.random_range(0..one_in) == 0;
        self.fired += u64::from(fires);
        fires
    }

    /// The values stored in a partition, in order.
    pub(crate) fn values(&self, topic: &str, partition: usize) -> Vec<String> {
        let batches = self.topics[topic][partition].batches.iter();
        let records = batches.flat_map(|batch| batch.records(&Limits::default()).expect(WRITTEN));
        records.map(|record| text(record.expect(WRITTEN))).collect()
    }

    pub(crate) fn forget_producers(&mut self) {
        for partition in self.topics.values_mut().flatten() {
            partition.producers.clear();
        }
    }

    fn append(&mut self, topic: &str, partition: u32, batch: &Batch) -> v1::PartitionAppend {
        let mut answer = v1::PartitionAppend { partition, ..Default::default() };
        let Some(partition) = self.topics.get_mut(topic).and_then(|topic| topic.get_mut(partition as usize))
        else {
            answer.error = Some(item(Code::NotFound, reason::TOPIC_NOT_FOUND, &[("topic", topic)]));
            return answer;
        };
        match partition.append(batch) {
            Ok((base, duplicate)) => {
                answer.base_offset = Some(base);
                answer.last_offset = Some(base + u64::from(batch.header().last_offset_delta));
                answer.append_time_ms = 1;
                answer.duplicate = duplicate;
            }
            Err(error) => answer.error = Some(error),
        }
        answer
    }
}

impl Partition {
    /// Fences the older epochs of a named producer; answers its last sequence.
    pub(crate) fn fence(&mut self, id: ProducerId, epoch: u16) -> Option<Sequence> {
        let known = self.producers.entry(id).or_default();
        known.epoch = known.epoch.max(epoch);
        known.last
    }

    pub(crate) fn append(&mut self, batch: &Batch) -> Result<(u64, bool), v1::ItemError> {
        let ProducerStamp { id, epoch, base, .. } = batch.header().producer.expect("our client numbers");
        let (epoch, first) = (epoch.get(), Sequence::new(base.into()).expect("a base sequence is one"));
        let last = first.wrapping_add(batch.header().record_count - 1);
        let known = self.producers.entry(id).or_default();
        if epoch < known.epoch {
            return Err(item(Code::FailedPrecondition, reason::PRODUCER_FENCED, &[]));
        }
        let same = |entry: &&(u16, Sequence, Sequence, u64)| {
            (id.is_named() || entry.0 == epoch) && entry.1 == first && entry.2 == last
        };
        if let Some(entry) = known.window.iter().find(same) {
            return Ok((entry.3, true));
        }
        let continues = known.last.is_some() && (id.is_named() || epoch == known.epoch);
        let expected =
            if continues { known.last.expect("it continues").wrapping_add(1) } else { Sequence::ZERO };
        if first != expected {
            let why = if continues { reason::SEQUENCE_GAP } else { reason::UNKNOWN_PRODUCER };
            return Err(item(Code::FailedPrecondition, why, &[("expected_sequence", &expected.to_string())]));
        }
        let offset = self.end;
        known.epoch = epoch;
        known.last = Some(last);
        known.window.push((epoch, first, last, offset));
        if known.window.len() > 64 {
            known.window.remove(0);
        }
        self.batches.push(batch.with_base_offset(Offset::new(offset).expect("no test writes so much"), 0));
        self.end += u64::from(batch.header().record_count);
        Ok((offset, false))
    }
}

pub(crate) fn item(code: Code, reason: &str, metadata: &[(&str, &str)]) -> v1::ItemError {
    v1::ItemError {
        code: code as i32,
        reason: reason.to_owned(),
        message: format!("the fake server says {reason}"),
        metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        retry_delay_ms: 0,
    }
}

fn status(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata: HashMap<_, _> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let details = ErrorDetails::with_error_info(reason, "rimstone.v1", metadata);
    Status::with_error_details(code, format!("the fake server says {reason}"), details)
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) address: SocketAddr,
    /// Bound and never listening: while the server is down, its port is not given to anybody else.
    _port: Arc<TcpSocket>,
    streams: Arc<AtomicU64>,
    /// The server's tasks, connections included: dropped at once when it is killed.
    runtime: Arc<Mutex<Option<Runtime>>>,
}

impl Fake {
    pub(crate) async fn start(seed: u64, topics: &[(&str, usize)], faults: Faults) -> Self {
        let partitions = |count| (0..count).map(|_| Partition::default()).collect();
        let world = World {
            topics: topics.iter().map(|(name, count)| ((*name).to_owned(), partitions(*count))).collect(),
            faults,
            refuse: HashMap::new(),
            hang: false,
            hold_opens: false,
            unavailable: None,
            message_max: 0,
            cut_reads: 0,
            groups: BTreeMap::new(),
            session_faults: SessionFaults::default(),
            joins_held: 0,
            names: HashMap::new(),
            next_id: 100,
            rng: StdRng::seed_from_u64(seed),
            fired: 0,
            inits: 0,
        };
        let port = TcpSocket::new_v4().expect("a socket can be made");
        // So that a listener, which has it too, may be bound beside it.
        port.set_reuseaddr(true).expect("a socket can have it");
        port.bind(([127, 0, 0, 1], 0).into()).expect("loopback has a free port");
        let fake = Self {
            world: Arc::new(Mutex::new(world)),
            address: port.local_addr().expect("it is bound"),
            _port: Arc::new(port),
            streams: Arc::default(),
            runtime: Arc::default(),
        };
        fake.revive();
        fake
    }

    fn serve(&self, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).expect("a socket can be");
        let server = tonic::transport::Server::builder()
            .add_service(ProduceServiceServer::new(self.clone()).max_decoding_message_size(64 << 20))
            .add_service(ConsumeServiceServer::new(self.clone()))
            .add_service(AdminServiceServer::new(self.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread can be had");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it does not block");
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("it serves until it is dropped");
        });
        *self.runtime.lock() = Some(runtime);
    }

    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Kills the server: every connection breaks, nothing listens.
    pub(crate) async fn kill(&self) {
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            tokio::task::spawn_blocking(move || drop(runtime)).await.expect("dropping does not panic");
        }
    }

    /// Listens again at the same address.
    pub(crate) fn revive(&self) {
        let socket = std::net::TcpListener::bind(self.address).expect("the port is kept");
        self.serve(socket);
    }

    pub(crate) fn streams_opened(&self) -> u64 {
        self.streams.load(Ordering::SeqCst)
    }

    fn stored_of(&self, id: u64, topics: &[String]) -> Result<Vec<v1::ProducerPartitionState>, Status> {
        let world = self.world.lock();
        let id = ProducerId::new(id).expect("our client sends back what it was given");
        let mut states = Vec::new();
        for name in topics {
            let Some(topic) = world.topics.get(name) else {
                return Err(status(Code::NotFound, reason::TOPIC_NOT_FOUND, &[("topic", name)]));
            };
            if world.unavailable.as_ref() == Some(name) {
                let metadata = [("topic", name.as_str()), ("partition", "0")];
                return Err(status(Code::Unavailable, reason::PARTITION_UNAVAILABLE, &metadata));
            }
            for (index, partition) in topic.iter().enumerate() {
                let Some(known) = partition.producers.get(&id) else { continue };
                let Some(last) = known.last else { continue };
                states.push(v1::ProducerPartitionState {
                    partition: Some(v1::TopicPartition { topic: name.clone(), partition: index as u32 }),
                    producer_epoch: known.epoch.into(),
                    last_sequence: last.get(),
                    last_offset: partition.end.checked_sub(1),
                    by_request: false,
                });
            }
        }
        Ok(states)
    }

    /// What becomes of one append: the answer, or the end of the stream.
    fn append(&self, append: v1::ProduceStreamAppend) -> Result<Option<v1::ProduceStreamAck>, Status> {
        let correlation_id = append.correlation_id;
        let request = append.request.expect("our client sends requests");
        let sent = &request.batches[0];
        let batch = Batch::verify(
            sent.batch.clone().expect("our client sends batches").data,
            &Limits { batch_bytes: 64 << 20, ..Limits::default() },
        )
        .expect("our client sends sound batches");
        let refuse = |error| {
            let append =
                v1::PartitionAppend { partition: sent.partition, error: Some(error), ..Default::default() };
            let response = v1::ProduceResponse { appends: vec![append], records: Vec::new() };
            Ok(Some(v1::ProduceStreamAck { correlation_id, error: None, response: Some(response) }))
        };
        let mut world = self.world.lock();
        let faults = world.faults;
        if let Some(error) = world.refuse.get(&(request.topic.clone(), sent.partition)) {
            return refuse(error.clone());
        }
        if world.chance(faults.backpressure) {
            let error = item(Code::ResourceExhausted, reason::BACKPRESSURE, &[]);
            return Ok(Some(v1::ProduceStreamAck { correlation_id, error: Some(error), response: None }));
        }
        if world.chance(faults.undone) {
            return refuse(item(Code::Unavailable, reason::APPEND_UNDONE, &[]));
        }
        if world.chance(faults.cut_before) {
            return Err(Status::unavailable("cut before storing"));
        }
        if world.chance(faults.cut_late) {
            let (fake, topic, partition) = (self.clone(), request.topic.clone(), sent.partition);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(60)).await;
                fake.world.lock().append(&topic, partition, &batch);
            });
            return Err(Status::unavailable("cut, and stored later"));
        }
        let appended = world.append(&request.topic, sent.partition, &batch);
        if world.chance(faults.cut_after) {
            return Err(Status::unavailable("cut after storing"));
        }
        if appended.error.is_none() && world.chance(faults.unknown) {
            return refuse(item(Code::Unavailable, reason::APPEND_UNKNOWN, &[]));
        }
        if world.hang || world.chance(faults.skip_answer) {
            return Ok(None);
        }
        let response = v1::ProduceResponse { appends: vec![appended], records: Vec::new() };
        Ok(Some(v1::ProduceStreamAck { correlation_id, error: None, response: Some(response) }))
    }
}
