"""A stranger's program: nothing but the stubs that grpcio-tools generates from proto/.

    python3 client.py HOST:PORT

It makes a topic, produces by request numbers while its connections are cut in the middle, again and again, by a
proxy of its own, resumes under its name where the server says it stands, reads everything back, compares, and
reads what errors say. Exits with 0 if all of it is as promised.
"""

import random
import socket
import sys
import threading

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from rimstone.v1 import admin_pb2, admin_pb2_grpc, consume_pb2, consume_pb2_grpc
from rimstone.v1 import produce_pb2, produce_pb2_grpc, record_pb2

REQUESTS = 400
RECORDS_PER_REQUEST = 25
PARTITIONS = 6
CUTS_MIN = 5
DEADLINE = 20  # seconds a call may take


class Proxy:
    """Passes bytes to the server and back; cuts each connection after a random number of bytes."""

    def __init__(self, server, rng):
        host, port = server.rsplit(":", 1)
        self.server = (host, int(port))
        self.rng = rng
        self.cuts = 0
        self.gentle = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(self.server)
            # Either way may be the one that breaks: a lost request, or a lost answer.
            up = down = None
            if not self.gentle:
                if self.rng.random() < 0.5:
                    up = self.rng.randrange(2_000, 120_000)
                else:
                    down = self.rng.randrange(500, 20_000)
            for source, sink, limit in ((client, server, up), (server, client, down)):
                threading.Thread(target=self._pass, args=(source, sink, limit), daemon=True).start()

    def _pass(self, source, sink, limit):
        passed = 0
        try:
            while True:
                data = source.recv(4096)
                if not data:
                    break
                if limit is not None and passed + len(data) > limit:
                    sink.sendall(data[: limit - passed])
                    self.cuts += 1
                    break
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Producer:
    """Numbers its requests, sends each until it is answered; resumes where the server says it stands."""

    def __init__(self, address, name, topic):
        self.address, self.name, self.topic = address, name, topic
        self.resent = 0
        self.duplicates = 0
        self._connect()

    def _connect(self):
        # A channel of its own each time: grpcio would share one connection otherwise.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 20)]
        self.channel = grpc.insecure_channel(self.address, options)
        self.stub = produce_pb2_grpc.ProduceServiceStub(self.channel)

    def begin(self):
        """Takes the name; gives the number to send next."""
        while True:
            try:
                request = produce_pb2.InitProducerRequest(name=self.name, topics=[self.topic])
                answer = self.stub.InitProducer(request, timeout=DEADLINE)
                break
            except grpc.RpcError as error:
                self._retry(error)
        self.id, self.epoch = answer.producer_id, answer.producer_epoch
        if not answer.HasField("highest_request_number"):
            return 0
        # Possibly stored only in part: this one again, identical.
        return answer.highest_request_number

    def send(self, number, records):
        request = produce_pb2.ProduceRequest(
            topic=self.topic,
            records=records,
            request_number=produce_pb2.RequestNumber(
                producer_id=self.id, producer_epoch=self.epoch, number=number
            ),
        )
        while True:
            try:
                answer = self.stub.Produce(request, timeout=DEADLINE)
            except grpc.RpcError as error:
                self._retry(error)
                self.resent += 1
                continue
            errors = [append.error for append in answer.appends if append.HasField("error")]
            if errors:
                check(all(error.code == grpc.StatusCode.UNAVAILABLE.value[0] for error in errors), errors)
                continue
            check(len(answer.records) == len(records), "one position for each record")
            self.duplicates += sum(append.duplicate for append in answer.appends)
            return answer

    def _retry(self, error):
        broken = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN,
                  grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
        check(error.code() in broken, error)
        self.channel.close()
        self._connect()


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def records_of(number):
    """What request `number` carries: always the same."""
    rng = random.Random(number)
    records = []
    for index in range(RECORDS_PER_REQUEST):
        value = b"%d/%d " % (number, index) + b"x" * rng.randrange(200)
        headers = [record_pb2.Header(key="request", value=b"%d" % number)]
        records.append(record_pb2.Record(key=b"key-%d" % rng.randrange(100), value=value, headers=headers))
    return records


def refused(call, code, reason):
    """Calls, expects a refusal that explains itself, and gives its metadata."""
    try:
        call()
    except grpc.RpcError as error:
        check(error.code() == code, error)
        status = rpc_status.from_call(error)
        check(status is not None, "the error has no google.rpc.Status: %s" % error)
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
                check(info.domain == "rimstone.v1", info)
                check(info.reason == reason, info)
                check(error.details(), "an error says what is wrong")
                return dict(info.metadata)
        raise AssertionError("no ErrorInfo in %s" % status)
    raise AssertionError("it should have been refused with %s" % reason)


def produce(proxy, topic, stop_at=None, name="stranger"):
    """Sends all requests, or up to one; gives where each record went."""
    producer = Producer(proxy.address, name, topic)
    first = producer.begin()
    places = {}
    for number in range(first, stop_at or REQUESTS):
        records = records_of(number)
        answer = producer.send(number, records)
        for record, position in zip(records, answer.records):
            if position.HasField("offset"):
                places[record.value] = (position.partition, position.offset)
    return producer, first, places


def read_all(stub, topic):
    request = consume_pb2.ReadRequest(
        topic=topic,
        start=consume_pb2.StartPosition(earliest=consume_pb2.Earliest()),
        end=consume_pb2.EndPosition(latest=consume_pb2.Latest()),
    )
    found = []
    for message in stub.Read(request, timeout=DEADLINE):
        for record in message.records.records:
            found.append((message.records.partition, record))
    return found


def compare(found, places):
    """Exactly once, in order per key, each where the answer said."""
    expected = [record for number in range(REQUESTS) for record in records_of(number)]
    values = [record.value for _, record in found]
    check(len(values) == len(set(values)), "a record is there twice")
    check(set(values) == {record.value for record in expected}, "a record is missing, or nobody sent it")
    order = {}
    for record in expected:
        order.setdefault(record.key, []).append(record.value)
    by_place = {}
    homes = {}
    for partition, record in found:
        by_place[partition, record.offset] = record
        homes.setdefault(record.key, set()).add(partition)
        check(record.headers[0].key == "request", record)
        check(record.append_time_ms > 0, record)
    check(all(len(partitions) == 1 for partitions in homes.values()), "a key in two partitions")
    stored = {}
    for place in sorted(by_place):
        stored.setdefault(by_place[place].key, []).append(by_place[place].value)
    check(stored == order, "out of order")
    for value, place in places.items():
        check(by_place[place].value == value, "a record is not where the answer said: %s" % (place,))


def errors(admin, consumer, producer, topic, fenced):
    """What errors say."""
    Create, Describe = admin_pb2.CreateTopicRequest, admin_pb2.DescribeTopicRequest
    NOT_FOUND, FAILED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
    metadata = refused(lambda: admin.DescribeTopic(Describe(topic="none")), NOT_FOUND, "TOPIC_NOT_FOUND")
    check(metadata["topic"] == "none", metadata)
    again = Create(topic=topic, partitions=1)
    refused(lambda: admin.CreateTopic(again), grpc.StatusCode.ALREADY_EXISTS, "TOPIC_EXISTS")
    bad = Create(topic="no/slash")
    refused(lambda: admin.CreateTopic(bad), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME")
    unset = consume_pb2.ReadRequest(topic=topic)
    read = lambda: list(consumer.Read(unset))
    refused(read, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    # Inside an answer that is itself a success.
    partitions = [consume_pb2.FetchPartition(partition=0, offset=1 << 40)]
    answer = consumer.Fetch(consume_pb2.FetchRequest(topic=topic, partitions=partitions))
    error = answer.partitions[0].error
    check(error.code == grpc.StatusCode.OUT_OF_RANGE.value[0], error)
    check(error.reason == "OFFSET_OUT_OF_RANGE", error)
    check({"log_start_offset", "high_watermark"} <= set(error.metadata), error)
    # Another epoch of the same name has begun since.
    number = produce_pb2.RequestNumber(producer_id=fenced[0], producer_epoch=fenced[1], number=REQUESTS)
    request = produce_pb2.ProduceRequest(topic=topic, records=records_of(0), request_number=number)
    metadata = refused(lambda: producer.Produce(request), FAILED, "PRODUCER_FENCED")
    check(int(metadata["current_epoch"]) > fenced[1], metadata)


def main(address):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    proxy = Proxy(address, random.Random(seed))
    channel = grpc.insecure_channel(address)
    admin = admin_pb2_grpc.AdminServiceStub(channel)
    consumer = consume_pb2_grpc.ConsumeServiceStub(channel)

    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "rimstone.v1.ProduceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        check(answer.status == health_pb2.HealthCheckResponse.SERVING, answer)
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    for name in ("ProduceService", "ConsumeService", "AdminService"):
        check("rimstone.v1." + name in services, services)

    topic = "foreign"
    admin.CreateTopic(admin_pb2.CreateTopicRequest(topic=topic, partitions=PARTITIONS), timeout=DEADLINE)

    # A first instance comes half way, the second resumes under the same name.
    half, first, places = produce(proxy, topic, stop_at=REQUESTS // 2)
    check(first == 0, "a new name begins with 0")
    whole, resumed, more = produce(proxy, topic)
    check(resumed == REQUESTS // 2 - 1, "it resumes with the highest number: %d" % resumed)
    check(whole.id == half.id and whole.epoch > half.epoch, "one id, a higher epoch")
    check(whole.duplicates > 0, "the request at which it resumed was there already")
    for value, place in more.items():
        check(places.get(value, place) == place, "a repeated record has its original offset")
    places.update(more)
    check(proxy.cuts >= CUTS_MIN, "only %d connections were cut" % proxy.cuts)

    found = read_all(consumer, topic)
    compare(found, places)
    errors(admin, consumer, produce_pb2_grpc.ProduceServiceStub(channel), topic, (half.id, half.epoch))
    print(
        "%d records in %d requests, exactly once and in order; %d connections cut, %d requests sent again, "
        "%d appends recognised"
        % (len(found), REQUESTS, proxy.cuts, half.resent + whole.resent, half.duplicates + whole.duplicates)
    )


if __name__ == "__main__":
    main(sys.argv[1])
