//! Ten bugs that can be planted on purpose, to see that the general schedules of faults catch each of them
//! (`docs/reliability.md`, ADR 0022). Every place asks [`is`]; without the feature `planted`, which no build that is shipped has, that
//! is `false` when it is compiled, and nothing of a bug is there.
//!
//! Not here: who chooses (`rimstone-server` and the example `sectors` read `RIMSTONE_PLANTED`), and the runs that must fail
//! (`tests/chaos`, `rimstone-planted`).

/// A bug that somebody tired could have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// An append is acknowledged when it is written.
    AckBeforeSync = 1,
    /// A sync that failed is tried again, and the success of the second try is taken for one.
    RetrySync,
    /// What is about to be written counts as written.
    PublishBeforeWrite,
    /// Without `syncfs`, the name of a new segment is not synced.
    NoDirectorySync,
    /// What an index file says is taken without its checks, and without looking whether the log agrees.
    TrustIndex,
    /// A catalog that cannot be read is taken for an empty one.
    EmptyCatalog,
    /// A duplicate is answered at once, though its original is not durable yet.
    EarlyDuplicate,
    /// Compaction forgets producers: their emptied batches go, and what is known of them is not made durable first.
    ForgottenProducers,
    /// Readers see what is written, though it is not durable.
    ServePastDurable,
    /// What a recovery finds behind the attested end is written again but not synced.
    UnsyncedTail,
}

#[cfg(feature = "planted")]
mod chosen {
    use std::{
        str::FromStr,
        sync::atomic::{AtomicU8, Ordering},
    };

    use super::Bug;

    /// The bug of this process; 0: none.
    static CHOSEN: AtomicU8 = AtomicU8::new(0);

    impl Bug {
        /// All of them, with the names that choose them.
        pub const ALL: [(Self, &str); 10] = [
            (Self::AckBeforeSync, "ack-before-sync"),
            (Self::RetrySync, "retry-sync"),
            (Self::PublishBeforeWrite, "publish-before-write"),
            (Self::NoDirectorySync, "no-directory-sync"),
            (Self::TrustIndex, "trust-index"),
            (Self::EmptyCatalog, "empty-catalog"),
            (Self::EarlyDuplicate, "early-duplicate"),
            (Self::ForgottenProducers, "forgotten-producers"),
            (Self::ServePastDurable, "serve-past-durable"),
            (Self::UnsyncedTail, "unsynced-tail"),
        ];
    }

    /// No bug has this name.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error("no bug is called {0}; there are {names}", names = Bug::ALL.map(|(_, name)| name).join(", "))]
    pub struct UnknownBug(String);

    impl FromStr for Bug {
        type Err = UnknownBug;

        fn from_str(text: &str) -> Result<Self, UnknownBug> {
            let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
            found.map(|(bug, _)| bug).ok_or_else(|| UnknownBug(text.chars().take(100).collect()))
        }
    }

    /// Plants a bug in this process, in place of one that was planted before.
    pub fn set(bug: Option<Bug>) {
        CHOSEN.store(bug.map_or(0, |bug| bug as u8), Ordering::Release);
    }

    /// Whether this bug is planted.
    pub fn is(bug: Bug) -> bool {
        CHOSEN.load(Ordering::Acquire) == bug as u8
    }
}

#[cfg(feature = "planted")]
pub use chosen::{UnknownBug, is, set};

/// Never, in a build without the feature.
#[cfg(not(feature = "planted"))]
pub const fn is(_: Bug) -> bool {
    false
}
