use proptest::prelude::*;
use rimstone_types::{Numbering, ProducerEpoch, ProducerId};

use super::*;
use crate::{
    BatchBuilder, Header, NewRecord, ProducerStamp, Record, RecordFault, RecordRules,
    header::{BY_REQUEST_BIT, LAST_OFFSET_DELTA_AT, LENGTH_AT, MAGIC_AT, RECORD_COUNT_AT},
};

fn limits() -> Limits {
    Limits::default()
}

fn record(key: Option<&str>, value: Option<&str>, time: i64) -> NewRecord {
    NewRecord {
        key: key.map(|key| Bytes::from(key.to_owned())),
        value: value.map(|value| Bytes::from(value.to_owned())),
        headers: Vec::new(),
        timestamp: Timestamp(time),
    }
}

fn stamp(numbering: Numbering) -> ProducerStamp {
    ProducerStamp {
        id: ProducerId::new(77).unwrap(),
        epoch: ProducerEpoch::new(3).unwrap(),
        base: 41,
        numbering,
    }
}

fn built(compression: Compression, records: &[NewRecord]) -> Batch {
    let mut builder = BatchBuilder::new(compression).producer(stamp(Numbering::Dense));
    for record in records {
        builder.push(record).unwrap();
    }
    builder.build()
}

fn three() -> Batch {
    built(
        Compression::None,
        &[record(Some("a"), Some("1"), 1000), record(None, Some("2"), 900), record(Some("c"), None, 1200)],
    )
}

/// Changes bytes of a batch and makes length and checksum agree again.
fn forged(batch: &Batch, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.bytes().to_vec();
    change(&mut bytes);
    repair(&mut bytes);
    bytes.into()
}

fn repair(bytes: &mut [u8]) {
    let length = (bytes.len() - 12) as i32;
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    bytes[MAGIC_AT] = 2;
    let crc = crc32c::crc32c(&bytes[ATTRIBUTES_AT..]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

#[test]
fn the_layout_is_kafkas() {
    // One record without a producer, laid out by hand from Kafka's documentation of the format.
    let mut builder = BatchBuilder::new(Compression::None);
    builder
        .push(&NewRecord {
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from_static(b"value")),
            headers: vec![Header { key: "h".to_owned(), value: None }],
            timestamp: Timestamp(0x0102_0304_0506_0708),
        })
        .unwrap();
    let batch = builder.build();
    let records =
        [0x1e, 0x00, 0x00, 0x00, 0x02, b'k', 0x0a, b'v', b'a', b'l', b'u', b'e', 0x02, 0x02, b'h', 0x01];
    let mut expected = Vec::new();
    expected.extend(0i64.to_be_bytes());
    expected.extend((49 + records.len() as i32).to_be_bytes());
    expected.extend(0i32.to_be_bytes());
    expected.push(2);
    expected.extend([0; 4]);
    expected.extend(0i16.to_be_bytes());
    expected.extend(0i32.to_be_bytes());
    expected.extend(0x0102_0304_0506_0708i64.to_be_bytes());
    expected.extend(0x0102_0304_0506_0708i64.to_be_bytes());
    expected.extend((-1i64).to_be_bytes());
    expected.extend((-1i16).to_be_bytes());
    expected.extend((-1i32).to_be_bytes());
    expected.extend(1i32.to_be_bytes());
    expected.extend(records);
    let crc = crc32c::crc32c(&expected[21..]);
    expected[17..21].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(batch.bytes()[..], expected[..]);
}

#[test]
fn reads_what_was_built() {
    let batch = three();
    let header = batch.header();
    assert_eq!(header.record_count, 3);
    assert_eq!(header.last_offset_delta, 2);
    assert_eq!(header.base_timestamp, Timestamp(1000));
    assert_eq!(header.max_timestamp, Timestamp(1200));
    assert_eq!(header.producer, Some(stamp(Numbering::Dense)));
    assert!(!header.is_append_time() && !header.is_control() && !header.is_transactional());
    let batch = Batch::verify(batch.bytes().clone(), &limits()).unwrap();
    batch.verify_records(&limits(), RecordRules::default()).unwrap();
    let records: Vec<Record> = batch.records(&limits()).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.iter().map(|record| record.timestamp.0).collect::<Vec<_>>(), [1000, 900, 1200]);
    assert_eq!(records[0].key.as_deref(), Some(&b"a"[..]));
    assert_eq!(records[1].key, None);
    assert_eq!(records[2].value, None);
}

#[test]
fn records_share_the_memory_of_the_batch() {
    let batch = three();
    let range = batch.bytes().as_ptr_range();
    for record in batch.records(&limits()).unwrap() {
        for field in [&record.as_ref().unwrap().key, &record.as_ref().unwrap().value].into_iter().flatten() {
            assert!(range.contains(&field.as_ptr()));
        }
    }
}

#[test]
fn stamping_leaves_the_checksum_alone() {
    let batch = three();
    let base = Offset::new(500).unwrap();
    let stamped = batch.with_base_offset(base, 9);
    assert_eq!(stamped.bytes()[..HEADER_LENGTH], batch.stamped_header(base, 9));
    assert_eq!(stamped.body(), batch.body());
    let again = Batch::verify(stamped.bytes().clone(), &limits()).unwrap();
    assert_eq!(again, stamped);
    assert_eq!(again.header().crc, batch.header().crc);
    assert_eq!(
        (again.base_offset().get(), again.last_offset().get(), again.next_offset().get()),
        (500, 502, 503)
    );
    assert_eq!(again.header().leader_epoch, 9);
    let offsets = again.records(&limits()).unwrap().map(|record| record.unwrap().offset.get());
    assert_eq!(offsets.collect::<Vec<_>>(), [500, 501, 502]);
}

#[test]
fn append_time_replaces_every_time() {
    let batch = three().with_append_time(Timestamp(7777));
    assert_eq!(batch, Batch::verify(batch.bytes().clone(), &limits()).unwrap());
    assert!(batch.header().is_append_time());
    assert_eq!(batch.header().max_timestamp, Timestamp(7777));
    for record in batch.records(&limits()).unwrap() {
        assert_eq!(record.unwrap().timestamp, Timestamp(7777));
    }
    assert_eq!(
        batch.verify_records(&limits(), RecordRules::default()),
        Err(BatchError::ServerOnly { what: "stamped with the append time" })
    );
}

#[test]
fn numbering_by_request_is_an_attribute() {
    let mut builder = BatchBuilder::new(Compression::None).producer(stamp(Numbering::ByRequest));
    builder.push(&record(None, None, 0)).unwrap();
    let batch = builder.build();
    assert_eq!(batch.header().attributes, BY_REQUEST_BIT);
    assert_eq!(batch.header().producer, Some(stamp(Numbering::ByRequest)));
    let orphan = forged(&batch, |bytes| bytes[43..57].fill(0xff));
    assert_eq!(Batch::verify(orphan, &limits()), Err(BatchError::NumberedWithoutProducer));
}

#[test]
fn headers_without_sense_are_named() {
    let batch = three();
    let at = |at: usize, value: &[u8]| {
        let bytes = forged(&batch, |bytes| bytes[at..at + value.len()].copy_from_slice(value));
        Batch::verify(bytes, &limits()).unwrap_err()
    };
    assert_eq!(at(0, &[0xff; 8]), BatchError::Negative { field: "the base offset", got: -1 });
    assert_eq!(at(21, &[0x02, 0]), BatchError::Attributes { got: 0x0200, allowed: 0x017f });
    assert_eq!(at(21, &[0, 0x80]), BatchError::Attributes { got: 0x0080, allowed: 0x017f });
    assert_eq!(at(21, &[0, 5]), BatchError::CompressionCode { got: 5 });
    assert_eq!(at(23, &[0xff; 4]), BatchError::Negative { field: "the last offset delta", got: -1 });
    assert_eq!(
        at(43, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        BatchError::Negative { field: "the producer id", got: i64::MIN }
    );
    assert_eq!(at(51, &[0xff, 0xfe]), BatchError::Negative { field: "the producer epoch", got: -2 });
    assert_eq!(at(53, &[0xff; 4]), BatchError::Negative { field: "the base sequence", got: -1 });
    assert_eq!(at(57, &[0xff; 4]), BatchError::Negative { field: "the record count", got: -1 });
    assert_eq!(at(57, &[0, 0, 0, 4]), BatchError::RecordCount { count: 4, last_delta: 2 });
    let last = (i64::MAX - 2).to_be_bytes();
    assert_eq!(
        at(0, &last),
        BatchError::OffsetOverflow { base: Offset::new(i64::MAX as u64 - 2).unwrap(), last_delta: 2 }
    );
    let magic = |magic: u8| {
        let mut bytes = batch.bytes().to_vec();
        bytes[MAGIC_AT] = magic;
        BatchHeader::parse(&bytes).unwrap_err()
    };
    assert_eq!(magic(1), BatchError::Magic { got: 1 });
    assert_eq!(magic(255), BatchError::Magic { got: -1 });
}

#[test]
fn lengths_that_lie_are_refused() {
    let batch = three();
    let stating = |length: i32| {
        let mut bytes = batch.bytes().to_vec();
        bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
        Batch::verify(bytes.into(), &limits()).unwrap_err()
    };
    let all = batch.bytes().len();
    for got in [i32::MIN, -1, 0, 48] {
        assert_eq!(stating(got), BatchError::Length { got });
    }
    assert_eq!(stating(all as i32 - 13), BatchError::TrailingBytes { length: all - 1, extra: 1 });
    assert_eq!(stating(all as i32 - 11), BatchError::Truncated { have: all, need: all + 1 });
    let huge = i32::MAX as usize + 12;
    assert_eq!(stating(i32::MAX), BatchError::TooLarge { bytes: huge, limit: limits().batch_bytes });
}

#[test]
fn limits_are_kept() {
    let batch = three();
    let verify = |limits: Limits| Batch::verify(batch.bytes().clone(), &limits).unwrap_err();
    let bytes = batch.bytes().len();
    assert!(Batch::verify(batch.bytes().clone(), &Limits { batch_bytes: bytes, ..limits() }).is_ok());
    assert_eq!(
        verify(Limits { batch_bytes: bytes - 1, ..limits() }),
        BatchError::TooLarge { bytes, limit: bytes - 1 }
    );
    assert_eq!(verify(Limits { records: 2, ..limits() }), BatchError::TooManyRecords { count: 3, limit: 2 });
    let many = forged(&batch, |bytes| {
        bytes[LAST_OFFSET_DELTA_AT..LAST_OFFSET_DELTA_AT + 4].copy_from_slice(&999_999u32.to_be_bytes());
        bytes[RECORD_COUNT_AT..].get_mut(..4).unwrap().copy_from_slice(&1_000_000u32.to_be_bytes());
    });
    let body = bytes - HEADER_LENGTH;
    assert_eq!(
        Batch::verify(many, &limits()),
        Err(BatchError::CountBeyondBytes { count: 1_000_000, bytes: body })
    );

    let mut with_headers = record(None, None, 0);
    with_headers.headers = vec![Header { key: "h".to_owned(), value: None }; 3];
    let batch = built(Compression::None, &[with_headers]);
    let error = batch.records(&Limits { headers_per_record: 2, ..limits() }).unwrap().next().unwrap();
    assert_eq!(
        error,
        Err(BatchError::Record { index: 0, fault: RecordFault::TooManyHeaders { got: 3, limit: 2 } })
    );
}

#[test]
fn a_clients_batch_keeps_to_the_rules() {
    let rules = RecordRules::default();
    let check = |batch: &Batch, rules| batch.verify_records(&limits(), rules);
    let batch = three();
    assert_eq!(
        check(&batch, RecordRules { require_keys: true, ..rules }),
        Err(BatchError::KeyMissing { index: 1 })
    );
    assert_eq!(check(&batch, RecordRules { create_time_max: Some(Timestamp(1200)), ..rules }), Ok(()));
    assert_eq!(
        check(&batch, RecordRules { create_time_max: Some(Timestamp(1199)), ..rules }),
        Err(BatchError::TimestampTooFar { index: 2, time: Timestamp(1200), latest: Timestamp(1199) })
    );

    let forge = |at: usize, value: &[u8]| {
        let bytes = forged(&batch, |bytes| bytes[at..at + value.len()].copy_from_slice(value));
        Batch::verify(bytes, &limits()).unwrap()
    };
    assert_eq!(
        check(&forge(35, &1201i64.to_be_bytes()), rules),
        Err(BatchError::MaxTimestamp { stated: Timestamp(1201), real: Timestamp(1200) })
    );
    assert_eq!(
        check(&forge(23, &3u32.to_be_bytes()), rules),
        Err(BatchError::LastOffsetDelta { got: 3, count: 3 })
    );
    assert_eq!(check(&forge(21, &[0, 0x20]), rules), Err(BatchError::ServerOnly { what: "a control batch" }));
    let fewer = forge(57, &2u32.to_be_bytes());
    assert_eq!(check(&fewer, rules), Err(BatchError::LastOffsetDelta { got: 2, count: 2 }));

    // The first record's offset delta lies behind length, attributes and time delta.
    let shifted = forge(HEADER_LENGTH + 3, &[0x02]);
    assert_eq!(
        check(&shifted, rules),
        Err(BatchError::Record { index: 0, fault: RecordFault::OffsetDelta { got: 1, least: 0, most: 0 } })
    );
}

#[test]
fn an_empty_batch_is_read_but_not_taken() {
    let batch = BatchBuilder::new(Compression::Lz4).build();
    let batch = Batch::verify(batch.bytes().clone(), &limits()).unwrap();
    assert_eq!(batch.records(&limits()).unwrap().count(), 0);
    assert_eq!(batch.verify_records(&limits(), RecordRules::default()), Err(BatchError::Empty));
    // As compaction leaves it: the offsets stay.
    let emptied = forged(&three(), |bytes| {
        bytes.truncate(HEADER_LENGTH);
        bytes[RECORD_COUNT_AT..].fill(0);
    });
    let emptied = Batch::verify(emptied, &limits()).unwrap();
    assert_eq!(emptied.last_offset().get(), 2);
    assert_eq!(emptied.records(&limits()).unwrap().count(), 0);
}

#[test]
fn the_iterator_ends_after_an_error() {
    let batch = three();
    let count = |change: fn(&mut Vec<u8>)| {
        let batch = Batch::verify(forged(&batch, change), &limits()).unwrap();
        let results: Vec<_> = batch.records(&limits()).unwrap().collect();
        (results.len(), results.into_iter().next_back().unwrap().unwrap_err())
    };
    assert_eq!(count(|bytes| bytes.push(0)), (4, BatchError::TrailingRecordBytes { extra: 1 }));
    let first = |fault| BatchError::Record { index: 0, fault };
    let body = HEADER_LENGTH;
    // Length, attributes, time delta, offset delta, key length, key, value length, value, header count.
    let set = |at: usize, value: u8| {
        let bytes = forged(&batch, |bytes| bytes[body + at] = value);
        let batch = Batch::verify(bytes, &limits()).unwrap();
        let results: Vec<_> = batch.records(&limits()).unwrap().collect();
        assert_eq!(results.len(), 1);
        results.into_iter().next().unwrap().unwrap_err()
    };
    assert_eq!(set(0, 0x01), first(RecordFault::Length { field: "length", got: -1 }));
    assert_eq!(set(0, 0x7e), first(RecordFault::Truncated { field: "body" }));
    assert_eq!(set(0, 0x12), first(RecordFault::Slack { extra: 1 }));
    assert_eq!(set(1, 0x01), first(RecordFault::Attributes { got: 1 }));
    assert_eq!(set(3, 0x01), first(RecordFault::OffsetDelta { got: -1, least: 0, most: 2 }));
    assert_eq!(set(4, 0x03), first(RecordFault::Length { field: "key", got: -2 }));
    assert_eq!(set(4, 0x7e), first(RecordFault::Truncated { field: "key" }));
    assert_eq!(set(8, 0x01), first(RecordFault::Length { field: "header count", got: -1 }));
    assert_eq!(set(8, 0x02), first(RecordFault::Truncated { field: "header name" }));
}

#[test]
fn content_is_recognised_without_times_and_compression() {
    let hash = |batch: &Batch| batch.content_hash(&limits()).unwrap();
    let repeat = |time: i64, compression| {
        let records: Vec<_> = (0..50).map(|n| record(Some("key"), Some("value"), time + n)).collect();
        built(compression, &records)
    };
    let one = hash(&repeat(0, Compression::None));
    assert_eq!(one, hash(&repeat(99, Compression::None)));
    let lz4 = repeat(5, Compression::Lz4);
    assert_eq!(lz4.header().compression(), Compression::Lz4);
    assert_eq!(one, hash(&lz4));
    assert_eq!(one, hash(&lz4.with_append_time(Timestamp(1)).with_base_offset(Offset::new(9).unwrap(), 0)));

    // What moves between fields, or is absent rather than empty, is other content.
    let single = |key, value| hash(&built(Compression::None, &[record(key, value, 0)]));
    let variants = [
        single(Some("ab"), Some("c")),
        single(Some("a"), Some("bc")),
        single(None, Some("abc")),
        single(Some("abc"), None),
        single(Some(""), Some("abc")),
        single(Some("abc"), Some("")),
    ];
    for (index, one) in variants.iter().enumerate() {
        assert!(variants[index + 1..].iter().all(|other| other != one), "{index}");
    }
}

fn new_records() -> impl Strategy<Value = Vec<NewRecord>> {
    let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from));
    let header = (".{0,8}", bytes()).prop_map(|(key, value)| Header { key, value });
    let record =
        (bytes(), bytes(), prop::collection::vec(header, 0..4), -1_000_000_000_000i64..4_000_000_000_000)
            .prop_map(|(key, value, headers, time)| NewRecord {
                key,
                value,
                headers,
                timestamp: Timestamp(time),
            });
    prop::collection::vec(record, 1..20)
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4)]
}

/// Everything that takes bytes from outside; must not panic.
fn exercise(bytes: Bytes) {
    let limits = Limits { uncompressed_bytes: 1 << 20, ..limits() };
    if let Ok(batch) = Batch::verify(bytes, &limits) {
        if let Ok(records) = batch.records(&limits) {
            for record in records {
                drop(record);
            }
        }
        drop(batch.content_hash(&limits));
        drop(batch.verify_records(&limits, RecordRules { require_keys: true, create_time_max: None }));
        drop(batch.with_append_time(Timestamp(1)));
        drop(batch.with_base_offset(Offset::MAX, -1).with_append_time(Timestamp(1)));
    }
}

proptest! {
    #[test]
    fn round_trip(records in new_records(), compression in any_compression(), base in 0u64..1 << 40) {
        let batch = built(compression, &records);
        let batch = Batch::verify(batch.bytes().clone(), &limits()).unwrap();
        batch.verify_records(&limits(), RecordRules::default()).unwrap();
        let batch = batch.with_base_offset(Offset::new(base).unwrap(), 0);
        let read: Vec<Record> = batch.records(&limits()).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), records.len());
        for (index, (read, new)) in read.into_iter().zip(records).enumerate() {
            prop_assert_eq!(read.offset.get(), base + index as u64);
            let read = NewRecord {
                key: read.key, value: read.value, headers: read.headers, timestamp: read.timestamp,
            };
            prop_assert_eq!(read, new);
        }
    }

    #[test]
    fn every_flipped_byte_is_detected(records in new_records(), compression in any_compression(), mask in 1u8..) {
        let batch = built(compression, &records);
        for at in (8..batch.bytes().len()).filter(|at| !(12..16).contains(at)) {
            let mut bytes = batch.bytes().to_vec();
            bytes[at] ^= mask;
            prop_assert!(Batch::verify(bytes.into(), &limits()).is_err(), "byte {}", at);
        }
    }

    #[test]
    fn every_truncation_is_refused(records in new_records(), compression in any_compression()) {
        let batch = built(compression, &records);
        for length in 0..batch.bytes().len() {
            let error = Batch::verify(batch.bytes().slice(..length), &limits()).unwrap_err();
            let need = if length < HEADER_LENGTH { HEADER_LENGTH } else { batch.bytes().len() };
            prop_assert_eq!(error, BatchError::Truncated { have: length, need });
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(bytes.into());
    }

    #[test]
    fn random_bytes_with_repaired_headers_do_not_panic(
        mut bytes in prop::collection::vec(any::<u8>(), HEADER_LENGTH..400), code in 0u8..5, count in 0u32..20,
    ) {
        bytes[0] &= 0x7f;
        bytes[21] = 0;
        bytes[22] = code;
        bytes[23..27].copy_from_slice(&count.to_be_bytes());
        bytes[43..57].fill(0xff);
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        repair(&mut bytes);
        prop_assert!(BatchHeader::parse(&bytes).is_ok());
        exercise(bytes.into());
    }

    #[test]
    fn mutated_batches_with_repaired_checksums_do_not_panic(
        records in new_records(),
        compression in any_compression(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = built(compression, &records).bytes().to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(HEADER_LENGTH.max(cut.index(bytes.len())));
        }
        repair(&mut bytes);
        exercise(bytes.into());
    }
}
