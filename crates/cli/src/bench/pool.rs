//! Requests that are made before the clock runs, so that a run measures the server and not the making of
//! requests. They are sent again and again, in turn.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use bytes::Bytes;
use rimstone_client::{Compression, ProducerRecord, bare::Request};
use rimstone_record::{Batch, BatchBuilder, NewRecord, partitioner::partition_for_key};
use rimstone_types::{PartitionIndex, Timestamp};

use super::{
    keys::Keys,
    payload::{Random, Values},
    session::{Session, Target},
};
use crate::exit::Failure;

/// Bytes of all requests of a pool: more than a cache of the processor holds, little enough to be made in a
/// moment.
const POOL_BYTES_MAX: u64 = 32 << 20;
/// Single records that a pool has at most.
const SINGLES_MAX: u32 = 4096;
/// What a record costs in a batch beyond its key and value, about.
const RECORD_OVERHEAD: u64 = 16;

/// Makes records.
#[derive(Debug)]
pub(crate) struct Source {
    values: Values,
    keys: Keys,
    random: Random,
}

impl Source {
    /// Records as the options ask for, others for each purpose.
    pub(crate) fn new(session: &Session, purpose: u64) -> Self {
        Self {
            values: session.values.clone(),
            keys: Keys::new(session.load.keys),
            random: session.random.fork(purpose),
        }
    }

    /// Key and value.
    pub(crate) fn next(&mut self) -> (Option<Bytes>, Bytes) {
        let key = self.keys.key(&mut self.random);
        (key, self.values.value(&mut self.random))
    }
}

/// A request that can be sent again and again.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) request: Request,
    /// For a client that makes its own requests: the first record.
    pub(crate) record: ProducerRecord,
    pub(crate) records: u64,
    /// Of keys and values.
    pub(crate) bytes: u64,
}

/// Requests, in turn.
#[derive(Debug)]
pub(crate) struct Pool {
    requests: Vec<Prepared>,
    next: AtomicUsize,
}

/// A batch that is being made.
struct Gathering {
    partition: PartitionIndex,
    builder: BatchBuilder,
    bytes: u64,
}

impl Pool {
    fn new(requests: Vec<Prepared>) -> Self {
        assert!(!requests.is_empty(), "every pool is made with one request at least");
        Self { requests, next: AtomicUsize::new(0) }
    }

    /// The next one.
    pub(crate) fn next(&self) -> &Prepared {
        &self.requests[self.next.fetch_add(1, Ordering::Relaxed) % self.requests.len()]
    }

    /// The one for this number.
    pub(crate) fn at(&self, number: u64) -> &Prepared {
        &self.requests[(number % self.requests.len() as u64) as usize]
    }

    /// How many records a request has, on average.
    pub(crate) fn records_per_request(&self) -> f64 {
        let records: u64 = self.requests.iter().map(|prepared| prepared.records).sum();
        records as f64 / self.requests.len() as f64
    }

    /// Encoded batches, one in a request: without keys to each partition in turn, with keys where they belong.
    /// `records` bounds what is made ahead.
    pub(crate) fn of_batches(
        topic: &Target,
        source: &mut Source,
        batch_bytes: u64,
        compression: Compression,
        records: Option<u64>,
    ) -> Result<Self, Failure> {
        let batches = batches(source, topic.partitions, batch_bytes, compression, records)?;
        let keyless = batches.iter().all(|(gathering, _)| gathering.partition == ANY);
        // Without keys a batch fits every partition, and each partition is to have its turn.
        let requests =
            if keyless { batches.len().max(topic.partitions.get() as usize) } else { batches.len() };
        let requests = (0..requests).map(|number| {
            let (gathering, batch) = &batches[number % batches.len()];
            let partition = match gathering.partition {
                ANY => PartitionIndex((number % topic.partitions.get() as usize) as u32),
                partition => partition,
            };
            Prepared {
                request: Request::of_batches(&topic.name, [(partition, batch.clone())]),
                record: ProducerRecord::default(),
                records: batch.header().records_there(),
                bytes: gathering.bytes,
            }
        });
        Ok(Self::new(requests.collect()))
    }

    /// Plain records, so many in a request; the server partitions them.
    pub(crate) fn of_records(topic: &Target, source: &mut Source, per_request: u32) -> Self {
        let mut requests = Vec::new();
        let mut bytes = 0;
        while requests.is_empty() || bytes < POOL_BYTES_MAX {
            let records: Vec<_> = (0..per_request).map(|_| record(source.next())).collect();
            let size = records.iter().map(size).sum();
            bytes += size + u64::from(per_request) * RECORD_OVERHEAD;
            requests.push(Prepared {
                record: records[0].clone(),
                request: Request::of_records(&topic.name, records),
                records: per_request.into(),
                bytes: size,
            });
        }
        Self::new(requests)
    }

    /// Single records: without keys to each partition in turn.
    pub(crate) fn of_singles(topic: &Target, source: &mut Source) -> Self {
        let partitions = topic.partitions.get();
        // Whole rounds, so that every partition has as many.
        let most = (POOL_BYTES_MAX / source.values_size()).clamp(1, SINGLES_MAX.into()) as u32;
        let requests = partitions * (most / partitions).max(1);
        let requests = (0..requests).map(|number| {
            let mut record = record(source.next());
            if record.key.is_none() {
                record.partition = Some(PartitionIndex(number % partitions));
            }
            let bytes = size(&record);
            let request = Request::of_records(&topic.name, [record.clone()]);
            Prepared { request, record, records: 1, bytes }
        });
        Self::new(requests.collect())
    }
}

impl Source {
    fn values_size(&mut self) -> u64 {
        // Every value has the same size.
        self.next().1.len().max(1) as u64
    }
}

/// Stands for every partition, until a request is made.
const ANY: PartitionIndex = PartitionIndex(u32::MAX);

fn batches(
    source: &mut Source,
    partitions: NonZeroU32,
    batch_bytes: u64,
    compression: Compression,
    records: Option<u64>,
) -> Result<Vec<(Gathering, Batch)>, Failure> {
    let now = now();
    let mut open: Vec<Gathering> = Vec::new();
    let mut done = Vec::new();
    let (mut made, mut bytes) = (0u64, 0u64);
    let enough = |made: u64, bytes: u64| bytes >= POOL_BYTES_MAX || records.is_some_and(|most| made >= most);
    let finish = |mut gathering: Gathering| {
        let builder = std::mem::replace(&mut gathering.builder, BatchBuilder::new(compression));
        (gathering, builder.build())
    };
    while made == 0 || !enough(made, bytes) {
        let (key, value) = source.next();
        let partition = key.as_ref().map_or(ANY, |key| partition_for_key(key, partitions));
        let size = (key.as_ref().map_or(0, Bytes::len) + value.len()) as u64;
        let record = NewRecord { key, value: Some(value), headers: Vec::new(), timestamp: now };
        let at = open.iter().position(|gathering| gathering.partition == partition);
        let at = match at {
            Some(at) => {
                let estimated = open[at].builder.estimated_bytes() + record.encoded_bytes_max();
                if estimated as u64 > batch_bytes {
                    done.push(finish(open.swap_remove(at)));
                    None
                } else {
                    Some(at)
                }
            }
            None => None,
        };
        let at = at.unwrap_or_else(|| {
            open.push(Gathering { partition, builder: BatchBuilder::new(compression), bytes: 0 });
            open.len() - 1
        });
        let gathering = &mut open[at];
        gathering
            .builder
            .push(&record)
            .map_err(|error| Failure::usage(format!("a record does not fit a batch: {error}")))?;
        gathering.bytes += size;
        made += 1;
        bytes += size + RECORD_OVERHEAD;
    }
    // Those that are not full are sent too if there are keys, so that each key comes as often as it should.
    let leave_out = !done.is_empty() && open.iter().all(|gathering| gathering.partition == ANY);
    if !leave_out {
        done.extend(open.into_iter().map(finish));
    }
    Ok(done)
}

fn record((key, value): (Option<Bytes>, Bytes)) -> ProducerRecord {
    ProducerRecord { key, value: Some(value), ..ProducerRecord::default() }
}

fn size(record: &ProducerRecord) -> u64 {
    let length = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len) as u64;
    length(&record.key) + length(&record.value)
}

fn now() -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use rimstone_record::Limits;

    use super::*;

    fn source(keys: &str, size: usize) -> Source {
        let mut random = Random::new(3);
        Source { values: Values::random(size, &mut random), keys: Keys::new(keys.parse().unwrap()), random }
    }

    fn topic(partitions: u32) -> Target {
        let partitions = NonZeroU32::new(partitions).unwrap();
        Target { name: "t".to_owned(), id: String::new(), partitions }
    }

    fn made(keys: &str, size: usize, batch_bytes: u64, records: u64) -> Vec<(Gathering, Batch)> {
        let six = NonZeroU32::new(6).unwrap();
        batches(&mut source(keys, size), six, batch_bytes, Compression::None, Some(records)).unwrap()
    }

    #[test]
    fn batches_are_full_and_not_fuller() {
        let batches = made("none", 100, 4096, 1000);
        for (gathering, batch) in &batches {
            let length = batch.bytes().len();
            assert!((3900..=4096).contains(&length), "{length}");
            assert_eq!(gathering.bytes, 100 * batch.header().records_there());
        }
        // One record that is larger than a batch has one of its own.
        let batches = made("none", 5000, 4096, 3);
        assert!(batches.iter().all(|(_, batch)| batch.header().records_there() == 1));
    }

    #[test]
    fn records_with_keys_lie_where_their_keys_belong() {
        let six = NonZeroU32::new(6).unwrap();
        let batches = made("zipf:100", 50, 2048, 2000);
        let mut records = 0;
        for (gathering, batch) in &batches {
            for record in batch.records(&Limits::default()).unwrap() {
                let key = record.unwrap().key.unwrap();
                assert_eq!(partition_for_key(&key, six), gathering.partition);
                records += 1;
            }
        }
        assert_eq!(records, 2000);
    }

    #[test]
    fn a_pool_gives_every_partition_its_turn() {
        let pool =
            Pool::of_batches(&topic(50), &mut source("none", 100), 1 << 20, Compression::None, Some(10));
        assert_eq!(pool.unwrap().requests.len(), 50);
        for partitions in [1, 3, 1000, 5000] {
            let pool = Pool::of_singles(&topic(partitions), &mut source("none", 10));
            let mut counts = vec![0; partitions as usize];
            for prepared in &pool.requests {
                counts[prepared.record.partition.unwrap().0 as usize] += 1;
            }
            assert!(counts.iter().all(|count| *count == counts[0] && *count > 0), "{partitions}");
        }
    }

    #[test]
    fn pools_are_bounded() {
        let pool = Pool::of_records(&topic(1), &mut source("none", 1 << 20), 100);
        assert_eq!(pool.requests.len(), 1);
        let pool = Pool::of_records(&topic(1), &mut source("uniform:10", 1000), 100);
        assert!((250..=400).contains(&pool.requests.len()), "{}", pool.requests.len());
        assert_eq!(pool.at(0).records, 100);
        assert_eq!(pool.at(0).bytes, 100 * 1012);
        let first = pool.next().request.clone();
        assert_eq!(format!("{first:?}"), format!("{:?}", pool.at(0).request));
    }
}
