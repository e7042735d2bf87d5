//! Damaged ranges: one, several as one, and what is told of many.

use std::fmt;

use rimstone_types::Offset;

use super::DamagedRange;

/// Ranges that an error names: it travels in the head of an answer.
const TOLD_MAX: usize = 8;

impl DamagedRange {
    /// One range, all of which is damaged.
    pub fn new(from: Offset, until: Offset, segment: Offset, reason: String) -> Self {
        Self { from, until, ranges: 1, offsets: until.since(from), segment, reason }
    }

    /// Ranges of one segment, in order, as one. `None`: there are none.
    pub fn as_one(ranges: Vec<Self>) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let mut one = ranges.next()?;
        for range in ranges {
            one.until = one.until.max(range.until);
            one.ranges = one.ranges.saturating_add(range.ranges);
            one.offsets = one.offsets.saturating_add(range.offsets);
        }
        Some(one)
    }

    /// What is left of it at or above an offset; of several as one, about as much.
    pub fn clip(&mut self, start: Offset) {
        self.from = self.from.max(start);
        self.offsets = self.offsets.min(self.until.since(self.from));
    }
}

impl fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, until, ranges, offsets, reason, .. } = self;
        match ranges {
            1 => write!(f, "offsets {from} to {until}: {reason}"),
            _ => write!(
                f,
                "{offsets} of the offsets {from} to {until}, in {ranges} ranges; the first: {reason}"
            ),
        }
    }
}

impl std::error::Error for DamagedRange {}

/// What was found where something else was named: the first ranges of it, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundDamage {
    /// The first few, in order.
    pub first: Vec<DamagedRange>,
    /// How many in all.
    pub ranges: u64,
}

impl FoundDamage {
    pub(super) fn add(&mut self, damage: &[DamagedRange]) {
        let room = TOLD_MAX - self.first.len();
        self.first.extend(damage.iter().take(room).cloned());
        self.ranges = self.ranges.saturating_add(damage.len() as u64);
    }
}

impl fmt::Display for FoundDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first.is_empty() {
            return f.write_str("nothing is damaged");
        }
        for (number, range) in self.first.iter().enumerate() {
            write!(f, "{}{range}", if number == 0 { "" } else { "; " })?;
        }
        match self.ranges.saturating_sub(self.first.len() as u64) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
