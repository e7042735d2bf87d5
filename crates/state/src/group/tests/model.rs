//! A world around the state machine: a shard that crashes, a network that loses and delays, clients that die,
//! come back and live on unheard. What may leave the shard leaves only when it is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rimstone_types::{GroupEpoch, MemberId, PartitionIndex, TopicName};

use super::{
    common::{TestTopics, at, group, offset},
    session::Told,
};
use crate::group::{
    Commit, Committer, Decision, FencedBecause, GroupError, GroupRecord, Groups, Join, MemberView, Removal,
};

pub(super) type Place = (TopicName, PartitionIndex);
/// One life of a membership, from a new start to its end. The system does not know of it: it is the model's
/// way to tell a zombie.
pub(super) type Life = usize;
type Bytes = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug)]
pub(super) enum ToServer {
    /// With the life that the process then believed to be in.
    Join(Join, Option<Life>),
    Stopped(Vec<Place>),
    Commit(Vec<Place>),
    Leave {
        for_good: bool,
    },
}

#[derive(Debug, Clone)]
pub(super) enum ToClient {
    Joined {
        epoch: GroupEpoch,
        resumed: bool,
        life: Life,
    },
    Start(GroupEpoch, Vec<Place>),
    Stop(GroupEpoch, Vec<Place>),
    /// The session is over: drop everything.
    Fenced,
    /// Another connection has taken the session over.
    Closed,
}

/// What leaves the shard once what it was decided on is durable.
#[derive(Debug, Clone)]
enum Out {
    Joined { conn: usize, epoch: GroupEpoch, resumed: bool },
    Fenced { conn: usize },
    Closed { conn: usize },
    Ended(Life),
    Views(BTreeMap<MemberId, (Life, MemberView)>),
}

#[derive(Debug)]
struct Session {
    member: MemberId,
    life: Life,
    /// Its join is durable.
    open: bool,
    /// Replaced, fenced or left: nothing that comes over it counts.
    ended: bool,
    told: Told,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) process: usize,
    pub(super) to_server: VecDeque<ToServer>,
    pub(super) to_client: VecDeque<ToClient>,
    /// The client has not given it up.
    pub(super) open: bool,
    session: Option<Session>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) join: Join,
    pub(super) alive: bool,
    pub(super) conn: Option<usize>,
    pub(super) epoch: GroupEpoch,
    pub(super) life: Option<Life>,
    pub(super) owned: BTreeSet<Place>,
    pub(super) stopping: BTreeSet<Place>,
    /// What it was told to stop on this connection and has not answered.
    pub(super) to_answer: BTreeSet<Place>,
}

impl Process {
    pub(super) fn new(join: Join) -> Self {
        Self {
            join,
            alive: true,
            conn: None,
            epoch: GroupEpoch::ZERO,
            life: None,
            owned: BTreeSet::new(),
            stopping: BTreeSet::new(),
            to_answer: BTreeSet::new(),
        }
    }

    pub(super) fn drop_everything(&mut self) {
        self.epoch = GroupEpoch::ZERO;
        self.life = None;
        self.owned.clear();
        self.stopping.clear();
        self.to_answer.clear();
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = &Place> {
        self.owned.iter().chain(&self.stopping)
    }
}

#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) live: Groups,
    pub(super) topics: TestTopics,
    /// Batches of records, as bytes. Those from `durable` on are submitted and not durable.
    log: Vec<Vec<Bytes>>,
    durable: usize,
    parked: VecDeque<(usize, Out)>,
    /// The present life of each member, and before each batch.
    lives: BTreeMap<MemberId, Life>,
    lives_before: Vec<BTreeMap<MemberId, Life>>,
    next_life: Life,
    ended: BTreeSet<Life>,
    pub(super) conns: Vec<Conn>,
    pub(super) processes: Vec<Process>,
    /// How often what happened: a model in which nothing happens shows nothing.
    pub(super) seen: BTreeMap<&'static str, usize>,
}

impl World {
    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    // The shard.

    /// Submits what was decided.
    fn submit<A>(&mut self, decision: Decision<A>) -> A {
        if !decision.records.is_empty() {
            self.lives_before.push(self.lives.clone());
            self.log.push(decision.records.iter().map(GroupRecord::encode).collect());
            decision.records.into_iter().for_each(|record| self.live.replay(record));
        }
        decision.answer
    }

    fn park(&mut self, out: Out) {
        self.parked.push_back((self.log.len(), out));
    }

    fn end_life(&mut self, member: &MemberId) {
        if let Some(life) = self.lives.remove(member) {
            self.park(Out::Ended(life));
        }
    }

    fn publish(&mut self) {
        let view = |(member, &life): (&MemberId, &Life)| {
            Some((member.clone(), (life, self.live.view(&group(), member)?)))
        };
        let views = self.lives.iter().filter_map(view).collect();
        self.park(Out::Views(views));
    }

    /// The shard takes the next message of a connection.
    pub(super) fn serve(&mut self, conn: usize) {
        let Some(message) = self.conns[conn].to_server.pop_front() else { return };
        match message {
            ToServer::Join(join, believed) => self.serve_join(conn, &join, believed),
            message => {
                let session = self.conns[conn].session.as_ref().filter(|session| !session.ended);
                let Some(session) = session else { return };
                let member = session.member.clone();
                match message {
                    ToServer::Stopped(places) => self.serve_stopped(conn, &member, places),
                    ToServer::Commit(places) => self.serve_commit(conn, &member, &places),
                    ToServer::Leave { for_good } => self.remove(&member, Removal::Leave { for_good }),
                    ToServer::Join(..) => unreachable!("matched above"),
                }
            }
        }
    }

    fn serve_join(&mut self, conn: usize, join: &Join, believed: Option<Life>) {
        let decision = match self.live.join(join, &self.topics, at(1)) {
            Ok(decision) => decision,
            Err(GroupError::Fenced { .. }) => {
                self.saw("fenced on return");
                return self.park(Out::Fenced { conn });
            }
            Err(error) => panic!("{error}"),
        };
        let joined = self.submit(decision);
        if let Some(replaced) = &joined.replaced {
            self.saw(if *replaced == join.member { "replaced itself" } else { "replaced an instance" });
            self.end_life(replaced);
        }
        let life = match joined.resumed {
            true => {
                let life = self.lives[&join.member];
                assert_eq!(believed, Some(life), "a zombie goes on with another's life");
                self.saw("resumed");
                life
            }
            false => {
                self.end_life(&join.member);
                self.next_life += 1;
                self.lives.insert(join.member.clone(), self.next_life);
                self.next_life
            }
        };
        for (other, other_conn) in self.conns.iter_mut().enumerate() {
            let session = other_conn.session.as_mut().filter(|session| session.member == join.member);
            if let Some(session) = session.filter(|session| !session.ended) {
                session.ended = true;
                self.parked.push_back((self.log.len(), Out::Closed { conn: other }));
            }
        }
        let view = self.live.view(&group(), &join.member).expect("it is a member");
        assert_eq!(view.epoch, joined.epoch);
        let claimed: Vec<_> = join.owned.iter().filter(|_| joined.resumed).cloned().collect();
        let held = |(topic, index): &Place| view.assignment.holds(topic, *index);
        assert!(claimed.iter().all(held), "it goes on with what it does not hold");
        let told = Told::new(joined.epoch, claimed);
        let session = Session { member: join.member.clone(), life, open: false, ended: false, told };
        self.conns[conn].session = Some(session);
        self.park(Out::Joined { conn, epoch: joined.epoch, resumed: joined.resumed });
        self.publish();
    }

    fn serve_stopped(&mut self, conn: usize, member: &MemberId, places: Vec<Place>) {
        let session = self.conns[conn].session.as_mut().expect("there");
        let answers = session.told.stopped(places);
        let decision = self.live.confirm_stop(&group(), member, session.told.epoch(), &answers);
        match decision {
            Ok(decision) => drop(self.submit(decision)),
            // It was timed out, and will hear of it when that is durable.
            Err(GroupError::Fenced { because: FencedBecause::UnknownMember, .. }) => return,
            Err(error) => panic!("a session confirms what it was told to stop: {error}"),
        }
        self.publish();
        self.saw("stopped");
    }

    fn serve_commit(&mut self, conn: usize, member: &MemberId, places: &[Place]) {
        let accepted = self.commit(self.conns[conn].process, Committer::Session(member), places);
        self.saw(if accepted { "committed" } else { "refused to commit" });
    }

    /// A client commits beside its stream, with the epoch that it believes to have.
    pub(super) fn commit_beside(&mut self, process: usize, places: &[Place]) {
        let (member, epoch) = (self.processes[process].join.member.clone(), self.processes[process].epoch);
        let accepted = self.commit(process, Committer::Member(&member, epoch), places);
        self.saw(if accepted { "committed beside" } else { "refused to commit beside" });
    }

    /// Whether all of it was accepted. What is accepted nobody else reads.
    fn commit(&mut self, process: usize, by: Committer<'_>, places: &[Place]) -> bool {
        let places: Vec<_> =
            places.iter().filter(|(topic, _)| self.topics.topics.contains_key(topic)).collect();
        let offsets =
            places.iter().map(|(topic, index)| offset(&self.topics, &format!("{topic}:{index}"), 150));
        let commit = Commit { group: &group(), by, keeps_place: false, offsets: offsets.collect() };
        match self.live.commit(commit, at(2)) {
            Ok(decision) => {
                for (place, _) in places.iter().zip(&decision.answer).filter(|(_, result)| result.is_ok()) {
                    // Before this is durable and answered, so is every end that was decided before.
                    let mut others = self.readers(place);
                    others.retain(|&other| other != process && !self.is_ending(self.processes[other].life));
                    assert!(others.is_empty(), "{place:?} is read by {others:?}");
                }
                self.submit(decision).iter().all(Result::is_ok)
            }
            Err(GroupError::Fenced { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn is_ending(&self, life: Option<Life>) -> bool {
        self.parked.iter().any(|(_, out)| matches!(out, Out::Ended(ended) if Some(*ended) == life))
    }

    /// The shard ends a membership: on leaving, or by a timer.
    pub(super) fn remove(&mut self, member: &MemberId, why: Removal) {
        let decision = self.live.remove_member(&group(), member, why, &self.topics);
        if self.submit(decision) {
            self.end_life(member);
            self.saw("removed");
        }
        if let Removal::Leave { .. } = why {
            let sessions = self.conns.iter_mut().filter_map(|conn| conn.session.as_mut());
            sessions.filter(|session| session.member == *member).for_each(|session| session.ended = true);
        }
        self.publish();
    }

    pub(super) fn notice_topics(&mut self) {
        for name in self.live.outdated(&self.topics) {
            let decision = self.live.topics_changed(&name, &self.topics);
            assert!(!decision.records.is_empty(), "outdated, and nothing to do");
            self.submit(decision);
            self.publish();
            self.saw("topics changed");
        }
        assert!(self.live.outdated(&self.topics).is_empty());
    }

    /// Up to this many more batches become durable, and what waited for them leaves. Views are levels: with
    /// `only_last`, those in between are passed over.
    pub(super) fn flush(&mut self, batches: usize, only_last: bool) {
        self.durable = self.log.len().min(self.durable.saturating_add(batches));
        let ready = self.parked.iter().take_while(|(version, _)| *version <= self.durable).count();
        let outs: Vec<_> = self.parked.drain(..ready).map(|(_, out)| out).collect();
        let last = outs.iter().rposition(|out| matches!(out, Out::Views(_)));
        for (position, out) in outs.into_iter().enumerate() {
            match out {
                Out::Joined { conn, epoch, resumed } => {
                    if let Some(session) = self.conns[conn].session.as_mut().filter(|session| !session.ended)
                    {
                        session.open = true;
                        let life = session.life;
                        self.conns[conn].to_client.push_back(ToClient::Joined { epoch, resumed, life });
                    }
                }
                Out::Closed { conn } => self.conns[conn].to_client.push_back(ToClient::Closed),
                Out::Fenced { conn } => self.conns[conn].to_client.push_back(ToClient::Fenced),
                Out::Ended(life) => {
                    self.ended.insert(life);
                    for conn in &mut self.conns {
                        if let Some(session) = conn.session.as_mut().filter(|session| session.life == life) {
                            session.ended = true;
                            conn.to_client.push_back(ToClient::Fenced);
                        }
                    }
                }
                Out::Views(_) if only_last && Some(position) != last => {}
                Out::Views(views) => self.conns.iter_mut().for_each(|conn| conn.show(&views)),
            }
        }
    }

    /// The server dies. Of the batches that were not durable some are there all the same.
    pub(super) fn crash(&mut self, survive: usize) {
        let kept = self.log.len().min(self.durable + survive);
        if let Some(lives) = self.lives_before.get(kept) {
            self.lives = lives.clone();
        }
        self.log.truncate(kept);
        self.lives_before.truncate(kept);
        self.durable = kept;
        // An end that became durable with nobody to tell it.
        for (version, out) in std::mem::take(&mut self.parked) {
            if let Out::Ended(life) = out
                && version <= kept
            {
                self.ended.insert(life);
            }
        }
        for conn in 0..self.conns.len() {
            self.cut(conn);
            self.conns[conn].session = None;
            self.conns[conn].to_server.clear();
        }
        self.live = self.rebuilt(0);
        self.saw("crashed");
    }

    /// The state that the records give, of which the first `compacted` batches have been compacted: of each key
    /// only the latest, without the tombstones.
    pub(super) fn rebuilt(&self, compacted: usize) -> Groups {
        let (old, new) = self.log.split_at(compacted.min(self.log.len()));
        let old: Vec<_> = old.iter().flatten().collect();
        let latest: BTreeMap<_, _> = old.iter().enumerate().map(|(at, (key, _))| (key, at)).collect();
        let kept = old.iter().enumerate().filter(|(at, (key, value))| latest[key] == *at && value.is_some());
        let mut groups = Groups::default();
        for (key, value) in kept.map(|(_, record)| *record).chain(new.iter().flatten()) {
            groups.replay(GroupRecord::decode(Some(key), value.as_deref()).expect("as it was written"));
        }
        groups
    }

    pub(super) fn batches(&self) -> usize {
        self.log.len()
    }

    // Clients and network.

    /// The processes that read a partition as they see it: from the start that they were told to the stop that
    /// they confirmed, their leaving, or the end of their session by the server's clock.
    pub(super) fn readers(&self, place: &Place) -> Vec<usize> {
        let reads = |process: &Process| {
            let in_session = process.life.is_some_and(|life| !self.ended.contains(&life));
            process.alive && in_session && process.reads().any(|read| read == place)
        };
        (0..self.processes.len()).filter(|&at| reads(&self.processes[at])).collect()
    }

    pub(super) fn connect(&mut self, process: usize) {
        if let Some(conn) = self.processes[process].conn {
            self.cut(conn);
        }
        let this = &mut self.processes[process];
        let mut join = this.join.clone();
        join.epoch = this.epoch;
        join.owned = this.reads().cloned().collect();
        this.to_answer.clear();
        this.conn = Some(self.conns.len());
        self.conns.push(Conn {
            process,
            to_server: VecDeque::from([ToServer::Join(join, this.life)]),
            to_client: VecDeque::new(),
            open: true,
            session: None,
        });
    }

    /// The client's end of a connection breaks. What it sent may still arrive.
    pub(super) fn cut(&mut self, conn: usize) {
        let conn = &mut self.conns[conn];
        if std::mem::replace(&mut conn.open, false) {
            conn.to_client.clear();
            self.processes[conn.process].conn = None;
        }
    }

    /// A client takes the next message, unless it has given the connection up.
    pub(super) fn deliver(&mut self, conn: usize) {
        let Some(message) = self.conns[conn].to_client.pop_front() else { return };
        if !self.conns[conn].open {
            return;
        }
        let process = &mut self.processes[self.conns[conn].process];
        match message {
            ToClient::Joined { epoch, resumed, life } => {
                if resumed {
                    assert_eq!(process.life, Some(life));
                } else {
                    process.drop_everything();
                }
                process.epoch = epoch;
                process.life = Some(life);
            }
            ToClient::Start(epoch, places) => {
                assert!(epoch >= process.epoch, "epochs go up");
                process.epoch = epoch;
                for place in places {
                    assert!(!process.stopping.contains(&place), "started while it stops");
                    assert!(process.owned.insert(place), "started twice");
                }
            }
            ToClient::Stop(epoch, places) => {
                assert!(epoch >= process.epoch, "epochs go up");
                process.epoch = epoch;
                // What it does not read it answers for at once.
                let (reads, idle): (Vec<_>, _) =
                    places.into_iter().partition(|place| process.reads().any(|read| read == place));
                for place in reads {
                    process.owned.remove(&place);
                    process.stopping.insert(place.clone());
                    process.to_answer.insert(place);
                }
                if !idle.is_empty() {
                    self.saw("confirmed what it does not read");
                    self.conns[conn].to_server.push_back(ToServer::Stopped(idle));
                }
            }
            ToClient::Closed => self.cut(conn),
            ToClient::Fenced => {
                process.drop_everything();
                self.cut(conn);
            }
        }
    }

    /// A client says something to its session, if it is in one.
    pub(super) fn say(&mut self, process: usize, message: ToServer) -> bool {
        let this = &self.processes[process];
        match this.conn.filter(|_| this.life.is_some()) {
            Some(conn) => {
                self.conns[conn].to_server.push_back(message);
                true
            }
            None => false,
        }
    }
}

impl Conn {
    /// Tells the client what is new in the latest view of its member.
    fn show(&mut self, views: &BTreeMap<MemberId, (Life, MemberView)>) {
        let Some(session) = self.session.as_mut().filter(|session| session.open && !session.ended) else {
            return;
        };
        let Some((_, view)) = views.get(&session.member).filter(|(life, _)| *life == session.life) else {
            return;
        };
        let tell = session.told.show(view);
        if !tell.stop.is_empty() {
            self.to_client.push_back(ToClient::Stop(tell.epoch, tell.stop));
        }
        if !tell.start.is_empty() {
            self.to_client.push_back(ToClient::Start(tell.epoch, tell.start));
        }
    }
}
