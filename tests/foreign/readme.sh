#!/usr/bin/env bash
# What README.md tells people to type: its `sh` and `python` blocks, as they stand, but for places (address, data).
# The Rust block is compiled and run by the test `readme`.
#
#   readme.sh PROGRAM HOST:PORT FOLDER     (the server's data in FOLDER/data, the Python stubs in FOLDER; PYTHON, BUF
#                                          as tools.sh sets them)
set -euo pipefail
cd "$(dirname "$0")/../.."

program=$(realpath "$1") address="$2" work="$3"
mkdir -p "$work/bin" "$work/readme"
ln -sf "$program" "$work/bin/rimstone"
ln -sf "$BUF" "$work/bin/buf"
export PATH="$work/bin:$PATH" RIMSTONE_SERVER="$address" PYTHONPATH="$work" NO_COLOR=1

# Blocks in their order: NN.sh, NN.py. Those that build or test are what CI does anyway. What goes on for
# ever ends here: with the third record, when nothing comes any more, or after a look.
awk -v folder="$work/readme" -v address="$address" -v work="$work" '
    /^```(sh|python)$/ { name = sprintf("%s/%02d.%s", folder, ++count, $0 ~ /python/ ? "py" : "sh"); next }
    /^```/ { name = "" }
    name == "" { next }
    /^cargo / || /^alias rimstone=/ { next }
    {
        gsub(/127\.0\.0\.1:9190/, address)
        sub(/--data data/, "--data " work "/data")
        sub(/--follow/, "--follow -n 3")
        if (/^rimstone consume .*--group/ && !/ --until/) $0 = $0 " --until-idle 3s"
        if (/ --watch/) sub(/ *#.*/, "")
        if (/ --watch/) $0 = "timeout 3 " $0 " || test $? -eq 124"
        # A word on each that it works: how fast is for other machines and other days.
        if (/^rimstone bench/) { sub(/ *#.*/, ""); sub(/--evict data/, "--evict " work "/data"); sub(/-n 300000/, "-n 3000") }
        if (/^rimstone bench/ && !/ -n /) $0 = $0 " --for 2s"
        print > name
    }
' README.md

# Seconds for a block: each takes a fraction of that unless the machine is busy with something else.
PATIENCE=180
ran=0
for block in "$work"/readme/*; do
    case "$block" in
        *.sh) run=(timeout "$PATIENCE" bash -euo pipefail "$block") ;;
        *.py) run=(timeout "$PATIENCE" "$PYTHON" "$block") ;;
    esac
    if ! "${run[@]}" >"$work/said" 2>&1; then
        { echo "README.md, block ${block##*/} fails:"; cat "$block"; echo "--- it said ---"; cat "$work/said"; } >&2
        exit 1
    fi
    [[ -s "$work/said" ]] || { echo "README.md, block ${block##*/} says nothing" >&2; exit 1; }
    ran=$((ran + 1))
done
# A tour, a look at the files, buf, Python.
((ran >= 4)) || { echo "README.md has only $ran blocks to run" >&2; exit 1; }
echo "README.md: $ran blocks run"
