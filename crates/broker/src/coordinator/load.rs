//! A shard's life: loaded, served, and loaded again after a failed append.

use std::{future::Future, sync::Arc, time::Duration};

use rimstone_state::group::Groups;
use rimstone_store::{PartitionStore, ReadError, StoreError};
use rimstone_types::PartitionIndex;
use tokio::sync::mpsc;

use super::{
    Command, Lost,
    members::Members,
    offsets_topic::offsets_topic_name,
    shard::{End, Shard},
    shard_log::{LoadError, ShardLog},
};
use crate::{broker::Inner, error::PartitionUnavailable};

/// A log that cannot be read at the moment is tried again after this long.
const LOAD_PAUSE: Duration = Duration::from_secs(1);

/// Why a shard is not loaded.
enum NotLoaded {
    Stopped,
    Unusable(String),
}

/// Runs a shard until the server stops.
pub(super) async fn run(
    inner: Arc<Inner>,
    shard: u32,
    store: Result<Arc<dyn PartitionStore>, PartitionUnavailable>,
    mut mailbox: mpsc::Receiver<Command>,
) {
    let store = match store {
        Ok(store) => store,
        Err(unavailable) => return refuse(&inner, mailbox, unavailable).await,
    };
    let mut members = Members::default();
    loop {
        let loading = load(&inner, Arc::clone(&store), shard);
        let (log, groups) = match while_loading(&mut mailbox, loading).await {
            Ok(loaded) => loaded,
            Err(NotLoaded::Stopped) => return,
            Err(NotLoaded::Unusable(why)) => {
                let (topic, partition) = (offsets_topic_name(), PartitionIndex(shard));
                tracing::error!(%topic, %partition, why, "the coordinator of these groups cannot be loaded");
                return refuse(&inner, mailbox, PartitionUnavailable { topic, partition, why }).await;
            }
        };
        let mut loaded = Shard::new(Arc::clone(&inner), shard, log, groups, members);
        match loaded.serve(&mut mailbox).await {
            End::Stopped => return,
            End::Failed => members = loaded.into_members(),
        }
    }
}

/// Answers requests while the log is read.
async fn while_loading<T>(mailbox: &mut mpsc::Receiver<Command>, loading: impl Future<Output = T>) -> T {
    tokio::pin!(loading);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            loaded = &mut loading => return loaded,
            command = mailbox.recv(), if open => match command {
                Some(command) => command.refuse(&Lost::Loading),
                None => open = false,
            },
        }
    }
}

async fn load(
    inner: &Inner,
    store: Arc<dyn PartitionStore>,
    shard: u32,
) -> Result<(ShardLog, Groups), NotLoaded> {
    loop {
        let why = tokio::select! {
            biased;
            () = inner.shutdown.cancelled() => return Err(NotLoaded::Stopped),
            loaded = ShardLog::load(Arc::clone(&store)) => match loaded {
                Ok(loaded) => return Ok(loaded),
                Err(LoadError::Read(ReadError::Store(StoreError::Io { reason, .. }))) => reason,
                // Damage does not go away by waiting, and what it holds could be a member.
                Err(error) => return Err(NotLoaded::Unusable(error.to_string())),
            },
        };
        tracing::warn!(shard, why, "the coordinator's log cannot be read; trying again");
        tokio::select! {
            () = inner.shutdown.cancelled() => return Err(NotLoaded::Stopped),
            () = tokio::time::sleep(LOAD_PAUSE) => {}
        }
    }
}

/// A shard that cannot be used answers so until the server stops.
async fn refuse(inner: &Inner, mut mailbox: mpsc::Receiver<Command>, unusable: PartitionUnavailable) {
    let lost = Lost::Unusable(unusable);
    loop {
        tokio::select! {
            biased;
            () = inner.shutdown.cancelled() => return,
            command = mailbox.recv() => match command {
                Some(command) => command.refuse(&lost),
                None => return,
            },
        }
    }
}
