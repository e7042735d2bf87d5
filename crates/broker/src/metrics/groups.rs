//! What is counted of groups. Not here: lag, and what is read from the state when somebody asks (`collector`).

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::error::SessionFencedWhy;

/// Counters of all groups together: a series per group would stay when the group goes.
#[derive(Debug)]
pub(crate) struct GroupCounters {
    pub(crate) commits: IntCounter,
    pub(crate) backward_commits: IntCounter,
    pub(crate) rebalances: IntCounter,
    pub(crate) overtaken: IntCounter,
    fenced: IntCounterVec,
}

impl GroupCounters {
    pub(super) fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("every name is registered once");
            counter
        };
        let help =
            "Members that were fenced, by the reason: timed out, or replaced while their stream was open.";
        let fenced = IntCounterVec::new(Opts::new("rimstone_group_fenced_total", help), &["reason"]);
        let fenced = fenced.expect("a valid name and label");
        registry.register(Box::new(fenced.clone())).expect("every name is registered once");
        let counters = Self {
            commits: counter("rimstone_group_commits_total", "Offsets committed."),
            backward_commits: counter(
                "rimstone_group_backward_commits_total",
                "Offsets committed before the one that was committed until then.",
            ),
            rebalances: counter(
                "rimstone_group_rebalances_total",
                "Times that a group's epoch was raised: members, subscriptions or partitions changed.",
            ),
            overtaken: counter(
                "rimstone_group_overtaken_total",
                "Times that retention overtook the position of a member that was reading.",
            ),
            fenced,
        };
        for why in SessionFencedWhy::ALL {
            counters.fenced(why);
        }
        counters
    }

    pub(crate) fn fenced(&self, why: SessionFencedWhy) -> IntCounter {
        self.fenced.with_label_values(&[why.as_str()])
    }
}
