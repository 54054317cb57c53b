#!/usr/bin/env bash
# Tries bearerd against real authorization servers; README.md says more.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

die() {
    echo "interop: $*" >&2
    exit 1
}

python_ready() {
    python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

node_ready() {
    node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' 2>/dev/null
}

missing=()
python_ready || missing+=(python3 python3-venv)
node_ready || missing+=(nodejs ca-certificates)
command -v npm >/dev/null || missing+=(npm)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # Should this fail, the checks below say what is missing.
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null || true
fi
command -v python3 >/dev/null || die "python3 is missing (3.10 or newer)"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "python3 is older than 3.10"
python_ready || die "python3 lacks venv or ensurepip (package python3-venv)"
command -v node >/dev/null || die "node is missing (18 or newer; package nodejs)"
node_ready || die "node is older than 18"
command -v npm >/dev/null || die "npm is missing (package npm)"

if [ -z "${BEARERD_BIN:-}" ]; then
    command -v cargo >/dev/null || die "cargo is missing; or name a binary with BEARERD_BIN"
    (cd "$root" && cargo build --locked)
    BEARERD_BIN=${CARGO_TARGET_DIR:-$root/target}/debug/bearerd
fi
BEARERD_BIN=$(realpath -- "$BEARERD_BIN")
[ -x "$BEARERD_BIN" ] || die "$BEARERD_BIN is not an executable"

work=$(mktemp -d)
driver=
cleanup() {
    # The driver ends its own processes when it is told to end.
    if [ -n "$driver" ] && kill -TERM "$driver" 2>/dev/null; then
        wait "$driver" || true
    fi
    if [ -n "${INTEROP_KEEP:-}" ]; then
        rm -rf -- "$work/venv" "$work/pycache" "$work/oidc_provider"
        echo "interop: logs and database are in $work/state" >&2
    else
        rm -rf -- "$work"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export BEARERD_BIN INTEROP_STATE="$work/state" PYTHONPYCACHEPREFIX="$work/pycache" PIP_DISABLE_PIP_VERSION_CHECK=1
mkdir -m 700 "$INTEROP_STATE"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --requirement "$here/requirements.txt"
# A copy, because node looks for packages beside the file that imports them, and the checkout stays as it is.
cp -R -- "$here/oidc_provider" "$work/oidc_provider"
export INTEROP_PROVIDER="$work/oidc_provider/server.mjs"
npm ci --prefix "$work/oidc_provider" --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null

# In the background, so that the traps above run while it does.
"$work/venv/bin/python" "$here/run.py" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
driver=
exit "$code"
