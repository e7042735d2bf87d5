//! Names and identities of topics.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::offset::PartitionIndex;

/// The longest name, in characters; Kafka's limit.
const NAME_LENGTH_MAX: usize = 249;

/// A name that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not allowed: {why}")]
pub struct InvalidName {
    /// What kind of name.
    pub what: &'static str,
    /// What was given, shortened.
    pub name: String,
    /// What is wrong and what is allowed.
    pub why: &'static str,
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { what, name: name.chars().take(60).collect(), why });
    if name.is_empty() {
        return refuse("it is empty; 1 to 249 characters of [a-zA-Z0-9._-] are allowed");
    }
    if name.len() > NAME_LENGTH_MAX {
        return refuse("it is longer than 249 characters");
    }
    if name == "." || name == ".." {
        return refuse("\".\" and \"..\" are reserved");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return refuse("only the characters [a-zA-Z0-9._-] are allowed");
    }
    Ok(())
}

/// The name of a topic: 1 to 249 characters of `[a-zA-Z0-9._-]`, not `.` or `..`. Names that begin with `__`
/// belong to the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(String);

impl TopicName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name belongs to the server.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with("__")
    }
}

impl FromStr for TopicName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        check_name("topic name", name)?;
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for TopicName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        check_name("topic name", &name)?;
        Ok(Self(name))
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a topic, which a topic of the same name made later does not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(pub Uuid);

impl TopicId {
    /// The identity of `__catalog`, the same in every data directory.
    pub const CATALOG: Self = Self(Uuid::from_u128(1));
    /// The identity of `__consumer_offsets`, the same in every data directory.
    pub const CONSUMER_OFFSETS: Self = Self(Uuid::from_u128(2));

    /// The 16 bytes of the UUID.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// A partition of a topic, by identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionIndex,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_allowed_are_named() {
        for bad in ["", ".", "..", "a/b", "ä", "a b", "a\0b", &"x".repeat(250)] {
            assert!(TopicName::from_str(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "A.b-c_9", "...", "__catalog", &"x".repeat(249)] {
            assert!(TopicName::from_str(good).is_ok(), "{good:?}");
        }
        assert!(TopicName::from_str("__catalog").expect("allowed").is_internal());
    }

    #[test]
    fn deserializing_checks_too() {
        assert!(serde_json::from_str::<TopicName>("\"a/b\"").is_err());
    }
}
