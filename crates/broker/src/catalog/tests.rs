use rimstone_types::{ProducerEpoch, ProducerId};
use uuid::Uuid;

use super::*;
use crate::{settings::Overrides, topics::CountSince};

fn records() -> Vec<CatalogRecord> {
    let since = CountSince { generation: 3, from_unnamed_id: 1001, count: 6 };
    let topic = TopicValue {
        id: TopicId(Uuid::from_u128(7)),
        created_ms: -5,
        settings: Overrides::from([("retention.ms".to_owned(), "1".to_owned())]),
        counts: vec![CountSince { count: 1, ..since }, since],
    };
    let id = ProducerId::new(ProducerId::NAMED_BIT | 9).unwrap();
    let producer = ProducerValue { id, epoch: ProducerEpoch::MAX, generation: u64::MAX };
    vec![
        CatalogRecord::Topic("a.topic".parse().unwrap(), Some(topic)),
        CatalogRecord::Topic("a.topic".parse().unwrap(), None),
        CatalogRecord::Producer("p".parse().unwrap(), Some(producer)),
        CatalogRecord::Producer("p".parse().unwrap(), None),
        CatalogRecord::ProducerIds(IdsValue { unnamed_end: 1 << 61, named_end: 2 }),
        CatalogRecord::DeletedTopic(TopicId(Uuid::from_u128(7)), Some(DeletedValue {})),
        CatalogRecord::DeletedTopic(TopicId(Uuid::from_u128(7)), None),
        CatalogRecord::Server(ServerValue { server_id: Uuid::from_u128(8), created_ms: 1 }),
    ]
}

#[test]
fn records_are_read_as_they_were_written() {
    for record in records() {
        let (key, value) = record.encode();
        let decoded = CatalogRecord::decode(Some(key.as_bytes()), value.as_deref());
        assert_eq!(decoded, Ok(record));
    }
}

#[test]
fn the_bytes_stay_as_they_are() {
    // A change here is a change of the format: other versions of the server read these.
    let (key, value) = records()[0].encode();
    assert_eq!(key, "topic:a.topic");
    assert_eq!(
        String::from_utf8(value.unwrap()).unwrap(),
        "{\"v\":1,\"id\":\"00000000-0000-0000-0000-000000000007\",\"created_ms\":-5,\
         \"settings\":{\"retention.ms\":\"1\"},\
         \"counts\":[{\"generation\":3,\"from_unnamed_id\":1001,\"count\":1},\
         {\"generation\":3,\"from_unnamed_id\":1001,\"count\":6}]}"
    );
    let (key, value) = records()[2].encode();
    assert_eq!(key, "producer:p");
    assert_eq!(
        String::from_utf8(value.unwrap()).unwrap(),
        "{\"v\":1,\"id\":4611686018427387913,\"epoch\":32767,\"generation\":18446744073709551615}"
    );
    let (key, value) = records()[5].encode();
    assert_eq!(key, "deleted-topic:00000000-0000-0000-0000-000000000007");
    assert_eq!(value.unwrap(), b"{\"v\":1}");
}

#[test]
fn the_last_record_of_a_key_counts() {
    let mut loaded = Loaded::default();
    let records = records();
    loaded.apply(records[0].clone());
    assert_eq!(loaded.topics.len(), 1);
    assert_eq!(loaded.topics.values().next().unwrap().partitions(), 6);
    // A topic made again under the name has another id: the older one is gone.
    let CatalogRecord::Topic(name, Some(value)) = records[0].clone() else { panic!("it is a topic") };
    let again = TopicId(Uuid::from_u128(99));
    loaded.apply(CatalogRecord::Topic(name.clone(), Some(TopicValue { id: again, ..value.clone() })));
    assert_eq!(loaded.deleted_topics.iter().copied().collect::<Vec<_>>(), [value.id]);
    loaded.apply(CatalogRecord::Topic(name, None));
    assert_eq!(loaded.deleted_topics.len(), 2);
    assert!(loaded.topics.is_empty());
    loaded.apply(records[2].clone());
    loaded.apply(records[3].clone());
    assert!(loaded.producers.is_empty());
    loaded.apply(records[5].clone());
    assert_eq!(loaded.deletions.len(), 1);
    loaded.apply(records[6].clone());
    assert!(loaded.deletions.is_empty());
}

#[test]
fn epochs_and_ids_outside_the_format_are_not_believed() {
    const NAMED: u64 = ProducerId::NAMED_BIT | 1;
    let producer = |id: u64, epoch: u32| {
        let value = format!("{{\"v\":1,\"id\":{id},\"epoch\":{epoch},\"generation\":0}}");
        CatalogRecord::decode(Some(b"producer:p"), Some(value.as_bytes())).is_ok()
    };
    assert!(producer(NAMED, 32_767));
    for (id, epoch) in [(NAMED, 32_768), (NAMED, 65_536), (1, 0), (NAMED | 1 << 63, 0)] {
        assert!(!producer(id, epoch), "{id} {epoch}");
    }
    let ids = |unnamed: u64, named: u64| {
        let value = format!("{{\"v\":1,\"unnamed_end\":{unnamed},\"named_end\":{named}}}");
        CatalogRecord::decode(Some(b"producer-ids"), Some(value.as_bytes())).is_ok()
    };
    assert!(ids(ProducerId::NAMED_BIT, 5));
    assert!(!ids(ProducerId::NAMED_BIT + 1, 5));
    assert!(!ids(5, u64::MAX));
}
