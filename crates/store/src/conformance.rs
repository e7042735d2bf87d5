//! What every store must do, whatever lies behind it: one suite of functions that run on any [`Storage`].
//!
//! A store gives a [`Harness`], and [`conformance_suite!`](crate::conformance_suite) makes a test of each
//! function. Nothing here waits for a time; what must come is awaited with a deadline.
//!
//! Not here: what only one store can do (crashes, full disks, damaged files).

mod appends;
mod compaction;
mod lifecycle;
mod lookups;
mod producers;
mod reads;
mod retention;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, Limits, NewRecord, ProducerStamp, Record};
use rimstone_types::{
    ByteCount, Numbering, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId,
};
use uuid::Uuid;

use crate::{
    Append, AppendError, AppendTicket, Appended, Batches, OpenMode, PartitionConfig, PartitionStore,
    ReadLimit, Storage, Visibility,
};

pub use self::{appends::*, compaction::*, lifecycle::*, lookups::*, producers::*, reads::*, retention::*};

/// A store under test.
pub trait Harness: Sized {
    /// A new, empty store.
    fn create() -> impl Future<Output = Self>;

    /// The store, open.
    fn storage(&self) -> Arc<dyn Storage>;

    /// Closes the store cleanly and opens it again.
    fn reopen(self) -> impl Future<Output = Self>;
}

/// Makes a test of each function of the suite, for one harness.
#[macro_export]
macro_rules! conformance_suite {
    ($harness:ty) => {
        $crate::conformance_suite! { $harness:
            // Appends.
            appends_are_read_back_as_they_were
            offsets_follow_the_order_of_submits
            writers_at_once_lose_nothing
            append_times_never_decrease
            the_expected_end_is_met_or_told
            a_duplicate_is_told_before_the_expected_end
            append_time_topics_are_restamped
            // Reads.
            reads_keep_to_their_limits
            reads_begin_with_the_batch_that_holds_the_offset
            reads_outside_the_log_are_refused
            what_is_acknowledged_is_seen_and_nothing_else
            a_waiter_is_woken_by_any_of_its_partitions
            a_time_finds_the_first_record_at_or_after_it
            on_append_time_topics_the_append_time_is_found
            the_highest_time_is_found
            records_are_counted
            append_times_are_known_by_offset
            what_is_no_record_is_not_counted
            gaps_within_batches_are_not_counted
            look_ups_agree_with_a_scan_of_all_records
            // Producers.
            dense_numbering_by_the_rules
            duplicates_in_flight_are_recognised
            gaps_in_flight_are_refused
            sequences_wrap
            without_a_name_a_higher_epoch_begins_at_zero
            with_a_name_numbering_goes_on
            a_fence_holds_everywhere_at_once
            numbering_by_request_by_the_rules
            numberings_are_not_mixed
            the_window_holds_what_is_promised
            producers_resume_after_a_restart
            producers_are_shown_and_forgotten
            producers_outlive_their_records
            idle_producers_without_a_name_expire
            a_clock_that_jumps_forgets_no_producer
            // Retention.
            trimming_moves_the_log_start
            retention_by_size_keeps_the_limit
            retention_by_age_takes_whole_segments
            a_clock_that_jumps_empties_no_log
            bytes_in_a_readers_hands_outlive_retention
            // Compaction.
            the_last_record_of_each_key_stays
            compaction_waits_until_it_is_due
            tombstones_have_their_time
            numbers_survive_compaction
            both_policies_do_both
            readers_go_on_through_a_compaction
            // Lifecycle.
            partitions_are_made_once_and_must_exist
            a_restart_changes_nothing
            partitions_are_separate
            deleted_topics_are_gone
            a_closed_store_takes_nothing
            a_partition_tells_of_itself
        }
    };
    ($harness:ty: $($test:ident)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                $crate::conformance::$test::<$harness>().await;
            }
        )*
    };
}

/// When the tests take place.
const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// How long anything that must happen may take: far more than it does, so that only a store that hangs fails.
const DEADLINE: Duration = Duration::from_secs(120);

/// A producer without a name, and one with.
const UNNAMED: u64 = 7;
const NAMED: u64 = ProducerId::NAMED_BIT | 7;

fn id(topic: u128, partition: u32) -> PartitionId {
    PartitionId { topic: TopicId(Uuid::from_u128(0x7e57_0000 + topic)), partition: PartitionIndex(partition) }
}

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("tests use small offsets")
}

fn producer(value: u64) -> ProducerId {
    ProducerId::new(value).expect("tests use small ids")
}

fn epoch(value: u64) -> ProducerEpoch {
    ProducerEpoch::new(value).expect("tests use small epochs")
}

/// What must happen, with a deadline.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

fn stamp(id: u64, epoch_number: u64, base: u32, numbering: Numbering) -> ProducerStamp {
    ProducerStamp { id: producer(id), epoch: epoch(epoch_number), base, numbering }
}

fn dense(id: u64, epoch: u64, base: u32) -> Option<ProducerStamp> {
    Some(stamp(id, epoch, base, Numbering::Dense))
}

fn request(id: u64, epoch: u64, number: u32) -> Option<ProducerStamp> {
    Some(stamp(id, epoch, number, Numbering::ByRequest))
}

/// A batch of records with the given times; the values tell which is which.
fn timed(producer: Option<ProducerStamp>, tag: &str, times: &[i64]) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some(stamp) = producer {
        builder = builder.producer(stamp);
    }
    for (index, time) in times.iter().enumerate() {
        let record = NewRecord {
            key: Some(Bytes::from(format!("key-{index}"))),
            value: Some(Bytes::from(format!("{tag}-{index}"))),
            headers: Vec::new(),
            timestamp: Timestamp(*time),
        };
        builder.push(&record).expect("a small record fits");
    }
    builder.build()
}

fn batch(producer: Option<ProducerStamp>, tag: &str, count: usize) -> Batch {
    timed(producer, tag, &vec![NOW.as_millis(); count])
}

/// A batch of about so many bytes, whose record has the given time.
fn heavy(bytes: usize, time: i64) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = Some(Bytes::from(vec![b'x'; bytes.saturating_sub(80)]));
    let record = NewRecord { value, timestamp: Timestamp(time), ..NewRecord::default() };
    builder.push(&record).expect("a small record fits");
    builder.build()
}

fn records(batch: &Batch) -> Vec<Record> {
    let records = batch.records(&Limits::default()).expect("a batch that was stored can be decoded");
    records.map(|record| record.expect("a record that was stored can be decoded")).collect()
}

fn append(batch: Batch) -> Append {
    let by_request = batch.header().producer.is_some_and(|stamp| stamp.numbering == Numbering::ByRequest);
    let content_hash =
        by_request.then(|| batch.content_hash(&Limits::default()).expect("the records were just built"));
    Append { batch, expected_end: None, content_hash, now: NOW }
}

fn read_limit() -> ReadLimit {
    ReadLimit { bytes: ByteCount::mib(64), until: None, visibility: Visibility::Stable }
}

/// A partition with what the tests do to it.
#[derive(Clone)]
struct Partition(Arc<dyn PartitionStore>);

impl Partition {
    async fn create<H: Harness>(harness: &H, config: PartitionConfig) -> Self {
        Self::open(harness, id(1, 0), config, OpenMode::CreateNew).await
    }

    async fn open<H: Harness>(harness: &H, id: PartitionId, config: PartitionConfig, mode: OpenMode) -> Self {
        let opened = within("opening", harness.storage().open(id, config, mode)).await;
        Self(opened.expect("the partition can be opened"))
    }

    fn submit(&self, append: Append) -> AppendTicket {
        self.0.submit(append).expect("the store takes a few small batches")
    }

    async fn offer(&self, batch: Batch) -> Result<Appended, AppendError> {
        within("an answer", self.submit(append(batch))).await
    }

    /// Appends what must be taken as new, and answers its first offset.
    async fn append(&self, batch: Batch) -> u64 {
        let appended = self.offer(batch).await.expect("the batch is taken");
        assert!(!appended.duplicate, "{appended:?}");
        appended.offsets.expect("a new batch has offsets").0.get()
    }

    async fn read(&self, from: u64, limit: ReadLimit) -> Batches {
        within("a read", self.0.read(offset(from), limit)).await.expect("the offset is in the log")
    }

    /// Reads everything from log start on.
    async fn read_all(&self) -> Vec<Batch> {
        let mut all = Vec::new();
        let mut from = self.0.ends().start;
        loop {
            let read = self.read(from.get(), read_limit()).await;
            if read.batches.is_empty() {
                return all;
            }
            all.extend(read.batches.into_iter().map(|read| read.batch));
            from = read.next;
        }
    }

    /// The values of all records at or after log start.
    async fn values(&self) -> Vec<String> {
        let start = self.0.ends().start;
        let text = |record: Record| {
            String::from_utf8(record.value.unwrap_or_default().to_vec()).expect("the tests write text")
        };
        let all = self.read_all().await;
        all.iter().flat_map(records).filter(|record| record.offset >= start).map(text).collect()
    }

    fn end(&self) -> u64 {
        self.0.ends().stable.get()
    }
}

/// Closes the store and opens it again, and in it the partition that [`Partition::create`] made. Nothing of
/// before is held meanwhile.
async fn restart<H: Harness>(harness: H, partition: Partition, config: &PartitionConfig) -> (H, Partition) {
    drop(partition);
    let harness = within("a restart", harness.reopen()).await;
    let partition = Partition::open(&harness, id(1, 0), config.clone(), OpenMode::MustExist).await;
    (harness, partition)
}

/// What an append of new records answers.
fn stored(first: u64, last: u64) -> Result<Appended, AppendError> {
    Ok(Appended { offsets: Some((offset(first), offset(last))), append_time: NOW, duplicate: false })
}

/// What a repeated append answers.
fn duplicate(first: u64, last: u64) -> Result<Appended, AppendError> {
    Ok(Appended { offsets: Some((offset(first), offset(last))), append_time: NOW, duplicate: true })
}

#[cfg(test)]
mod tests {
    /// Functions of the suite that no test is made of would be dead weight.
    #[test]
    fn every_function_is_in_the_suite() {
        let suite = include_str!("conformance.rs");
        let files = [
            include_str!("conformance/appends.rs"),
            include_str!("conformance/compaction.rs"),
            include_str!("conformance/lifecycle.rs"),
            include_str!("conformance/lookups.rs"),
            include_str!("conformance/producers.rs"),
            include_str!("conformance/reads.rs"),
            include_str!("conformance/retention.rs"),
        ];
        let mut count = 0;
        for line in files.iter().flat_map(|file| file.lines()) {
            if let Some(rest) = line.strip_prefix("pub async fn ") {
                let name = rest.split('<').next().expect("split gives at least one piece");
                assert!(suite.contains(&format!("\n            {name}\n")), "{name} is not in the suite");
                count += 1;
            }
        }
        assert!(count > 40, "{count}");
    }
}
