//! The members of one shard's groups as far as time and connections go: signs of life, deadlines, and the way
//! to the session of each. Nothing of it is kept: after a restart every member has its whole session time-out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rimstone_state::group::{Groups, MemberValue, MemberView};
use rimstone_types::{GroupName, MemberId};
use tokio::{sync::watch, time::Instant};

use super::{Overdue, Pulse};
use crate::error::SessionFencedWhy;

/// What a session is told. The latest says it all.
#[derive(Debug, Clone)]
pub(crate) enum SessionUpdate {
    /// What the member holds.
    View(MemberView),
    /// The session is not the member's any more.
    Fenced(SessionFencedWhy),
}

/// The shard's end of a session.
#[derive(Debug)]
struct Connection {
    /// Tells one session of a member from the next.
    token: u64,
    updates: watch::Sender<SessionUpdate>,
    /// It reads under the start policy `latest`.
    reads_latest: bool,
    /// What was sent last, or is parked to be sent.
    last: MemberView,
}

#[derive(Debug)]
struct Entry {
    pulse: Arc<Pulse>,
    /// When it is looked at next: not after its deadline.
    look_at: Instant,
    connection: Option<Connection>,
}

type Key = (GroupName, MemberId);

/// A member whose time is up.
pub(super) type Due = (MemberId, Overdue);

/// A push that is to be parked.
pub(super) type Push = Box<dyn FnOnce() + Send>;

/// All members of the shard's groups.
#[derive(Debug, Default)]
pub(super) struct Members {
    groups: BTreeMap<GroupName, BTreeMap<MemberId, Entry>>,
    /// One line for each member.
    looks: BTreeSet<(Instant, Key)>,
}

impl Members {
    /// Whether a stream of the member is open.
    pub(super) fn is_connected(&self, group: &GroupName, member: &MemberId) -> bool {
        self.entry(group, member)
            .and_then(|entry| entry.connection.as_ref())
            .is_some_and(|connection| !connection.updates.is_closed())
    }

    /// Whether this is the member's present session.
    pub(super) fn is_session(&self, group: &GroupName, member: &MemberId, token: u64) -> bool {
        self.entry(group, member)
            .and_then(|entry| entry.connection.as_ref())
            .is_some_and(|connection| connection.token == token)
    }

    /// Whether a member's last session read under the start policy `latest`; not, if it had none.
    pub(super) fn reads_latest(&self, group: &GroupName, member: &MemberId) -> bool {
        self.entry(group, member)
            .and_then(|entry| entry.connection.as_ref())
            .is_some_and(|connection| connection.reads_latest)
    }

    fn entry(&self, group: &GroupName, member: &MemberId) -> Option<&Entry> {
        self.groups.get(group)?.get(member)
    }

    /// Gives a member its new session; an older one of the same member ends by the push.
    pub(super) fn connect(
        &mut self,
        (group, member): (&GroupName, &MemberId),
        pulse: Arc<Pulse>,
        (token, updates): (u64, watch::Sender<SessionUpdate>),
        reads_latest: bool,
        view: MemberView,
    ) -> Option<Push> {
        let replaced = self.remove(group, member, SessionFencedWhy::Replaced);
        let connection = Connection { token, updates, reads_latest, last: view };
        self.insert(group, member, pulse, Some(connection));
        replaced
    }

    fn insert(
        &mut self,
        group: &GroupName,
        member: &MemberId,
        pulse: Arc<Pulse>,
        connection: Option<Connection>,
    ) {
        let look_at = pulse.look_at();
        self.looks.insert((look_at, (group.clone(), member.clone())));
        let entry = Entry { pulse, look_at, connection };
        self.groups.entry(group.clone()).or_default().insert(member.clone(), entry);
    }

    /// Whether this is a member.
    pub(super) fn knows(&self, group: &GroupName, member: &MemberId) -> bool {
        self.entry(group, member).is_some()
    }

    /// Forgets a member; its session, if one is open, ends by the push.
    pub(super) fn remove(
        &mut self,
        group: &GroupName,
        member: &MemberId,
        why: SessionFencedWhy,
    ) -> Option<Push> {
        let members = self.groups.get_mut(group)?;
        let entry = members.remove(member)?;
        if members.is_empty() {
            self.groups.remove(group);
        }
        self.looks.remove(&(entry.look_at, (group.clone(), member.clone())));
        let updates = entry.connection?.updates;
        if updates.is_closed() {
            return None;
        }
        Some(Box::new(move || drop(updates.send_replace(SessionUpdate::Fenced(why)))))
    }

    /// Brings the members of a group in line with the state: who is no member goes, who is one is watched,
    /// and sessions are sent what is new to them.
    pub(super) fn follow(&mut self, groups: &Groups, group: &GroupName) -> Vec<Push> {
        let mut pushes = Vec::new();
        let known: Vec<MemberId> =
            self.groups.get(group).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        for member in known.iter().filter(|member| groups.member(group, member).is_none()) {
            pushes.extend(self.remove(group, member, SessionFencedWhy::Removed));
        }
        for (member, value) in groups.members(group) {
            if self.entry(group, member).is_none() {
                self.insert(group, member, Arc::new(pulse_of(value)), None);
            }
            pushes.extend(self.push_view(groups, group, member, false));
        }
        pushes
    }

    /// After loading: everybody has a whole time-out again, and sessions are told what holds.
    pub(super) fn loaded(&mut self, groups: &Groups) -> Vec<Push> {
        let mut pushes = Vec::new();
        let names: BTreeSet<GroupName> = self.groups.keys().chain(groups.names()).cloned().collect();
        for group in &names {
            pushes.extend(self.follow(groups, group));
            for (member, _) in groups.members(group) {
                pushes.extend(self.push_view(groups, group, member, true));
            }
        }
        for entry in self.groups.values().flat_map(BTreeMap::values) {
            entry.pulse.renew();
        }
        pushes
    }

    fn push_view(
        &mut self,
        groups: &Groups,
        group: &GroupName,
        member: &MemberId,
        again: bool,
    ) -> Option<Push> {
        let view = groups.view(group, member)?;
        let connection = self.groups.get_mut(group)?.get_mut(member)?.connection.as_mut()?;
        if !again && connection.last == view {
            return None;
        }
        connection.last = view.clone();
        let updates = connection.updates.clone();
        Some(Box::new(move || drop(updates.send_replace(SessionUpdate::View(view)))))
    }

    /// When somebody is to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.looks.first().map(|(at, _)| *at)
    }

    /// Whose time is up, by group: all of a group's, of as many groups as make `most` members or more. They are
    /// looked at again after `again`, should they stay.
    pub(super) fn overdue(&mut self, most: usize, again: Duration) -> Vec<(GroupName, Vec<Due>)> {
        let now = Instant::now();
        let (mut overdue, mut count) = (Vec::new(), 0);
        while count < most && self.next_look().is_some_and(|at| at <= now) {
            let Some((at, (group, member))) = self.looks.pop_first() else { break };
            let Some(members) = self.groups.get_mut(&group) else { continue };
            let Some(entry) = members.get_mut(&member) else { continue };
            if entry.pulse.deadline().0 > now {
                entry.look_at = entry.pulse.look_at();
                self.looks.insert((entry.look_at, (group, member)));
                continue;
            }
            self.looks.insert((at, (group.clone(), member)));
            let mut due = Vec::new();
            for (member, entry) in members {
                let (deadline, which) = entry.pulse.deadline();
                if deadline <= now {
                    let key = (group.clone(), member.clone());
                    self.looks.remove(&(entry.look_at, key.clone()));
                    entry.look_at = now + again;
                    self.looks.insert((entry.look_at, key));
                    due.push((member.clone(), which));
                }
            }
            count += due.len();
            overdue.push((group, due));
        }
        overdue
    }

    /// Everybody has a whole time-out again.
    pub(super) fn renew(&self) {
        for entry in self.groups.values().flat_map(BTreeMap::values) {
            entry.pulse.renew();
        }
    }
}

fn pulse_of(value: &MemberValue) -> Pulse {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    Pulse::new(millis(value.session_timeout_ms), millis(value.max_poll_interval_ms))
}
