//! Readers that begin anywhere, counts and look-ups by time: what they answer is what a scan over everything shows.

use rimstone_log::recording::image::Draw;
use rimstone_types::Timestamp;

use super::{
    BEGIN,
    client::read_from,
    history::{Shown, offset},
};
use crate::PartitionStore;

/// Questions of each kind.
const QUESTIONS: usize = 2;
/// How far from its begin the time of a schedule comes, about.
const TIMES: usize = 200_000;

/// Answers that were given before anything else was read, so that nobody had come across the places.
#[derive(Debug)]
pub(crate) struct Answers {
    /// From an offset on: how many records up to another one.
    counts: Vec<(u64, u64, u64)>,
    /// A time, and the first record of at least that time.
    times: Vec<(Timestamp, Option<u64>)>,
    /// From an offset on: the offsets and numbers of what there is.
    reads: Vec<(u64, Vec<(u64, u64)>)>,
}

/// Asks at places that the ends choose.
pub(crate) async fn ask(partition: &dyn PartitionStore) -> Result<Answers, String> {
    let ends = partition.ends();
    let (start, end) = (ends.start.get(), ends.durable.get());
    let draw = &mut Draw::new(start ^ end << 20);
    let mut answers = Answers { counts: Vec::new(), times: Vec::new(), reads: Vec::new() };
    let wrong = |what: &str, at: u64, error: crate::ReadError| format!("{what} at {at}: {error}");
    for _ in 0..QUESTIONS {
        let mut place = || start + draw.below((end - start + 1) as usize) as u64;
        let (one, other) = (place(), place());
        let (from, to) = (one.min(other), one.max(other));
        let counted = partition.count(offset(from), offset(to)).await;
        let counted = counted.map_err(|error| wrong("a count", from, error))?;
        answers.counts.push((from, to, counted.records));
        let at = Timestamp(BEGIN + draw.below(TIMES) as i64);
        let found = partition.offset_for_time(at).await;
        let found = found.map_err(|error| wrong("a look-up by time", start, error))?;
        answers.times.push((at, found.map(|found| found.offset.get())));
        let begins = start + draw.below((end - start).max(1) as usize) as u64;
        let (_, shown) = read_from(partition, begins).await?;
        answers.reads.push((begins, shown.iter().map(|record| (record.offset, record.id)).collect()));
    }
    Ok(answers)
}

impl Answers {
    /// Whether everything agrees with everything that there is.
    pub(crate) fn check(&self, shown: &[Shown]) -> Result<(), String> {
        for (from, to, counted) in &self.counts {
            let there = shown.iter().filter(|record| (*from..*to).contains(&record.offset)).count();
            if there as u64 != *counted {
                return Err(format!("{counted} records are counted from {from} to {to}, there are {there}"));
            }
        }
        for (at, found) in &self.times {
            let first = shown.iter().find(|record| record.time >= *at).map(|record| record.offset);
            if first != *found {
                return Err(format!(
                    "the first record from time {at} on is said to be {found:?}, it is {first:?}"
                ));
            }
        }
        for (from, read) in &self.reads {
            let behind = shown.iter().skip_while(|record| record.offset < *from);
            if !behind.map(|record| (record.offset, record.id)).eq(read.iter().copied()) {
                return Err(format!(
                    "a reader that begins at {from} gets {read:?}, others get something else"
                ));
            }
        }
        Ok(())
    }
}
