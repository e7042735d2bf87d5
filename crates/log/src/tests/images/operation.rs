//! What is done to a log, drawn.

use proptest::prelude::*;

use super::PRODUCERS;

#[derive(Debug, Clone)]
pub(super) enum Operation {
    Append {
        records: usize,
        size: usize,
        jitter: i64,
    },
    /// The next batches of a producer, in its epoch or in the next one.
    Produce {
        producer: usize,
        batches: usize,
        records: usize,
        size: usize,
        anew: bool,
    },
    /// One of a producer's last batches again.
    Repeat {
        producer: usize,
        back: usize,
    },
    /// The active segment has become old.
    Roll,
    Write,
    /// So much of a write gets through.
    WriteFails {
        short: usize,
    },
    Sync {
        witness: bool,
    },
    /// What was written is in doubt, and the server is started again.
    SyncFails,
    Trim {
        share: u8,
    },
    Snapshot {
        durable: bool,
    },
    Look {
        from: u8,
        to: u8,
        jitter: i64,
        bytes: usize,
    },
    Stop,
    Kill,
    /// So many changes and syncs ago.
    PowerCut {
        back: usize,
        seed: u64,
    },
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let size = || prop_oneof![8 => 0..60usize, 3 => 300..1500usize, 1 => Just(9000)];
    let jitter = || -3000..3000i64;
    let back = prop_oneof![Just(0usize), 0..8usize, 0..60usize, 0..1000usize];
    prop_oneof![
        8 => (1..6usize, size(), jitter())
            .prop_map(|(records, size, jitter)| Operation::Append { records, size, jitter }),
        12 => (0..PRODUCERS.len(), prop_oneof![6 => Just(1usize), 1 => 2..40usize], 1..4usize, size(), prop::bool::weighted(0.15))
            .prop_map(|(producer, batches, records, size, anew)| Operation::Produce { producer, batches, records, size, anew }),
        4 => (0..PRODUCERS.len(), 0..5usize).prop_map(|(producer, back)| Operation::Repeat { producer, back }),
        2 => Just(Operation::Roll),
        8 => Just(Operation::Write),
        1 => (0..3000usize).prop_map(|short| Operation::WriteFails { short }),
        8 => any::<bool>().prop_map(|witness| Operation::Sync { witness }),
        1 => Just(Operation::SyncFails),
        3 => any::<u8>().prop_map(|share| Operation::Trim { share }),
        1 => any::<bool>().prop_map(|durable| Operation::Snapshot { durable }),
        3 => (any::<u8>(), any::<u8>(), jitter(), prop_oneof![Just(1usize), Just(700), Just(1 << 20)])
            .prop_map(|(from, to, jitter, bytes)| Operation::Look { from, to, jitter, bytes }),
        2 => Just(Operation::Stop),
        2 => Just(Operation::Kill),
        5 => (back, any::<u64>()).prop_map(|(back, seed)| Operation::PowerCut { back, seed }),
    ]
}
