//! What no client should send: answered by name, nothing stored of it, and the server lives.

use bytes::Bytes;
use rimstone_proto::v1;
use rimstone_record::{BatchBuilder, Compression, NewRecord};
use rimstone_tests::{
    calls::{
        Calls, Refusal, assert_append_refused, assert_refused, batch_to_partition_0, record, to_partition_0,
    },
    server::Setup,
    wait::soon,
};
use rimstone_types::Timestamp;
use tonic::Code;

fn batch(compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new(compression);
    for number in 0..20 {
        let value = Some(Bytes::from(format!("value {number} {}", "x".repeat(40))));
        let key = Some(Bytes::from(format!("key {number}")));
        builder.push(&NewRecord { key, value, timestamp: Timestamp(1_000), ..Default::default() }).unwrap();
    }
    builder.build().bytes().to_vec()
}

/// CRC-32C, bit by bit: a test of the server should not trust the server's own.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// Makes the checksum right again, so that what lies behind it is looked at.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn with(mut bytes: Vec<u8>, at: usize, put: &[u8]) -> Vec<u8> {
    bytes[at..at + put.len()].copy_from_slice(put);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_lie_are_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    for compression in [Compression::None, Compression::Lz4] {
        let good = batch(compression);
        assert_eq!(sealed(good.clone()), good, "the test's checksum is right");
        let huge = i32::MAX.to_be_bytes();
        let negative = (-1_i32).to_be_bytes();
        let mut longer = good.clone();
        longer.extend([0; 9]);
        let mut bad: Vec<(String, Vec<u8>)> = vec![
            ("nothing".to_owned(), Vec::new()),
            ("less than a header".to_owned(), good[..60].to_vec()),
            ("a header alone".to_owned(), good[..61].to_vec()),
            ("cut at the end".to_owned(), good[..good.len() - 1].to_vec()),
            ("bytes behind it".to_owned(), longer),
            ("two batches".to_owned(), [good.clone(), good.clone()].concat()),
            ("a huge length".to_owned(), with(good.clone(), 8, &huge)),
            ("a negative length".to_owned(), with(good.clone(), 8, &negative)),
            ("an old magic".to_owned(), with(good.clone(), 16, &[1])),
            ("a wrong checksum".to_owned(), with(good.clone(), 17, &[0, 0, 0, 0])),
            ("unknown attributes".to_owned(), sealed(with(good.clone(), 21, &[0x40, 0]))),
            ("an unknown compression".to_owned(), sealed(with(good.clone(), 22, &[7]))),
            ("another compression".to_owned(), sealed(with(good.clone(), 22, &[4]))),
            ("more records than there are".to_owned(), sealed(with(good.clone(), 57, &huge))),
            ("fewer records than there are".to_owned(), sealed(with(good.clone(), 57, &1_u32.to_be_bytes()))),
            ("no records".to_owned(), sealed(with(good.clone(), 57, &[0; 4]))),
            ("a negative count".to_owned(), sealed(with(good.clone(), 57, &negative))),
            ("a last offset beyond the records".to_owned(), sealed(with(good.clone(), 23, &huge))),
            ("a largest time that is not".to_owned(), sealed(with(good.clone(), 35, &[0; 8]))),
            ("a control batch".to_owned(), sealed(with(good.clone(), 22, &[good[22] | 0x20]))),
        ];
        for at in 61..good.len() {
            // Lengths of records, keys and values among them; with the checksum made right.
            bad.push((format!("byte {at} is 0xFF"), sealed(with(good.clone(), at, &[0xFF]))));
        }
        let mut refused = 0;
        for (what, bytes) in bad {
            let outcome = calls.append(batch_to_partition_0("t", bytes)).await;
            if what.starts_with("byte") && matches!(&outcome, Ok(append) if append.error.is_none()) {
                // A byte of a value, and no lie.
                continue;
            }
            let refusal = Refusal::of_append(outcome);
            assert_eq!(refusal.code, Code::InvalidArgument, "{compression} {what}: {refusal:?}");
            let named = ["BATCH_CORRUPT", "INVALID_REQUEST", "BATCH_TOO_LARGE", "TIMESTAMP_TOO_FAR"];
            assert!(named.contains(&refusal.reason.as_str()), "{compression} {what}: {refusal:?}");
            refused += 1;
        }
        println!("{compression}: {refused} lies refused");
        assert!(refused > 20);
        // Whatever was taken can be read, and the good one still goes in.
        let end = calls.append(batch_to_partition_0("t", good)).await.unwrap().last_offset.unwrap();
        let mut offset = 0;
        while offset <= end {
            let read = calls.fetch("t", offset).await.unwrap();
            assert_eq!(read.error, None);
            assert!(read.next_offset > offset);
            offset = read.next_offset;
        }
    }
    assert!(!server.output().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 2, &[("max.message.bytes", "2048")]).await;
    for name in ["", ".", "..", "a/b", "__own", "sp ace", "\u{e9}", &"x".repeat(250)] {
        let request = v1::CreateTopicRequest { topic: name.to_owned(), ..Default::default() };
        assert_refused(soon(calls.admin.create_topic(request)).await, Code::InvalidArgument, "INVALID_NAME");
    }
    for (setting, value) in [
        ("retention.ms", "soon"),
        ("segment.bytes", "1"),
        ("no.such", "1"),
        ("cleanup.policy", "compact,compact"),
    ] {
        let settings = [(setting.to_owned(), value.to_owned())].into();
        let request = v1::CreateTopicRequest { topic: "u".to_owned(), settings, ..Default::default() };
        assert_refused(
            soon(calls.admin.create_topic(request)).await,
            Code::InvalidArgument,
            "INVALID_SETTING",
        );
    }
    let mut nowhere = to_partition_0("t", ["x"]);
    nowhere.records[0].partition = Some(2);
    assert_append_refused(calls.append(nowhere).await, Code::NotFound, "PARTITION_NOT_FOUND");
    assert_append_refused(
        calls.append(to_partition_0("none", ["x"])).await,
        Code::NotFound,
        "TOPIC_NOT_FOUND",
    );
    let large = calls.append(to_partition_0("t", ["x".repeat(4096)])).await;
    assert_append_refused(large, Code::InvalidArgument, "RECORD_TOO_LARGE");
    let mut large = BatchBuilder::new(Compression::None);
    let value = Some(Bytes::from(vec![b'x'; 4096]));
    large.push(&NewRecord { value, timestamp: Timestamp(1_000), ..Default::default() }).unwrap();
    let large = calls.append(batch_to_partition_0("t", large.build().bytes().clone())).await;
    assert_append_refused(large, Code::InvalidArgument, "BATCH_TOO_LARGE");
    let mut far = to_partition_0("t", ["x"]);
    far.records[0].create_time_ms = Some(i64::MAX / 2);
    assert_append_refused(calls.append(far).await, Code::InvalidArgument, "TIMESTAMP_TOO_FAR");
    let mut both = batch_to_partition_0("t", batch(Compression::Lz4));
    both.records.push(record(None, "x"));
    assert_append_refused(calls.append(both).await, Code::InvalidArgument, "INVALID_REQUEST");
    // A start that nobody chose, and offsets that there are not.
    let unset = v1::ReadRequest { topic: "t".to_owned(), ..Default::default() };
    assert_refused(soon(calls.consume.read(unset)).await, Code::InvalidArgument, "INVALID_REQUEST");
    for offset in [1, u64::MAX >> 1, u64::MAX] {
        match calls.fetch("t", offset).await {
            Ok(answer) => {
                let error = answer.error.expect("there is no such offset");
                assert_eq!(error.code, Code::OutOfRange as i32, "{error:?}");
            }
            Err(status) => assert_eq!(Refusal::of_status(&status).code, Code::InvalidArgument, "{status:?}"),
        }
    }
    // Longer than any request may be: refused before it is read whole.
    let endless = to_partition_0("t", [vec![b'x'; 9 << 20]]);
    let refused = calls.append(endless).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument),
        "{refused:?}"
    );
    // Nothing of all this was stored.
    let ends = server.admin().describe_topic("t").await.unwrap();
    assert!(ends.partitions.iter().all(|partition| partition.ends.durable.get() == 0));
    assert_eq!(calls.append(to_partition_0("t", ["good"])).await.unwrap().base_offset, Some(0));
}

/// Bytes that are no HTTP/2 at all, and HTTP/2 that stops half way.
#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_port_harms_nobody() {
    use std::io::Write as _;
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let frames: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xFF; 4096],
        &preface,
        &[&preface[..], &[0xFF; 64]].concat(),
        // A frame that says it is 16 MiB long.
        &[&preface[..], &[0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]].concat(),
        // Headers without end.
        &[&preface[..], &[0, 0, 4, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82].repeat(100)]
            .concat(),
    ];
    for noise in frames {
        for address in [server.grpc(), server.web()] {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            // It may be cut off in the middle, which is as good an answer as any.
            drop(stream.write_all(noise));
        }
        assert_eq!(calls.append(to_partition_0("t", ["x"])).await.unwrap().error, None);
    }
    assert!(!server.output().contains("panicked"));
}
