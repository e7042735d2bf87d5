//! Records: what is written reads back, and nothing else reads.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{GroupEpoch, Offset, PartitionIndex, Timestamp, TopicId};
use uuid::Uuid;

use crate::group::{
    AssignmentValue, Assignor, EpochsValue, GroupRecord, GroupValue, MemberValue, OffsetValue, Partitions,
    TargetValue, TopicCount, TopicsValue,
};

fn examples() -> Vec<GroupRecord> {
    let (group, member) = ("g".parse().unwrap(), "m-1".parse().unwrap());
    let id = TopicId(Uuid::from_u128(7));
    let mut partitions = Partitions::default();
    assert!(partitions.insert(&"t".parse().unwrap(), id, PartitionIndex(3)));
    let values = [
        GroupRecord::Group {
            group: "g".parse().unwrap(),
            value: Some(GroupValue { epoch: GroupEpoch(4), assignor: Assignor::RoundRobin }),
        },
        GroupRecord::Topics {
            group: "g".parse().unwrap(),
            value: Some(TopicsValue {
                topics: BTreeMap::from([(
                    "t".parse().unwrap(),
                    TopicCount { id, partitions: 8, later_from: 6 },
                )]),
            }),
        },
        GroupRecord::Member {
            group: "g".parse().unwrap(),
            member: "m-1".parse().unwrap(),
            value: Some(MemberValue {
                instance_id: Some("i".parse().unwrap()),
                client_id: "a \"client\"".to_owned(),
                host: "127.0.0.1".to_owned(),
                topics: BTreeSet::from(["t".parse().unwrap()]),
                topic_prefix: None,
                assignor: Some(Assignor::Sticky),
                session_timeout_ms: 45_000,
                max_poll_interval_ms: 300_000,
                joined_ms: Timestamp(17),
            }),
        },
        GroupRecord::Target {
            group: "g".parse().unwrap(),
            member: "m-1".parse().unwrap(),
            value: Some(TargetValue { partitions: partitions.clone() }),
        },
        GroupRecord::Assignment {
            group,
            member,
            value: Some(AssignmentValue {
                epoch: GroupEpoch(3),
                previous_epoch: GroupEpoch(2),
                owned: partitions,
                stopping: Partitions::default(),
            }),
        },
        GroupRecord::Offset {
            group: "g".parse().unwrap(),
            topic: "t".parse().unwrap(),
            partition: PartitionIndex(3),
            value: Some(OffsetValue {
                topic_id: id,
                offset: Offset::MAX,
                leader_epoch: None,
                metadata: "ä\n".to_owned(),
                commit_time_ms: Timestamp(-1),
            }),
        },
        GroupRecord::Epochs { value: Some(EpochsValue { used: GroupEpoch(9) }) },
    ];
    values.into_iter().flat_map(|record| [record.clone(), without_value(record)]).collect()
}

fn without_value(mut record: GroupRecord) -> GroupRecord {
    match &mut record {
        GroupRecord::Group { value, .. } => *value = None,
        GroupRecord::Topics { value, .. } => *value = None,
        GroupRecord::Member { value, .. } => *value = None,
        GroupRecord::Target { value, .. } => *value = None,
        GroupRecord::Assignment { value, .. } => *value = None,
        GroupRecord::Offset { value, .. } => *value = None,
        GroupRecord::Epochs { value } => *value = None,
    }
    record
}

#[test]
fn what_is_written_reads_back() {
    for record in examples() {
        let (key, value) = record.encode();
        let read = GroupRecord::decode(Some(&key), value.as_deref()).expect("reads");
        assert_eq!(read, record);
        assert_eq!(read.key().into_bytes(), key);
    }
}

#[test]
fn the_form_is_fixed() {
    let lines: Vec<_> = examples()
        .iter()
        .filter_map(|record| {
            let (key, value) = record.encode();
            Some(format!("{} {}", String::from_utf8(key).ok()?, String::from_utf8(value?).ok()?))
        })
        .collect();
    let id = "00000000-0000-0000-0000-000000000007";
    assert_eq!(
        lines,
        [
            r#"group:g {"v":1,"epoch":4,"assignor":"round_robin"}"#.to_owned(),
            format!(r#"topics:g {{"v":1,"topics":{{"t":{{"id":"{id}","partitions":8,"later_from":6}}}}}}"#),
            r#"member:g:m-1 {"v":1,"instance_id":"i","client_id":"a \"client\"","host":"127.0.0.1","topics":["t"],"topic_prefix":null,"assignor":"sticky","session_timeout_ms":45000,"max_poll_interval_ms":300000,"joined_ms":17}"#.to_owned(),
            format!(r#"target:g:m-1 {{"v":1,"partitions":{{"t":{{"id":"{id}","partitions":[3]}}}}}}"#),
            format!(
                r#"assignment:g:m-1 {{"v":1,"epoch":3,"previous_epoch":2,"owned":{{"t":{{"id":"{id}","partitions":[3]}}}},"stopping":{{}}}}"#
            ),
            format!(
                r#"offset:g:t:3 {{"v":1,"topic_id":"{id}","offset":9223372036854775807,"leader_epoch":null,"metadata":"ä\n","commit_time_ms":-1}}"#
            ),
            r#"epochs {"v":1,"used":9}"#.to_owned(),
        ]
    );
}

#[test]
fn topics_of_before_later_partitions_were_told_apart_read_as_having_none() {
    let value = r#"{"v":1,"topics":{"t":{"id":"00000000-0000-0000-0000-000000000007","partitions":8}}}"#;
    let read = GroupRecord::decode(Some(b"topics:g"), Some(value.as_bytes())).expect("reads");
    let GroupRecord::Topics { value: Some(value), .. } = read else { panic!("not topics: {read:?}") };
    assert_eq!(value.topics.values().map(|of| of.later_from).collect::<Vec<_>>(), [u32::MAX]);
}

/// Key, value, and what the error says.
type Case<'a> = (Option<&'a [u8]>, Option<&'a str>, &'a str);

#[test]
fn what_this_server_did_not_write_is_refused_in_words() {
    let offset = r#"{"v":1,"topic_id":"00000000-0000-0000-0000-000000000007","offset":1,"leader_epoch":null,"metadata":"","commit_time_ms":0}"#;
    let cases: &[Case<'_>] = &[
        (None, None, "a record without a key"),
        (Some(b"\xff"), None, "a key that is not UTF-8"),
        (Some(b""), None, "the key \"\" is none of"),
        (Some(b"group"), None, "the key \"group\" is none of"),
        (Some(b"lease:g"), None, "the key \"lease:g\" is none of"),
        (Some(b"member:g"), None, "the key \"member:g\" is none of"),
        (Some(b"offset:g:t"), None, "the key \"offset:g:t\" is none of"),
        (Some(b"offset:g:t:x"), None, "is none of"),
        (Some(b"offset:g:t:01"), Some(offset), "is none of"),
        (Some(b"offset:g:t:+1"), Some(offset), "is none of"),
        (Some(b"offset:g:t:4294967296"), Some(offset), "is none of"),
        (Some(b"group:a:b"), None, "in the key \"group:a:b\": group name \"a:b\" is not allowed"),
        (Some(b"member:g:a:b"), None, "member id \"a:b\" is not allowed"),
        (Some(b"offset:g:t:1"), Some(""), "does not read"),
        (Some(b"offset:g:t:1"), Some("{}"), "missing field `v`"),
        (Some(b"offset:g:t:1"), Some(r#"{"v":2}"#), "has version 2; this server knows 1"),
        (Some(b"offset:g:t:1"), Some(r#"{"v":1}"#), "missing field"),
        (
            Some(b"offset:g:t:1"),
            Some(&offset.replace(r#""offset":1"#, r#""offset":9223372036854775808"#)),
            "offset 9223372036854775808 is outside",
        ),
        (Some(b"offset:g:t:1"), Some(&offset.replace("00-0000-00", "x")), "does not read"),
        (Some(b"target:g:m"), Some(r#"{"v":1,"partitions":{"a/b":{}}}"#), "does not read"),
    ];
    for (key, value, expected) in cases {
        let error = GroupRecord::decode(*key, value.map(str::as_bytes)).expect_err("refused").to_string();
        assert!(error.contains(expected), "{key:?} {value:?}: {error}");
    }
}

#[test]
fn a_topic_without_partitions_is_no_topic() {
    let value = r#"{"v":1,"partitions":{"t":{"id":"00000000-0000-0000-0000-000000000007","partitions":[]}}}"#;
    let read = GroupRecord::decode(Some(b"target:g:m"), Some(value.as_bytes())).unwrap();
    let GroupRecord::Target { value: Some(value), .. } = read else { panic!("{read:?}") };
    assert!(value.partitions.is_empty());
}

#[test]
fn a_later_version_is_told_from_everything_else() {
    let newer = |value: &str| GroupRecord::check_version(Some(b"group:g"), Some(value.as_bytes()));
    for fine in [
        r#"{"v":1}"#,
        r#"{"v":1,"epoch":4}"#,
        r#"{"epoch":4,"v":1}"#,
        r#"{ "v" : 1 }"#,
        r#"{"v":0}"#,
        r#"{"v":1"#,
        r#"{}"#,
        "",
        "no JSON",
        r#"{"v":-2}"#,
    ] {
        newer(fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
    }
    GroupRecord::check_version(Some(b"group:g"), None).unwrap();
    for later in
        [r#"{"v":2}"#, r#"{"v":10,"epoch":4}"#, r#"{"v":11}"#, r#"{"epoch":4,"v":2}"#, r#"{"v":4294967295}"#]
    {
        let error = newer(later).unwrap_err().to_string();
        assert!(error.contains("\"group:g\" has version") && error.contains("knows 1"), "{later}: {error}");
    }
}
