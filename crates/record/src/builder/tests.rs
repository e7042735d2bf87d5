use bytes::Bytes;

use super::*;
use crate::{Header, Limits};

fn record(value: usize, time: i64) -> NewRecord {
    NewRecord {
        key: None,
        value: Some(Bytes::from(vec![b'x'; value])),
        headers: Vec::new(),
        timestamp: Timestamp(time),
    }
}

#[test]
fn compressions_that_are_not_written_are_refused_by_name() {
    for compression in [Compression::Gzip, Compression::Snappy, Compression::Zstd] {
        let mut builder = BatchBuilder::new(compression);
        assert_eq!(builder.push(&record(1, 0)), Err(BuildError::Compression(compression)));
        assert!(builder.is_empty());
        // Still a batch that anybody can read.
        assert_eq!(builder.build().header().compression(), Compression::None);
    }
    let error = BatchBuilder::new(Compression::Zstd).push(&record(1, 0)).unwrap_err();
    assert_eq!(error.to_string(), "batches are not written with zstd, only with none and lz4");
}

#[test]
fn lz4_is_used_where_it_helps() {
    let mut builder = BatchBuilder::new(Compression::Lz4);
    builder.push(&record(10_000, 0)).unwrap();
    let batch = builder.clone().build();
    assert_eq!(batch.header().compression(), Compression::Lz4);
    assert!(batch.bytes().len() < 500);
    assert!(batch.bytes().len() <= builder.estimated_bytes());

    let mut builder = BatchBuilder::new(Compression::Lz4);
    builder.push(&record(1, 0)).unwrap();
    let estimated = builder.estimated_bytes();
    let batch = builder.build();
    assert_eq!(batch.header().compression(), Compression::None);
    assert_eq!(batch.bytes().len(), estimated);
}

#[test]
fn sizes_are_known_before() {
    for record in [
        NewRecord::default(),
        record(0, 5),
        record(100, -5),
        NewRecord {
            key: Some(Bytes::from_static(b"key")),
            headers: vec![Header { key: "h".repeat(70), value: Some(Bytes::from(vec![0; 200])) }; 70],
            ..record(70_000, i64::MAX / 2)
        },
    ] {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(&NewRecord::default()).unwrap();
        let before = builder.estimated_bytes();
        builder.push(&record).unwrap();
        let added = builder.estimated_bytes() - before;
        let max = record.encoded_bytes_max();
        assert!(added <= max && max <= added + 20, "{added} {max}");
        assert_eq!(builder.len(), 2);
        assert_eq!(builder.clone().build().bytes().len(), builder.estimated_bytes());
    }
}

#[test]
fn what_is_too_much_leaves_the_batch_as_it_was() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.limits =
        Limits { records: 2, uncompressed_bytes: 200, headers_per_record: 1, ..Limits::default() };
    builder.push(&record(10, i64::MIN)).unwrap();
    let before = builder.estimated_bytes();
    assert_eq!(
        builder.push(&record(10, 1)),
        Err(BuildError::TimeSpan { first: Timestamp(i64::MIN), this: Timestamp(1) })
    );
    let headers = vec![Header { key: String::new(), value: None }; 2];
    let heavy = NewRecord { headers, ..record(0, i64::MIN) };
    assert_eq!(builder.push(&heavy), Err(BuildError::TooManyHeaders { headers: 2, limit: 1 }));
    assert!(matches!(
        builder.push(&record(200, i64::MIN)),
        Err(BuildError::TooLarge { bytes: 201.., limit: 200 })
    ));
    assert_eq!((builder.len(), builder.estimated_bytes()), (1, before));
    builder.push(&record(10, i64::MIN)).unwrap();
    assert_eq!(builder.push(&record(10, i64::MIN)), Err(BuildError::TooManyRecords { limit: 2 }));
    assert_eq!(builder.build().records(&Limits::default()).unwrap().filter(Result::is_ok).count(), 2);
}
