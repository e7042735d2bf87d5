//! What a question needs and the table does not have: it is counted at once, in the partitions asked for and in no
//! other.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream};
use rimstone_types::PartitionId;
use tokio::time::Instant;

use super::{
    measure::{Measured, Moment},
    table::{Known, Wanted},
    turns::{ANSWER_WITHIN, COUNTS_AT_ONCE},
};
use crate::broker::Inner;

impl Inner {
    /// What was counted in these partitions, all of it at a moment after the call; partitions that could not be
    /// counted in time say so. Those that have not moved since they were counted cost a look at their ends.
    pub(super) async fn measured(
        &self,
        wanted: BTreeMap<PartitionId, Wanted>,
    ) -> BTreeMap<PartitionId, Arc<Measured>> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut known = self.lag.known(wanted.keys());
        let mut measured = BTreeMap::new();
        let mut moved = Vec::new();
        for (id, wanted) in wanted {
            let asked = Moment::now(&wanted.topic, wanted.partition);
            match known.remove(&id).filter(|known| known.measured.answers(asked, &wanted.positions)) {
                Some(Known { measured: known, .. }) => drop(measured.insert(id, known)),
                None => moved.push((id, wanted, asked)),
            }
        }
        let counted = moved.into_iter().map(|(id, wanted, asked)| async move {
            let counted = self.measure_in_turn(id, &wanted, asked, deadline).await;
            let late = || Arc::new(Measured::late(&wanted.topic, wanted.partition, ANSWER_WITHIN, asked));
            (id, counted.unwrap_or_else(late))
        });
        let counted: Vec<_> = counted.collect();
        let mut counted = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE);
        while let Some((id, counted)) = counted.next().await {
            measured.insert(id, counted);
        }
        measured
    }

    /// `None`: not in time.
    async fn measure_in_turn(
        &self,
        id: PartitionId,
        wanted: &Wanted,
        asked: Option<Moment>,
        deadline: Instant,
    ) -> Option<Arc<Measured>> {
        let turn = self.lag.turn(id, deadline).await?;
        let known = self.lag.known([id].iter()).remove(&id);
        // Whoever had the turn before may have counted just this.
        if let Some(known) = known.as_ref().filter(|known| known.measured.answers(asked, &wanted.positions)) {
            return Some(Arc::clone(&known.measured));
        }
        let mut positions = wanted.positions.clone();
        let before = known.map(|known| {
            positions.extend(&*known.positions);
            known.measured
        });
        turn.count(wanted, positions, before, deadline).await
    }
}
