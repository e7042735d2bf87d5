#!/usr/bin/env bash
# Checks what is in this folder against a real server, as far as a machine without Docker can:
#
#   deploy/check.sh target/release/rimstone
set -euo pipefail
binary=$(realpath "$1")
cd "$(dirname "$0")"

work=$(mktemp -d)
server=
finish() {
    [[ -z "$server" ]] || { kill "$server" 2>/dev/null && wait "$server" || true; }
    rm -rf "$work"
}
trap finish EXIT

missing() { # what is not there may be left out, but not by CI
    echo "SKIPPED $1: not there" >&2
    [[ "${CI:-}" != true ]]
}

if command -v promtool >/dev/null; then
    promtool check config prometheus/prometheus.yml
    promtool check rules prometheus/rules.yml
    promtool test rules prometheus/rules.test.yml
else
    missing promtool
fi

# Every metric that a rule names is one that a server shows.
(cd "$work" && exec "$binary" serve --data "$work/data" --listen 127.0.0.1:0 --web 127.0.0.1:0) \
    >"$work/banner" 2>"$work/log" &
server=$!
for _ in $(seq 600); do
    web=$(sed -n 's/^ *web *\(http:[^ ]*\).*/\1/p' "$work/banner")
    [[ -z "$web" ]] || break
    kill -0 "$server" || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
curl --fail --silent --show-error "$web/metrics" >"$work/metrics"
for metric in $(grep -oE '\brimstone_[a-z_]+' prometheus/rules.yml | sort -u); do
    grep -qE "^$metric(\{| )" "$work/metrics" || { echo "rules.yml: no metric $metric" >&2; exit 1; }
done
echo "every metric of rules.yml is there"

# The settings of the image and of the unit are settings that the server takes.
for file in Dockerfile rimstone.service; do
    mapfile -t settings < <(grep -oE 'RIMSTONE_[A-Z_]+=[^ \\]+' "$file")
    ((${#settings[@]})) || { echo "$file has no settings" >&2; exit 1; }
    (cd "$work" && env "${settings[@]}" "$binary" config check >/dev/null)
    echo "$file: ${#settings[@]} settings are taken"
done

# The health check of the image, as it stands there, against this server.
probe=$(grep -A 1 '^HEALTHCHECK' Dockerfile | sed -n 's/^ *"\(.*\)"\]$/\1/p' | sed 's/\\\\/\\/g')
bash -c "${probe//127.0.0.1\/9180/127.0.0.1/${web##*:}}"
! bash -c "${probe//127.0.0.1\/9180/127.0.0.1/9}" 2>/dev/null
echo "Dockerfile: the health check finds a server that is there, and none that is not"

if command -v systemd-analyze >/dev/null; then
    sed "s|^ExecStart=/usr/local/bin/rimstone|ExecStart=$binary|" rimstone.service >"$work/rimstone.service"
    systemd-analyze verify "$work/rimstone.service"
    echo "systemd-analyze: rimstone.service is fine"
else
    missing systemd-analyze
fi
