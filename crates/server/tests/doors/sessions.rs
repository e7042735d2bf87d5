//! `ConsumeService.Consume`: the sessions of group members.

use rimstone_proto::v1::{
    self, ConsumeRequest, ConsumeResponse, consume_request::Kind as Say, consume_response::Kind as Hear,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{Server, assert_item, assert_refused, server, soon};

/// A stream, seen from the member.
struct Member {
    says: mpsc::Sender<ConsumeRequest>,
    hears: Streaming<ConsumeResponse>,
}

fn join(group: &str, member: &str) -> v1::ConsumeJoin {
    v1::ConsumeJoin {
        group: group.to_owned(),
        member_id: member.to_owned(),
        topics: vec!["t".to_owned()],
        start: v1::StartPolicy::Earliest.into(),
        client_id: "tester".to_owned(),
        credit: Some(v1::ConsumeCredit { bytes: 1 << 20, records: 1_000 }),
        ..Default::default()
    }
}

fn partition(partition: u32) -> v1::TopicPartition {
    v1::TopicPartition { topic: "t".to_owned(), partition }
}

fn commit(correlation_id: u64, partition: u32, offset: u64) -> Say {
    let offset = Some(offset);
    let offsets = vec![v1::OffsetCommit { topic: "t".to_owned(), partition, offset, ..Default::default() }];
    Say::Commit(v1::ConsumeCommit { correlation_id, offsets })
}

impl Member {
    async fn open(server: &Server, first: Option<Say>) -> Self {
        let (says, said) = mpsc::channel(16);
        if let Some(kind) = first {
            says.send(ConsumeRequest { kind: Some(kind) }).await.unwrap();
        }
        let hears = soon(server.consume().consume(ReceiverStream::new(said))).await.unwrap().into_inner();
        Self { says, hears }
    }

    async fn join(server: &Server, join: v1::ConsumeJoin) -> (Self, v1::ConsumeJoined) {
        let mut member = Self::open(server, Some(Say::Join(join))).await;
        let Hear::Joined(joined) = member.hear().await else { panic!("joined must be the first") };
        (member, joined)
    }

    async fn say(&self, kind: Say) {
        self.says.send(ConsumeRequest { kind: Some(kind) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<ConsumeResponse>, Status> {
        soon(self.hears.message()).await
    }

    async fn hear(&mut self) -> Hear {
        self.next().await.unwrap().expect("the stream goes on").kind.unwrap()
    }

    async fn started(&mut self) -> Vec<v1::ConsumeStarted> {
        let heard = self.hear().await;
        let Hear::Start(start) = heard else { panic!("not a start: {heard:?}") };
        start.partitions
    }

    async fn records(&mut self) -> v1::ConsumeRecords {
        let heard = self.hear().await;
        let Hear::Records(records) = heard else { panic!("not records: {heard:?}") };
        records
    }

    async fn committed(&mut self) -> v1::ConsumeCommitted {
        let heard = self.hear().await;
        let Hear::Committed(committed) = heard else { panic!("not an answer to a commit: {heard:?}") };
        committed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_two_members() {
    let server = server().await;
    server.topic("t", 2).await;
    server.fill("t", &["a", "b", "c"]).await;
    let (mut one, joined) = Member::join(&server, join("g", "m1")).await;
    assert_eq!((joined.member_id.as_str(), joined.member_epoch, joined.resumed), ("m1", 1, false));
    assert_eq!((joined.session_timeout_ms, joined.heartbeat_interval_ms), (45_000, 5_000));
    let started = one.started().await;
    assert_eq!(started.iter().map(|started| started.partition).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((started[0].offset, started[0].committed_offset), (Some(0), None));
    assert_eq!(started[0].ends.unwrap().high_watermark, 3);
    let read = one.records().await;
    let records = read.records.unwrap();
    assert_eq!((read.topic.as_str(), records.partition, records.next_offset), ("t", 0, 3));
    assert_eq!((records.records.len(), read.used.unwrap().records), (3, 3));
    one.say(commit(9, 0, 2)).await;
    let committed = one.committed().await;
    assert_eq!((committed.correlation_id, committed.results[0].error.as_ref()), (9, None));
    one.say(Say::Heartbeat(v1::ConsumeHeartbeat { progress: true })).await;
    assert!(matches!(one.hear().await, Hear::Alive(v1::ConsumeAlive { member_epoch: 1 })));

    let (mut two, joined) = Member::join(&server, join("g", "")).await;
    assert_eq!(joined.member_id.len(), 36, "the server makes one");
    let heard = one.hear().await;
    let Hear::Stop(stop) = heard else { panic!("not a stop: {heard:?}") };
    assert_eq!(stop.partitions.len(), 1);
    one.say(Say::Stopped(v1::ConsumeStopped { partitions: stop.partitions.clone() })).await;
    let started = two.started().await;
    assert_eq!(started[0].partition, stop.partitions[0].partition);

    let describe = v1::DescribeGroupRequest { group: "g".to_owned() };
    let described = soon(server.groups().describe_group(describe)).await.unwrap().into_inner();
    assert_eq!(described.group.unwrap().state(), v1::GroupState::Stable);
    let member = described.members.iter().find(|member| member.member_id == "m1").unwrap();
    assert_eq!(
        (member.client_id.as_str(), member.host.as_str(), member.connected),
        ("tester", "127.0.0.1", true)
    );
    assert_eq!(member.owned.len(), 1);
    assert_eq!(member.owned, member.target);

    // What is not its own is refused, each by itself.
    one.say(commit(10, started[0].partition, 0)).await;
    let refused = one.committed().await;
    assert_item(refused.results[0].error.as_ref(), Code::FailedPrecondition, "PARTITION_NOT_OWNED");
    two.say(Say::Leave(v1::ConsumeLeave { for_good: false })).await;
    // It may have been sent records of its partition before it left.
    while let Some(heard) = two.next().await.unwrap() {
        assert!(matches!(heard.kind, Some(Hear::Records(_))), "{heard:?}");
    }
    assert_eq!(one.started().await[0].partition, started[0].partition);
    let delete = soon(server.groups().delete_group(v1::DeleteGroupRequest { group: "g".to_owned() })).await;
    assert_eq!(assert_refused(delete, Code::FailedPrecondition, "GROUP_NOT_EMPTY")["members"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_reads_nothing_is_still_heard() {
    let server = server().await;
    server.topic("t", 1).await;
    let big = "x".repeat(200_000);
    for _ in 0..40 {
        server.fill("t", &[&big]).await;
    }
    let credit = Some(v1::ConsumeCredit { bytes: 1 << 40, records: 1 << 40 });
    let (mut member, _) = Member::join(&server, v1::ConsumeJoin { credit, ..join("g", "m") }).await;
    // Far more than the connection takes without being read is on its way. Each commit arrives all the same.
    for offset in 1..=40 {
        member.say(commit(offset, 0, offset)).await;
        let arrived = async {
            let request = v1::FetchOffsetsRequest { group: "g".to_owned(), partitions: Vec::new() };
            loop {
                let answer = soon(server.groups().fetch_offsets(request.clone())).await.unwrap().into_inner();
                if answer.offsets.first().is_some_and(|line| line.offset == Some(offset)) {
                    return;
                }
            }
        };
        soon(arrived).await;
    }
    let (mut answers, mut records) = (0, 0);
    while answers < 40 || records < 40 {
        match member.hear().await {
            Hear::Committed(_) => answers += 1,
            Hear::Records(read) => records += read.records.unwrap().records.len(),
            other => assert!(matches!(other, Hear::Start(_)), "{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_carried_on_and_fences_the_one_before() {
    let server = server().await;
    server.topic("t", 1).await;
    server.fill("t", &["a", "b", "c"]).await;
    let (mut one, joined) = Member::join(&server, join("g", "m")).await;
    one.started().await;
    one.records().await;
    let owned = vec![v1::ConsumePosition { topic: "t".to_owned(), partition: 0, offset: 1 }];
    let again = v1::ConsumeJoin { member_epoch: joined.member_epoch, owned, ..join("g", "m") };
    let (mut two, joined) = Member::join(&server, again).await;
    assert!(joined.resumed);
    let read = two.records().await.records.unwrap();
    assert_eq!((read.records[0].offset, read.next_offset), (1, 3));
    let fenced = assert_refused(one.next().await, Code::Aborted, "MEMBER_FENCED");
    assert_eq!((fenced["why"].as_str(), fenced["member"].as_str()), ("replaced", "m"));
    // The stream may go: the membership stays.
    drop(two);
    let describe = v1::DescribeGroupRequest { group: "g".to_owned() };
    let still = async {
        loop {
            let described =
                soon(server.groups().describe_group(describe.clone())).await.unwrap().into_inner();
            assert_eq!(described.members.len(), 1);
            if !described.members[0].connected {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon(still).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_may_not_say() {
    let server = server().await;
    server.topic("t", 1).await;
    let credit = Say::Credit(v1::ConsumeCredit::default());
    let mut first = Member::open(&server, Some(credit)).await;
    assert_refused(first.next().await, Code::InvalidArgument, "INVALID_REQUEST");
    let unknown = v1::ConsumeJoin { assignor: 77, ..join("g", "m") };
    let mut member = Member::open(&server, Some(Say::Join(unknown))).await;
    assert_refused(member.next().await, Code::InvalidArgument, "INVALID_REQUEST");
    let nothing = v1::ConsumeJoin { topics: Vec::new(), ..join("g", "m") };
    let mut member = Member::open(&server, Some(Say::Join(nothing))).await;
    assert_refused(member.next().await, Code::InvalidArgument, "INVALID_REQUEST");
    let stranger = v1::ConsumeJoin { member_epoch: 7, ..join("g", "m") };
    let mut member = Member::open(&server, Some(Say::Join(stranger))).await;
    let fenced = assert_refused(member.next().await, Code::Aborted, "MEMBER_FENCED");
    assert_eq!(fenced["why"], "unknown_member");

    for wrong in [
        Some(Say::Join(join("g", "m"))),
        Some(Say::Seek(v1::ConsumeSeek { topic: "t".to_owned(), ..Default::default() })),
        Some(Say::Pause(v1::ConsumePause { partitions: vec![v1::TopicPartition::default()] })),
        None,
    ] {
        let (mut member, _) = Member::join(&server, join("g", "m")).await;
        member.started().await;
        member.says.send(ConsumeRequest { kind: wrong }).await.unwrap();
        let reason = match member.next().await {
            Err(status) => status,
            Ok(heard) => panic!("it goes on: {heard:?}"),
        };
        assert_eq!(reason.code(), Code::InvalidArgument, "{reason:?}");
    }
    // With a record there is something to choose.
    server.fill("t", &["a"]).await;
    let (mut member, _) = Member::join(&server, v1::ConsumeJoin { start: 1, ..join("g", "m") }).await;
    assert_eq!(member.started().await[0].offset, None);
    let heard = member.hear().await;
    let Hear::Problem(problem) = heard else { panic!("not a problem: {heard:?}") };
    let numbers = assert_item(problem.error.as_ref(), Code::FailedPrecondition, "START_POSITION_NEEDED");
    assert_eq!(numbers["high_watermark"], "1");
    member.say(Say::Pause(v1::ConsumePause { partitions: vec![partition(0)] })).await;
    member.say(Say::Heartbeat(v1::ConsumeHeartbeat { progress: false })).await;
    assert!(matches!(member.hear().await, Hear::Alive(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_the_server_ends_streams_with_a_word() {
    let server = server().await;
    server.topic("t", 1).await;
    let (mut member, _) = Member::join(&server, join("g", "m")).await;
    member.started().await;
    let Server { started, .. } = server;
    let stopping = tokio::spawn(started.stop());
    assert_refused(member.next().await, Code::Unavailable, "SHUTTING_DOWN");
    soon(stopping).await.unwrap().unwrap();
}
