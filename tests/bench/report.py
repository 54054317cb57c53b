"""Tables of a run: medians, ratios to the best peer, and what was aimed at."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

CANDIDATES = ("bearerd", "nginx", "HAProxy", "Envoy")
PEERS = CANDIDATES[1:]

# (key of a turn, heading, digits)
TABLES = [
    ("cpu_us", "CPU time per request, µs", 1),
    ("rate", "Requests in a second", 0),
    ("p50_us", "p50, µs", 0),
    ("p99_us", "p99, µs", 0),
    ("rss_mib", "RSS under load, MiB", 1),
    ("idle_mib", "RSS before the connections, MiB", 1),
    ("crowd_mib", "RSS with them, MiB", 1),
    ("start_ms", "Start, ms", 0),
]

# (row, key, at most this factor, of the best of these peers)
TARGETS = [
    ("plain", "cpu_us", 1.00, ("nginx", "HAProxy")),
    ("plain", "cpu_us", 0.35, ("Envoy",)),
    ("tls-h1", "cpu_us", 0.95, ("nginx", "HAProxy")),
    ("tls-h2", "cpu_us", 0.95, ("HAProxy",)),
    ("tls-h2", "cpu_us", 0.80, ("nginx",)),
    ("tls-h2", "cpu_us", 0.45, ("Envoy",)),
    ("down-h1", "cpu_us", 1.00, PEERS),
    ("down-h2", "cpu_us", 1.00, PEERS),
    ("up-h1", "cpu_us", 1.00, PEERS),
    ("up-h2", "cpu_us", 1.00, PEERS),
    ("rate", "p99_us", 1.00, PEERS),
    ("rate-h1", "p99_us", 1.00, PEERS),
    ("rate-h2", "p99_us", 1.00, PEERS),
]
# (row, key, at most)
LIMITS = [("memory", "idle_mib", 10), ("memory", "crowd_mib", 30), ("memory-h2", "crowd_mib", 30)]


# Turns in which other processes took more of the machine than this, in cores, do not count where there are better ones.
QUIET = 0.10


def quiet(turns):
    return [turn for turn in turns if turn.get("others", 0) <= QUIET]


def median(row, candidate, key):
    """The median over a candidate's quiet turns, or over all if none was; None where it has none."""
    turns = row["turns"].get(candidate)
    if not isinstance(turns, list) or not turns or key not in turns[0]:
        return None
    # Memory that was taken once stays; only the first turn finds a process as it was started.
    if key == "idle_mib":
        return turns[0][key]
    return statistics.median(turn[key] for turn in quiet(turns) or turns)


def is_disturbed(row, candidate):
    turns = row["turns"].get(candidate)
    return isinstance(turns, list) and not quiet(turns)


def show(results):
    machine = results["machine"]
    print(f"\n{results['date']}; {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}", end="; ")
    print(f"{results['rounds']} rounds of {results['seconds']} s")
    print(", ".join(f"{name} {version}" for name, version in results["versions"].items()), end="; ")
    print(f"the binary has {results['binary_mib']:.1f} MiB")
    for key, heading, digits in TABLES:
        table(results, key, heading, digits)
    renewal(results)
    others(results)
    targets(results)


def table(results, key, heading, digits):
    lines = []
    for row in results["rows"].values():
        values = {name: median(row, name, key) for name in CANDIDATES}
        if not any(values.values()):
            continue
        peers = [values[name] for name in PEERS if values[name] is not None]
        best = (max if key == "rate" else min)(peers, default=None)
        ratio = f"{values['bearerd'] / best:.2f}" if best and values["bearerd"] else "–"
        cells = [
            "–" if values[name] is None else f"{'~' * is_disturbed(row, name)}{values[name]:,.{digits}f}"
            for name in CANDIDATES
        ]
        lines.append(f"| {row['title']} | {' | '.join(cells)} | {ratio} |")
    if lines:
        print(f"\n| {heading} | {' | '.join(CANDIDATES)} | bearerd ÷ best peer |")
        print("|---|" + "--:|" * (len(CANDIDATES) + 1))
        print("\n".join(lines))


def renewal(results):
    row = results["rows"].get("renewal")
    if row is None or median(row, "bearerd", "requests") is None:
        return
    requests = sum(turn["requests"] for turn in row["turns"]["bearerd"])
    renewals = sum(turn["token_requests"] for turn in row["turns"]["bearerd"])
    near, far = (median(row, "bearerd", key) for key in ("near_p99_us", "far_p99_us"))
    print(f"\nRenewal: {requests:,} requests, none failed; {renewals} renewals with one token request each;", end=" ")
    print(f"p99 within 50 ms of one {near:,.0f} µs, otherwise {far:,.0f} µs")


def others(results):
    """A run on a busy machine shows here."""
    lists = [turns for row in results["rows"].values() for turns in row["turns"].values() if isinstance(turns, list)]
    turns = [turn for turns in lists for turn in turns if "others" in turn]
    if turns:
        print(f"\nOther processes left the machine alone in {len(quiet(turns))} of {len(turns)} turns; only these count,", end=" ")
        print("except for figures with a ~: measure those again")


def targets(results):
    lines = []
    for name, key, factor, peers in TARGETS:
        row = results["rows"].get(name)
        own = row and median(row, "bearerd", key)
        found = [value for value in (row and median(row, peer, key) for peer in peers) if value is not None]
        if own is not None and found:
            ratio = own / min(found)
            aim = f"≤ {factor:.2f} × {' / '.join(peers)}"
            is_certain = not any(is_disturbed(row, name) for name in ("bearerd", *peers))
            said = verdict(ratio <= factor) if is_certain else "measure again"
            lines.append(f"| {row['title']}, {key} | {aim} | {ratio:.2f} | {said} |")
    for name, key, limit in LIMITS:
        row = results["rows"].get(name)
        own = row and median(row, "bearerd", key)
        if own is not None:
            lines.append(f"| {row['title']}, {key} | ≤ {limit} MiB | {own:.1f} | {verdict(own <= limit)} |")
    if lines:
        print("\n| target | aim | measured | |\n|---|---|--:|---|")
        print("\n".join(lines))


def verdict(holds):
    return "holds" if holds else "missed"


def voids(results):
    return [
        f"{row['title']}, {name}: {turns}"
        for row in results["rows"].values()
        for name, turns in row["turns"].items()
        if isinstance(turns, str)
    ]


def machine():
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1),
        "kernel": platform.release().split("-")[0],
    }


def versions(tools):
    """What the programs say of themselves."""
    arguments = {"bearerd": "version", "nginx": "-v", "haproxy": "-v", "envoy": "--version", "h2load": "--version"}
    found = {}
    for name, argument in arguments.items():
        said = subprocess.run([tools[name], argument], capture_output=True, text=True, timeout=20)
        number = re.search(r"(?<![\w.])\d+\.\d+(\.\d+)?(?![\w.])", said.stdout + said.stderr)
        found[name] = number[0] if number else "?"
    return found


if __name__ == "__main__":
    # The tables of a run once more: report.py bench.json
    show(json.loads(Path(sys.argv[1]).read_text()))
