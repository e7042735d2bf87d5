//! Record batches, as producers send them and as segments hold them.

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, Header, Limits, NewRecord, RecordRules};
use rimstone_types::Timestamp;

use crate::{Random, repair};

/// Bounds below which everything still is small.
const LIMITS: Limits = Limits {
    batch_bytes: 1 << 20,
    records: 10_000,
    uncompressed_bytes: 4 << 20,
    ratio: 100,
    headers_per_record: 100,
};

/// A valid batch of any compression.
pub fn seed(random: &mut Random) -> Vec<u8> {
    let compressions =
        [Compression::None, Compression::Lz4, Compression::Snappy, Compression::Gzip, Compression::Zstd];
    let mut builder = BatchBuilder::new(*random.one_of(&compressions));
    for _ in 0..1 + random.below(6) {
        let bytes = |random: &mut Random| match random.below(4) {
            0 => None,
            1 => Some(Bytes::new()),
            _ => Some(Bytes::from(vec![random.number() as u8; 1 + random.below(200)])),
        };
        let headers = (0..random.below(3))
            .map(|number| Header { key: format!("h{number}"), value: bytes(random) })
            .collect();
        let record = NewRecord {
            key: bytes(random),
            value: bytes(random),
            headers,
            timestamp: Timestamp(random.number() as i64 >> 20),
        };
        // One that does not fit (times too far apart) is left out.
        let _ = builder.push(&record);
    }
    builder.build().bytes().to_vec()
}

/// One input: whatever is taken must read as it says.
pub fn run(random: &mut Random) -> bool {
    let mut bytes = seed(random);
    random.mutate(&mut bytes);
    repair::batch(random, &mut bytes);
    let bytes = Bytes::from(bytes);
    let Ok(batch) = Batch::verify(bytes.clone(), &LIMITS) else { return false };
    assert_eq!(batch.bytes(), &bytes, "a batch is the bytes that were verified");
    let hash = batch.content_hash(&LIMITS);
    let header = *batch.header();
    let Ok(records) = batch.records(&LIMITS) else { return true };
    let mut read = 0;
    let mut whole = true;
    for record in records {
        match record {
            Ok(record) => {
                assert!(record.offset >= batch.base_offset() && record.offset <= batch.last_offset());
                read += 1;
            }
            Err(_) => whole = false,
        }
        assert!(read <= header.record_count, "more records than the header says");
    }
    assert!(!whole || read == header.record_count, "{read} of {}", header.record_count);
    assert!(!whole || header.is_control() || hash.is_ok(), "its records read, and have no hash: {hash:?}");
    let _ = batch
        .verify_records(&LIMITS, RecordRules { require_keys: true, create_time_max: Some(Timestamp(0)) });
    true
}
