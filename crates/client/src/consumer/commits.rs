//! Commits of a member: while one message of them is on its way the next ones gather, the last of each partition
//! counts. Pure.

use std::{collections::BTreeMap, time::Duration};

use rimstone_proto::v1;
use rimstone_types::Offset;
use tokio::time::Instant;

use crate::{
    error::{ClientError, reason},
    groups::{CommitFlags, OffsetCommit, TopicPartition, commit_message, flags},
    retry::Backoff,
};

/// What is to be committed of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The next offset to read; `None` takes the commit away.
    pub(crate) offset: Option<Offset>,
    pub(crate) metadata: String,
    /// The number of the partition's last commit that this takes along.
    pub(crate) number: u64,
}

/// How a commit of one partition ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) at: TopicPartition,
    pub(crate) wanted: Wanted,
    pub(crate) result: Result<CommitFlags, ClientError>,
}

#[derive(Debug)]
struct InFlight {
    correlation_id: u64,
    commits: Vec<(TopicPartition, Wanted)>,
    sent: Instant,
}

/// The commits that are not answered.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    wanted: BTreeMap<TopicPartition, Wanted>,
    in_flight: Option<InFlight>,
    correlation_id: u64,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Commits {
    /// Takes a commit; a later one of the same partition replaces one that has not gone out.
    pub(crate) fn want(&mut self, at: TopicPartition, wanted: Wanted) {
        self.wanted.insert(at, wanted);
    }

    /// Whether something of the partition is not answered.
    pub(crate) fn has(&self, at: &TopicPartition) -> bool {
        let flying = self.in_flight.iter().flat_map(|flight| &flight.commits);
        self.wanted.contains_key(at) || flying.into_iter().any(|(other, _)| other == at)
    }

    /// Whether an answer is waited for: what is wanted now goes out when it comes.
    pub(crate) fn is_under_way(&self) -> bool {
        self.in_flight.is_some()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.in_flight.is_none()
    }

    /// The next message, if one may go now.
    pub(crate) fn next_message(&mut self, now: Instant) -> Option<v1::ConsumeCommit> {
        if self.in_flight.is_some() || self.wanted.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.retry_at = None;
        self.correlation_id += 1;
        let commits: Vec<_> = std::mem::take(&mut self.wanted).into_iter().collect();
        let offsets = commits.iter().map(|(at, wanted)| {
            commit_message(&OffsetCommit {
                at: at.clone(),
                offset: wanted.offset,
                metadata: wanted.metadata.clone(),
            })
        });
        let message = v1::ConsumeCommit { correlation_id: self.correlation_id, offsets: offsets.collect() };
        self.in_flight = Some(InFlight { correlation_id: self.correlation_id, commits, sent: now });
        Some(message)
    }

    /// The server has answered: what became of each partition that is not tried again, and when the message
    /// was sent.
    ///
    /// # Errors
    /// An answer to something that was not asked.
    pub(crate) fn answered(
        &mut self,
        answer: v1::ConsumeCommitted,
        now: Instant,
    ) -> Result<(Vec<Answer>, Instant), ClientError> {
        let expected = |flight: &InFlight| {
            flight.correlation_id == answer.correlation_id && flight.commits.len() == answer.results.len()
        };
        let Some(flight) = self.in_flight.take_if(|flight| expected(flight)) else {
            return Err(ClientError::protocol(
                "the server answered another commit than the one that was sent",
            ));
        };
        let mut answers = Vec::with_capacity(flight.commits.len());
        let mut again: Option<Duration> = None;
        for ((at, wanted), result) in flight.commits.into_iter().zip(answer.results) {
            match flags(result) {
                Err(error) if error.is_retriable() && !error.is(reason::MEMBER_FENCED) => {
                    tracing::debug!(%at, %error, "a commit is tried again");
                    let asked = error.retry_after.unwrap_or_default();
                    again = Some(again.unwrap_or_default().max(asked));
                    self.wanted.entry(at).or_insert(wanted);
                }
                result => answers.push(Answer { at, wanted, result }),
            }
        }
        match again {
            Some(asked) => self.retry_at = Some(now + self.backoff.next(Some(asked))),
            None => self.backoff.reset(),
        }
        Ok((answers, flight.sent))
    }

    /// The stream has broken: what was on its way goes again, unless something later waits or the partition is
    /// not ours any more.
    pub(crate) fn disconnected(&mut self, is_owned: impl Fn(&TopicPartition) -> bool) {
        for (at, wanted) in self.in_flight.take().into_iter().flat_map(|flight| flight.commits) {
            if is_owned(&at) {
                self.wanted.entry(at).or_insert(wanted);
            }
        }
    }

    /// The partition is not ours any more.
    pub(crate) fn forget(&mut self, at: &TopicPartition) {
        self.wanted.remove(at);
    }

    pub(crate) fn forget_all(&mut self) {
        self.wanted.clear();
        self.in_flight = None;
    }

    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::PartitionIndex;
    use tonic::Code;

    use super::*;
    use crate::{fake::item, reason};

    fn at(partition: u32) -> TopicPartition {
        TopicPartition::new("logs", PartitionIndex(partition))
    }

    fn wanted(offset: u64) -> Wanted {
        Wanted { offset: Some(Offset::new(offset).unwrap()), metadata: String::new(), number: offset }
    }

    fn offsets(message: &v1::ConsumeCommit) -> Vec<(u32, u64)> {
        message.offsets.iter().map(|commit| (commit.partition, commit.offset.unwrap())).collect()
    }

    fn answer(message: &v1::ConsumeCommit, errors: &[u32]) -> v1::ConsumeCommitted {
        let results = message.offsets.iter().map(|commit| v1::OffsetCommitResult {
            topic: commit.topic.clone(),
            partition: commit.partition,
            error: errors
                .contains(&commit.partition)
                .then(|| item(Code::Unavailable, reason::COORDINATOR_LOADING, &[])),
            ..Default::default()
        });
        v1::ConsumeCommitted { correlation_id: message.correlation_id, results: results.collect() }
    }

    #[test]
    fn while_one_is_on_its_way_the_next_ones_gather() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.want(at(0), wanted(1));
        let first = commits.next_message(now).unwrap();
        for offset in 2..100 {
            commits.want(at(0), wanted(offset));
        }
        assert!(commits.next_message(now).is_none() && commits.has(&at(0)));
        let (answers, _) = commits.answered(answer(&first, &[]), now).unwrap();
        assert_eq!((answers.len(), answers[0].wanted.number), (1, 1));
        assert_eq!(offsets(&commits.next_message(now).unwrap()), [(0, 99)]);
    }

    #[test]
    fn what_was_lost_goes_again_but_never_instead_of_something_later() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.want(at(0), wanted(1));
        commits.want(at(1), wanted(1));
        let lost = commits.next_message(now).unwrap();
        commits.want(at(1), wanted(5));
        commits.disconnected(|_| true);
        let again = commits.next_message(now).unwrap();
        assert_eq!(offsets(&again), [(0, 1), (1, 5)]);
        assert!(commits.answered(answer(&lost, &[]), now).is_err(), "that was on another stream");
        commits.answered(answer(&again, &[]), now).unwrap();
        assert!(commits.is_idle());
    }

    #[test]
    fn an_answer_of_not_now_is_tried_again_later() {
        let now = Instant::now();
        let mut commits = Commits::default();
        commits.want(at(0), wanted(1));
        commits.want(at(1), wanted(1));
        let message = commits.next_message(now).unwrap();
        let (answers, _) = commits.answered(answer(&message, &[1]), now).unwrap();
        assert_eq!(answers.iter().map(|answer| answer.at.clone()).collect::<Vec<_>>(), [at(0)]);
        assert!(commits.next_message(now).is_none(), "not at once");
        let later = commits.retry_at().unwrap();
        assert_eq!(offsets(&commits.next_message(later).unwrap()), [(1, 1)]);
    }
}
