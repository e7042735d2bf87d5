"""Reads a partition's files by docs/format.md alone; shares no code with the server.

    python3 read_segment.py DATA_DIRECTORY TOPIC_UUID PARTITION

Prints one JSON object a line: a record, its bytes in hex; {"damaged": [from, until]} for acknowledged offsets that cannot be read;
{"torn": file} for a tail that was never acknowledged; and at last a summary. Everything that has a check is checked,
indexes and seals included; what contradicts the document ends the program with an error.
"""

import json
import pathlib
import struct
import sys
import uuid
import zlib

sys.dont_write_bytecode = True
from decompress import BY_CODE, require

SEGMENT_HEADER, FRAME_HEADER, BATCH_HEADER, SEAL, INDEX_HEADER, INDEX_ENTRY = 72, 60, 61, 52, 96, 32
NO_TIME = -(2**63)


def crc32c_table():
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        yield value


TABLE = list(crc32c_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(data, at):
    shift = value = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return (value >> 1) ^ -(value & 1), at


def text(data, at):
    """A length and so many bytes; None for -1."""
    length, at = varint(data, at)
    return (None, at) if length < 0 else (data[at : at + length], at + length)


def records_of(batch):
    base, length, _, magic, crc, attributes, last_delta, base_time, max_time, _, _, _, count = struct.unpack_from(
        ">qiibIhiqqqhii", batch
    )
    require(length == len(batch) - 12 and magic == 2, "length and magic of a batch")
    require(crc == crc32c(batch[21:]), "the batch's own CRC-32C")
    body = batch[BATCH_HEADER:]
    require(attributes & 7 in BY_CODE, "a compression that there is")
    body, at = BY_CODE[attributes & 7](body), 0
    for _ in range(count):
        length, at = varint(body, at)
        end = at + length
        delta, at = varint(body, at + 1)
        offset, at = varint(body, at)
        key, at = text(body, at)
        value, at = text(body, at)
        headers, at = varint(body, at)
        pairs = []
        for _ in range(headers):
            name, at = text(body, at)
            content, at = text(body, at)
            pairs.append((name.decode(), content))
        require(at == end, "length of a record")
        time = max_time if attributes & 8 else base_time + delta
        require(time <= max_time and offset <= last_delta, "bounds of a batch")
        yield {"offset": base + offset, "key": key, "value": value, "headers": pairs, "create_time_ms": time}
    require(at == len(body), "nothing behind the last record")


class Segment:
    def __init__(self, path, topic, partition):
        self.path, self.data = path, path.read_bytes()
        header = self.data[:SEGMENT_HEADER]
        magic, version, _, self.salt, owner, number, passed_by, self.base, self.range_end, _, cleaned, self.crc = struct.unpack(
            ">8sHHI16sIIQQqII", header
        )
        require(magic == b"RIMSTSEG" and version == 1, "magic and version of %s" % path)
        require(self.crc == zlib.crc32(header[:68]), "check of a segment header")
        require(owner == topic.bytes and number == partition, "a segment lies where its header says")
        require(self.base == int(path.stem), "a segment is named by its base offset")
        require(self.range_end == 0 or self.base + cleaned <= self.range_end, "a segment is cleaned within its range")
        require(self.range_end != 0 or passed_by == 0, "only compaction passes segments by")

    def frame(self, at):
        """The frame at a position: kind, link, time, claimed end, check, payload; None if it is not valid."""
        if at + FRAME_HEADER > len(self.data):
            return None
        magic, kind, position, length, link, time, end_base, end_position, end_offset, check = struct.unpack_from(
            ">IIQIIqQQQI", self.data, at
        )
        payload = self.data[at + FRAME_HEADER : at + FRAME_HEADER + length]
        if magic != 0x52494D46 ^ self.salt or position != at or len(payload) != length or kind not in (1, 2):
            return None
        covered = self.data[at : at + 56] + payload[: min(BATCH_HEADER, length)]
        if check != zlib.crc32(covered):
            return None
        if kind == 1 and struct.unpack_from(">I", payload, 17)[0] != crc32c(payload[21:]):
            return None
        return kind, link, time, (end_base, end_position, end_offset), check, payload

    def frames(self):
        """Each valid frame with its position, None for each gap between them."""
        at = SEGMENT_HEADER
        while at < len(self.data):
            frame = self.frame(at)
            if frame is None:
                following = next((p for p in range(at + 1, len(self.data)) if self.frame(p)), len(self.data))
                yield at, None
                at = following
            else:
                yield at, frame
                at += FRAME_HEADER + len(frame[5])


def witness(path, topic, partition):
    """The durable end that the witness has for a partition: (segment, position, offset)."""
    data = path.read_bytes()
    require(data[:8] == b"RIMSTWIT" and zlib.crc32(data[:508]) == struct.unpack_from(">I", data, 508)[0], "witness")
    best = (0, (0, 0, 0))
    for at in range(512, len(data) - 63, 64):
        slot = data[at : at + 64]
        owner, number, sequence, base, position, offset = struct.unpack_from(">16sIQQQQ", slot)
        if owner == topic.bytes and number == partition and zlib.crc32(slot[:60]) == struct.unpack_from(">I", slot, 60)[0]:
            best = max(best, (sequence, (base, position, offset)))
    return best[1]


def log_start(folder, first):
    path = folder / "log-start"
    if not path.exists():
        return 0
    magic, start, check = struct.unpack(">8sQI", path.read_bytes())
    valid = magic == b"RIMSTLST" and check == zlib.crc32(path.read_bytes()[:16])
    return start if valid else first


def place_of(batch):
    """First offset, the offset that comes next, and whether it is a control batch."""
    base, _, _, _, _, attributes, last_delta = struct.unpack_from(">qiibIhi", batch)
    return base, base + last_delta + 1, attributes & 0x20 != 0


def check_seal(payload, batches, path):
    (next_offset, records, frames, first, last, largest, _) = struct.unpack(">QQIqqqQ", payload)
    require(frames == len(batches) and records == sum(len(batch["records"]) for batch in batches), "totals of %s" % path)
    times = [batch["time"] for batch in batches]
    require((first, last) == (times[0], times[-1]) if times else (NO_TIME, NO_TIME), "times of %s" % path)
    created = [record["create_time_ms"] for batch in batches for record in batch["records"]]
    require(largest == max(created, default=NO_TIME), "largest time of %s" % path)
    if batches:
        require(next_offset == batches[-1]["next"], "next offset of %s" % path)


def check_index(segment, batches):
    path = segment.path.with_suffix(".idx")
    if not path.exists():
        return 0
    data = path.read_bytes()
    magic, version, _, salt, base, _, _, entries = struct.unpack_from(">8sHHIQQII", data)
    require(magic == b"RIMSTIDX" and version == 1 and base == segment.base, "an index header")
    require(zlib.crc32(data[:92]) == struct.unpack_from(">I", data, 92)[0], "check of an index header")
    if salt != segment.salt:
        return 0  # of a file that compaction has replaced
    require(len(data) == INDEX_HEADER + entries * INDEX_ENTRY, "length of an index")
    by_position = {batch["position"]: index for index, batch in enumerate(batches)}
    for number in range(entries):
        entry = data[INDEX_HEADER + number * INDEX_ENTRY :][:INDEX_ENTRY]
        delta, position, before, check, largest, time = struct.unpack(">IIIIqq", entry)
        require(check == zlib.crc32(struct.pack(">I", salt) + entry[:12] + entry[16:]), "check of an index entry")
        index = by_position[position]
        require(segment.base + delta == batches[index]["base"], "offset of an index entry")
        earlier = [record for batch in batches[:index] for record in batch["records"]]
        require(before == len(earlier), "count of an index entry")
        require(largest == max((record["create_time_ms"] for record in earlier), default=NO_TIME), "time of an entry")
        require(time == batches[index]["time"], "append time of an index entry")
    require(not batches or entries > 0, "an entry for the first frame")
    return entries


def read(data, topic, partition):
    folder = data / "topics" / str(topic) / str(partition)
    segments = [Segment(path, topic, partition) for path in sorted(folder.glob("*.log"))]
    require(segments, "a partition has a segment")
    covered = 0
    for segment in list(segments):
        if segment.base < covered:
            segments.remove(segment)
        covered = max(covered, segment.range_end)
    seen = [(segment, list(segment.frames())) for segment in segments]
    claims = [frame[3] for _, frames in seen for _, frame in frames if frame]
    start = log_start(folder, segments[0].base)
    claims += [(segment.range_end, SEGMENT_HEADER, segment.range_end) for segment in segments if segment.range_end]
    attested = max(claims + [witness(data / "witness", topic, partition)])
    next_offset, last_time, totals = segments[0].base, NO_TIME, {"segments": 0, "frames": 0, "sealed": 0, "indexed": 0}
    lost_from = None
    for number, (segment, frames) in enumerate(seen):
        totals["segments"] += 1
        link, batches, whole, sealed = segment.crc, [], True, False
        for position, frame in frames:
            if frame is None or frame[1] != link and whole:
                if (segment.base, position) >= attested[:2]:
                    yield {"torn": segment.path.name}
                    break
                whole, link = False, None
                lost_from = next_offset if lost_from is None else lost_from
                if frame is None:
                    continue
            kind, _, time, _, link, payload = frame
            require(not sealed, "nothing lies behind a seal")
            require(time >= last_time, "append times never decrease")
            last_time = time
            if kind == 2:
                sealed = True
                if whole:
                    check_seal(payload, batches, segment.path)
                continue
            base, following, control = place_of(payload)
            records = [] if control else list(records_of(payload))
            if lost_from is not None:
                yield {"damaged": [lost_from, base]}
                lost_from = None
            elif segment.range_end:
                require(base >= next_offset, "offsets rise")
            else:
                require(base == next_offset and (control or len(records) == following - base), "offsets are dense")
            producer, _, _, count = struct.unpack_from(">qhii", payload, 43)
            if control and producer == -1 and count == 0:
                yield {"given_up": [base, following]}
            next_offset = following
            batches.append({"position": position, "base": base, "next": next_offset, "time": time, "records": records})
            for record in records:
                if record["offset"] >= start:
                    yield dict(record, append_time_ms=time)
        require(sealed or not whole or number == len(seen) - 1, "a segment that is not the last is sealed")
        require(not segment.range_end or not whole or next_offset == segment.range_end, "a range is covered to its end")
        totals["frames"] += len(batches)
        totals["sealed"] += sealed
        if whole:
            totals["indexed"] += check_index(segment, batches)
    if lost_from is not None:
        yield {"damaged": [lost_from, attested[2]]}
    yield {"summary": dict(totals, next_offset=next_offset, attested=attested)}


def shown(item):
    encode = lambda data: None if data is None else data.hex()
    if "offset" in item:
        item = dict(item, key=encode(item["key"]), value=encode(item["value"]))
        item["headers"] = [[name, encode(value)] for name, value in item["headers"]]
    return json.dumps(item)


if __name__ == "__main__":
    for found in read(pathlib.Path(sys.argv[1]), uuid.UUID(sys.argv[2]), int(sys.argv[3])):
        print(shown(found))
