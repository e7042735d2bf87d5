use bytes::Bytes;
use rimstone_types::{Numbering, Offset, ProducerEpoch, ProducerId};

use super::*;
use crate::{BatchBuilder, Header, NewRecord, ProducerStamp};

const BASE: i64 = 1_700_000_000_000;

fn batch(compression: Compression, records: usize) -> Batch {
    let mut builder = BatchBuilder::new(compression).producer(ProducerStamp {
        id: ProducerId::new(7).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base: 40,
        numbering: Numbering::Dense,
    });
    for number in 0..records {
        let record = NewRecord {
            key: Some(Bytes::from(format!("key {number}"))),
            value: (number % 3 != 2).then(|| Bytes::from("value ".repeat(20))),
            headers: vec![Header { key: "h".to_owned(), value: None }],
            timestamp: Timestamp(BASE + 1000 - number as i64),
        };
        builder.push(&record).unwrap();
    }
    builder.build().with_base_offset(Offset::new(100).unwrap(), 0)
}

/// The same records, compressed by a codec that our builder does not write.
fn recompressed(batch: &Batch, compression: Compression) -> Batch {
    let body = compression::compress(compression, &batch.body());
    let mut bytes = batch.bytes()[..HEADER_LENGTH].to_vec();
    let length = (HEADER_LENGTH - LENGTH_EXCLUDES + body.len()) as i32;
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    bytes[ATTRIBUTES_AT + 1] |= compression.code();
    bytes.extend(body);
    Batch::from_own_bytes(bytes)
}

fn records(batch: &Batch) -> Vec<Record> {
    batch.records(&Limits::default()).unwrap().map(Result::unwrap).collect()
}

fn thinned(batch: &Batch, horizon: Option<Timestamp>, keep: impl FnMut(&Record) -> bool) -> Batch {
    let thinned = batch.thinned(batch.records(&Limits::default()).unwrap(), horizon, keep).unwrap();
    // As anybody reads it.
    Batch::verify(thinned.bytes().clone(), &Limits::default()).unwrap()
}

#[test]
fn what_stays_is_what_it_was_whatever_the_codec() {
    for codec in
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
    {
        let whole = recompressed(&batch(Compression::None, 30), codec);
        let thin = thinned(&whole, None, |record| record.offset.get() % 2 == 1);
        let expected: Vec<_> =
            records(&whole).into_iter().filter(|record| record.offset.get() % 2 == 1).collect();
        assert_eq!(records(&thin), expected, "{codec}");
        let (before, after) = (whole.header(), thin.header());
        assert_eq!(after.compression(), codec);
        assert_eq!((after.base_offset, after.last_offset_delta), (before.base_offset, 29));
        assert_eq!((after.producer, after.record_count), (before.producer, 15));
        assert_eq!(after.base_timestamp, before.base_timestamp);
        assert_eq!(after.max_timestamp, Timestamp(BASE + 999), "the largest of those that stay");
    }
}

#[test]
fn a_delete_horizon_is_the_base_of_the_times_and_changes_none() {
    let whole = batch(Compression::Lz4, 9);
    let horizon = Timestamp(BASE + 86_400_000);
    let thin = thinned(&whole, Some(horizon), |record| record.offset.get() != 104);
    assert!(thin.header().has_delete_horizon());
    assert_eq!(thin.header().base_timestamp, horizon);
    let expected: Vec<_> = records(&whole).into_iter().filter(|record| record.offset.get() != 104).collect();
    assert_eq!(records(&thin), expected);
    // Thinned again it keeps the horizon that it has.
    let thinner = thinned(&thin, None, |record| record.offset.get() > 104);
    assert_eq!((thinner.header().base_timestamp, thinner.header().has_delete_horizon()), (horizon, true));
    assert_eq!(records(&thinner), expected[4..]);
}

#[test]
fn times_too_far_from_a_horizon_leave_the_batch_without_one() {
    let mut builder = BatchBuilder::new(Compression::None);
    for (key, timestamp) in [("a", i64::MIN + 5), ("b", i64::MIN + 9)] {
        let key = Some(Bytes::from(key));
        builder.push(&NewRecord { key, timestamp: Timestamp(timestamp), ..NewRecord::default() }).unwrap();
    }
    let whole = builder.build();
    let thin = thinned(&whole, Some(Timestamp(BASE)), |_| true);
    assert!(!thin.header().has_delete_horizon());
    assert_eq!(records(&thin), records(&whole));
}

#[test]
fn append_times_stay_the_servers() {
    let whole = batch(Compression::None, 5).with_append_time(Timestamp(BASE + 77));
    let thin = thinned(&whole, Some(Timestamp(BASE * 2)), |record| record.offset.get() > 102);
    assert!(thin.header().is_append_time() && thin.header().has_delete_horizon());
    assert!(records(&thin).iter().all(|record| record.timestamp == Timestamp(BASE + 77)));
    assert_eq!(records(&thin).len(), 2);
}

#[test]
fn an_emptied_batch_keeps_its_place_and_its_number() {
    let whole = recompressed(&batch(Compression::None, 12), Compression::Zstd);
    for empty in [whole.emptied(), thinned(&whole, Some(Timestamp(1)), |_| false)] {
        let empty = Batch::verify(empty.bytes().clone(), &Limits::default()).unwrap();
        assert_eq!(empty.bytes().len(), HEADER_LENGTH);
        assert_eq!(records(&empty), []);
        let (before, after) = (whole.header(), empty.header());
        assert_eq!((after.base_offset, after.next_offset()), (before.base_offset, before.next_offset()));
        assert_eq!((after.producer, after.record_count), (before.producer, 0));
    }
}

#[test]
fn what_was_given_up_keeps_its_offsets_and_has_nothing() {
    let offset = |value| Offset::new(value).unwrap();
    let lost = Batch::lost(offset(7), offset(10), Timestamp(1_700_000_000_000)).unwrap();
    let read = Batch::verify(lost.bytes().clone(), &Limits::default()).unwrap();
    assert_eq!((read.base_offset(), read.next_offset()), (offset(7), offset(10)));
    assert!(read.header().is_lost() && !read.header().has_records());
    assert_eq!(read.header().max_timestamp, Timestamp(1_700_000_000_000));
    assert_eq!(read.records(&Limits::default()).unwrap().count(), 0);
    assert!(read.header().check_from_client().is_err(), "no client makes one");
    let most = i32::MAX as u64 + 1;
    assert!(Batch::lost(offset(0), offset(most), Timestamp(0)).is_some());
    for (from, until) in [(7, 7), (7, 6), (0, most + 1)] {
        assert!(Batch::lost(offset(from), offset(until), Timestamp(0)).is_none(), "{from} to {until}");
    }
}
