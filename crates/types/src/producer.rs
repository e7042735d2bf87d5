//! Who wrote a batch, and which of its batches it is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::topic::{InvalidName, check_name};

/// A producer number outside what the batch format can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is outside 0..={max}")]
pub struct ProducerNumberOutOfBounds {
    /// Which number.
    pub what: &'static str,
    /// What was given.
    pub value: i128,
    /// The highest allowed value.
    pub max: u64,
}

macro_rules! producer_number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $signed:ty, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// The lowest value.
            pub const ZERO: Self = Self(0);
            /// The highest value that the batch format carries.
            pub const MAX: Self = Self(<$signed>::MAX as $inner);

            /// A value.
            ///
            /// # Errors
            /// [`ProducerNumberOutOfBounds`] above `MAX`.
            pub const fn new(value: u64) -> Result<Self, ProducerNumberOutOfBounds> {
                if value > Self::MAX.0 as u64 {
                    Err(ProducerNumberOutOfBounds { what: $what, value: value as i128, max: Self::MAX.0 as u64 })
                } else {
                    Ok(Self(value as $inner))
                }
            }

            /// A value from the signed number of the batch format.
            ///
            /// # Errors
            /// [`ProducerNumberOutOfBounds`] below 0.
            pub const fn from_signed(value: $signed) -> Result<Self, ProducerNumberOutOfBounds> {
                if value < 0 {
                    Err(ProducerNumberOutOfBounds { what: $what, value: value as i128, max: Self::MAX.0 as u64 })
                } else {
                    Ok(Self(value as $inner))
                }
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The number as the batch format has it.
            pub const fn as_signed(self) -> $signed {
                self.0 as $signed
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

producer_number! {
    /// The identity of a producer, given out by the server. Ids of named producers have bit 62 set, so that
    /// the log can tell from a batch alone whether its numbering goes on across epochs.
    ProducerId, u64, i64, "producer id"
}
producer_number! {
    /// The generation of a producer id; a higher one fences the lower ones.
    ProducerEpoch, u16, i16, "producer epoch"
}
producer_number! {
    /// The number of a record among all that its producer wrote to one partition (dense numbering). Wraps
    /// from 2^31 - 1 to 0, as in Kafka.
    Sequence, u32, i32, "sequence"
}
producer_number! {
    /// The number of a request among all that its producer sent (numbering by request). Does not wrap.
    RequestNumber, u32, i32, "request number"
}

impl ProducerId {
    /// The bit that ids of named producers have.
    pub const NAMED_BIT: u64 = 1 << 62;

    /// Whether the id belongs to a named producer, whose numbering goes on across epochs.
    pub const fn is_named(self) -> bool {
        self.0 & Self::NAMED_BIT != 0
    }
}

impl ProducerEpoch {
    /// The next epoch, or `None` at the highest.
    pub const fn next(self) -> Option<Self> {
        if self.0 == Self::MAX.0 { None } else { Some(Self(self.0 + 1)) }
    }
}

impl Sequence {
    /// The sequence `count` records later, wrapping from 2^31 - 1 to 0.
    pub const fn wrapping_add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count) & Self::MAX.0)
    }

    /// How many steps lead from `earlier` to this one, wrapping.
    pub const fn wrapping_since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0) & Self::MAX.0
    }

    /// Whether this one comes before `other`, by the shorter way round.
    pub const fn is_before(self, other: Self) -> bool {
        let steps = other.wrapping_since(self);
        steps != 0 && steps < 1 << 30
    }
}

impl RequestNumber {
    /// The next number, or `None` at the highest.
    pub const fn next(self) -> Option<Self> {
        if self.0 == Self::MAX.0 { None } else { Some(Self(self.0 + 1)) }
    }
}

/// What the base sequence of a batch counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbering {
    /// Records: one sequence per record and partition without gaps.
    Dense,
    /// Requests: every batch that a request becomes carries the number of the request.
    ByRequest,
}

impl fmt::Display for Numbering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense => "by record",
            Self::ByRequest => "by request",
        })
    }
}

/// The name of a producer: 1 to 249 characters of `[a-zA-Z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProducerName(String);

impl ProducerName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProducerName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        check_name("producer name", name)?;
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for ProducerName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        check_name("producer name", &name)?;
        Ok(Self(name))
    }
}

impl From<ProducerName> for String {
    fn from(name: ProducerName) -> Self {
        name.0
    }
}

impl fmt::Display for ProducerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_as_in_kafka() {
        let last = Sequence::MAX;
        assert_eq!(last.wrapping_add(1), Sequence::ZERO);
        assert_eq!(Sequence::new(1).unwrap().wrapping_since(last), 2);
        assert!(last.is_before(Sequence::ZERO));
        assert!(!Sequence::ZERO.is_before(last));
        assert!(!last.is_before(last));
    }

    #[test]
    fn numbers_outside_the_format_are_refused() {
        assert!(ProducerEpoch::new(32767).is_ok());
        assert!(ProducerEpoch::new(32768).is_err());
        assert!(ProducerEpoch::from_signed(-1).is_err());
        assert_eq!(
            Sequence::new(1 << 31).unwrap_err().to_string(),
            "sequence 2147483648 is outside 0..=2147483647"
        );
    }
}
