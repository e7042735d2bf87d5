# Sourced with a folder: puts the foreign clients' tools there, by package name, unless they are there. Sets PYTHON, BUF.
tools=$(mkdir -p "$1" && cd "$1" && pwd)
export PYTHON="$tools/venv/bin/python" BUF="$tools/npm/node_modules/.bin/buf"

packages=(grpcio grpcio-tools googleapis-common-protos grpcio-health-checking grpcio-reflection grpcio-status)
modules="import grpc_tools, grpc_status, grpc_health, grpc_reflection, google.rpc"
if ! "$PYTHON" -c "$modules" 2>/dev/null; then
    python3 -m venv "$tools/venv"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
fi
if ! "$BUF" --version >/dev/null 2>&1; then
    npm install --silent --no-audit --no-fund --prefix "$tools/npm" @bufbuild/buf
fi
