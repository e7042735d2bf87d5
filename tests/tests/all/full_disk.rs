//! A full disk: refused by name, read all the same, and written again as soon as space returns.

use std::{fs, path::Path};

use rimstone_proto::v1;
use rimstone_tests::{
    calls::{Calls, Refusal, to_partition_0},
    mount::Mount,
    server::Setup,
    skip::{skip, why_no_mounts},
    wait::{soon, until},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const MEBIBYTES: u64 = 32;

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_that_is_full_heals_by_itself() {
    if let Some(why) = why_no_mounts() {
        return skip("full_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    fills_and_heals(Mount::ext4(home.path(), MEBIBYTES), home.path(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tmpfs_that_is_full_heals_by_itself() {
    if let Some(why) = why_no_mounts() {
        return skip("full_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    fills_and_heals(Mount::tmpfs(home.path(), MEBIBYTES), home.path(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_is_kept() {
    if let Some(why) = why_no_mounts() {
        return skip("full_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    let mount = Mount::tmpfs(home.path(), MEBIBYTES);
    fills_and_heals(mount, home.path(), 8 << 20).await;
}

async fn fills_and_heals(mut mount: Mount, home: &Path, reserve: u64) {
    let ballast = mount.point().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let setup = Setup::new(home)
        .data(&mount.point().join("data"))
        .setting("storage.disk_reserve", &format!("{reserve} B"));
    let mut server = setup.start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", "4194304")]).await;
    let value = |number: u64| {
        let mut bytes = number.to_string().into_bytes();
        bytes.resize(200_000, b'.');
        bytes
    };
    let mut stored = 0;
    let refusal = loop {
        assert!(stored < MEBIBYTES * 10, "the disk does not fill up");
        match calls.append(to_partition_0("t", [value(stored)])).await {
            Ok(v1::PartitionAppend { error: None, base_offset, .. }) => {
                assert_eq!(base_offset, Some(stored));
                stored += 1;
            }
            refused => break told(refused),
        }
    };
    println!("{stored} records until full: {refusal:?}");
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "DISK_FULL"));
    assert!(stored > 20);
    if reserve > 0 {
        let state = rustix::fs::statvfs(mount.point()).unwrap();
        let free = state.f_bavail * state.f_frsize;
        assert!(free + (1 << 20) > reserve, "{free} bytes are left of a reserve of {reserve}");
    }
    // Again the same, as often as one asks; nothing breaks, nothing is poisoned.
    for _ in 0..5 {
        let refusal = told(calls.append(to_partition_0("t", [value(stored)])).await);
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "DISK_FULL"));
    }
    if reserve > 0 {
        // Somebody else takes of the reserve: what groups write goes on living out of the rest.
        fs::write(mount.point().join("more"), vec![1; 4 << 20]).unwrap();
        let says_so = async || (server.metric("rimstone_healthy") == Some(0.0)).then_some(());
        until("the server sees free space below the reserve", says_so).await;
        for committed in [1, stored] {
            commit(&mut calls, committed).await;
            assert_eq!(calls.committed("g", "t").await.unwrap(), [(0, committed)].into());
        }
        fs::remove_file(mount.point().join("more")).unwrap();
    }
    // Reading goes on, alive is alive.
    for offset in [0, stored / 2, stored - 1] {
        let read = calls.fetch("t", offset).await.unwrap();
        assert_eq!(read.records[0].value.as_deref(), Some(&value(offset)[..]));
    }
    assert_eq!(server.page("/livez").map(|(status, _)| status), Some(200));
    assert_eq!(server.metric("rimstone_partition_poisoned"), Some(0.0));

    fs::remove_file(&ballast).unwrap();
    let append = until("the server takes records again", async || {
        let outcome = calls.append(to_partition_0("t", [value(stored)])).await;
        outcome.ok().filter(|append| append.error.is_none())
    })
    .await;
    assert_eq!(append.base_offset, Some(stored), "what was refused has left nothing behind");
    stored += 1;
    let read_back = async |calls: &mut Calls| {
        for offset in 0..stored {
            let read = calls.fetch("t", offset).await.unwrap();
            assert_eq!(read.error, None);
            assert_eq!(read.records[0].offset, offset);
            assert!(read.records[0].value.as_deref() == Some(&value(offset)[..]), "offset {offset}");
        }
    };
    read_back(&mut calls).await;
    server.kill();
    let mut server = server.start_again().await;
    let mut calls = Calls::connect(&server).await;
    read_back(&mut calls).await;
    let append = calls.append(to_partition_0("t", ["last"])).await.unwrap();
    assert_eq!(append.base_offset, Some(stored));
    server.stop().await;
    mount.unmount();
}

/// The group `g` commits in the only partition of `t`, from outside.
async fn commit(calls: &mut Calls, offset: u64) {
    let commit = v1::OffsetCommit { topic: "t".to_owned(), offset: Some(offset), ..Default::default() };
    let request =
        v1::CommitOffsetsRequest { group: "g".to_owned(), offsets: vec![commit], ..Default::default() };
    let answer = soon(calls.groups.commit_offsets(request)).await.unwrap().into_inner();
    assert_eq!(answer.results[0].error, None);
}

/// The refusal, which must say when to come again.
fn told(outcome: Result<v1::PartitionAppend, Status>) -> Refusal {
    match &outcome {
        Err(status) => assert!(status.get_details_retry_info().is_some(), "{status:?}"),
        Ok(append) => {
            let delay = append.error.as_ref().map_or(0, |error| error.retry_delay_ms);
            assert!(delay > 0, "{append:?}");
        }
    }
    Refusal::of_append(outcome)
}
