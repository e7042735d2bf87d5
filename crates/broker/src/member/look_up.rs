//! Seeks by time that are looked up in the logs: beside everything else of a session, however long one takes.
//!
//! Not here: what is looked up, and what comes of it (`cursor`, `session`).

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::poll_fn,
    task::Poll,
};

use futures::{FutureExt as _, future::BoxFuture};
use rimstone_types::Offset;

use super::session::Place;
use crate::error::SessionProblem;

/// Look-ups of one session that run at one time; more would only wait for each other at the disk.
const AT_ONCE: usize = 16;

/// What a look-up comes to: where to read on.
pub(super) type Found = Result<Offset, SessionProblem>;

/// The look-ups of a session: one for a partition at most.
#[derive(Default)]
pub(super) struct LookUps {
    under_way: BTreeMap<Place, BoxFuture<'static, Found>>,
    /// Not yet taken; each partition in one of the two.
    found: VecDeque<(Place, Found)>,
}

impl fmt::Debug for LookUps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { under_way, found } = self;
        f.debug_struct("LookUps").field("under_way", &under_way.keys()).field("found", found).finish()
    }
}

impl LookUps {
    /// Looks up for a partition, instead of what was looked up for it before.
    pub(super) fn begin(&mut self, place: Place, look_up: BoxFuture<'static, Found>) {
        self.forget(&place);
        self.under_way.insert(place, look_up);
    }

    /// What is looked up for a partition is not wanted any more.
    pub(super) fn forget(&mut self, place: &Place) {
        self.under_way.remove(place);
        self.found.retain(|(found, _)| found != place);
    }

    /// What was found, if something was. Lets the look-ups get on.
    pub(super) fn take(&mut self) -> Option<(Place, Found)> {
        self.wait().now_or_never()?;
        self.found.pop_front()
    }

    /// Waits until something is found. Nothing is lost if this is dropped.
    pub(super) async fn wait(&mut self) {
        poll_fn(|context| {
            let mut ready = Vec::new();
            for (place, look_up) in self.under_way.iter_mut().take(AT_ONCE) {
                if let Poll::Ready(found) = look_up.poll_unpin(context) {
                    ready.push((place.clone(), found));
                }
            }
            for (place, found) in ready {
                self.under_way.remove(&place);
                self.found.push_back((place, found));
            }
            if self.found.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}
