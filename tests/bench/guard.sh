#!/usr/bin/env bash
# Says whether a request costs more instructions than it did; README.md says more.
#   tests/bench/guard.sh             fails above what instructions.toml allows
#   tests/bench/guard.sh --record    writes what it finds into instructions.toml
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

die() {
    echo "guard: $*" >&2
    exit 1
}

if ! command -v valgrind >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends valgrind; } >/dev/null || true
fi
command -v valgrind >/dev/null || die "valgrind is missing"
python3 -c 'import tomllib' 2>/dev/null || die "python3 is missing or older than 3.11"

if [ -z "${BEARERD_BIN:-}" ]; then
    command -v cargo >/dev/null || die "cargo is missing; or name a release build with BEARERD_BIN"
    (cd "$root" && cargo build --release --locked)
    BEARERD_BIN=${CARGO_TARGET_DIR:-$root/target}/release/bearerd
fi
PYTHONDONTWRITEBYTECODE=1 exec python3 "$here/guard.py" "$(realpath -- "$BEARERD_BIN")" "$@"
