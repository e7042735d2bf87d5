#!/usr/bin/env python3
"""From the start of the server to ready: on an empty directory, after a clean stop, after a kill during writes to all
partitions, and after a kill with a long tail of one partition that no sync has covered.

    benches/recovery.py [--binary target/release/rimstone] [--partitions 1000] [--mib 10240] [--rounds 5] [--data DIR]

Times are medians, and ratios to the empty directory in the same round. Bytes read are counted by the server, and
by the kernel (`rchar` in /proc/PID/io). The exit status tells whether the goals are reached; --judge-bytes judges
only what does not depend on the machine. A directory that is named with --data is built once, used again, and kept.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Goals: seconds to ready, and the part of the data that may be read; the tail that nothing attests is read
# beside that, to judge it, to go over its headers and to write it again.
CLEAN_SECONDS = 0.15
KILLED_SECONDS = 0.5
READ_PART = 0.01
TAIL_READS = 3
# No start takes this long.
READY_SECONDS_MAX = 300
# A round's server is killed once so many bytes more are there for each partition, one and a half batches: so that
# there are writes to all of them.
WRITTEN_BEFORE_KILL = 192 << 10
# ... and for the one partition, whose tail waits up to a second for a sync.
TAIL_BEFORE_KILL = 256 << 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


class Server:
    """A started server; `seconds` is how long it took to be ready."""

    def __init__(self, binary, data):
        self.address, self.web = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.output = tempfile.TemporaryFile(mode="w+")
        began = time.monotonic()
        command = [binary, "serve", "--data", data, "--listen", self.address, "--web", self.web]
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.STDOUT)
        while get(f"http://{self.web}/readyz") is None:
            if self.process.poll() is not None or time.monotonic() - began > READY_SECONDS_MAX:
                sys.exit(f"the server is not ready: {self.log()}")
            time.sleep(0.0005)
        self.seconds = time.monotonic() - began
        with open(f"/proc/{self.process.pid}/io") as io:
            self.rchar = int(io.readline().split()[1])

    def log(self):
        self.output.flush()
        with open(f"/proc/self/fd/{self.output.fileno()}") as log:
            return re.sub(r"\x1b\[[0-9;]*m", "", log.read())

    def told(self, name):
        found = re.search(rf"\b{name}=(\d+)", self.log())
        return int(found.group(1)) if found else 0

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait()
        self.output.close()


def size(directory):
    total = 0
    for path, _, names in os.walk(directory):
        total += sum(os.stat(os.path.join(path, name)).st_size for name in names if name.endswith(".log"))
    return total


def produce(options, server, *more):
    command = [options.binary, "bench", "produce", "--server", server.address, "--producers", "2", "--via", options.via,
               *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def build(options, data):
    """The data set: a topic of many partitions, unless it is there, and one partition that acknowledges before it syncs."""
    is_new = not os.path.isdir(os.path.join(data, "topics"))
    server = Server(options.binary, data)
    topics = [("tail", ["--partitions", "1", "--set", "rimstone.ack=written"])]
    if is_new:
        topics.append((options.topic, ["--partitions", str(options.partitions)]))
    for topic, more in topics:
        subprocess.run([options.binary, "topic", "create", topic, "--if-not-exists", *more, "--server", server.address],
                       check=True, stdout=subprocess.DEVNULL)
    if is_new:
        began = time.monotonic()
        writer = produce(options, server, "--topic", options.topic, "-n", str(options.mib << 10))
        if writer.wait() != 0:
            sys.exit(f"the data cannot be made: {server.log()}")
        print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    server.end(signal.SIGTERM)


def kill_during(options, data, topic):
    """Kills the server while producers write to all partitions of a topic."""
    server = Server(options.binary, data)
    before = size(data)
    writer = produce(options, server, "--topic", topic, "--for", "120s")
    enough = TAIL_BEFORE_KILL if topic == "tail" else WRITTEN_BEFORE_KILL * options.partitions
    while size(data) - before < enough:
        if writer.poll() is not None:
            sys.exit("the producers ended before the kill")
        time.sleep(0.01)
    server.end(signal.SIGKILL)
    writer.kill()
    writer.wait()


def measure(options, data):
    rows = {"empty": [], "clean": [], "killed": [], "tail": []}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(data)) as nothing:
            empty = Server(options.binary, os.path.join(nothing, "data"))
            empty.end(signal.SIGTERM)
        Server(options.binary, data).end(signal.SIGTERM)
        for kind in ("clean", "killed", "tail"):
            if kind != "clean":
                kill_during(options, data, {"killed": options.topic, "tail": "tail"}[kind])
            total = size(data)
            server = Server(options.binary, data)
            rows[kind].append((server.seconds, server.seconds / empty.seconds, server.told("read_bytes"),
                               server.rchar, server.told("rewritten_bytes"), total))
            server.end(signal.SIGTERM)
        rows["empty"].append((empty.seconds, 1.0, 0, empty.rchar, 0, 0))
        print(f"round {number + 1}: " + ", ".join(f"{kind} {rows[kind][-1][0] * 1000:.0f} ms" for kind in rows),
              flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/rimstone", type=os.path.realpath)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--mib", type=int, default=10240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--via", default="batches", choices=("batches", "client"))
    parser.add_argument("--topic", default="many")
    parser.add_argument("--data", type=os.path.abspath)
    parser.add_argument("--judge-bytes", action="store_true")
    options = parser.parse_args()
    home = None if options.data else tempfile.mkdtemp(prefix="rimstone-recovery-")
    data = options.data or os.path.join(home, "data")
    try:
        build(options, data)
        rows = measure(options, data)
    finally:
        if home:
            shutil.rmtree(home)
    print("\n| start | ready, median | best | worst | to an empty directory | bytes read (rchar) | of the data | rewritten |")
    print("|---|---|---|---|---|---|---|---|")
    short = []
    for kind, found in rows.items():
        seconds, ratio, read, rchar, rewritten, total = (statistics.median(column) for column in zip(*found))
        times = [row[0] * 1000 for row in found]
        part = rchar / total if total else 0
        print(f"| {kind} | {seconds * 1000:.0f} ms | {min(times):.0f} ms | {max(times):.0f} ms | {ratio:.1f} "
              f"| {read:,.0f} ({rchar:,.0f}) | {part:.2%} | {rewritten:,.0f} |")
        goal = {"clean": CLEAN_SECONDS, "killed": KILLED_SECONDS}.get(kind)
        if goal and not options.judge_bytes and seconds > goal:
            short.append(f"{kind}: {seconds:.3f} s, goal {goal} s")
        if goal and rchar > READ_PART * total + (TAIL_READS * rewritten if options.judge_bytes else 0):
            short.append(f"{kind}: {part:.2%} of the data read, goal {READ_PART:.0%}")
        if goal and abs(read - rchar) > max(1 << 20, rchar / 10):
            short.append(f"{kind}: the log line says {read:,} bytes, the kernel {rchar:,}")
    for line in short:
        print(f"SHORT: {line}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
