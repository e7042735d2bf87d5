//! Rot on the disk: found by the scrub, named everywhere, given up on purpose and by name, and never again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rimstone_client::reason;
use rimstone_proto::v1;
use rimstone_tests::{
    calls::{Calls, to_partition_0},
    command::{Ran, command, run, succeed},
    server::{Server, Setup},
    wait::until,
};
use serde_json::Value;
use tonic::Code;

use crate::format::{by_python, has_python};

const RECORDS: u64 = 40;

fn value(number: u64) -> String {
    format!("{number:0900}")
}

/// The folder of partition 0 of topic `t`.
pub(crate) async fn folder(server: &Server) -> PathBuf {
    let id = server.admin().describe_topic("t").await.unwrap().summary.id;
    server.data().join("topics").join(id).join("0")
}

/// Flips a bit in the value of a record.
fn rot(folder: &Path, number: u64) {
    let wanted = value(number);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|suffix| suffix != "log") {
            continue;
        }
        let mut content = fs::read(&path).unwrap();
        let found = content.windows(wanted.len()).position(|window| window == wanted.as_bytes());
        if let Some(at) = found {
            content[at + 400] ^= 4;
            // In place, as a disk rots: the server goes on with the same file.
            let file = fs::File::options().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &content[at + 400..=at + 400], at as u64 + 400)
                .unwrap();
            return;
        }
    }
    panic!("record {number} is in no segment");
}

/// Every record once, or the named loss in its place; the ranges that were named.
async fn read_all(calls: &mut Calls, there: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
    let (mut at, mut named, mut seen) = (0, Vec::new(), Vec::new());
    while at < RECORDS {
        let read = calls.fetch("t", at).await.unwrap();
        if let Some(error) = read.error {
            assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss as i32, reason::DATA_DAMAGED));
            let number = |key: &str| error.metadata[key].parse::<u64>().unwrap();
            assert_eq!(number("from_offset"), at, "{error:?}");
            named.push((at, number("until_offset")));
            at = number("until_offset");
            continue;
        }
        for record in read.records.iter().filter(|record| record.offset < RECORDS) {
            assert_eq!(record.value.as_deref(), Some(value(record.offset).as_bytes()));
            seen.push(record.offset);
        }
        assert!(read.next_offset > at);
        at = read.next_offset;
    }
    assert_eq!(seen, (0..RECORDS).filter(|number| there(*number)).collect::<Vec<_>>());
    named
}

async fn accept_loss(server: &Server, ranges: &[&str]) -> Ran {
    let endpoint = server.endpoint();
    let mut line = vec!["topic", "accept-loss", "t", "--partition", "0", "--server", &endpoint];
    line.extend(ranges.iter().flat_map(|range| ["--range", range]));
    run(command(line)).await
}

async fn verified(server: &Server) -> Ran {
    let data = server.data().display().to_string();
    run(command(["inspect", "--data", &data, "--verify"])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_is_found_named_and_given_up_by_name() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path()).setting("storage.scrub_interval", "100ms");
    let mut server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", "4096")]).await;
    for number in 0..RECORDS {
        calls.append(to_partition_0("t", [value(number)])).await.unwrap();
    }
    until("a pass of the scrub ended", async || {
        server.metric("rimstone_scrub_passes_total").filter(|passes| *passes >= 1.0)
    })
    .await;
    assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(0.0));
    let folder = folder(&server).await;
    for number in [5, 20] {
        rot(&folder, number);
    }

    // Nobody reads: the scrub finds it.
    until("the scrub finds the rot", async || {
        (server.metric("rimstone_partition_damaged_ranges") == Some(2.0)).then_some(())
    })
    .await;
    assert_eq!(server.metric("rimstone_damaged_ranges_total"), Some(2.0));
    until("the scrub has read what there is", async || {
        server.metric("rimstone_scrub_bytes_total").filter(|bytes| *bytes > 30_000.0)
    })
    .await;
    assert!(server.metric("rimstone_scrub_last_pass_timestamp_seconds") > Some(1e9));
    let described = server.admin().describe_topic("t").await.unwrap();
    let damaged: Vec<_> =
        described.partitions[0].damaged.iter().map(|range| (range.from.get(), range.until.get())).collect();
    assert_eq!(damaged, [(5, 6), (20, 21)]);
    let endpoint = server.endpoint();
    let told = succeed(["topic", "describe", "t", "--server", &endpoint]).await;
    assert!(told.contains("offsets 5..6 are DAMAGED"), "{told}");
    assert!(server.output().contains("acknowledged data is damaged"));
    let health = server.admin().describe_server().await.unwrap().health;
    assert!(health.contains("damaged"), "{health}");
    assert_eq!(server.page("/readyz").map(|(status, _)| status), Some(200), "everything else is served");

    // Readers go on behind it, writers go on, and what is found twice is counted once.
    let there = |number| ![5, 20].contains(&number);
    assert_eq!(read_all(&mut calls, there).await, [(5, 6), (20, 21)]);
    calls.append(to_partition_0("t", ["after"])).await.unwrap();
    assert_eq!(server.metric("rimstone_damaged_ranges_total"), Some(2.0));
    let ran = verified(&server).await;
    assert_eq!(ran.status.code(), Some(6), "{ran:?}");
    assert!(ran.stdout.contains("DAMAGED") && ran.stdout.contains("offsets 5 to 5"), "{ran:?}");

    // Looking changes nothing, and says how to go on; what is not exactly so is refused.
    let shown = accept_loss(&server, &[]).await;
    assert!(shown.status.success(), "{shown:?}");
    assert!(shown.stdout.contains("accept-loss t --partition 0 --range 5..6 --range 20..21"), "{shown:?}");
    for wrong in [&["5..7"][..], &["4..6"], &["0..1"], &["5..6", "20..22"]] {
        let refused = accept_loss(&server, wrong).await;
        assert_eq!(refused.status.code(), Some(1), "{wrong:?}: {refused:?}");
    }
    assert_eq!(accept_loss(&server, &["6..5"]).await.status.code(), Some(2));
    assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(2.0));
    let done = accept_loss(&server, &["5..6", "20..21"]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(0.0));
    assert_eq!(server.metric("rimstone_partition_accepted_losses"), Some(2.0));
    assert_eq!(read_all(&mut calls, there).await, []);

    // And so it stays, killed and stopped, with appends in between.
    for killed in [true, false, true] {
        if killed {
            server.kill();
        } else {
            server.stop().await;
        }
        server = server.start_again().await;
        calls = Calls::connect(&server).await;
        assert_eq!(read_all(&mut calls, there).await, []);
        assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(0.0));
        let described = server.admin().describe_topic("t").await.unwrap();
        let accepted = &described.partitions[0].accepted_losses;
        let ranges: Vec<_> = accepted.iter().map(|loss| (loss.from.get(), loss.until.get())).collect();
        assert_eq!(ranges, [(5, 6), (20, 21)]);
        assert!(accepted.iter().all(|loss| Path::new(&loss.kept_in).is_file()));
        calls.append(to_partition_0("t", ["again"])).await.unwrap();
    }
    server.stop().await;
    let ran = verified(&server).await;
    assert!(ran.status.success(), "{ran:?}");
    assert!(ran.stderr.contains("offsets 5..6 were given up"), "{ran:?}");
    if has_python() {
        let id = folder.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let (records, remarks, _) = by_python(server.data(), &id, 0).await;
        let offsets: Vec<_> = records.iter().filter_map(|record| record["offset"].as_u64()).collect();
        assert_eq!(offsets, (0..RECORDS + 4).filter(|number| there(*number)).collect::<Vec<_>>());
        let given_up: Vec<&Value> =
            remarks.iter().filter(|remark| remark.get("given_up").is_some()).collect();
        assert_eq!(given_up.len(), 2, "{remarks:?}");
    }
}

/// A reader who asks for a time is not led behind what is damaged; whoever is not concerned is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_leads_to_rot_is_told_as_a_read_is() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 2, &[]).await;
    for number in 0..10 {
        let mut request = to_partition_0("t", [value(number)]);
        request.records[0].create_time_ms = Some(1_000 * number as i64);
        calls.append(request).await.unwrap();
    }
    rot(&folder(&server).await, 5);
    let mut at = async |time| {
        let request = v1::ListOffsetsRequest {
            topic: "t".to_owned(),
            at: Some(v1::list_offsets_request::At::TimeMs(time)),
            ..Default::default()
        };
        let found = calls.admin.list_offsets(request).await.unwrap().into_inner().offsets;
        assert!(found[1].error.is_none() && found[1].offset.is_none(), "{found:?}");
        found.into_iter().next().unwrap()
    };
    assert_eq!(at(4_000).await.offset, Some(4));
    let refused = at(4_500).await;
    let error = refused.error.expect("record 5 would be the answer");
    assert_eq!((error.code, error.reason.as_str()), (Code::DataLoss as i32, reason::DATA_DAMAGED));
    assert_eq!((error.metadata["from_offset"].as_str(), error.metadata["until_offset"].as_str()), ("5", "6"));
    assert_eq!(at(5_500).await.offset, Some(6), "the header of what is damaged says that it is earlier");
    assert_eq!(server.metric("rimstone_damaged_ranges_total"), Some(1.0), "who met it has named it");

    let endpoint = server.endpoint();
    for line in [
        &["offsets", "t", "--at", "1970-01-01T00:00:04.5Z", "--server", &endpoint][..],
        &["consume", "t", "--from", "1970-01-01T00:00:04.5Z", "--server", &endpoint],
    ] {
        let refused = run(command(line.iter().copied())).await;
        assert!(!refused.status.success(), "{refused:?}");
        assert!(refused.stderr.contains("offsets 5 to 6 are damaged"), "{refused:?}");
    }
}

/// More damaged ranges in one segment than are listed one by one: one line, one command, and nothing sound is lost.
#[tokio::test(flavor = "multi_thread")]
async fn many_ranges_of_a_segment_are_shown_and_given_up_as_one() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    for number in 0..250 {
        calls.append(to_partition_0("t", [value(number)])).await.unwrap();
    }
    let folder = folder(&server).await;
    let lost: Vec<u64> = (2..=240).step_by(2).collect();
    for number in &lost {
        rot(&folder, *number);
    }
    let met = calls.fetch("t", 2).await.unwrap().error.expect("2 is damaged");
    assert_eq!(met.reason, reason::DATA_DAMAGED);

    let shown = accept_loss(&server, &[]).await;
    assert!(shown.stdout.contains("120 in 120 ranges"), "{shown:?}");
    assert!(shown.stdout.contains("accept-loss t --partition 0 --range 2..241\n"), "{shown:?}");
    assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(120.0));
    let endpoint = server.endpoint();
    let told = succeed(["topic", "describe", "t", "--server", &endpoint]).await;
    assert!(told.contains("120 offsets among 2..241, in 120 ranges, are DAMAGED"), "{told}");
    let refused = accept_loss(&server, &["2..240"]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("and 112 more") && refused.stderr.len() < 6_000, "{refused:?}");

    let done = accept_loss(&server, &["2..241"]).await;
    assert!(done.status.success() && done.stdout.contains("gave up 120 offsets"), "{done:?}");
    assert_eq!(server.metric("rimstone_partition_damaged_ranges"), Some(0.0));
    let told = succeed(["topic", "describe", "t", "--server", &endpoint]).await;
    assert!(told.contains("120 offsets among 2..241 were given up"), "{told}");
    let (mut at, mut seen) = (0, Vec::new());
    while at < 250 {
        let read = calls.fetch("t", at).await.unwrap();
        assert!(read.error.is_none(), "{:?}", read.error);
        seen.extend(read.records.iter().map(|record| record.offset));
        at = read.next_offset;
    }
    assert_eq!(seen, (0..250).filter(|number| !lost.contains(number)).collect::<Vec<_>>());
}
