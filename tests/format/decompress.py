"""What the records of a batch are compressed with, decompressed by nothing but Python's own library, for `read_segment.py`.

Slow, and for whole bodies only: LZ4 frames of independent blocks, Snappy with and without the framing of Kafka's Java client,
Zstandard (RFC 8878) without dictionaries. Checksums of the codecs are not looked at: those of frames and batches cover them.
"""

import gzip
import struct


def require(condition, what):
    if not condition:
        raise SystemExit("not as in docs/format.md: %s" % (what,))


def lz4_block(data):
    out, at = bytearray(), 0

    def more(length):
        nonlocal at
        if length == 15:
            while True:
                at += 1
                length += data[at - 1]
                if data[at - 1] != 255:
                    break
        return length

    while at < len(data):
        token, at = data[at], at + 1
        literals = more(token >> 4)
        out += data[at : at + literals]
        at += literals
        if at >= len(data):
            break
        distance, at = data[at] | data[at + 1] << 8, at + 2
        for _ in range(more(token & 15) + 4):
            out.append(out[-distance])
    return bytes(out)


def lz4(data):
    require(data[:4] == b"\x04\x22\x4d\x18", "an lz4 frame")
    flags = data[4]
    require(flags & 0x20, "independent blocks")
    at, out = 7 + (8 if flags & 8 else 0), b""
    while True:
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size == 0:
            return out
        block = data[at : at + (size & 0x7FFFFFFF)]
        at += len(block) + (4 if flags & 0x10 else 0)
        out += block if size >> 31 else lz4_block(block)


def snappy_block(data):
    at = shift = length = 0
    while True:
        length |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            break
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        if tag & 3 == 0:
            count = tag >> 2
            if count >= 60:
                width = count - 59
                count, at = int.from_bytes(data[at : at + width], "little"), at + width
            out += data[at : at + count + 1]
            at += count + 1
            continue
        if tag & 3 == 1:
            count, distance, at = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at], at + 1
        else:
            width = 2 if tag & 3 == 2 else 4
            count, distance, at = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little"), at + width
        for _ in range(count):
            out.append(out[-distance])
    require(len(out) == length, "the length of a snappy block")
    return bytes(out)


def snappy(data):
    if not data.startswith(b"\x82SNAPPY\0"):
        return snappy_block(data)
    at, out = 16, b""
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        out += snappy_block(data[at + 4 : at + 4 + length])
        at += 4 + length
    return out


class Backward:
    """Bits of a Zstandard stream, which is read from its end; the highest bit that is set is a mark and no part of it."""

    def __init__(self, data):
        self.value = int.from_bytes(data, "little")
        self.left = self.value.bit_length() - 1

    def read(self, count):
        self.left -= count
        shifted = self.value >> self.left if self.left >= 0 else self.value << -self.left
        return shifted & ((1 << count) - 1)


def fse_table(accuracy, chances):
    """For each state: symbol, number of bits to read, what they are added to."""
    size = 1 << accuracy
    symbols, following, high, at = [0] * size, list(chances), size, 0
    for symbol, chance in enumerate(chances):
        if chance == -1:
            high -= 1
            symbols[high], following[symbol] = symbol, 1
    for symbol, chance in enumerate(chances):
        for _ in range(max(chance, 0)):
            symbols[at] = symbol
            at = at + (size >> 1) + (size >> 3) + 3 & size - 1
            while at >= high:
                at = at + (size >> 1) + (size >> 3) + 3 & size - 1
    table = []
    for symbol in symbols:
        bits = accuracy - (following[symbol].bit_length() - 1)
        table.append((symbol, bits, (following[symbol] << bits) - size))
        following[symbol] += 1
    return accuracy, table


def read_fse_table(data):
    """A table as it is described, and how many bytes say so."""
    value, at = int.from_bytes(data, "little"), 4
    accuracy = (value & 15) + 5
    left, chances = 1 << accuracy, []
    while left > 0:
        bits = (left + 1).bit_length()
        found, lower = value >> at & (1 << bits) - 1, (1 << bits - 1) - 1
        small = (1 << bits) - 1 - (left + 1)
        if found & lower < small:
            found, at = found & lower, at + bits - 1
        else:
            found, at = found - small if found > lower else found, at + bits
        chances.append(found - 1)
        left -= abs(found - 1)
        repeat = 3 if found == 1 else 0
        while repeat == 3:
            repeat, at = value >> at & 3, at + 2
            chances += [0] * repeat
    return fse_table(accuracy, chances), (at + 7) // 8


def huffman_table(data):
    """For each value of as many bits as the longest code has: symbol and length; and how many bytes say so."""
    if data[0] >= 128:
        count = data[0] - 127
        weights = [data[1 + n // 2] >> (0 if n % 2 else 4) & 15 for n in range(count)]
        used = 1 + (count + 1) // 2
    else:
        used = 1 + data[0]
        (accuracy, table), at = read_fse_table(data[1:used])
        stream, weights = Backward(data[1 + at : used]), []
        states = [stream.read(accuracy), stream.read(accuracy)]
        while True:
            symbol, bits, base = table[states[len(weights) % 2]]
            turn = len(weights) % 2
            weights.append(symbol)
            if stream.left < bits:
                weights.append(table[states[1 - turn]][0])
                break
            states[turn] = base + stream.read(bits)
    total = sum(1 << weight - 1 for weight in weights if weight)
    longest = total.bit_length()
    weights.append(((1 << longest) - total).bit_length())
    table = []
    for weight in range(1, longest + 1):
        for symbol, its in enumerate(weights):
            if its == weight:
                table += [(symbol, longest + 1 - weight)] * (1 << weight - 1)
    return (longest, table), used


def huffman(tree, data, count):
    longest, table = tree
    stream, out = Backward(data), bytearray()
    for _ in range(count):
        left = stream.left
        symbol, bits = table[stream.read(longest)]
        stream.left = left - bits
        out.append(symbol)
    return bytes(out)


def codes(direct, first, extra):
    """Baselines and extra bits: so many that stand for themselves, then as listed."""
    out, base = [(first + n, 0) for n in range(direct)], first + direct
    for bits in extra:
        out.append((base, bits))
        base += 1 << bits
    return out


LITERAL_LENGTHS = codes(16, 0, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, *range(7, 17)])
MATCH_LENGTHS = codes(32, 3, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, *range(7, 17)])
PREDEFINED = [
    fse_table(6, [4, 3] + [2] * 11 + [1] * 3 + [2] * 9 + [3, 2] + [1] * 5 + [-1] * 4),
    fse_table(5, [1] * 6 + [2] * 3 + [1] * 15 + [-1] * 5),
    fse_table(6, [1, 4, 3] + [2] * 6 + [1] * 37 + [-1] * 7),
]


class Zstd:
    def __init__(self):
        self.out, self.tree, self.tables, self.recent = bytearray(), None, [None] * 3, [1, 4, 8]

    def literals(self, data):
        kind, form = data[0] & 3, data[0] >> 2 & 3
        if kind < 2:
            head = {0: 1, 1: 2, 2: 1, 3: 3}[form]
            count = int.from_bytes(data[:head], "little") >> (3 if head == 1 else 4)
            return (data[head : head + count], head + count) if kind == 0 else (data[head : head + 1] * count, head + 1)
        head, bits = {0: (3, 10), 1: (3, 10), 2: (4, 14), 3: (5, 18)}[form]
        value = int.from_bytes(data[:head], "little") >> 4
        count, size = value & (1 << bits) - 1, value >> bits
        body = data[head : head + size]
        if kind == 2:
            self.tree, used = huffman_table(body)
            body = body[used:]
        if form == 0:
            return huffman(self.tree, body, count), head + size
        sizes, at, found, each = struct.unpack_from("<HHH", body), 6, b"", (count + 3) // 4
        for stream in sizes:
            found += huffman(self.tree, body[at : at + stream], each)
            at += stream
        return found + huffman(self.tree, body[at:], count - 3 * each), head + size

    def block(self, data):
        literals, at = self.literals(data)
        count, at = data[at], at + 1
        if count == 0:
            self.out += literals
            return
        if count == 255:
            count, at = data[at] + (data[at + 1] << 8) + 0x7F00, at + 2
        elif count >= 128:
            count, at = (count - 128 << 8) + data[at], at + 1
        modes, at = data[at], at + 1
        for number in range(3):
            mode = modes >> 6 - 2 * number & 3
            if mode == 0:
                self.tables[number] = PREDEFINED[number]
            elif mode == 1:
                self.tables[number], at = (0, [(data[at], 0, 0)]), at + 1
            elif mode == 2:
                self.tables[number], used = read_fse_table(data[at:])
                at += used
        stream, taken = Backward(data[at:]), 0
        states = [stream.read(accuracy) for accuracy, _ in self.tables]
        for number in range(count):
            rows = [table[state] for (_, table), state in zip(self.tables, states)]
            literal_code, offset_code, match_code = (row[0] for row in rows)
            offset = (1 << offset_code) + stream.read(offset_code)
            base, bits = MATCH_LENGTHS[match_code]
            length = base + stream.read(bits)
            base, bits = LITERAL_LENGTHS[literal_code]
            run = base + stream.read(bits)
            if number + 1 < count:
                for which in (0, 2, 1):
                    states[which] = rows[which][2] + stream.read(rows[which][1])
            self.out += literals[taken : taken + run]
            taken += run
            distance = self.distance(offset, run)
            for _ in range(length):
                self.out.append(self.out[-distance])
        self.out += literals[taken:]

    def distance(self, offset, run):
        if offset > 3:
            self.recent = [offset - 3, *self.recent[:2]]
            return self.recent[0]
        which = offset - 1 + (run == 0)
        found = self.recent[which] if which < 3 else self.recent[0] - 1
        if which == 1:
            self.recent = [self.recent[1], self.recent[0], self.recent[2]]
        elif which > 1:
            self.recent = [found, *self.recent[:2]]
        return found


def zstd(data):
    out, at = b"", 0
    while at < len(data):
        require(data[at : at + 4] == b"\x28\xb5\x2f\xfd" and data[at + 4] & 3 == 0, "a zstd frame without a dictionary")
        flags, at = data[at + 4], at + 5
        at += 0 if flags & 0x20 else 1
        at += [1 if flags & 0x20 else 0, 2, 4, 8][flags >> 6]
        frame, last = Zstd(), False
        while not last:
            header, at = int.from_bytes(data[at : at + 3], "little"), at + 3
            last, kind, size = header & 1, header >> 1 & 3, header >> 3
            length = 1 if kind == 1 else size
            piece, at = data[at : at + length], at + length
            if kind == 2:
                frame.block(piece)
            else:
                frame.out += piece * size if kind == 1 else piece
        at += 4 if flags & 4 else 0
        out += frame.out
    return out


BY_CODE = {0: bytes, 1: gzip.decompress, 2: snappy, 3: lz4, 4: zstd}
