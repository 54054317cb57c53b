#!/usr/bin/env bash
# The status page in a real browser. Installs chromium and its driver from Debian if they are missing (root), builds
# bearerd, and runs page.py. Screenshots go to the folder named by the first argument, target/status otherwise.
set -euo pipefail
cd "$(dirname "$0")/../.."

missing=()
command -v python3 >/dev/null || missing+=(python3)
command -v chromium >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests/status: ${missing[*]} is missing, and only root on Debian can install it here" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" fonts-dejavu-core
fi

cargo build --locked --quiet
exec python3 tests/status/page.py "${CARGO_TARGET_DIR:-target}/debug/bearerd" "${1:-${CARGO_TARGET_DIR:-target}/status}"
