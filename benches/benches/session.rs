//! What a message of a group's member costs, and how that grows with what it owns, on memory:
//! `cargo bench -p rimstone-benches --bench session -- [messages] [partitions]`
//!
//! The member owns few partitions, then many, all at their ends. Each message is answered before the next.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rimstone_broker::{
    Broker, BrokerConfig, Credit, JoinRequest, MemberSession, OffsetToCommit, ReadFormat, SessionEvent,
    StartPolicy, SystemClock, Visibility,
};
use rimstone_store::MemoryStorage;
use rimstone_types::{GroupEpoch, Offset, PartitionIndex, TopicName};

/// What is compared with.
const FEW: u32 = 10;
/// As many as a server has if nothing else is set, without the server's own.
const MANY: u32 = 9_900;
const MESSAGES: u32 = 10_000;

fn topic() -> TopicName {
    "t".parse().expect("a valid name")
}

async fn session(partitions: u32) -> (Broker, MemberSession) {
    let broker =
        Broker::start(Arc::new(MemoryStorage::new()), BrokerConfig::default(), Arc::new(SystemClock));
    let broker = broker.await.expect("an empty store is served");
    broker.create_topic(topic(), Some(partitions), BTreeMap::new()).await.expect("it is new");
    let request = JoinRequest {
        group: "g".parse().expect("a valid name"),
        member: Some("m".parse().expect("a valid name")),
        instance: None,
        client_id: String::new(),
        host: String::new(),
        topics: [topic()].into(),
        topic_prefix: None,
        assignor: None,
        start: StartPolicy::Earliest,
        visibility: Visibility::Stable,
        format: ReadFormat::Batches,
        session_timeout: None,
        max_poll_interval: None,
        credit: Credit { bytes: u64::MAX, records: u64::MAX },
        epoch: GroupEpoch::ZERO,
        positions: Vec::new(),
        message_bytes: None,
    };
    let mut session = broker.join_group(request).await.expect("it joins");
    let mut begun = 0;
    while begun < partitions as usize {
        if let SessionEvent::Start { partitions, .. } = session.next().await.expect("it goes on") {
            begun += partitions.len();
        }
    }
    look(&mut session).await;
    (broker, session)
}

async fn heartbeats(session: &mut MemberSession, messages: u32) -> Duration {
    let begun = Instant::now();
    for _ in 0..messages {
        session.heartbeat(true);
        while !matches!(session.next().await, Ok(SessionEvent::Alive { .. })) {}
        look(session).await;
    }
    begun.elapsed()
}

async fn commits(session: &mut MemberSession, messages: u32) -> Duration {
    let begun = Instant::now();
    for number in 0..messages {
        let offset = OffsetToCommit {
            topic: topic(),
            partition: PartitionIndex(number % FEW),
            offset: Some(Offset::ZERO),
            metadata: String::new(),
        };
        session.commit(number.into(), vec![offset], None).expect("it is one");
        while !matches!(session.next().await, Ok(SessionEvent::Committed { .. })) {}
        look(session).await;
    }
    begun.elapsed()
}

/// As a stream does between two messages: it looks for more, and waits.
async fn look(session: &mut MemberSession) {
    tokio::select! {
        biased;
        event = session.next() => panic!("there is nothing to tell: {event:?}"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Only this bench's own words: a filter of others, as from `cargo bench coordinator`, is not for it.
    if words.iter().any(|word| !word.starts_with('-') && word.parse::<u32>().is_err()) {
        return;
    }
    // As criterion's benches do: with `--test` it is only tried whether it runs.
    let usual = if words.iter().any(|word| word == "--test") { 10 } else { MESSAGES };
    let mut given = words.iter().filter_map(|word| word.parse().ok());
    let (messages, many) = (given.next().unwrap_or(usual), given.next().unwrap_or(MANY));
    let mut base = None;
    println!("microseconds a message, {messages} messages each");
    for partitions in [FEW, many] {
        let (_broker, mut session) = session(partitions).await;
        let each = |took: Duration| took.as_secs_f64() * 1e6 / f64::from(messages);
        let beat = each(heartbeats(&mut session, messages).await);
        let commit = each(commits(&mut session, messages).await);
        let (one, other) = *base.get_or_insert((beat, commit));
        let times = (beat / one, commit / other);
        println!(
            "{partitions:>6} partitions: heartbeat {beat:>9.1} ({:.1} times), commit {commit:>9.1} ({:.1} times)",
            times.0, times.1
        );
    }
}
