#!/usr/bin/env bash
# Runs fuzz targets one after the other: tests/fuzz/run.sh [SECONDS] [TARGET...]
#
# 600 seconds for each of all targets, unless it is told otherwise. One line for each target; exit code 1 when something
# was found. SANITIZER=none is faster, JOBS is for the build.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-600}
shift $(($# > 0 ? 1 : 0))
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(basename -s .rs fuzz_targets/*.rs)
fi
if ! [[ $seconds =~ ^[0-9]+$ ]]; then
    echo "usage: $0 [SECONDS] [TARGET...]" >&2
    exit 2
fi

tools=$PWD/target/tools
export PATH="$tools/bin:$PATH"
if ! command -v cargo-fuzz >/dev/null; then
    echo "installing cargo-fuzz into $tools"
    cargo install --quiet --locked --root "$tools" cargo-fuzz
fi

# Sanitizers are not stable; the stable compiler has what they need all the same.
export RUSTC_BOOTSTRAP=1
export CARGO_BUILD_JOBS=${JOBS:-$(nproc)}
unset CARGO_TARGET_DIR
options=(--fuzz-dir "$PWD" --target-dir "$PWD/target" --sanitizer "${SANITIZER:-address}")
mkdir -p target/logs
if ! cargo fuzz build "${options[@]}" >target/logs/build.log 2>&1; then
    cat target/logs/build.log >&2
    exit 1
fi

export TMPDIR=$PWD/target/tmp
# The threads of the sidecar never end, which the leak detector takes for leaks.
export ASAN_OPTIONS=detect_leaks=0
found=0
for target in "${targets[@]}"; do
    mkdir -p "$TMPDIR" "corpus/$target"
    log=target/logs/$target.log
    limits=(-max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=8400)
    arguments=("${limits[@]}" -print_final_stats=1)
    if [ -f "dictionaries/$target" ]; then
        arguments+=(-dict="dictionaries/$target")
    fi
    result=nothing
    if ! cargo fuzz run "${options[@]}" "$target" "corpus/$target" "seeds/$target" -- "${arguments[@]}" >"$log" 2>&1; then
        result="a FINDING, see $PWD/$log"
        found=1
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    coverage=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    printf '%-16s %9s executions, %6s edges covered, found %s\n' \
        "$target" "${executions:-?}" "${coverage:-?}" "$result"
    rm -rf "$TMPDIR"
done
exit "$found"
