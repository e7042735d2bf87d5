//! The power is cut during a produce: an ext4 on a loop device takes nothing more, not even its journal; then
//! it is unmounted and mounted again, and the server starts on what was really on the device. Twice, with an
//! append in between, since some mistakes show only on the second start.
//!
//! `RIMSTONE_POWER_CUTS` sets the number of rounds, `RIMSTONE_SEED` runs one seed alone.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Write as _,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_tests::{
    calls::{Calls, to_partition_0},
    feed::{Feed, assert_kept},
    history::{Read, assert_exactly, assert_in_order, read_all},
    input::{Line, made_up},
    mount::Mount,
    server::Setup,
    skip::{skip, why_no_mounts},
};

use crate::failing_disk::{self, Fault, append_until_refused};

/// Enough for CI; `just power-cut 50` runs more.
pub(crate) const ROUNDS: u64 = 3;
const LINES: usize = 6_000;
/// Lines that may be on their way when the power is cut.
const AHEAD: usize = 1_000;
pub(crate) const IMAGE_MEBIBYTES: u64 = 96;

pub(crate) fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

/// The cut is a real one: what nobody synced is gone.
#[test]
fn a_power_cut_takes_what_was_not_synced() {
    if let Some(why) = why_no_mounts() {
        return skip("power_cut", why);
    }
    let home = tempfile::tempdir().unwrap();
    let mut mount = Mount::ext4(home.path(), IMAGE_MEBIBYTES);
    let (synced, cached) = (mount.point().join("synced"), mount.point().join("cached"));
    let mut file = File::create(&synced).unwrap();
    file.write_all(&[1; 4096]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let switch = mount.switch();
    fs::write(&cached, [2; 4096]).unwrap();
    switch.cut();
    assert!(fs::write(mount.point().join("later"), "x").is_err(), "nothing can be written any more");
    mount.unmount();
    mount.mount();
    assert_eq!(fs::read(&synced).unwrap(), [1; 4096]);
    let survived = fs::read(&cached).unwrap_or_default();
    assert_ne!(survived, [2; 4096], "the file system wrote this by itself, or the cut is none");
    mount.unmount();
}

/// After a failed sync and a kill the page cache has bytes that pass every check and are not on the device. What
/// the next start serves of them must survive a power cut right after that start.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_serves_is_on_the_device_even_after_a_failed_sync() {
    if let Some(why) = why_no_mounts().or_else(failing_disk::why_not) {
        return skip("power_cut", why);
    }
    let home = tempfile::tempdir().unwrap();
    let mut mount = Mount::ext4(home.path(), IMAGE_MEBIBYTES);
    let mut server = Setup::new(home.path()).data(&mount.point().join("data")).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let fault = Fault::begin(&server, "syncfs:error=EIO").await;
    let (acknowledged, refusal) = append_until_refused(&mut calls, "sent").await;
    assert_eq!(refusal.reason, "APPEND_UNKNOWN");
    server.kill();
    drop(fault);
    let switch = mount.switch();
    server = server.start_again().await;
    let served = Calls::connect(&server).await.fetch("t", 0).await.unwrap();
    switch.cut();
    server.kill();
    mount.unmount();
    mount.mount();
    println!("{acknowledged} acknowledged, {} served by the next start", served.next_offset);
    assert!(served.next_offset > acknowledged, "what was in doubt was in the page cache, and is kept");
    server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    let now = calls.fetch("t", 0).await.unwrap();
    assert_eq!((now.records, now.error), (served.records, None), "what was served is gone");
    let next = calls.append(to_partition_0("t", ["next"])).await.unwrap();
    assert_eq!(next.base_offset, Some(served.next_offset));
    server.stop().await;
    mount.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_takes_nothing_back_that_was_acknowledged() {
    if let Some(why) = why_no_mounts() {
        return skip("power_cut", why);
    }
    if let Some(seed) = number("RIMSTONE_SEED") {
        round(seed).await;
        return;
    }
    let first: u64 = rand::rng().random_range(0..1 << 32);
    let rounds = number("RIMSTONE_POWER_CUTS").unwrap_or(ROUNDS);
    let mut lost_of_written = 0;
    for seed in first..first + rounds {
        lost_of_written += round(seed).await;
    }
    println!(
        "{rounds} power cuts; of the topics that are only written, {lost_of_written} lines were taken back"
    );
}

/// One power cut. How many lines a topic lost that asked for no more than `written`.
async fn round(seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    let mut mount = Mount::ext4(home.path(), IMAGE_MEBIBYTES);
    let lines = made_up(LINES as u64, seed);
    // Two cuts of three with the one sync for all, which is what needs the proof.
    let (setting, method) =
        if seed.is_multiple_of(3) { ("fdatasync", "fdatasync") } else { ("auto", "syncfs") };
    let setup = Setup::new(home.path()).data(&mount.point().join("data")).setting("storage.sync", setting);
    let mut server = setup.start().await;
    let sync = server.admin().describe_server().await.unwrap().sync_method;
    assert_eq!(sync, method, "what this test is about");
    let mut calls = Calls::connect(&server).await;
    let partitions = random.random_range(1..=12);
    let segment_bytes = if random.random() { "16384" } else { "134217728" };
    let small = [("segment.bytes", segment_bytes)];
    calls.create_topic("lines", partitions, &small).await;
    calls.create_topic("written", 2, &[("rimstone.ack", "written")]).await;

    let feed = Feed::start(&server.endpoint(), "lines", &lines);
    let written = Feed::start(&server.endpoint(), "written", &lines);
    let at = random.random_range(1..LINES - AHEAD);
    let switch = mount.switch();
    feed.allow(at + AHEAD);
    written.allow(at + AHEAD);
    feed.acknowledged_at_least(at).await;
    // Somewhere within a group: a moment that no event marks.
    let moment = Instant::now() + Duration::from_micros(random.random_range(0..3_000));
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    let (at_cut, sent) = (feed.acknowledged(), feed.sent());
    switch.cut();
    server.kill();
    // Whatever was acknowledged until the process was gone counts, the time after the cut included.
    let acks = feed.acks();
    let written_acks = written.acks();
    println!(
        "seed {seed}: power cut with {at_cut} of {LINES} lines acknowledged ({} when the server was gone) and \
         {sent} sent, {method}, {partitions} partitions, segments of {segment_bytes} bytes",
        acks.len()
    );
    assert!(0 < at_cut && acks.len() < LINES);
    mount.unmount();
    mount.mount();

    // First start, on what the device has. The producers wait, they may not send anything new yet.
    server = server.start_again().await;
    let records = read_all(&server.endpoint(), "lines").await;
    assert_kept(&acks, &records);
    assert_in_order(&records);
    assert_true(&records, &lines);
    let acks = feed.finish().await;
    let records = read_all(&server.endpoint(), "lines").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);

    // Second start, after a stop or a crash.
    if random.random() {
        server.stop().await;
    } else {
        server.kill();
    }
    server = server.start_again().await;
    let records = read_all(&server.endpoint(), "lines").await;
    assert_exactly(&records, &lines);
    assert_kept(&acks, &records);

    // What was only written may be gone from some point on; what is there is in order and true.
    let survived = read_all(&server.endpoint(), "written").await;
    assert_in_order(&survived);
    assert_true(&survived, &lines);
    drop(written);
    server.stop().await;
    mount.unmount();
    let survived: HashSet<_> = survived.iter().map(|record| record.number).collect();
    written_acks.iter().filter(|ack| !survived.contains(&ack.number)).count()
}

/// Asserts that each record is a line, none twice.
fn assert_true(records: &[Read], lines: &[Line]) {
    let mut numbers: Vec<_> = records.iter().map(|record| record.number).collect();
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "a line is there twice");
    for record in records {
        let line = &lines[usize::try_from(record.number).unwrap() - 1];
        assert_eq!((&record.key, &record.value), (&line.key, &line.value), "line {}", line.number);
    }
}
