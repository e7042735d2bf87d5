#!/usr/bin/env bash
# Clients that nobody here wrote against the real server: Python with generated stubs, `buf curl`.
#
#   run.sh          (RIMSTONE_BINARY names the program; built otherwise. TOOLS names a folder to keep tools in.)
set -euo pipefail
cd "$(dirname "$0")/../.."

tools="${TOOLS:-target/tools}"
source tests/foreign/tools.sh "$tools"

work=$(mktemp -d)
server=
finish() {
    status=$?
    if [[ -n "$server" ]]; then
        kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true
    fi
    if [[ $status -ne 0 && -f "$work/server.log" ]]; then
        echo "--- the server said ---" >&2
        tail -n 50 "$work/server.log" >&2
    fi
    rm -rf "$work"
}
trap finish EXIT

if [[ -z "${RIMSTONE_BINARY:-}" ]]; then
    cargo build --locked --package rimstone
    RIMSTONE_BINARY="${CARGO_TARGET_DIR:-target}/debug/rimstone"
fi

"$PYTHON" -m grpc_tools.protoc --proto_path proto --python_out "$work" --grpc_python_out "$work" \
    proto/rimstone/v1/*.proto

NO_COLOR=1 "$RIMSTONE_BINARY" serve --data "$work/data" --listen 127.0.0.1:0 --web 127.0.0.1:0 \
    >"$work/banner" 2>"$work/server.log" &
server=$!
for _ in $(seq 600); do
    grep -q '^ *web ' "$work/banner" && break
    kill -0 "$server" || { echo "the server did not start" >&2; exit 1; }
    sleep 0.1
done
address=$(sed -n 's/^ *gRPC *//p' "$work/banner")
web=$(sed -n 's/^ *web *\(http:[^ ]*\).*/\1/p' "$work/banner")
echo "server at $address, web at $web"

export PYTHONPATH="$work" PYTHONDONTWRITEBYTECODE=1
"$PYTHON" tests/foreign/client.py "$address"
"$PYTHON" tests/foreign/group.py "$address"
tests/foreign/curl.sh "$address"

# The lag of the clone that group.py has left behind; gathered now and then, so it is waited for.
lag='rimstone_group_lag_(records|seconds)\{group="foreign-clone",topic="foreign-group"\} [0-9]*\.?[0-9]*[1-9]'
for _ in $(seq 600); do
    curl --fail --silent --show-error "$web/metrics" >"$work/metrics"
    [[ $(grep -Ec "^$lag" "$work/metrics") -eq 2 ]] && break
    sleep 0.1
done
grep -E "^$lag" "$work/metrics"
[[ $(grep -Ec "^$lag" "$work/metrics") -eq 2 ]] || { echo "the lag of a group is not in /metrics" >&2; exit 1; }
if command -v promtool >/dev/null; then
    promtool check metrics <"$work/metrics"
    echo "promtool check metrics: $(grep -c '^# TYPE' "$work/metrics") metrics pass"
elif [[ "${CI:-}" == true ]]; then
    echo "promtool is not there" >&2
    exit 1
else
    echo "SKIPPED promtool check metrics: promtool is not there (package prometheus)" >&2
fi

tests/foreign/readme.sh "$RIMSTONE_BINARY" "$address" "$work"

kill "$server"
wait "$server" || { echo "the server did not end cleanly" >&2; exit 1; }
server=
