//! Positions in a partition.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A value that does not fit an [`Offset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {0} is outside 0..=9223372036854775807")]
pub struct OffsetOutOfBounds(pub i128);

/// The position of a record in its partition: dense at append, from 0 to `i64::MAX` (the batch format has 63 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(u64);

impl Offset {
    /// The first offset of a partition.
    pub const ZERO: Self = Self(0);
    /// The highest offset there can be.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// An offset.
    ///
    /// # Errors
    /// [`OffsetOutOfBounds`] above [`Offset::MAX`].
    pub const fn new(value: u64) -> Result<Self, OffsetOutOfBounds> {
        if value > Self::MAX.0 { Err(OffsetOutOfBounds(value as i128)) } else { Ok(Self(value)) }
    }

    /// An offset from the signed number of the batch format.
    ///
    /// # Errors
    /// [`OffsetOutOfBounds`] below 0.
    pub const fn from_i64(value: i64) -> Result<Self, OffsetOutOfBounds> {
        if value < 0 { Err(OffsetOutOfBounds(value as i128)) } else { Ok(Self(value as u64)) }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as the batch format has it.
    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// The offset `count` records later, or `None` above [`Offset::MAX`].
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }

    /// The offset `count` records later, at most [`Offset::MAX`].
    pub const fn saturating_add(self, count: u64) -> Self {
        match self.checked_add(count) {
            Some(sum) => sum,
            None => Self::MAX,
        }
    }

    /// How many offsets lie from `earlier` up to this one; 0 if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a partition within its topic, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionIndex(pub u32);

impl fmt::Display for PartitionIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The ends of a partition's log at one moment: `start <= stable <= durable <= written`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct LogEnds {
    /// The first offset that is still there.
    pub start: Offset,
    /// Below it no transaction is open.
    pub stable: Offset,
    /// Below it everything is as durable as the topic asks: what readers see. On a topic whose owner asked
    /// for `written`, this equals `written`.
    pub durable: Offset,
    /// Below it everything is in the file, durable or not.
    pub written: Offset,
}
