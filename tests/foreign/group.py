"""A stranger in a consumer group: nothing but the stubs that grpcio-tools generates from proto/.

    python3 group.py HOST:PORT

It joins a group over the Consume stream, is given partitions, reads, commits, is asked to stop when a second member
joins, confirms, goes on after a broken stream, leaves; asks for lag; plans a replay and does it on a clone; and
reads what errors say. Exits with 0 if all of it is as promised. The clone is left with something to read.
"""

import queue
import random
import sys
import time

import grpc
from client import DEADLINE, check, read_all, refused
from rimstone.v1 import admin_pb2, admin_pb2_grpc, consume_pb2, consume_pb2_grpc, group_pb2, group_pb2_grpc
from rimstone.v1 import lag_pb2, lag_pb2_grpc, produce_pb2, produce_pb2_grpc, record_pb2, replay_pb2, replay_pb2_grpc

TOPIC = "foreign-group"
GROUP = "foreign"
CLONE = "foreign-clone"
PARTITIONS = 4
RECORDS = 2000
FIRST_RECORDS = 100  # what the first member is allowed before the second comes
PLENTY = consume_pb2.ConsumeCredit(bytes=1 << 30, records=1 << 30)


class Member:
    """One stream. Messages are taken in turn, while something is waited for."""

    def __init__(self, stub, name, group=GROUP, credit=PLENTY, owned=(), epoch=0, **join):
        self.name = name
        self.owned = dict(owned)  # partition -> the next offset
        self.started, self.problems, self.results, self.seen = {}, {}, {}, {}
        self.asked, self.seeks = set(), set()
        self.joined, self.epoch, self.beats, self.ended = None, epoch, 0, False
        self.out = queue.Queue()
        self.call = stub.Consume(iter(self.out.get, None), timeout=3 * DEADLINE)
        positions = [consume_pb2.ConsumePosition(topic=TOPIC, partition=partition, offset=offset)
                     for partition, offset in self.owned.items()]
        self.send(join=consume_pb2.ConsumeJoin(
            group=group, member_id=name, topics=[TOPIC], client_id="stranger", credit=credit, member_epoch=epoch,
            owned=positions, max_message_bytes=1024, **join))
        self.until(lambda: self.joined)

    def send(self, **kind):
        self.out.put(consume_pb2.ConsumeRequest(**kind))

    def until(self, condition):
        while not condition():
            try:
                message = next(self.call)
            except StopIteration:
                self.ended = True
                check(condition(), "the stream of %s has ended" % self.name)
                return
            getattr(self, "on_" + message.WhichOneof("kind"))(getattr(message, message.WhichOneof("kind")))

    def on_joined(self, joined):
        check(self.joined is None and joined.member_id == self.name, joined)
        check(joined.session_timeout_ms and joined.heartbeat_interval_ms and joined.max_poll_interval_ms, joined)
        self.joined, self.epoch = joined, joined.member_epoch
        if not joined.resumed:
            self.owned.clear()

    def on_start(self, start):
        self.epoch = start.member_epoch
        for partition in start.partitions:
            check(partition.topic == TOPIC, partition)
            self.started[partition.partition] = partition
            self.owned[partition.partition] = partition.offset if partition.HasField("offset") else None

    def on_stop(self, stop):
        self.asked |= {partition.partition for partition in stop.partitions}

    def on_records(self, message):
        partition = message.records.partition
        check(partition in self.owned and partition not in self.asked, "records of partition %d" % partition)
        self.seeks.add(message.seek_id)
        for record in message.records.records:
            check(record.offset == self.owned[partition], "%s after %s" % (record.offset, self.owned[partition]))
            self.owned[partition] = record.offset + 1
            self.seen[partition, record.offset] = record.value
        self.owned[partition] = message.records.next_offset
        check(message.used.bytes > 0 and message.used.records == len(message.records.records), message.used)

    def on_committed(self, committed):
        self.results[committed.correlation_id] = committed.results

    def on_alive(self, alive):
        self.epoch = alive.member_epoch
        self.beats += 1

    def on_problem(self, problem):
        self.problems[problem.partition] = problem.error

    def commit(self, correlation_id, offsets):
        """Commits and waits for the answer."""
        self.send(commit=consume_pb2.ConsumeCommit(correlation_id=correlation_id, offsets=commits(offsets)))
        self.until(lambda: correlation_id in self.results)
        results = self.results[correlation_id]
        check([result.partition for result in results] == list(offsets), results)
        return results

    def heartbeat(self):
        beats = self.beats
        self.send(heartbeat=consume_pb2.ConsumeHeartbeat(progress=True))
        self.until(lambda: self.beats > beats)

    def confirm(self):
        """Gives back what it was asked for."""
        self.send(stopped=consume_pb2.ConsumeStopped(partitions=places(self.asked)))
        for partition in self.asked:
            del self.owned[partition]
        self.asked = set()

    def leave(self):
        self.send(leave=consume_pb2.ConsumeLeave(for_good=True))
        self.until(lambda: self.ended)


def places(partitions):
    return [record_pb2.TopicPartition(topic=TOPIC, partition=partition) for partition in sorted(partitions)]


def commits(offsets):
    return [group_pb2.OffsetCommit(topic=TOPIC, partition=partition, offset=offset)
            for partition, offset in offsets.items()]


def produce(stub, first, count):
    """Records whose create times do not rise evenly."""
    rng = random.Random(first)
    for begin in range(first, first + count, 100):
        records = [record_pb2.Record(key=b"key-%d" % rng.randrange(50), value=b"%d" % number,
                                     create_time_ms=1_700_000_000_000 + number * 1000 + rng.randrange(60_000))
                   for number in range(begin, min(begin + 100, first + count))]
        answer = stub.Produce(produce_pb2.ProduceRequest(topic=TOPIC, records=records), timeout=DEADLINE)
        check(not any(append.HasField("error") for append in answer.appends), answer)


def committed(groups, group):
    answer = groups.FetchOffsets(group_pb2.FetchOffsetsRequest(group=group), timeout=DEADLINE)
    return {offset.partition: offset.offset for offset in answer.offsets if offset.HasField("offset")}


def lag_of(lags, group):
    answer = lags.GetLag(lag_pb2.GetLagRequest(groups=[group]), timeout=DEADLINE)
    check(not any(partition.HasField("error") for partition in answer.partitions), answer)
    check([topic.topic for topic in answer.topics] == [TOPIC], answer.topics)
    check(answer.topics[0].lag_records == sum(partition.lag_records for partition in answer.partitions), answer)
    return answer


def ends_of(found):
    ends = {partition: 0 for partition in range(PARTITIONS)}
    for partition, record in found:
        ends[partition] = max(ends[partition], record.offset + 1)
    return ends


def no_choice_no_guess(stub):
    """Without a committed offset and without a policy the server names the choice, and waits."""
    member = Member(stub, "undecided", group="foreign-undecided")
    member.until(lambda: len(member.problems) == PARTITIONS)
    for error in member.problems.values():
        check(error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0], error)
        check(error.reason == "START_POSITION_NEEDED" and error.message, error)
    check(not member.seen and set(member.owned.values()) == {None}, member.owned)
    member.owned[0] = 0
    seek = consume_pb2.ConsumeSeek(topic=TOPIC, partition=0, earliest=consume_pb2.Earliest(), seek_id=7)
    member.send(seek=seek)
    member.until(lambda: member.seen)
    check(member.seeks == {7} and {partition for partition, _ in member.seen} == {0}, member.seeks)
    member.leave()


def share(stub, groups, lags, ends):
    """One member, then two; everything is read, by one or the other."""
    few = consume_pb2.ConsumeCredit(bytes=1 << 20, records=FIRST_RECORDS)
    one = Member(stub, "one", credit=few, start=consume_pb2.START_POLICY_EARLIEST)
    check(not one.joined.resumed, one.joined)
    one.until(lambda: len(one.owned) == PARTITIONS)
    check(not any(start.HasField("committed_offset") for start in one.started.values()), "nothing was committed")
    one.until(lambda: len(one.seen) >= FIRST_RECORDS)
    one.heartbeat()
    check(len(one.seen) < 2 * FIRST_RECORDS, "more than the credit: %d records" % len(one.seen))
    results = one.commit(1, one.owned)
    check(not any(result.HasField("error") for result in results), results)
    check(committed(groups, GROUP) == one.owned, "what was acknowledged is what is told")

    answer = lag_of(lags, GROUP)
    check(answer.topics[0].lag_records == sum(ends.values()) - sum(one.owned.values()), answer)
    for partition in answer.partitions:
        check(partition.committed_offset == one.owned[partition.partition], partition)
        check(partition.log_end_offset == ends[partition.partition], partition)
        check((partition.member_id, partition.client_id) == ("one", "stranger") and partition.host, partition)
        check(partition.lag_ms > 0 and partition.commit_time_ms > 0, partition)

    # A second one comes. Nothing is its own before the first has confirmed.
    two = Member(stub, "two", start=consume_pb2.START_POLICY_EARLIEST)
    one.until(lambda: one.asked)
    check(len(one.asked) == PARTITIONS // 2, one.asked)
    two.heartbeat()
    check(not two.owned, "two owns %s, and one has not confirmed" % two.owned)
    group = groups.DescribeGroup(group_pb2.DescribeGroupRequest(group=GROUP), timeout=DEADLINE)
    check(group.group.state == group_pb2.GROUP_STATE_RECONCILING, group)
    members = {member.member_id: member for member in group.members}
    check({place.partition for place in members["one"].stopping} == one.asked, members["one"])
    check({place.partition for place in members["two"].target} == one.asked, members["two"])
    check(not members["two"].owned and members["two"].connected and members["two"].host, members["two"])

    # Commits are taken until the stop is confirmed, and not after.
    moved = sorted(one.asked)
    kept = {partition: one.owned[partition] for partition in moved}
    results = one.commit(2, kept)
    check(not any(result.HasField("error") for result in results), results)
    one.confirm()
    two.until(lambda: sorted(two.owned) == moved)
    for partition in moved:
        check(two.started[partition].offset == kept[partition], "two goes on where one has committed")
        check(two.started[partition].committed_offset == kept[partition], two.started[partition])
    late = one.commit(3, {moved[0]: kept[moved[0]]})[0]
    check(late.error.reason == "PARTITION_NOT_OWNED", late)
    check(late.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0], late)
    mine = sorted(one.owned)[0]
    beyond = one.commit(4, {mine: ends[mine] + 1})[0]
    check(beyond.error.reason == "OFFSET_OUT_OF_RANGE" and beyond.error.metadata, beyond)
    check(beyond.error.code == grpc.StatusCode.OUT_OF_RANGE.value[0], beyond)

    # Both to the end.
    one.send(credit=PLENTY)
    for member in (one, two):
        member.until(lambda: all(member.owned[partition] == ends[partition] for partition in member.owned))
        results = member.commit(5, member.owned)
        check(not any(result.HasField("error") for result in results), results)
    answer = lag_of(lags, GROUP)
    check(answer.topics[0].lag_records == 0 and answer.topics[0].lag_ms == 0, answer)
    check({**one.seen, **two.seen}.keys() == {(partition, offset) for partition in ends
                                              for offset in range(ends[partition])}, "something was not read")
    return one, two


def occupied(groups, one):
    """What is refused while there are members."""
    FAILED, ABORTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED
    outside = group_pb2.CommitOffsetsRequest(group=GROUP, offsets=commits({0: 0}))
    refused(lambda: groups.CommitOffsets(outside), FAILED, "GROUP_NOT_EMPTY")
    delete = group_pb2.DeleteGroupRequest(group=GROUP)
    refused(lambda: groups.DeleteGroup(delete), FAILED, "GROUP_NOT_EMPTY")
    for name, epoch in (("one", one.epoch + 1000), ("nobody", one.epoch)):
        fenced = group_pb2.CommitOffsetsRequest(
            group=GROUP, member_id=name, member_epoch=epoch, offsets=commits({0: 0}))
        refused(lambda: groups.CommitOffsets(fenced), ABORTED, "MEMBER_FENCED")


def again(stub, producer, one, two, groups):
    """A broken stream is not the end of a membership; a leave is."""
    one.call.cancel()
    back = Member(stub, "one", epoch=one.epoch, owned=one.owned, start=consume_pb2.START_POLICY_EARLIEST)
    check(back.joined.resumed, back.joined)
    check(back.owned == one.owned, "it owns what it owned: %s, %s" % (back.owned, one.owned))
    before = sum(back.owned.values()) + sum(two.owned.values())
    produce(producer, RECORDS, 400)
    back.until(lambda: back.seen)
    two.until(lambda: sum(back.owned.values()) + sum(two.owned.values()) > before)
    kept = dict(back.owned)
    back.commit(6, kept)
    back.leave()
    two.until(lambda: len(two.owned) == PARTITIONS)
    for partition in kept:
        check(two.started[partition].committed_offset == kept[partition], two.started[partition])
    last = dict(two.owned)
    two.commit(7, last)
    two.leave()
    group = groups.DescribeGroup(group_pb2.DescribeGroupRequest(group=GROUP), timeout=DEADLINE)
    check(group.group.state == group_pb2.GROUP_STATE_EMPTY and not group.members, group)
    return last


def replay(stub, groups, replays, found, old):
    """To a time in the middle: the offsets are those that a linear scan finds."""
    times = sorted(record.create_time_ms for _, record in found)
    time_ms = times[len(times) // 2]
    scanned = {}
    for partition, record in sorted(found, key=lambda entry: entry[1].offset):
        if record.create_time_ms >= time_ms:
            scanned.setdefault(partition, record.offset)
    check(len(scanned) == PARTITIONS, "every partition has something at or after the middle")
    spec = replay_pb2.ReplaySpec(group=GROUP, time_ms=time_ms, clone_to=CLONE)
    plan = replays.PlanReplay(replay_pb2.PlanReplayRequest(spec=spec), timeout=DEADLINE).plan
    check(not plan.obstacle and plan.fingerprint, plan)
    check({planned.partition: planned.old_offset for planned in plan.partitions} == old, plan)
    check({planned.partition: planned.new_offset for planned in plan.partitions} == scanned, plan)
    check(plan.records == sum(max(0, old[partition] - scanned[partition]) for partition in old), plan)
    start = replay_pb2.StartReplayRequest(spec=spec, fingerprint=plan.fingerprint)
    replays.StartReplay(start, timeout=DEADLINE)
    check(committed(groups, CLONE) == scanned, "the clone stands where the plan said")
    check(committed(groups, GROUP) == old, "the group was left alone")
    refused(lambda: replays.StartReplay(start), grpc.StatusCode.ALREADY_EXISTS, "GROUP_EXISTS")
    unknown = replay_pb2.PlanReplayRequest(spec=replay_pb2.ReplaySpec(group="none", time_ms=time_ms))
    refused(lambda: replays.PlanReplay(unknown), grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")

    # A plan is for what was seen: not for what has been committed since.
    spec = replay_pb2.ReplaySpec(group=GROUP, earliest=consume_pb2.Earliest())
    plan = replays.PlanReplay(replay_pb2.PlanReplayRequest(spec=spec), timeout=DEADLINE).plan
    moved = group_pb2.CommitOffsetsRequest(group=GROUP, offsets=commits({0: 1}))
    results = groups.CommitOffsets(moved, timeout=DEADLINE).results
    check(results[0].backwards and not results[0].HasField("error"), results)
    start = replay_pb2.StartReplayRequest(spec=spec, fingerprint=plan.fingerprint)
    refused(lambda: replays.StartReplay(start), grpc.StatusCode.FAILED_PRECONDITION, "PLAN_CHANGED")
    check(committed(groups, GROUP) == {**old, 0: 1}, "what was refused has moved nothing")

    # The clone reads from there.
    member = Member(stub, "reader", group=CLONE)
    member.until(lambda: {partition for partition, _ in member.seen} == set(scanned))
    for partition, offset in scanned.items():
        check(min(at for of, at in member.seen if of == partition) == offset, "it begins where it was moved to")
    member.leave()
    return plan


def main(address):
    channel = grpc.insecure_channel(address)
    admin = admin_pb2_grpc.AdminServiceStub(channel)
    stub = consume_pb2_grpc.ConsumeServiceStub(channel)
    producer = produce_pb2_grpc.ProduceServiceStub(channel)
    groups = group_pb2_grpc.GroupServiceStub(channel)
    lags = lag_pb2_grpc.LagServiceStub(channel)
    replays = replay_pb2_grpc.ReplayServiceStub(channel)

    settings = {"retention.ms": "-1"}
    create = admin_pb2.CreateTopicRequest(topic=TOPIC, partitions=PARTITIONS, settings=settings)
    admin.CreateTopic(create, timeout=DEADLINE)
    produce(producer, 0, RECORDS)
    ends = ends_of(read_all(stub, TOPIC))
    describe = group_pb2.DescribeGroupRequest(group="none")
    refused(lambda: groups.DescribeGroup(describe), grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND")

    begun = time.monotonic()
    no_choice_no_guess(stub)
    one, two = share(stub, groups, lags, ends)
    occupied(groups, one)
    old = again(stub, producer, one, two, groups)
    replay(stub, groups, replays, read_all(stub, TOPIC), old)
    names = [group.group for group in groups.ListGroups(group_pb2.ListGroupsRequest(prefix=GROUP)).groups]
    check({GROUP, CLONE} <= set(names) and names == sorted(names), names)
    print("a group of two over bare stubs: %d records read, commits, stops, lag and a replay as promised, %.1f s"
          % (len(one.seen) + len(two.seen), time.monotonic() - begun))


if __name__ == "__main__":
    main(sys.argv[1])
