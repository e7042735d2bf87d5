#!/usr/bin/env bash
# What a server with many partitions costs: start, memory (anonymous and file apart), descriptors, CPU when idle.
#
#   benches/partitions.sh [PARTITIONS] [BINARY]        (default 1000, target/release/rimstone)
set -euo pipefail
partitions="${1:-1000}"
binary=$(realpath "${2:-target/release/rimstone}")
idle_seconds=20

work=$(mktemp -d)
server=
finish() {
    [[ -z "$server" ]] || { kill "$server" 2>/dev/null && wait "$server" || true; }
    rm -rf "$work"
}
trap finish EXIT
cd "$work"

start() { # waits until it is ready; says how long that took
    local begin end
    begin=$(date +%s%N)
    : >banner
    "$binary" serve --data "$work/data" --listen 127.0.0.1:0 --web 127.0.0.1:0 >banner 2>>log &
    server=$!
    until grep -q '^ *web ' banner; do
        kill -0 "$server" || { cat log >&2; exit 1; }
        sleep 0.005
    done
    address=$(sed -n 's/^ *gRPC *//p' banner)
    web=$(sed -n 's/^ *web *http:..\([^ ]*\).*/\1/p' banner)
    until curl --fail --silent --output /dev/null "$web/readyz"; do sleep 0.005; done
    end=$(date +%s%N)
    echo "$1: ready after $(((end - begin) / 1000000)) ms"
}
stop() { kill "$1" "$server"; { wait "$server" || true; } 2>/dev/null; server=; }
usage() {
    awk -v what="$1" '/^(RssAnon|RssFile|Threads)/ { line = line "  " $1 " " $2 " " $3 } END { print what ":" line }' "/proc/$server/status"
    echo "$1:  open descriptors $(ls "/proc/$server/fd" | wc -l)  maps $(wc -l <"/proc/$server/maps")"
}
cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$server/stat"; }

start "empty"
usage "empty"
begin=$(date +%s%N)
"$binary" topic create many --partitions "$partitions" --server "$address" --quiet
echo "a topic of $partitions partitions made in $((($(date +%s%N) - begin) / 1000000)) ms"
seq 1 $((partitions * 20)) | "$binary" produce many --key-field 1 --server "$address" --quiet
usage "after $((partitions * 20)) records"
stop -TERM

start "after a clean stop"
usage "idle"
before=$(cpu_ticks)
sleep "$idle_seconds"
after=$(cpu_ticks)
echo "idle: $((after - before)) ticks of $(getconf CLK_TCK) a second in $idle_seconds s: $(awk -v t=$((after - before)) -v s=$idle_seconds -v h="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", 100 * t / h / s }') % of a core"
seq 1 $((partitions * 20)) | "$binary" produce many --key-field 1 --server "$address" --quiet
stop -KILL
start "after SIGKILL"
stop -TERM
