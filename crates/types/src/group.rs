//! Names of consumer groups and of their members, and the epoch that fences.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::topic::{InvalidName, check_name};

macro_rules! group_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                check_name($what, name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                check_name($what, &name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

group_name! {
    /// The name of a consumer group: 1 to 249 characters of `[a-zA-Z0-9._-]`.
    GroupName, "group name"
}
group_name! {
    /// The id of a member, chosen by the member and the same across reconnects: 1 to 249 characters of
    /// `[a-zA-Z0-9._-]`.
    MemberId, "member id"
}
group_name! {
    /// The name under which a static member may come back as another process: 1 to 249 characters of
    /// `[a-zA-Z0-9._-]`.
    InstanceId, "instance id"
}

/// A generation of a group, or the one that a member has reached; a stale one is fenced (KIP-848). The first
/// is 1: 0 says "a new start" in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupEpoch(pub u32);

impl GroupEpoch {
    /// Of a group that has never had a member, and of a member that owns nothing yet.
    pub const ZERO: Self = Self(0);

    /// The next epoch, or `None` at the highest.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(next) => Some(Self(next)),
            None => None,
        }
    }
}

impl fmt::Display for GroupEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_say_what_they_are() {
        assert!("billing-2".parse::<GroupName>().is_ok());
        let error = "a:b".parse::<MemberId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "member id \"a:b\" is not allowed: only the characters [a-zA-Z0-9._-] are allowed"
        );
        assert!(serde_json::from_str::<GroupName>("\"\"").is_err());
    }

    #[test]
    fn epochs_end_somewhere() {
        assert_eq!(GroupEpoch::ZERO.next(), Some(GroupEpoch(1)));
        assert_eq!(GroupEpoch(u32::MAX).next(), None);
    }
}
