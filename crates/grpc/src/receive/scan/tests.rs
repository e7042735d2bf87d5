use std::sync::LazyLock;

use prost::Message as _;
use rimstone_proto::v1;

use super::*;

const PRODUCE: &str = "/rimstone.v1.ProduceService/Produce";
const STREAM: &str = "/rimstone.v1.ProduceService/ProduceStream";

static API: LazyLock<Api> = LazyLock::new(Api::ours);

/// Elements of a message that comes in pieces of `cut` bytes.
fn counted(path: &str, bytes: &[u8], cut: usize, items_max: u64) -> Result<u64, Malformed> {
    let api = &*API;
    let call = api.call(path).unwrap();
    let mut scan = Scan::new(call.input, bytes.len() as u64, items_max);
    for piece in bytes.chunks(cut) {
        scan.feed(api, piece)?;
    }
    Ok(scan.items())
}

fn header() -> v1::Header {
    v1::Header { key: "k".repeat(200), value: Some(vec![0xff; 300].into()) }
}

fn request() -> v1::ProduceRequest {
    let record = |headers: usize| v1::Record {
        key: Some("key".into()),
        value: Some(vec![0x12; 1_000].into()),
        headers: vec![header(); headers],
        create_time_ms: Some(-1),
        partition: Some(300),
    };
    v1::ProduceRequest {
        topic: "topic".to_owned(),
        records: vec![record(0), v1::Record::default(), record(3), record(1)],
        batches: vec![
            v1::PartitionBatch::default(),
            v1::PartitionBatch { partition: 1, ..Default::default() },
        ],
        request_number: Some(v1::RequestNumber { producer_id: u64::MAX, ..Default::default() }),
        expected_end: Some(7),
    }
}

#[test]
fn elements_are_counted_at_every_depth_however_the_bytes_are_cut() {
    use v1::produce_stream_request::Kind;
    let append = v1::ProduceStreamAppend { correlation_id: 1, request: Some(request()) };
    let stream = v1::ProduceStreamRequest { kind: Some(Kind::Append(append)) };
    for (path, bytes) in [(PRODUCE, request().encode_to_vec()), (STREAM, stream.encode_to_vec())] {
        for cut in [1, 2, 3, 7, 64, 1_000, bytes.len()] {
            // Four records, four headers, two batches.
            assert_eq!(counted(path, &bytes, cut, 10), Ok(10), "{path} in pieces of {cut}");
            assert_eq!(counted(path, &bytes, cut, 9), Err(Malformed::TooManyItems));
        }
    }
    assert_eq!(counted(PRODUCE, &[], 1, 0), Ok(0));
}

#[test]
fn packed_and_single_numbers_count() {
    let fetch = "/rimstone.v1.AdminService/ListOffsets";
    let api = &*API;
    let input = api.call(fetch).unwrap().input;
    let packed = (1..30).find(|&number| api.field(input, number).is_some_and(|field| field.packed)).unwrap();
    // Sixteen numbers in one field, then two alone.
    let mut bytes = vec![(packed << 3 | 2) as u8, 16];
    bytes.extend([5; 16]);
    bytes.extend([(packed << 3) as u8, 5, (packed << 3) as u8, 5]);
    assert_eq!(counted(fetch, &bytes, 3, 100), Ok(1 + 2 + 2));
}

#[test]
fn what_the_decoder_refuses_is_refused() {
    let cases: [(&str, &[u8]); 10] = [
        ("field number 0", &[0x02, 0x00]),
        ("field number above 2^29", &[0x80, 0x80, 0x80, 0x80, 0x10, 0x00]),
        ("a number of eleven bytes", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ("wire type 6", &[0x0e]),
        ("wire type 7", &[0x0f]),
        ("a length beyond the message", &[0x0a, 0x05, b'a']),
        ("a record longer than the message", &[0x12, 0x03, 0x0a, 0x00]),
        ("a key longer than its record", &[0x12, 0x02, 0x0a, 0x01, b'a']),
        ("a number cut off", &[0x28, 0x80]),
        ("eight bytes that are three", &[0x29, 0, 0, 0]),
    ];
    for (what, bytes) in cases {
        assert!(v1::ProduceRequest::decode(bytes).is_err(), "{what}: the test is wrong");
        for cut in [1, bytes.len()] {
            assert!(matches!(counted(PRODUCE, bytes, cut, 100), Err(Malformed::Wire(_))), "{what}");
        }
    }
    // The decoder skips groups with everything in them; here they would be counted as if they were fields.
    let group = [0xfb, 0x01, 0x12, 0x00, 0xfc, 0x01];
    assert!(v1::ProduceRequest::decode(&group[..]).is_ok());
    assert!(matches!(counted(PRODUCE, &group, 1, 100), Err(Malformed::Wire(_))));
}

#[test]
fn any_bytes_are_survived() {
    // A linear congruential generator (Knuth's MMIX constants): the same bytes in every run.
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let base = request().encode_to_vec();
    let mut decodable = 0;
    for _ in 0..2_000 {
        let mut bytes = base.clone();
        for _ in 0..3 {
            let at = (usize::from(byte()) << 8 | usize::from(byte())) % bytes.len();
            bytes[at] = byte();
        }
        let scanned = counted(PRODUCE, &bytes, 1 + usize::from(byte()), 1_000);
        // What is counted may still be refused by the decoder. What the decoder takes was counted, groups aside.
        let Ok(decoded) = v1::ProduceRequest::decode(&bytes[..]) else { continue };
        decodable += 1;
        let headers: usize = decoded.records.iter().map(|record| record.headers.len()).sum();
        match scanned {
            Ok(items) => assert_eq!(items, (decoded.records.len() + headers + decoded.batches.len()) as u64),
            Err(why) => assert_eq!(why, Malformed::Wire("groups are not part of this API")),
        }
    }
    assert!(decodable > 200, "{decodable} of 2000 could be decoded");
}
