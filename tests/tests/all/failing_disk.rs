//! A disk that says no: system calls of a running server are made to fail, by `strace`.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use rimstone_client::reason;
use rimstone_tests::{
    calls::{Calls, Refusal, assert_append_refused, to_partition_0},
    server::{Server, Setup},
    skip::skip,
    wait::{soon, until},
};
use tonic::Code;

pub(crate) fn why_not() -> Option<&'static str> {
    let has_strace =
        Command::new("strace").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_strace {
        return Some("strace is not there");
    }
    (!rustix::process::geteuid().is_root()).then_some("tracing needs root")
}

/// Makes system calls of a server fail from now on; it lets go of the server when dropped.
pub(crate) struct Fault(Child);

impl Fault {
    /// `what` as strace's `inject` has it, for example `syncfs:error=EIO`. In force soon after
    /// this returns: strace holds a thread before it looks at its calls.
    pub(crate) async fn begin(server: &Server, what: &str) -> Self {
        Self::begin_with(server, what, &[]).await
    }

    /// The same for calls on one file only.
    pub(crate) async fn begin_on(server: &Server, what: &str, file: &Path) -> Self {
        Self::begin_with(server, what, &["-P".as_ref(), file.as_os_str()]).await
    }

    async fn begin_with(server: &Server, what: &str, more: &[&std::ffi::OsStr]) -> Self {
        let call = what.split(':').next().unwrap();
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &server.pid().to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={what}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tracer = format!("TracerPid:\t{}\n", child.id());
        let threads = format!("/proc/{}/task", server.pid());
        until("strace holds every thread", async || {
            let mut threads = std::fs::read_dir(&threads).unwrap().map(|thread| thread.unwrap().path());
            let held = |thread: std::path::PathBuf| {
                // A thread that has ended in between is none.
                std::fs::read_to_string(thread.join("status")).map_or(true, |status| status.contains(&tracer))
            };
            threads.all(held).then_some(())
        })
        .await;
        Self(child)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // SIGINT lets it detach; SIGKILL would too.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

/// Appends until one is refused: the first may come before the fault is in force. How many were taken.
pub(crate) async fn append_until_refused(calls: &mut Calls, value: &str) -> (u64, Refusal) {
    for taken in 0..1_000 {
        let outcome = calls.append(to_partition_0("t", [value.to_owned()])).await;
        if !matches!(&outcome, Ok(append) if append.error.is_none()) {
            return (taken, Refusal::of_append(outcome));
        }
    }
    panic!("the fault did not come");
}

/// A sync that fails proves nothing about what came before it, and neither does a later one that succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_final_until_the_next_start() {
    if let Some(why) = why_not() {
        return skip("failing_disk", why);
    }
    for (setting, call) in [("auto", "syncfs"), ("fdatasync", "fdatasync")] {
        let home = tempfile::tempdir().unwrap();
        let mut server = Setup::new(home.path()).setting("storage.sync", setting).start().await;
        let method = server.admin().describe_server().await.unwrap().sync_method;
        if method != call {
            println!("{call} is not used on the file system of the temporary directory");
            continue;
        }
        let mut calls = Calls::connect(&server).await;
        calls.create_topic("t", 1, &[]).await;
        calls.append(to_partition_0("t", ["before"])).await.unwrap();

        let fault = Fault::begin(&server, &format!("{call}:error=EIO")).await;
        let (taken, unknown) = append_until_refused(&mut calls, "sent").await;
        assert_eq!((unknown.code, unknown.reason.as_str()), (Code::Unavailable, reason::APPEND_UNKNOWN));
        drop(fault);
        // The disk is fine again, and that changes nothing.
        for _ in 0..3 {
            let after = calls.append(to_partition_0("t", ["after"])).await;
            assert_append_refused(after, Code::Unavailable, reason::PARTITION_POISONED);
        }
        // Nobody sees what is in doubt; what was acknowledged is read as before.
        let acknowledged = 1 + taken;
        let read = calls.fetch("t", 0).await.unwrap();
        assert_eq!(read.next_offset, acknowledged);
        assert_eq!(read.ends.unwrap().high_watermark, acknowledged);
        assert_eq!(server.metric("rimstone_healthy"), Some(0.0));
        assert_eq!(
            server.metric("rimstone_sync_failures_total"),
            Some(1.0),
            "a failed sync is not tried again"
        );
        assert_eq!(server.page("/livez").map(|(status, _)| status), Some(200));
        // Whoever looks is told, and by name.
        let (status, issue) = server.page("/readyz").unwrap();
        assert!(status == 503 && issue.contains(call), "{status}: {issue}");
        assert_eq!(server.metric("rimstone_poisoned"), Some(1.0));
        assert_eq!(server.metric("rimstone_partition_poisoned"), Some(1.0));
        let state = server.admin().describe_topic("t").await.unwrap().partitions.remove(0).state;
        assert!(state.starts_with("poisoned: ") && state.contains(call), "{state}");
        let health = server.admin().describe_server().await.unwrap().health;
        assert!(health.contains("refused") && health.contains(call), "{health}");
        server.kill();

        let server = server.start_again().await;
        let mut calls = Calls::connect(&server).await;
        let read = calls.fetch("t", 0).await.unwrap();
        assert_eq!(read.records[0].value.as_deref(), Some(&b"before"[..]));
        let next = calls.append(to_partition_0("t", ["after"])).await.unwrap().base_offset.unwrap();
        let there = next.checked_sub(acknowledged).expect("what was acknowledged is there");
        assert!(there <= 1, "in doubt means there or not: {there}");
        assert_eq!(server.metric("rimstone_healthy"), Some(1.0));
        assert_eq!(server.metric("rimstone_partition_poisoned"), Some(0.0));
        println!("{call}: what was in doubt is {}", if there == 1 { "there" } else { "not there" });
    }
}

/// A write that fails did not happen: its place is free, and the next one takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_is_rolled_back_and_the_next_goes_on() {
    if let Some(why) = why_not() {
        return skip("failing_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    let mut server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let mut end = 0;
    for (error, code, reason) in [
        ("EIO", Code::Unavailable, reason::APPEND_UNDONE),
        ("ENOSPC", Code::ResourceExhausted, reason::DISK_FULL),
    ] {
        let fault = Fault::begin(&server, &format!("pwritev:error={error}")).await;
        let (taken, refusal) = append_until_refused(&mut calls, "sent").await;
        assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{error}");
        drop(fault);
        let next = calls.append(to_partition_0("t", ["after"])).await.unwrap();
        end += taken;
        assert_eq!(next.base_offset, Some(end), "{error}");
        end += 1;
    }
    assert_eq!(server.metric("rimstone_partition_poisoned"), Some(0.0));
    server.kill();
    let server = server.start_again().await;
    let read = Calls::connect(&server).await.fetch("t", 0).await.unwrap();
    assert_eq!((read.next_offset, read.error), (end, None));
    let after = read.records.iter().filter(|record| record.value.as_deref() == Some(b"after")).count();
    assert_eq!((after, read.records.len() as u64), (2, end));
}

/// A slow disk is waited for, not given up; what is not durable is not read meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_sync_delays_only_those_who_wait_for_it() {
    if let Some(why) = why_not() {
        return skip("failing_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[]).await;
    let method = server.admin().describe_server().await.unwrap().sync_method;
    let fault = Fault::begin(&server, &format!("{method}:delay_enter=1500000")).await;
    let mut acknowledged = 0;
    let slow = loop {
        let mut writer = calls.clone();
        let writing = tokio::spawn(async move { writer.append(to_partition_0("t", ["sent"])).await });
        let is_slow = until("the append is on its way, or done", async || {
            let waits = server.metric("rimstone_partition_undurable_bytes")? > 0.0;
            (waits || writing.is_finished()).then_some(waits)
        })
        .await;
        if is_slow && !writing.is_finished() {
            break writing;
        }
        assert_eq!(soon(writing).await.unwrap().unwrap().base_offset, Some(acknowledged));
        acknowledged += 1;
    };
    let read = calls.fetch("t", 0).await.unwrap();
    let still_slow = !slow.is_finished();
    assert!(!still_slow || read.next_offset == acknowledged, "what is not durable was read");
    assert_eq!(soon(slow).await.unwrap().unwrap().base_offset, Some(acknowledged));
    assert_eq!(calls.fetch("t", acknowledged).await.unwrap().records.len(), 1);
    drop(fault);
}

/// Takes the segment files of all topics out of the page cache, so that reading comes to the disk.
fn evict_segments(data: &Path) {
    let mut folders = vec![data.join("topics")];
    let mut evicted = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|suffix| suffix == "log") {
                let file = std::fs::File::open(path).unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                evicted += 1;
            }
        }
    }
    assert!(evicted > 5, "{evicted} segment files");
}

/// What the disk cannot read is named as lost, with its range; the partition goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_sector_is_named_and_costs_no_more_than_its_range() {
    if let Some(why) = why_not() {
        return skip("failing_disk", why);
    }
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let mut calls = Calls::connect(&server).await;
    calls.create_topic("t", 1, &[("segment.bytes", "4096")]).await;
    const RECORDS: u64 = 60;
    for number in 0..RECORDS {
        calls.append(to_partition_0("t", [format!("{number:01000}")])).await.unwrap();
    }
    evict_segments(server.data());
    let fault = Fault::begin(&server, "pread64:error=EIO").await;
    let mut at = 0;
    let lost = loop {
        let read = calls.fetch("t", at).await.unwrap();
        if let Some(error) = read.error {
            break error;
        }
        // Before the fault was in force; the next is in a segment that nobody has read yet.
        at = read.next_offset;
        assert!(at < RECORDS, "the fault did not come");
    };
    drop(fault);
    assert_eq!((lost.code, lost.reason.as_str()), (Code::DataLoss as i32, reason::DATA_DAMAGED));
    println!("{at}: {lost:?}");
    let again = calls.fetch("t", at).await.unwrap();
    assert_eq!(again.error, None);
    assert_eq!(again.records[0].value.as_deref(), Some(format!("{at:01000}").as_bytes()));
    let next = calls.append(to_partition_0("t", ["after"])).await.unwrap();
    assert_eq!(next.base_offset, Some(RECORDS));
}
