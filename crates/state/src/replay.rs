//! Where a replay moves a reader to, in one partition, and how a plan is recognised.
//!
//! Not here: looking times up and counting (the store), which partitions (`rimstone-broker`), and doing it
//! (`group` imports the offsets).

use std::hash::{DefaultHasher, Hash, Hasher};

use rimstone_types::{GroupName, Offset, PartitionIndex, TopicId};

/// Where a reader is to go on, looked up as far as it had to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aim {
    /// The first record there is.
    Earliest,
    /// The end.
    Latest,
    /// An offset.
    Offset(Offset),
    /// The first record at or after a time; `None`: there is none.
    Time(Option<Offset>),
    /// So many offsets on from the committed one, or back.
    Shift(i64),
}

/// Where a reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// What is committed; `None`: nothing.
    pub committed: Option<Offset>,
    /// Log start.
    pub start: Offset,
    /// The end that readers see.
    pub end: Offset,
}

/// Offsets from the first up to, not including, the second; empty where they are equal.
pub type Span = (Offset, Offset);

/// What a replay would do in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where the reader would go on; `None`: this partition is left alone.
    pub to: Option<Offset>,
    /// What would be read again.
    pub again: Span,
    /// What would not be read.
    pub skipped: Span,
    /// Offsets below log start that were asked for: nobody can have them any more.
    pub gone: u64,
}

/// An offset that does not exist yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} lies beyond the end, {end}")]
pub struct BeyondEnd {
    /// What was asked for.
    pub offset: Offset,
    /// The end.
    pub end: Offset,
}

impl Move {
    const NONE: Span = (Offset::ZERO, Offset::ZERO);

    /// Decides. What was asked for below log start becomes log start, and is told; a shift stays within the log.
    ///
    /// # Errors
    /// [`BeyondEnd`] for an offset that was named.
    pub fn decide(aim: Aim, stand: Stand) -> Result<Self, BeyondEnd> {
        let Stand { committed, start, end } = stand;
        let asked = match (aim, committed) {
            (Aim::Earliest, _) => start,
            (Aim::Latest, _) => end,
            (Aim::Offset(offset), _) if offset > end => return Err(BeyondEnd { offset, end }),
            (Aim::Offset(offset) | Aim::Time(Some(offset)), _) => offset,
            (Aim::Shift(by), Some(committed)) => shifted(committed, by).min(end),
            (Aim::Time(None), _) | (Aim::Shift(_), None) => {
                return Ok(Self { to: None, again: Self::NONE, skipped: Self::NONE, gone: 0 });
            }
        };
        let to = asked.max(start);
        let again = match committed {
            None => (to, end),
            Some(committed) if committed > to => (to, committed.min(end).max(to)),
            Some(_) => Self::NONE,
        };
        let skipped = match committed {
            Some(committed) if committed < to => (committed.max(start), to),
            _ => Self::NONE,
        };
        Ok(Self { to: Some(to), again, skipped, gone: start.since(asked) })
    }
}

/// Below zero is zero; above the largest offset is that.
fn shifted(offset: Offset, by: i64) -> Offset {
    match u64::try_from(by) {
        Ok(on) => offset.saturating_add(on),
        Err(_) => {
            let at = offset.get().saturating_sub(by.unsigned_abs());
            Offset::new(at).expect("it is not above an offset")
        }
    }
}

/// By what a plan is recognised: it is another when something else would be done.
#[derive(Debug, Clone)]
pub struct Fingerprint(DefaultHasher);

impl Fingerprint {
    /// Begins one.
    pub fn new(group: &GroupName, clone_to: Option<&GroupName>) -> Self {
        let mut hasher = DefaultHasher::new();
        (group, clone_to).hash(&mut hasher);
        Self(hasher)
    }

    /// Adds an offset that the group has committed. Only where that very group would be moved: what a group that
    /// is left alone commits meanwhile is no other plan.
    pub fn committed(&mut self, topic: TopicId, partition: PartitionIndex, offset: Offset) {
        (0u8, topic, partition, offset).hash(&mut self.0);
    }

    /// Adds what would be done in a partition. The end may move on under a plan that leads to it.
    pub fn moved(&mut self, topic: TopicId, partition: PartitionIndex, aim: Aim, to: Option<Offset>) {
        let to = if aim == Aim::Latest { None } else { to };
        (1u8, topic, partition, aim, to).hash(&mut self.0);
    }

    /// The plan's mark, as text. Within one version of the server only.
    pub fn finish(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn span(from: u64, to: u64) -> Span {
        (offset(from), offset(to))
    }

    fn decide(aim: Aim, committed: Option<u64>) -> (Option<u64>, Span, Span, u64) {
        let stand = Stand { committed: committed.map(offset), start: offset(10), end: offset(100) };
        let Move { to, again, skipped, gone } = Move::decide(aim, stand).unwrap();
        let none_if_empty = |(from, to)| if from >= to { span(0, 0) } else { (from, to) };
        (to.map(Offset::get), none_if_empty(again), none_if_empty(skipped), gone)
    }

    #[test]
    fn every_aim_from_everywhere() {
        let none = span(0, 0);
        for (aim, committed, expected) in [
            (Aim::Earliest, Some(50), (Some(10), span(10, 50), none, 0)),
            (Aim::Earliest, None, (Some(10), span(10, 100), none, 0)),
            (Aim::Earliest, Some(3), (Some(10), none, none, 0)),
            (Aim::Latest, Some(50), (Some(100), none, span(50, 100), 0)),
            (Aim::Latest, Some(3), (Some(100), none, span(10, 100), 0)),
            (Aim::Latest, None, (Some(100), none, none, 0)),
            (Aim::Offset(offset(20)), Some(50), (Some(20), span(20, 50), none, 0)),
            (Aim::Offset(offset(60)), Some(50), (Some(60), none, span(50, 60), 0)),
            (Aim::Offset(offset(50)), Some(50), (Some(50), none, none, 0)),
            (Aim::Offset(offset(4)), Some(50), (Some(10), span(10, 50), none, 6)),
            (Aim::Offset(offset(100)), None, (Some(100), none, none, 0)),
            (Aim::Time(Some(offset(30))), Some(50), (Some(30), span(30, 50), none, 0)),
            (Aim::Time(None), Some(50), (None, none, none, 0)),
            (Aim::Shift(-20), Some(50), (Some(30), span(30, 50), none, 0)),
            (Aim::Shift(-45), Some(50), (Some(10), span(10, 50), none, 5)),
            (Aim::Shift(i64::MIN), Some(50), (Some(10), span(10, 50), none, 10)),
            (Aim::Shift(20), Some(50), (Some(70), none, span(50, 70), 0)),
            (Aim::Shift(i64::MAX), Some(50), (Some(100), none, span(50, 100), 0)),
            (Aim::Shift(-20), None, (None, none, none, 0)),
            (Aim::Shift(0), Some(50), (Some(50), none, none, 0)),
            // Lost with a power cut on a topic that did not wait for the disk.
            (Aim::Offset(offset(20)), Some(500), (Some(20), span(20, 100), none, 0)),
        ] {
            assert_eq!(decide(aim, committed), expected, "{aim:?} from {committed:?}");
        }
        let stand = Stand { committed: None, start: offset(10), end: offset(100) };
        let beyond = BeyondEnd { offset: offset(101), end: offset(100) };
        assert_eq!(Move::decide(Aim::Offset(offset(101)), stand), Err(beyond));
    }

    #[test]
    fn a_plan_is_recognised_by_what_it_does() {
        let group: GroupName = "g".parse().unwrap();
        let mark = |committed, aim, to| {
            let mut mark = Fingerprint::new(&group, None);
            mark.committed(TopicId::CATALOG, PartitionIndex(0), offset(committed));
            mark.moved(TopicId::CATALOG, PartitionIndex(0), aim, Some(offset(to)));
            mark.finish()
        };
        assert_eq!(mark(5, Aim::Earliest, 0), mark(5, Aim::Earliest, 0));
        assert_ne!(mark(5, Aim::Earliest, 0), mark(6, Aim::Earliest, 0), "somebody has committed");
        assert_ne!(mark(5, Aim::Earliest, 0), mark(5, Aim::Earliest, 1), "retention went on");
        assert_ne!(mark(5, Aim::Earliest, 0), mark(5, Aim::Shift(-5), 0));
        assert_eq!(mark(5, Aim::Latest, 7), mark(5, Aim::Latest, 9), "the end goes on");
        let clone: GroupName = "c".parse().unwrap();
        let into = Fingerprint::new(&group, Some(&clone));
        assert_ne!(into.finish(), Fingerprint::new(&group, None).finish());
    }
}
