use proptest::{collection::vec, option, prelude::*};

use super::*;

/// A record by itself.
#[derive(Debug, PartialEq)]
struct Owned {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    create_time: Option<i64>,
    partition: Option<u32>,
}

fn here(bytes: &[u8]) -> Result<Owned, Unreadable> {
    let mut headers = Vec::new();
    let view = read(bytes, &mut headers)?;
    Ok(owned(RecordView { headers: &headers, ..view }))
}

fn owned(view: RecordView<'_>) -> Owned {
    let header = |header: &HeaderParts<'_>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
    Owned {
        key: view.key.map(<[u8]>::to_vec),
        value: view.value.map(<[u8]>::to_vec),
        headers: view.headers.iter().map(header).collect(),
        create_time: view.create_time.map(|time| time.as_millis()),
        partition: view.partition.map(|partition| partition.0),
    }
}

fn generated(record: v1::Record) -> Owned {
    let owned = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
    Owned {
        key: owned(record.key),
        value: owned(record.value),
        headers: record.headers.into_iter().map(|header| (header.key, owned(header.value))).collect(),
        create_time: record.create_time_ms,
        partition: record.partition,
    }
}

fn some_bytes() -> impl Strategy<Value = Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..200).prop_map(Bytes::from))
}

fn a_record() -> impl Strategy<Value = v1::Record> {
    let header = (".{0,9}", some_bytes()).prop_map(|(key, value)| v1::Header { key, value });
    (some_bytes(), some_bytes(), vec(header, 0..4), option::of(any::<i64>()), option::of(any::<u32>()))
        .prop_map(|(key, value, headers, create_time_ms, partition)| v1::Record {
            key,
            value,
            headers,
            create_time_ms,
            partition,
        })
}

fn a_request() -> impl Strategy<Value = v1::ProduceRequest> {
    let batch = (any::<u32>(), some_bytes()).prop_map(|(partition, data)| v1::PartitionBatch {
        partition,
        batch: data.map(|data| v1::EncodedBatch { data, append_time_ms: 0 }),
        expected_end: None,
    });
    let number = any::<(u64, u32, u32)>().prop_map(|(producer_id, producer_epoch, number)| {
        v1::RequestNumber { producer_id, producer_epoch, number }
    });
    (".{0,9}", vec(a_record(), 0..5), vec(batch, 0..3), option::of(number), option::of(any::<u64>()))
        .prop_map(|(topic, records, batches, request_number, expected_end)| v1::ProduceRequest {
            topic,
            records,
            batches,
            request_number,
            expected_end,
        })
}

/// Bytes that were something before some of them were changed, put in or taken out.
fn spoilt(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, byte) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind % 4 {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    vec(any::<(prop::sample::Index, u8, u8)>(), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What the generated decoder reads is read here too, and nothing else is.
    #[test]
    fn a_record_is_read_as_the_generated_decoder_reads_it(record in a_record(), changes in changes()) {
        let bytes = spoilt(record.encode_to_vec(), &changes);
        match v1::Record::decode(&bytes[..]) {
            Ok(record) => prop_assert_eq!(here(&bytes), Ok(generated(record))),
            Err(_) => prop_assert!(here(&bytes).is_err()),
        }
    }

    /// The whole request, and with it that the fields are those of `produce.proto`.
    #[test]
    fn a_request_is_the_generated_one_but_for_its_records(request in a_request(), correlation_id in any::<u64>()) {
        let append = v1::ProduceStreamAppend { correlation_id, request: Some(request.clone()) };
        let kind = Some(v1::produce_stream_request::Kind::Append(append));
        let bytes = v1::ProduceStreamRequest { kind }.encode_to_vec();
        let Some(WireKind::Append(mut append)) = WireStreamRequest::decode(&bytes[..]).unwrap().kind else {
            return Err(TestCaseError::fail("not an append"));
        };
        prop_assert_eq!(append.correlation_id, correlation_id);
        let of_stream = append.request().unwrap().unwrap();
        let by_itself = WireRequest::decode(request.encode_to_vec().into()).unwrap();
        for WireRequest { rest, records } in [of_stream, by_itself] {
            prop_assert_eq!(&rest, &v1::ProduceRequest { records: Vec::new(), ..request.clone() });
            prop_assert_eq!(records.count(), request.records.len());
            let sent: Vec<_> = request.records.iter().cloned().map(generated).collect();
            prop_assert_eq!(all(&records).unwrap(), sent);
        }
    }

    /// Also where bytes were changed: nothing is taken that the generated decoder would refuse, but for what is inside
    /// records, which is found when they are read.
    #[test]
    fn what_the_generated_decoder_refuses_is_refused(request in a_request(), changes in changes()) {
        let bytes = Bytes::from(spoilt(request.encode_to_vec(), &changes));
        let here = WireRequest::decode(bytes.clone());
        let records = here.as_ref().ok().map(|request| all(&request.records));
        match (v1::ProduceRequest::decode(bytes), here) {
            (Ok(expected), Ok(request)) => {
                let sent: Vec<_> = expected.records.iter().cloned().map(generated).collect();
                prop_assert_eq!(records.unwrap().unwrap(), sent);
                prop_assert_eq!(request.rest, v1::ProduceRequest { records: Vec::new(), ..expected });
            }
            (Err(_), Err(_)) => {}
            (Err(_), Ok(_)) => prop_assert!(records.unwrap().is_err()),
            (Ok(_), Err(error)) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    /// Answers are the bytes that the generated encoder writes.
    #[test]
    fn an_answer_is_the_generated_one(
        records in vec((any::<u32>(), option::of(0..u64::MAX / 4)), 0..20),
        appends in vec(any::<(u32, u64)>(), 0..3),
    ) {
        let appends: Vec<_> = appends
            .into_iter()
            .map(|(partition, base)| v1::PartitionAppend {
                partition,
                base_offset: Some(base),
                ..Default::default()
            })
            .collect();
        let answer = || WireResponse {
            appends: appends.clone(),
            records: records
                .iter()
                .map(|(partition, offset)| RecordPosition {
                    partition: PartitionIndex(*partition),
                    offset: offset.map(|offset| rimstone_types::Offset::new(offset).unwrap()),
                })
                .collect(),
        };
        let mut bytes = Vec::new();
        answer().encode(&mut bytes);
        prop_assert_eq!(bytes, answer().into_generated().encode_to_vec());
    }
}

/// All records of a request.
fn all(records: &WireRecords) -> Result<Vec<Owned>, ProduceError> {
    let mut all = Vec::with_capacity(records.count());
    records.each(&mut |view| {
        all.push(owned(view));
        Ok(())
    })?;
    Ok(all)
}

/// A stream's request may come in parts, which are merged.
#[test]
fn parts_of_a_request_are_put_together() {
    let record = |value: &'static str| v1::Record { value: Some(value.into()), ..Default::default() };
    let first = v1::ProduceRequest { topic: "a".into(), records: vec![record("1")], ..Default::default() };
    let second = v1::ProduceRequest { topic: "b".into(), records: vec![record("2")], ..Default::default() };
    let parts = vec![first.encode_to_vec().into(), second.encode_to_vec().into()];
    let request = WireAppend { correlation_id: 1, request: parts }.request().unwrap().unwrap();
    assert_eq!(request.rest.topic, "b");
    let values: Vec<_> = all(&request.records).unwrap().into_iter().map(|record| record.value).collect();
    assert_eq!(values, [Some(b"1".to_vec()), Some(b"2".to_vec())]);
}

#[test]
fn the_first_message_of_a_stream_is_read_too() {
    let open = v1::ProduceStreamOpen { producer_id: Some(7), topics: vec!["t".to_owned()] };
    let kind = Some(v1::produce_stream_request::Kind::Open(open.clone()));
    let bytes = v1::ProduceStreamRequest { kind }.encode_to_vec();
    assert_eq!(WireStreamRequest::decode(&bytes[..]).unwrap().kind, Some(WireKind::Open(open)));
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let good = v1::Record { value: Some("v".into()), ..Default::default() }.encode_to_vec();
    let header = v1::Header { key: "h".to_owned(), value: None };
    let mut name = v1::Record { headers: vec![header], ..Default::default() }.encode_to_vec();
    *name.last_mut().unwrap() = 0xff;
    for (bad, why) in [
        (vec![0x0a, 5, b'k'], "record 1 of the request: field 1 is longer than its message"),
        (vec![0x08, 1], "record 1 of the request: failed to decode Protobuf message: invalid wire type"),
        (name, "record 1 of the request: the name of a header is not UTF-8"),
    ] {
        let mut message = Vec::new();
        for record in [&good, &bad] {
            message.extend([2 << 3 | 2, record.len() as u8]);
            message.extend(record);
        }
        let request = WireRequest::decode(message.into()).unwrap();
        let mut seen = 0;
        let error = request.records.each(&mut |_| {
            seen += 1;
            Ok(())
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(seen, 1);
    }
}
