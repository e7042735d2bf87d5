//! The power is cut while a pass of compaction runs: whatever of it was on the device, the last acknowledged value of
//! each key is there, where it was. Twice, with appends in between.
//!
//! `RIMSTONE_POWER_CUTS` sets the number of rounds, `RIMSTONE_SEED` runs one seed alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_tests::{
    calls::Calls,
    feed::{Ack, Feed},
    history::{Read, read_all},
    input::Line,
    mount::Mount,
    server::Setup,
    skip::{skip, why_no_mounts},
    wait::{soon, until},
};

use crate::{
    compaction::{check, check_files, dirtiness, leftovers, lines, see_unfinished},
    power_cut::{IMAGE_MEBIBYTES, ROUNDS, number},
};

const PARTITIONS: u32 = 2;
const LINES: usize = 1_500;
/// So many rounds at most, until a cut has come during a compaction.
const ROUNDS_MAX: u64 = 20;
/// Lines that are acknowledged before a pass is looked for: enough for some segments.
const BEFORE: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_a_compaction_takes_no_last_value() {
    if let Some(why) = why_no_mounts() {
        return skip("power_cut", why);
    }
    if let Some(seed) = number("RIMSTONE_SEED") {
        round(seed).await;
        return;
    }
    let first: u64 = rand::rng().random_range(0..1 << 32);
    let wanted = number("RIMSTONE_POWER_CUTS").unwrap_or(ROUNDS);
    let (mut rounds, mut during, mut left) = (0, 0, 0);
    // Whether a cut comes during a compaction is chance as well: without one, it goes on.
    while rounds < wanted || during == 0 && rounds < ROUNDS_MAX {
        let (was_running, left_behind) = round(first + rounds).await;
        rounds += 1;
        during += u64::from(was_running);
        left += u64::from(left_behind);
    }
    println!(
        "{rounds} power cuts; {during} came while a segment was being compacted, {left} left a part of one on the device"
    );
    assert!(during > 0, "no power cut came during a compaction");
}

/// One power cut. Whether a compacted segment was unfinished when it came, and whether one was on the device.
async fn round(seed: u64) -> (bool, bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    let mut mount = Mount::ext4(home.path(), IMAGE_MEBIBYTES);
    let lines = lines(LINES as u64, &mut random);
    let sync = if seed.is_multiple_of(3) { "fdatasync" } else { "auto" };
    let mut server = Setup::new(home.path())
        .data(&mount.point().join("data"))
        .setting("storage.sync", sync)
        .setting("storage.compaction_interval", "100ms")
        .start()
        .await;
    let settings =
        [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01"), ("segment.bytes", "16384")];
    Calls::connect(&server).await.create_topic("t", PARTITIONS, &settings).await;
    let feed = Feed::start(&server.endpoint(), "t", &lines);
    let at = random.random_range(BEFORE..LINES / 2);
    let (segments, more) = (random.random_range(1..8), random.random_range(0..20));
    let switch = mount.switch();
    feed.allow(at + LINES / 4);
    feed.acknowledged_at_least(at).await;
    soon(see_unfinished(server.data(), segments, more)).await;
    let during = !leftovers(server.data()).is_empty();
    switch.cut();
    let passes = server.metric("rimstone_compactions_total").unwrap_or(0.0);
    server.kill();
    let acks = feed.acks();
    assert!(at <= acks.len() && acks.len() < LINES);
    mount.unmount();
    mount.mount();
    let on_device = leftovers(server.data());
    println!(
        "seed {seed}: power cut with {} of {LINES} lines acknowledged, {sync}; {passes} passes had ended, a segment was being \
         compacted: {during}; on the device: {on_device:?}",
        acks.len()
    );

    // First start, on what the device has; nothing new comes yet.
    server = server.start_again().await;
    assert_last_acknowledged(&acks, &lines, &read_all(&server.endpoint(), "t").await);
    let acks = feed.finish().await;
    check(&read_all(&server.endpoint(), "t").await, &lines, &acks, "after the first start");

    // Second start, after a stop or a crash.
    if random.random() {
        server.stop().await;
    } else {
        server.kill();
    }
    server = server.start_again().await;
    check(&read_all(&server.endpoint(), "t").await, &lines, &acks, "after the second start");
    until("everything is compacted", async || (dirtiness(&server).await < 0.01).then_some(())).await;
    check(&read_all(&server.endpoint(), "t").await, &lines, &acks, "compacted");
    check_files(&mut server, "t", PARTITIONS).await;
    mount.unmount();
    (during, !on_device.is_empty())
}

/// Of each key the last acknowledged line is there, or one that was sent after it; each record is a line, where it was
/// acknowledged.
fn assert_last_acknowledged(acks: &[Ack], lines: &[Line], read: &[Read]) {
    let places: HashMap<u64, _> = acks.iter().map(|ack| (ack.number, ack.delivery)).collect();
    let mut newest: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for record in read {
        let line = &lines[record.number as usize - 1];
        assert_eq!((&record.key, &record.value), (&line.key, &line.value));
        assert!(seen.insert(record.number), "line {} twice", record.number);
        if let Some(place) = places.get(&record.number) {
            assert_eq!(record.partition, place.partition.0, "line {}", record.number);
            if let Some(offset) = place.offset {
                assert_eq!(record.offset, offset.get(), "line {} has moved", record.number);
            }
        }
        let number = newest.entry(&line.key).or_default();
        *number = record.number.max(*number);
    }
    let acknowledged = acks.iter().map(|ack| &lines[ack.number as usize - 1]);
    let last: BTreeMap<&str, u64> = acknowledged.map(|line| (line.key.as_str(), line.number)).fold(
        BTreeMap::new(),
        |mut last, (key, number)| {
            let known = last.entry(key).or_insert(number);
            *known = number.max(*known);
            last
        },
    );
    for (key, number) in last {
        let found = newest.get(key).copied();
        assert!(
            found >= Some(number),
            "the last acknowledged value of {key} is line {number}, there is {found:?}"
        );
    }
}
