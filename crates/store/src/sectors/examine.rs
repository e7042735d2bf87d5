//! Opening what a cut has left, twice, with appends in between.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use rimstone_log::recording::image::Draw;
use rimstone_types::PartitionId;

use super::{
    client::{Time, options, read_from, stamp, within},
    history::{At, Cut, Fate, Flavour, History},
    lookups::ask,
};
use crate::{AppendError, LocalStorage, OpenMode, PartitionStore, Storage, StoreState, SyncPreference};

/// A producer that nobody else is.
const STRANGER: u64 = 99;

/// A store that was opened after a cut.
pub(crate) struct Opened {
    pub(crate) storage: Arc<LocalStorage>,
    pub(crate) partitions: BTreeMap<PartitionId, Arc<dyn PartitionStore>>,
}

/// Opens everything that there is, and compares it with what is known.
pub(crate) async fn open(
    storage: Arc<LocalStorage>,
    history: &mut History,
    cut: Cut,
    now: impl Fn() -> At,
) -> Result<Opened, String> {
    let listed = within("list", &storage, Instant::now, storage.list())
        .await?
        .map_err(|error| format!("list: {error}"))?;
    let known: Vec<PartitionId> = history.partitions.keys().copied().collect();
    let mut partitions = BTreeMap::new();
    for id in known {
        let (may_miss, may_be) = history.may_be(id);
        match (listed.contains(&id), may_miss, may_be) {
            (false, true, _) => continue,
            (false, false, _) => return Err(format!("partition {id} is not there any more")),
            (true, _, false) => return Err(format!("partition {id} is there, and was deleted")),
            (true, ..) => {}
        }
        let config = history.partition(id).config.clone();
        let opened =
            within("open", &storage, Instant::now, storage.open(id, config, OpenMode::MustExist)).await?;
        let partition = opened.map_err(|error| format!("partition {id} does not open: {error}"))?;
        let answers = within("look-ups", &storage, Instant::now, ask(&*partition)).await?;
        let from = partition.ends().start.get();
        let (ends, shown) = within("a read", &storage, Instant::now, read_from(&*partition, from))
            .await?
            .map_err(|error| format!("partition {id}: {error}"))?;
        history.check(id, cut, ends, &shown)?;
        let agrees = answers.and_then(|answers| answers.check(&shown));
        agrees.map_err(|error| format!("partition {id}: {error}"))?;
        if let StoreState::Poisoned { reason } = partition.info().state {
            return Err(format!("partition {id} does not serve: {reason}"));
        }
        // What a reader has seen now stays.
        if history.partition(id).flavour == Flavour::Written && cut == Cut::Power {
            history.partition(id).log.retain(|offset, _| *offset < ends.1);
        }
        for record in &shown {
            history.learn(id, record.offset, record.id, now())?;
        }
        partitions.insert(id, partition);
    }
    if let Some(id) = listed.iter().find(|id| !history.partitions.contains_key(id)) {
        return Err(format!("partition {id} is there, and nobody made it"));
    }
    Ok(Opened { storage, partitions })
}

impl Opened {
    /// Sends again what clients would, and something new, and reads it.
    pub(crate) async fn go_on(
        &self,
        history: &mut History,
        time: i64,
        draw: &mut Draw,
        now: impl Fn() -> At,
    ) -> Result<(), String> {
        for (id, partition) in &self.partitions {
            for (producer, last, open) in history.resends(*id) {
                for batch in last.into_iter().chain(open) {
                    self.send(history, *id, batch, time, last == Some(batch), &now).await.map_err(
                        |error| {
                            format!(
                                "partition {id}, producer {producer}: {error}; {}",
                                history.told(*id, producer)
                            )
                        },
                    )?;
                }
            }
            let next = match draw.percent(50) {
                true => Some(stamp(STRANGER + draw.below(1 << 20) as u64, 0, 0)),
                false => None,
            };
            let new = history.make(*id, next, now(), time, draw);
            self.send(history, *id, new, time, false, &now)
                .await
                .map_err(|error| format!("partition {id}: {error}"))?;
            let (ends, shown) =
                within("a read", &self.storage, Instant::now, read_from(&**partition, 0)).await??;
            let (first, until) = match history.partition(*id).batches[new].fate {
                Fate::Acked(_, first, last) => (first, last + 1),
                fate => return Err(format!("partition {id}: {fate:?}")),
            };
            let found = shown.iter().filter(|record| (first..until).contains(&record.offset)).count();
            if ends.1 < until || found as u64 != until - first {
                return Err(format!(
                    "partition {id}: {first} to {until} was acknowledged and {ends:?} shows {found} of it"
                ));
            }
            history.check(*id, Cut::Kill, ends, &shown)?;
        }
        Ok(())
    }

    async fn send(
        &self,
        history: &mut History,
        id: PartitionId,
        batch: usize,
        time: i64,
        stored: bool,
        now: &impl Fn() -> At,
    ) -> Result<(), String> {
        let partition = &self.partitions[&id];
        let append = history.append(id, batch, time);
        let ticket = partition.submit(append).map_err(|error| format!("an append: {error}"))?;
        let answer = within("an append", &self.storage, Instant::now, ticket).await?;
        let appended = answer.map_err(|error: AppendError| format!("an append: {error}"))?;
        let Some((base, last)) = appended.offsets else {
            return Err("a duplicate without offsets".to_owned());
        };
        if stored && !appended.duplicate {
            return Err(format!("batch {batch} was acknowledged, and is stored again at {}", base.get()));
        }
        history.acked(id, batch, now(), base.get(), last.get())
    }
}

/// How an image is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) at: At,
    pub(crate) cut: Cut,
    pub(crate) sync: SyncPreference,
    pub(crate) seed: u64,
}

/// Opens an image, goes on in it, closes it or does not, opens it again.
pub(crate) async fn examine(
    directory: &Path,
    history: &mut History,
    look: Look,
    time: &Time,
) -> Result<(), String> {
    let mut draw = Draw::new(look.seed ^ 0x001d_ea11);
    let later = (look.at.0 + 1, 0);
    let milliseconds = time.load(std::sync::atomic::Ordering::Acquire);
    let first = LocalStorage::open_stepped(options(directory, look.sync, time))
        .map_err(|error| format!("first start: {error}"))?;
    let first =
        open(first, history, look.cut, || later).await.map_err(|error| format!("first start: {error}"))?;
    first
        .go_on(history, milliseconds, &mut draw, || later)
        .await
        .map_err(|error| format!("after the first start: {error}"))?;
    let closes = draw.percent(30);
    if closes {
        within("close", &first.storage, Instant::now, first.storage.close())
            .await?
            .map_err(|error| format!("close: {error}"))?;
    }
    drop(first);
    let second = LocalStorage::open_stepped(options(directory, look.sync, time))
        .map_err(|error| format!("second start: {error}"))?;
    if closes && !second.was_clean() {
        return Err("the second start does not take the stop for a clean one".to_owned());
    }
    let second = open(second, history, Cut::Kill, || later)
        .await
        .map_err(|error| format!("second start (clean: {closes}): {error}"))?;
    second
        .go_on(history, milliseconds, &mut draw, || later)
        .await
        .map_err(|error| format!("after the second start (clean: {closes}): {error}"))?;
    Ok(())
}
