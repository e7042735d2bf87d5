use std::collections::{BTreeMap, BTreeSet};

use rimstone_store::{Health, StoreStatistics};
use rimstone_types::{ByteCount, Timestamp};

use crate::{testing::*, *};

/// What a text says: the kind of each family, and each series with its value. Fails on what a scraper or
/// `promtool check metrics` would not take.
struct Parsed {
    kinds: BTreeMap<String, String>,
    series: BTreeMap<String, f64>,
}

fn parse(text: &str) -> Parsed {
    let (mut helps, mut kinds, mut series) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help has a text");
            assert!(!help.trim().is_empty() && helps.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type has a kind");
            assert!(helps.contains(name), "{name} has no help");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two types");
            current = name.to_owned();
        } else {
            let (labelled, value) = line.rsplit_once(' ').expect("a sample has a value");
            let name = labelled.split('{').next().expect("a sample has a name");
            let family = match kinds[&current].as_str() {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .expect("a sample of a histogram has a suffix"),
                _ => name,
            };
            assert_eq!(family, current, "samples stand under their type");
            assert!(
                series.insert(labelled.to_owned(), value.parse().expect("a number")).is_none(),
                "{line} twice"
            );
        }
    }
    for (name, kind) in &kinds {
        assert!(name.starts_with("rimstone_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        for unit in ["_ms", "_milliseconds", "_kib", "_mib", "_seconds_total"] {
            assert!(!name.ends_with(unit), "{name}: base units only");
        }
        for word in ["counter", "gauge", "histogram", "summary"] {
            assert!(!name.contains(word), "{name} names its type");
        }
        if kind == "histogram" {
            check_histogram(name, &series);
        }
    }
    Parsed { kinds, series }
}

fn check_histogram(name: &str, series: &BTreeMap<String, f64>) {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (labelled, count) in series {
        if let Some(bound) = labelled.strip_prefix(&format!("{name}_bucket{{le=\"")) {
            let bound = bound.trim_end_matches("\"}").replace("+Inf", "inf");
            buckets.push((bound.parse().expect("a bound"), *count));
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} is cumulative: {buckets:?}");
    let last = buckets.last().expect("a histogram has buckets");
    assert!(last.0.is_infinite(), "{name} ends with +Inf");
    assert_eq!(last.1, series[&format!("{name}_count")], "{name}");
}

#[tokio::test]
async fn the_text_is_well_formed_and_says_what_is() {
    let fixture = Fixture::new().await;
    *fixture.store.statistics.lock() = StoreStatistics {
        syncs: 3,
        sync_seconds_buckets: vec![(0.001, 1), (0.01, 3), (f64::INFINITY, 3)],
        sync_seconds_sum: 0.0125,
        sync_failures: 1,
        written_bytes: 77,
        damaged_ranges: 2,
        ..StoreStatistics::default()
    };
    fixture.topic("t", 2).await;
    let written = BTreeMap::from([("rimstone.ack".to_owned(), "written".to_owned())]);
    fixture.broker.create_topic(name("w.x-y_z"), None, written).await.unwrap();
    fixture.put("t", 1, &["a", "b"]).await;
    assert_eq!(fixture.values("t", 1).await.len(), 2);
    let before =
        BTreeMap::from([(rimstone_types::PartitionIndex(1), rimstone_types::Offset::new(1).unwrap())]);
    fixture.broker.delete_records(&name("t"), before).await.unwrap();
    assert!(fixture.broker.describe_topic(&name("none")).is_err());
    let _room = fixture.broker.try_reserve(ByteCount(123)).unwrap();

    let parsed = parse(&fixture.broker.metrics_text());
    let bytes = encoded(None, &["a", "b"], Timestamp(0)).len() as f64;
    let expected = [
        ("rimstone_topics", 2.0),
        ("rimstone_produced_records_total{topic=\"t\"}", 2.0),
        ("rimstone_produced_bytes_total{topic=\"t\"}", bytes),
        ("rimstone_fetched_records_total{topic=\"t\"}", 2.0),
        ("rimstone_fetched_bytes_total{topic=\"t\"}", bytes),
        ("rimstone_errors_total{reason=\"TOPIC_NOT_FOUND\"}", 1.0),
        ("rimstone_errors_total{reason=\"DATA_DAMAGED\"}", 0.0),
        ("rimstone_partition_log_start_offset{partition=\"1\",topic=\"t\"}", 1.0),
        ("rimstone_partition_stable_end_offset{partition=\"1\",topic=\"t\"}", 2.0),
        ("rimstone_partition_durable_end_offset{partition=\"1\",topic=\"t\"}", 2.0),
        ("rimstone_partition_written_end_offset{partition=\"1\",topic=\"t\"}", 2.0),
        ("rimstone_partition_undurable_bytes{partition=\"0\",topic=\"t\"}", 0.0),
        ("rimstone_partition_available{partition=\"0\",topic=\"__catalog\"}", 1.0),
        ("rimstone_topic_ack_info{ack=\"written\",topic=\"w.x-y_z\"}", 1.0),
        ("rimstone_topic_ack_info{ack=\"durable\",topic=\"t\"}", 1.0),
        ("rimstone_in_flight_bytes", 123.0),
        ("rimstone_sync_method_info{method=\"memory\",reason=\"a \\\"test\\\"\"}", 1.0),
        ("rimstone_healthy", 1.0),
        ("rimstone_sync_duration_seconds_bucket{le=\"0.001\"}", 1.0),
        ("rimstone_sync_duration_seconds_bucket{le=\"+Inf\"}", 3.0),
        ("rimstone_sync_duration_seconds_sum", 0.0125),
        ("rimstone_sync_failures_total", 1.0),
        ("rimstone_written_bytes_total", 77.0),
        ("rimstone_damaged_ranges_total", 2.0),
        ("rimstone_produce_duration_seconds_count", 1.0),
    ];
    for (series, value) in expected {
        assert_eq!(parsed.series.get(series), Some(&value), "{series}");
    }
    assert!(parsed.series.contains_key("rimstone_produce_duration_seconds_bucket{le=\"0.0001\"}"));
    assert!(parsed.series.contains_key("rimstone_fetch_duration_seconds_bucket{le=\"10\"}"));
    assert_eq!(parsed.kinds["rimstone_sync_duration_seconds"], "histogram");
}

#[tokio::test]
async fn a_deleted_topic_leaves_no_series_behind() {
    let fixture = Fixture::new().await;
    fixture.topic("gone", 1).await;
    fixture.put("gone", 0, &["a"]).await;
    let topic = fixture.broker.inner.topics.get(&name("gone")).unwrap();
    assert!(fixture.broker.metrics_text().contains("topic=\"gone\""));
    fixture.broker.delete_topic(&name("gone")).await.unwrap();
    assert!(!fixture.broker.metrics_text().contains("gone"));
    // What was in flight is answered afterwards; it is counted nowhere.
    topic.counters.produced(1, 100, false);
    assert!(!fixture.broker.metrics_text().contains("gone"));
    // One of the same name begins at 0.
    fixture.topic("gone", 1).await;
    assert!(fixture.broker.metrics_text().contains("rimstone_produced_records_total{topic=\"gone\"} 0"));
}

#[tokio::test]
async fn a_failed_sync_and_a_full_disk_are_seen() {
    let fixture = Fixture::new().await;
    let shown = || {
        let parsed = parse(&fixture.broker.metrics_text());
        (parsed.series["rimstone_healthy"], parsed.series["rimstone_poisoned"])
    };
    *fixture.store.health.lock() = Health::DiskReserveReached { free: ByteCount(1), reserve: ByteCount(2) };
    assert_eq!(shown(), (0.0, 0.0));
    *fixture.store.health.lock() = Health::Poisoned { reason: "EIO".to_owned() };
    assert_eq!(shown(), (0.0, 1.0));
}

#[test]
fn every_reason_has_its_own_name() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
}
