//! Readers: as many as asked for, each with its share of the partitions.

use std::{collections::BTreeMap, sync::Arc};

use rimstone_client::{
    ClientError, Connection, End, Reader, Start,
    bare::{Calls, Piece, ReadFrom},
};
use rimstone_types::{Offset, PartitionIndex};
use tokio::{task::JoinSet, time::Instant};

use super::{
    arrivals::Arrivals,
    bounds::Budget,
    closed::{Shared, all},
    meter::Meter,
    options::{ReadVia, Reading},
    session::{Session, Target},
};
use crate::exit::Outcome;

/// Records after which a reader that takes them one by one counts them: counting each would be what is measured.
const COUNTED_TOGETHER: u64 = 256;

/// What to read of a partition: from here to there; `None`: on and on.
pub(crate) type Span = (Offset, Option<Offset>);

/// What the bytes are that readers count.
pub(crate) fn bytes_of(via: ReadVia) -> &'static str {
    match via {
        ReadVia::Raw => "batches",
        ReadVia::Batches | ReadVia::Client => "values",
    }
}

/// Reads these partitions to their ends, or until it is dropped.
pub(crate) async fn read(
    session: &Session,
    topic: &Target,
    spans: &BTreeMap<PartitionIndex, Span>,
    reading: &Reading,
    shared: &Shared,
) -> Outcome {
    let mut tasks = JoinSet::new();
    let readers = reading.readers.min(spans.len() as u32);
    for number in 0..readers {
        let share: BTreeMap<_, _> = spans
            .iter()
            .enumerate()
            .filter(|(at, _)| *at as u32 % readers == number)
            .map(|(_, (partition, span))| (*partition, *span))
            .collect();
        let (connection, topic) = (session.connect()?, topic.name.clone());
        match reading.read_via {
            ReadVia::Raw | ReadVia::Batches => {
                let from = ReadFrom {
                    topic,
                    from: share.iter().map(|(partition, (from, _))| (*partition, *from)).collect(),
                    until: share
                        .iter()
                        .filter_map(|(partition, (_, until))| Some((*partition, (*until)?)))
                        .collect(),
                    message_bytes: u32::try_from(reading.message_bytes).unwrap_or(u32::MAX),
                };
                let decodes = reading.read_via == ReadVia::Batches;
                tasks.spawn(batches(connection, from, decodes, shared.clone()));
            }
            ReadVia::Client => {
                tasks.spawn(records(session.server().to_owned(), topic, share, shared.clone()));
            }
        }
    }
    all(tasks).await
}

async fn batches(
    connection: Connection,
    from: ReadFrom,
    decodes: bool,
    shared: Shared,
) -> Result<(), ClientError> {
    let Shared { meter, budget, arrivals } = shared;
    let read = async {
        let mut call = Calls::over(connection).read(from).await?;
        while let Some(piece) = call.next().await? {
            if !count(piece, decodes, &meter, &budget, arrivals.as_deref())? {
                break;
            }
        }
        Ok(())
    };
    read.await.inspect_err(|error| meter.failed(error))
}

/// Counts a message; answers whether to go on.
fn count(
    piece: Piece,
    decodes: bool,
    meter: &Arc<Meter>,
    budget: &Budget,
    arrivals: Option<&Arrivals>,
) -> Result<bool, ClientError> {
    let (partition, next) = (piece.partition, piece.next);
    let (mut records, mut bytes) = (0, 0);
    if decodes {
        piece.decode(|record| {
            records += 1;
            bytes += record.key.map_or(0, |key| key.len() as u64);
            bytes += record.value.map_or(0, |value| value.len() as u64);
        })?;
    } else {
        (records, bytes) = (piece.count()?, piece.bytes());
    }
    let now = Instant::now();
    meter.counted(records, bytes, now);
    if let Some(arrivals) = arrivals {
        arrivals.arrived(partition, next, now);
    }
    Ok(budget.claim(records, now))
}

async fn records(
    server: String,
    topic: String,
    share: BTreeMap<PartitionIndex, Span>,
    shared: Shared,
) -> Result<(), ClientError> {
    let starts = share.iter().map(|(partition, (from, _))| (*partition, *from)).collect();
    // All partitions have an end, or none has.
    let bounded = share.values().all(|(_, until)| until.is_some());
    let mut reader = Reader::builder(&server, &topic)
        .start(Start::Offsets(starts))
        .end(if bounded { End::Latest } else { End::Never })
        .build()?;
    let read = async {
        let (mut records, mut bytes) = (0, 0);
        while let Some(record) = reader.next().await? {
            records += 1;
            bytes += record.key.map_or(0, |key| key.len() as u64);
            bytes += record.value.map_or(0, |value| value.len() as u64);
            let together = if shared.arrivals.is_some() { 1 } else { COUNTED_TOGETHER };
            if records < together {
                continue;
            }
            let now = Instant::now();
            shared.meter.counted(records, bytes, now);
            if let Some(arrivals) = &shared.arrivals {
                arrivals.arrived(record.partition, record.offset.saturating_add(1), now);
            }
            if !shared.budget.claim(records, now) {
                return Ok(());
            }
            (records, bytes) = (0, 0);
        }
        if records > 0 {
            shared.meter.counted(records, bytes, Instant::now());
        }
        Ok(())
    };
    read.await.inspect_err(|error| shared.meter.failed(error))
}
