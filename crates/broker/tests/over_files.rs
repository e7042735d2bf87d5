//! The broker over the store that keeps files: what the tests beside the code show over memory, once over disk.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use rimstone_broker::{
    Broker, BrokerConfig, ChunkContent, Clock, Failure, Payload, PlainRecord, ProduceRequest, ReadEnd,
    ReadFilter, ReadFormat, ReadRequest, ReadStart, Reason, RequestNumbering, SystemClock, Visibility,
};
use rimstone_store::{LocalOptions, LocalStorage, StoreClock};
use rimstone_types::{ByteCount, ProducerName, RequestNumber, TopicName};

/// Far above what a busy machine needs.
const DEADLINE: Duration = Duration::from_secs(60);
const WRITERS: usize = 4;
const REQUESTS: u32 = 40;
const KEYS: u32 = 7;

fn topic() -> TopicName {
    "t".parse().expect("a valid name")
}

async fn start(directory: &Path) -> Broker {
    let options = LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync: Default::default(),
        producers: Default::default(),
        clock: StoreClock(Arc::new(|| SystemClock.now())),
    };
    let storage = tokio::task::spawn_blocking(move || LocalStorage::open(options)).await;
    let storage = storage.expect("it ends").expect("the directory can be used");
    Broker::start(storage, BrokerConfig::default(), Arc::new(SystemClock)).await.expect("it starts")
}

/// One record per key, each naming its writer and its request.
fn request(writer: usize, numbering: RequestNumbering) -> ProduceRequest {
    let record = |key: u32| PlainRecord {
        key: Some(Bytes::from(format!("{writer}/{key}"))),
        value: Some(Bytes::from(numbering.number.to_string())),
        ..PlainRecord::default()
    };
    let payload = Payload::Records(Arc::new((0..KEYS).map(record).collect::<Vec<_>>()));
    ProduceRequest { topic: topic(), payload, numbering: Some(numbering), expected_end: None }
}

/// Writes from where the server says on, several requests in flight; answers how many were duplicates.
async fn write(broker: Broker, writer: usize, until: u32) -> usize {
    let name: ProducerName = format!("writer-{writer}").parse().expect("a valid name");
    let producer = broker.init_producer(Some(name), &[]).await.expect("an id is given out");
    let first = producer.state.highest_request_number.unwrap_or(0);
    let mut pending = Vec::new();
    for number in first..until {
        let number = RequestNumber::new(u64::from(number)).expect("in bounds");
        let request = request(writer, RequestNumbering { id: producer.id, epoch: producer.epoch, number });
        let room = broker.reserve(request.reserved_bytes()).await.expect("there is room");
        pending.push(broker.produce(request, room).expect("it is taken"));
    }
    let mut duplicates = 0;
    for pending in pending {
        for append in pending.await.expect("it is taken").appends {
            duplicates += usize::from(append.result.expect("it is stored").duplicate);
        }
    }
    duplicates
}

async fn write_all(broker: &Broker, until: u32) -> usize {
    let writers = (0..WRITERS).map(|writer| tokio::spawn(write(broker.clone(), writer, until)));
    let mut duplicates = 0;
    for writer in writers.collect::<Vec<_>>() {
        duplicates += tokio::time::timeout(DEADLINE, writer).await.expect("in time").expect("it ends");
    }
    duplicates
}

/// All values, by key, in order.
async fn read_all(broker: &Broker) -> BTreeMap<String, Vec<u32>> {
    let request = ReadRequest {
        topic: topic(),
        partitions: Vec::new(),
        start: ReadStart::Earliest,
        end: ReadEnd::Latest,
        max_records: None,
        filter: ReadFilter::default(),
        visibility: Visibility::Stable,
        format: ReadFormat::Records,
        chunk_bytes: Some(ByteCount(500)),
    };
    let mut reader = broker.read(request).await.expect("it can be read");
    let mut read: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    while let Some(chunk) = tokio::time::timeout(DEADLINE, reader.next()).await.expect("in time") {
        let ChunkContent::Records(records) = chunk.expect("it can be read").content else {
            panic!("records were asked for")
        };
        for stored in records {
            let text =
                |bytes: Option<Bytes>| String::from_utf8(bytes.expect("it is set").to_vec()).expect("text");
            let number = text(stored.record.value).parse().expect("a number");
            read.entry(text(stored.record.key)).or_default().push(number);
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbered_requests_are_stored_once_and_in_order_across_restarts() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = start(directory.path()).await;
    let settings = BTreeMap::from([("segment.bytes".to_owned(), "4096".to_owned())]);
    broker.create_topic(topic(), Some(5), settings).await.expect("it is made");
    assert_eq!(write_all(&broker, REQUESTS).await, 0);
    let described = broker.describe_topic(&topic()).expect("it exists");
    let segments =
        described.partitions.iter().map(|partition| partition.state.as_ref().expect("open").segments);
    assert!(segments.max() > Some(1), "the log has rolled: {described:?}");
    broker.finish_shutdown(DEADLINE).await.expect("it stops");
    drop(broker);

    let broker = start(directory.path()).await;
    assert!(write_all(&broker, 2 * REQUESTS).await > 0, "the highest came again");
    let expected: Vec<u32> = (0..2 * REQUESTS).collect();
    let read = read_all(&broker).await;
    assert_eq!(read.len(), WRITERS * KEYS as usize);
    for (key, numbers) in read {
        assert_eq!(numbers, expected, "{key}");
    }

    broker.delete_topic(&topic()).await.expect("it is deleted");
    broker.finish_shutdown(DEADLINE).await.expect("it stops");
    drop(broker);
    let broker = start(directory.path()).await;
    assert_eq!(broker.describe_topic(&topic()).unwrap_err().reason(), Reason::TopicNotFound);
    assert_eq!(broker.list_producers(None).expect("no topic is asked for").len(), WRITERS);
    broker.finish_shutdown(DEADLINE).await.expect("it stops");
}
