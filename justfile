# The words of this project. Everything also works without `just`: each recipe is the command itself.

# What there is.
default:
    @just --list

# Runs the server on ./data.
run *arguments:
    cargo run --release -- serve {{ arguments }}

# Runs all tests, or those whose names contain something.
test *filter:
    cargo test --workspace --locked {{ filter }}

# Formats everything.
format:
    cargo fmt --all

# Checks formatting, lints, documentation.
lint:
    .ci/run format lint docs

# Runs the benches of all rooms; `just bench coordinator` runs those whose names contain it, `just bench -- --test` tries each once.
bench *arguments:
    cargo bench --package rimstone-benches {{ arguments }}

# Tries that every bench and every row of the goals works; judges nothing.
bench-smoke:
    .ci/run bench

# What others can do on this machine: bare tonic, a bare produce path, the disk. `just reference disk append --directory .`
reference *arguments:
    cargo run --release --package rimstone-benches --bin reference -- {{ arguments }}

# How far it is to the goals: every row beside its reference, in pairs; fails if one falls short. `--list`, `--only produce-1k,consume`, `--pairs 9`, `--quick`, `--markdown FILE`
bench-goals *arguments:
    cargo build --release --locked --package rimstone --package rimstone-benches --bins
    target/release/goals {{ arguments }}

# Beside Redis Streams and NATS JetStream, in pairs on the same disk: `apt-get install redis-server nats-server` first. `--list`, `--only redis-always`, `--quick`, `--markdown FILE`
compare *arguments:
    cargo build --release --locked --package rimstone --package rimstone-benches --bins
    target/release/compare {{ arguments }}

# What a server with many partitions costs: start, memory, descriptors, idle CPU.
partitions count="1000":
    cargo build --release --locked
    benches/partitions.sh {{ count }}

# From start to ready after a clean stop and after a kill, and what is read: 10 GiB in 1,000 partitions. `--mib 256 --partitions 100`, `--data DIR` keeps the data
recovery *arguments:
    cargo build --release --locked
    benches/recovery.py {{ arguments }}

# Mutated bytes for what decodes: batch, recovery, flip (`just fuzz flip 36000 --seed 0` flips every bit of the golden directories), change (every file cut to every length, zeroed, taken away, exchanged with every other), index, group-record, catalog-record, grpc or all, for so many seconds each; `--seed N --inputs 1` repeats one.
fuzz target="all" seconds="60" *arguments:
    cargo run --locked --package rimstone-fuzz -- {{ target }} {{ seconds }} {{ arguments }}

# Writes the golden directories of a new format version; released ones are never written again.
golden version:
    test ! -e tests/golden/{{ version }}
    cargo run --locked --package rimstone-log --example golden -- tests/golden/{{ version }}
    for kind in compacted given-up codecs passed-by checkpoint; do \
        cargo run --locked --package rimstone-log --example golden -- tests/golden/{{ version }}-$kind $kind; done

# Kills the server five times during a produce, and shows how far it was.
kills:
    cargo test --locked --package rimstone-tests --test all -- --nocapture kills

# Members of a group and the server come and go at random, so many rounds; RIMSTONE_SEED runs one seed alone.
churn rounds="20":
    cargo build --release --locked
    RIMSTONE_BINARY=target/release/rimstone RIMSTONE_CHURNS={{ rounds }} \
        cargo test --locked --package rimstone-tests --test all -- --nocapture group_churn

# Faults from seeds, every schedule in turn, added up in target/chaos/tally.json, where the next call goes on: `just chaos 100`, `just chaos 250 --schedule kills`, `just chaos 1 --schedule kills --from 17`, `--seconds 600`, `--keep-going`. Failed runs are kept in target/chaos
chaos rounds="10" *arguments:
    cargo build --release --locked --package rimstone
    cargo build --locked --package rimstone-chaos
    RIMSTONE_BINARY=target/release/rimstone target/debug/rimstone-chaos run --rounds {{ rounds }} \
        --tally target/chaos/tally.json {{ arguments }}
    target/debug/rimstone-chaos tally target/chaos/tally.json

# Ten GiB written, and read again by a group, by a server in a memory cgroup of 256 MiB (root): `just history --gib 1 --mib 64`
history *arguments:
    cargo build --release --locked --package rimstone
    cargo build --locked --package rimstone-chaos
    RIMSTONE_BINARY=target/release/rimstone target/debug/rimstone-chaos history {{ arguments }}

# Cuts the power during a produce, and during compactions, so many times each (root); RIMSTONE_SEED runs one seed alone.
power-cut rounds="3":
    cargo build --release --locked
    RIMSTONE_BINARY=target/release/rimstone RIMSTONE_POWER_CUTS={{ rounds }} \
        cargo test --locked --package rimstone-tests --test all -- --nocapture power_cut

# Images that power cuts could leave, from seeded schedules over a recorded store, so many in all; the seed to begin with goes on where another run stopped. RIMSTONE_SEED runs one seed alone.
sectors images="10000" first="1":
    cargo run --release --locked --package rimstone-store --features recording --example sectors -- {{ images }} {{ first }}

# Ten planted bugs, and whether the general schedules catch each; then the same schedules and seeds without a bug: `--quick`, `--bug retry-sync,trust-index`, `--sector-seeds 40`, `--chaos-seeds 4`
planted *arguments:
    cargo build --locked --package rimstone --features planted
    cargo build --locked --release --package rimstone-store --features recording,planted --example sectors
    cargo build --locked --package rimstone-chaos --bins
    target/debug/rimstone-planted --server target/debug/rimstone --sectors target/release/examples/sectors \
        --chaos target/debug/rimstone-chaos {{ arguments }}
    cargo build --locked --package rimstone

# Python with generated stubs, `buf curl` and promtool against a real server.
foreign:
    tests/foreign/run.sh

# Lints the protocol and compares it with the one that clients rely on.
api:
    .ci/run api

# Makes today's protocol the one that clients rely on: at a release, or on purpose.
api-release:
    bash -c 'source tests/foreign/tools.sh target/tools && "$BUF" build proto --exclude-source-info --output tests/foreign/api.binpb'

# Licences, bans, sources of the dependencies.
deny:
    .ci/run deny

# Checks what is in deploy/.
deploy:
    cargo build --release --locked
    deploy/check.sh target/release/rimstone

# What CI runs: all of the above that can fail.
ci:
    .ci/run
