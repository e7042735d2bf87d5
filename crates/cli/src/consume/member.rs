//! `rimstone consume --group`: reads as a member of a group. What is printed is committed only when it is
//! written out.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::{Pin, pin},
    time::Duration,
};

use clap::{Args, ValueEnum};
use futures::FutureExt as _;
use rimstone_client::{
    Assignor, ClientError, Consumer, ConsumerBuilder, ConsumerRecord, Event, Groups, StartPolicy,
    TopicPartition, reason,
};
use tokio::time::Instant;

use super::{Consume, OUT_BUFFER, interrupted, write_out};
use crate::{
    exit::{Exit, Failure, Outcome},
    global::Global,
    output::note,
};

/// How long leaving may take before the program ends without it.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How often the group is asked whether this member has all that it is to have.
const ASK_GROUP: Duration = Duration::from_millis(250);

/// Options of a member.
#[derive(Debug, Args)]
#[command(next_help_heading = "In a group")]
pub(crate) struct InGroup {
    /// Reads as a member of this group: shares the partitions with its other members, goes on where the group
    /// has committed, and commits what is printed and written out. Goes on and on
    #[arg(short, long, conflicts_with_all = ["from", "until", "partitions", "key", "key_prefix", "header"])]
    pub(super) group: Option<String>,
    /// Also the topics whose names begin with this, those that are made later too
    #[arg(long, value_name = "PREFIX", requires = "group")]
    topic_prefix: Option<String>,
    /// Where to begin in a partition without a committed offset, or with one outside the log
    #[arg(long, value_enum, default_value_t = StartChoice::Error, requires = "group")]
    start: StartChoice,
    /// How often to commit, for example 500ms or 10s; always also before partitions are given back and at the end
    #[arg(long, value_name = "DURATION", default_value = "1s", requires = "group", value_parser = humantime::parse_duration)]
    commit_interval: Duration,
    /// Ends when everything is printed that was there in this member's partitions when it was given them
    #[arg(long, requires = "group", conflicts_with = "follow")]
    until_caught_up: bool,
    /// Ends when nothing has come for so long, for example 10s; counted from when the member is given what to read
    #[arg(long, value_name = "DURATION", requires = "group", conflicts_with = "follow",
          value_parser = humantime::parse_duration)]
    until_idle: Option<Duration>,
    /// The member's id, kept across reconnects; takes the place of a member that has it [default: by chance]
    #[arg(long, value_name = "ID", requires = "group")]
    member_id: Option<String>,
    /// Makes it a static member: one that comes back under this name within the session time-out has its
    /// partitions without anybody else's moving
    #[arg(long, value_name = "ID", requires = "group")]
    instance_id: Option<String>,
    /// What is shown where members are listed
    #[arg(long, value_name = "NAME", default_value = "rimstone-cli", requires = "group")]
    client_id: String,
    /// How to share out the group's partitions; the choice of most members counts
    #[arg(long, value_enum, requires = "group")]
    assignor: Option<AssignorChoice>,
    /// Without a word for so long the group gives the member's partitions to others
    #[arg(long, value_name = "DURATION", default_value = "45s", requires = "group", value_parser = humantime::parse_duration)]
    session_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StartChoice {
    /// End with an error that names the choice (but begin where there is no record yet)
    Error,
    /// The first record there is
    Earliest,
    /// The end: only what comes later
    Latest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AssignorChoice {
    /// Even shares, and as few partitions as possible move
    Sticky,
    /// Per topic, a run of neighbouring partitions to each member
    Range,
    /// All partitions in turn
    RoundRobin,
}

/// What one round of waiting gave.
enum Next {
    Event(Event),
    Tick,
    End,
    Interrupted,
}

/// For how long nothing has come. Nobody is idle who has yet to be given what to read.
#[derive(Debug)]
struct Idle {
    allowed: Option<Duration>,
    heard: Option<Instant>,
}

/// A member while it prints.
struct Printing<'a> {
    options: &'a Consume,
    consumer: Consumer,
    groups: Groups,
    quiet: bool,
    printed: Vec<u8>,
    /// Writing has failed: nobody knows what has been seen.
    broken: bool,
    left: Option<u64>,
    /// Something is handed out and not committed.
    uncommitted: bool,
    commit_at: Instant,
    idle: Idle,
    /// What is owned, and whether everything is printed that was there at its start.
    owned: BTreeMap<TopicPartition, bool>,
}

impl Consume {
    pub(super) async fn run_in_group(self, global: &Global, group: &str) -> Outcome {
        let consumer = self.builder(global, group).build()?;
        self.look_at_topics(global).await?;
        let now = Instant::now();
        let mut printing = Printing {
            groups: Groups::new(&global.server)?,
            quiet: global.quiet,
            printed: Vec::with_capacity(OUT_BUFFER),
            broken: false,
            left: self.count,
            uncommitted: false,
            commit_at: now + self.member.commit_interval,
            idle: Idle { allowed: self.member.until_idle, heard: None },
            owned: BTreeMap::new(),
            consumer,
            options: &self,
        };
        let mut stop = pin!(interrupted());
        let ended = printing.run(stop.as_mut()).await;
        printing.finish(ended).await
    }

    /// A server that is not there at all is said at once, and so is a name that may be mistyped.
    async fn look_at_topics(&self, global: &Global) -> Outcome {
        let admin = global.admin()?;
        if self.topics.is_empty() {
            admin.describe_server().await?;
        }
        for topic in &self.topics {
            match admin.describe_topic(topic).await {
                Err(error) if error.is(reason::TOPIC_NOT_FOUND) => {
                    note(format!("topic {topic} is not there yet; it is read as soon as it is"));
                }
                found => drop(found?),
            }
        }
        Ok(())
    }

    fn builder(&self, global: &Global, group: &str) -> ConsumerBuilder {
        let member = &self.member;
        let start = match member.start {
            StartChoice::Error => StartPolicy::Error,
            StartChoice::Earliest => StartPolicy::Earliest,
            StartChoice::Latest => StartPolicy::Latest,
        };
        let mut builder = Consumer::builder(&global.server, group)
            .topics(self.topics.iter().map(String::as_str))
            .topic_prefix(member.topic_prefix.as_deref().unwrap_or_default())
            .start(start)
            .client_id(&member.client_id)
            .session_timeout(member.session_timeout)
            .retry_for(self.retry_for)
            .close_within(LEAVE_WITHIN);
        if let Some(id) = &member.member_id {
            builder = builder.member_id(id);
        }
        if let Some(id) = &member.instance_id {
            builder = builder.instance_id(id);
        }
        match member.assignor {
            None => builder,
            Some(AssignorChoice::Sticky) => builder.assignor(Assignor::Sticky),
            Some(AssignorChoice::Range) => builder.assignor(Assignor::Range),
            Some(AssignorChoice::RoundRobin) => builder.assignor(Assignor::RoundRobin),
        }
    }
}

impl Idle {
    /// A record, or something to read.
    fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    fn has_yet_to_begin(&self) -> bool {
        self.allowed.is_some() && self.heard.is_none()
    }

    /// When it will have been long enough if nothing comes.
    fn ends_at(&self) -> Option<Instant> {
        Some(self.heard? + self.allowed?)
    }
}

impl Printing<'_> {
    /// Prints until the end; answers whether it came by a signal.
    async fn run(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<bool, Failure> {
        while self.left != Some(0) {
            match self.next(stop.as_mut()).await? {
                Next::Interrupted => return Ok(true),
                Next::End => return Ok(false),
                Next::Tick => {}
                Next::Event(Event::Record(record)) => self.print(&record)?,
                Next::Event(event) => self.told(event).await?,
            }
            if self.printed.len() >= OUT_BUFFER {
                self.flush()?;
                self.commit_if_due();
                // Reading never waits while messages are at hand; a signal is to be heard all the same.
                tokio::task::yield_now().await;
                if stop.as_mut().now_or_never().is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn next(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<Next, Failure> {
        if let Some(event) = self.consumer.next_event().now_or_never() {
            return Ok(Next::Event(event?));
        }
        // What is printed is written before waiting, so that whoever reads us sees it, and so that it counts.
        self.flush()?;
        self.commit_if_due();
        let member = &self.options.member;
        let caught_up = member.until_caught_up && self.owned.values().all(|caught_up| *caught_up);
        let asks = caught_up || self.idle.has_yet_to_begin();
        if asks {
            let has_its_share = tokio::select! {
                has_it = self.has_its_share() => has_it,
                () = stop.as_mut() => return Ok(Next::Interrupted),
            };
            if has_its_share && caught_up {
                return Ok(Next::End);
            }
            if has_its_share {
                // That is nothing: there are members enough, or no topic yet.
                self.idle.hear(Instant::now());
            }
        }
        let idle_at = self.idle.ends_at();
        if idle_at.is_some_and(|at| Instant::now() >= at) {
            return Ok(Next::End);
        }
        let commit_at = self.uncommitted.then_some(self.commit_at);
        let ask_at = asks.then(|| Instant::now() + ASK_GROUP);
        let timer = [idle_at, commit_at, ask_at].into_iter().flatten().min();
        let timer = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.consumer.next_event() => Ok(Next::Event(event?)),
            () = timer => Ok(Next::Tick),
            () = stop => Ok(Next::Interrupted),
        }
    }

    fn print(&mut self, record: &ConsumerRecord) -> Outcome {
        self.options.print(&mut self.printed, record.topic(), record)?;
        self.idle.hear(Instant::now());
        self.uncommitted = true;
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(())
    }

    /// Everything that was handed out has been written out, so it may be committed.
    fn commit_if_due(&mut self) {
        let now = Instant::now();
        if self.uncommitted && now >= self.commit_at {
            drop(self.consumer.commit_all());
            self.uncommitted = false;
            self.commit_at = now + self.options.member.commit_interval;
        }
    }

    async fn told(&mut self, event: Event) -> Outcome {
        match event {
            Event::Assigned(assigned) => {
                self.idle.hear(Instant::now());
                self.say("reading", assigned.iter().map(|assignment| &assignment.at));
                self.owned.extend(assigned.into_iter().map(|assignment| (assignment.at, false)));
            }
            Event::CaughtUp(at) => {
                if let Some(caught_up) = self.owned.get_mut(&at) {
                    *caught_up = true;
                }
            }
            Event::Stopping(stopping) => {
                self.flush()?;
                match self.consumer.commit_all().await {
                    // Lost in the meantime: an event says so.
                    Err(error) if error.is(reason::PARTITION_NOT_OWNED) => {}
                    committed => committed?,
                }
                self.uncommitted = false;
                self.say("giving back", stopping.partitions().iter());
                self.owned.retain(|at, _| !stopping.partitions().contains(at));
                stopping.confirm();
            }
            Event::Lost(lost) => {
                self.flush()?;
                self.uncommitted = false;
                self.say("lost (what was not committed is read again)", lost.iter());
                self.owned.retain(|at, _| !lost.contains(at));
            }
            Event::Record(_) => {}
        }
        Ok(())
    }

    fn say<'a>(&self, what: &str, partitions: impl Iterator<Item = &'a TopicPartition>) {
        if !self.quiet {
            let partitions: Vec<_> = partitions.map(ToString::to_string).collect();
            note(format!("{what} {}", partitions.join(" ")));
        }
    }

    /// Whether this member has what the group means it to have. Nothing is known while nobody answers.
    async fn has_its_share(&self) -> bool {
        let group = self.options.member.group.as_deref().unwrap_or_default();
        let Ok(details) = self.groups.describe(group).await else { return false };
        let id = self.consumer.member_id();
        let member = details.members.into_iter().find(|member| member.id == id);
        member.is_some_and(|member| {
            let target: BTreeSet<_> = member.target.into_iter().collect();
            target.iter().eq(self.owned.keys())
        })
    }

    fn flush(&mut self) -> Outcome {
        let written = write_out(&mut self.printed);
        self.broken |= written.is_err();
        written
    }

    /// Commits what is written out, and leaves.
    async fn finish(mut self, ended: Result<bool, Failure>) -> Outcome {
        let flushed = if self.broken { Ok(()) } else { self.flush() };
        if self.uncommitted && !self.broken {
            drop(self.consumer.commit_all());
        }
        let closed = self.consumer.close().await;
        let interrupted = ended?;
        flushed?;
        closed.map_err(unfinished)?;
        if interrupted { Err(Failure::new(Exit::Interrupted, "")) } else { Ok(()) }
    }
}

/// Everything is printed, and the last commit may not have been taken.
fn unfinished(error: ClientError) -> Failure {
    let message = error.message.clone();
    Failure::from(error)
        .saying(format!("everything was printed, but the last of it may not be committed: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_begins_with_something_to_read() {
        let allowed = Duration::from_secs(1);
        let mut idle = Idle { allowed: Some(allowed), heard: None };
        assert!(idle.has_yet_to_begin());
        assert_eq!(idle.ends_at(), None);
        let given = Instant::now() + 100 * allowed;
        idle.hear(given);
        assert!(!idle.has_yet_to_begin());
        assert_eq!(idle.ends_at(), Some(given + allowed));
        idle.hear(given + allowed);
        assert_eq!(idle.ends_at(), Some(given + 2 * allowed));

        let mut patient = Idle { allowed: None, heard: None };
        assert!(!patient.has_yet_to_begin());
        patient.hear(given);
        assert_eq!(patient.ends_at(), None);
    }
}
