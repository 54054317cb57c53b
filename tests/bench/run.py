"""The benchmark: bearerd, nginx, HAProxy and Envoy take turns at the same work. `run.sh` prepares it; README.md says more."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import namedtuple
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import load
import report
from candidates import ALL, Bearerd, Setup
from processes import Failure, expect, machine_busy, own_cpu, raise_file_limit, stop_all
from world import CONNECTIONS, MIB, World

# `do` is what is done in one turn; the rest are its settings.
Row = namedtuple("Row", "name title setup do settings")

PLAIN, H1, H2 = Setup("plain"), Setup("h1"), Setup("h2")


def crowded(setup):
    return setup._replace(crowd=True)


def two_workers(setup):
    return setup._replace(workers=2)


def closed(name, title, setup, connections=50, path="/payments", upload=0):
    return Row(name, title, setup, closed_loop, {"connections": connections, "path": path, "upload": upload})


def rows():
    """In the order of the table."""
    return [
        closed("plain", "plain HTTP/1.1", PLAIN),
        closed("tls-h1", "TLS, HTTP/1.1", H1),
        closed("tls-h2", "TLS, HTTP/2", H2),
        closed("down-h1", "1 MiB down, TLS, HTTP/1.1", H1, connections=10, path="/mib"),
        closed("down-h2", "1 MiB down, TLS, HTTP/2", H2, connections=10, path="/mib"),
        closed("up-h1", "1 MiB up, TLS, HTTP/1.1", H1, connections=10, path="/upload", upload=MIB),
        closed("up-h2", "1 MiB up, TLS, HTTP/2", H2, connections=10, path="/upload", upload=MIB),
        closed("one", "one connection, plain", PLAIN, connections=1),
        closed("one-h2", "one connection, TLS, HTTP/2", H2, connections=1),
        closed("c1000", "1,000 connections, plain", crowded(PLAIN), connections=1000),
        closed("c1000-h2", "1,000 connections, TLS, HTTP/2", crowded(H2), connections=1000),
        closed("c5000", "5,000 connections, plain", crowded(PLAIN), connections=5000),
        closed("w2", "2 workers, plain", two_workers(PLAIN)),
        closed("w2-h2", "2 workers, TLS, HTTP/2", two_workers(H2)),
        closed("w2-c1000", "2 workers, 1,000 connections, plain", crowded(two_workers(PLAIN)), connections=1000),
        Row("rate", "5,000/s, plain", PLAIN, fixed_rate, {}),
        Row("rate-h1", "5,000/s, TLS, HTTP/1.1", H1, fixed_rate, {}),
        Row("rate-h2", "5,000/s, TLS, HTTP/2", H2, fixed_rate, {}),
        Row("memory", "1,000 open connections, plain", PLAIN, memory, {}),
        Row("memory-h2", "1,000 open connections, TLS, HTTP/2", H2, memory, {}),
        Row("start", "from exec to the first answer, TLS, HTTP/1.1", H1, None, {}),
        Row("renewal", "5,000/s while the token is renewed, TLS, HTTP/2", H2._replace(lifetime=6), renewal, {}),
    ]


# --- what is done in one turn --------------------------------------------------------------------------------


class Watch:
    """The most memory that was seen while a load ran."""

    def __init__(self, candidate):
        self.candidate, self.rss = candidate, 0

    def __call__(self):
        self.rss = max(self.rss, self.candidate.process.rss())


def closed_loop(world, candidate, options, connections, path, upload):
    watch = Watch(candidate)
    before = candidate.process.cpu()
    result = load.closed_loop(
        *[world.tools, candidate.port, world.other_core, connections, options.seconds, path, upload, watch]
    )
    spent = candidate.process.cpu() - before
    return {**result, "cpu_us": spent * 1e6 / result["requests"], "rss_mib": watch.rss}


def fixed_rate(world, candidate, options):
    return at_rate(world, candidate, options.seconds)[0]


def at_rate(world, candidate, seconds):
    watch = Watch(candidate)
    before = candidate.process.cpu()
    log = candidate.folder / "answers"
    result, answers = load.fixed_rate(world.tools, candidate.port, world.other_core, seconds, log, watch)
    spent = candidate.process.cpu() - before
    return {**result, "cpu_us": spent * 1e6 / result["requests"], "rss_mib": watch.rss}, answers


def memory(world, candidate, options):
    """Of one process, before the crowd and with it; the turns after the first find it as it is then."""
    idle = candidate.process.rss()
    with load.Crowd(candidate.port, 1000):
        return {"idle_mib": idle, "crowd_mib": candidate.process.rss()}


def renewal(world, candidate, options):
    """Requests that began within 50 ms of a renewal, and all others."""
    asked_before = len(world.authorization_server.asked())
    seconds = max(options.seconds, 6)
    result, answers = at_rate(world, candidate, seconds)
    asked = world.authorization_server.asked()[asked_before:]
    begun, ended = min(start for start, _, _ in answers), max(start for start, _, _ in answers)
    asked = [moment for moment in asked if begun <= moment <= ended]
    expect(asked, "no token was renewed in that time")
    near = [any(abs(start - moment) < 50_000 for moment in asked) for start, _, _ in answers]
    times = {True: [], False: []}
    for is_near, (_, _, took) in zip(near, answers):
        times[is_near].append(took)
    expect(times[True], "no request was near a renewal")
    for is_near, name in ((True, "near_p99_us"), (False, "far_p99_us")):
        result[name] = load.share(sorted(times[is_near]), 0.99)
    return {**result, "token_requests": len(asked)}


# --- turns ---------------------------------------------------------------------------------------------------


def turn(world, candidate, row, options, running):
    """One turn of one candidate, and how much of the machine others took meanwhile."""
    busy, own, begun = machine_busy(), own_cpu(running), time.monotonic()
    result = row.do(world, candidate, options, **row.settings)
    others = (machine_busy() - busy) - (own_cpu(running) - own)
    if row.do is not memory:
        result["others"] = max(others, 0) / (time.monotonic() - begun)
    return result


def measure(world, row, options):
    """All rounds of a row: {candidate: its turns, or why there are none}."""
    classes = [Bearerd] if row.do is renewal else [kind for kind in ALL if kind.name in options.candidates]
    results = {kind.name: [] for kind in classes}
    with ExitStack() as stack:
        candidates = []
        for kind in classes:
            candidate = stack.enter_context(kind(world, row.setup))
            candidates.append(candidate)
            candidate.wait_forwarding()
        running = world.processes() + [candidate.process for candidate in candidates]
        for _ in range(options.rounds):
            for candidate in candidates:
                if isinstance(results[candidate.name], str):
                    continue
                try:
                    results[candidate.name].append(turn(world, candidate, row, options, running))
                except Failure as failure:
                    # One failed request, and the row is not worth comparing.
                    results[candidate.name] = str(failure)
                world.expect_alive()
    return results


def start(world, row, options):
    """Each time a new process, one after the other."""
    results = {kind.name: [] for kind in ALL if kind.name in options.candidates}
    for _ in range(2 * options.rounds + 1):
        for kind in ALL:
            if kind.name in results:
                with kind(world, row.setup) as candidate:
                    results[kind.name].append({"start_ms": candidate.wait_forwarding() * 1000})
    return results


def prove_fairness(world, options):
    """Each candidate verifies the upstream's certificate. (That it brings the token is seen by each answer.)"""
    for kind in ALL:
        if kind.name in options.candidates:
            with kind(world, Setup("stranger")) as candidate:
                candidate.refuses_the_stranger()


# --- the run -------------------------------------------------------------------------------------------------


def parse(arguments):
    names = [row.name for row in rows()]
    parser = argparse.ArgumentParser(prog="tests/bench/run.sh", description="bearerd beside nginx, HAProxy and Envoy")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of: {' '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s: to see that it works, not to measure")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each candidate in each row (5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a turn (3)")
    parser.add_argument("--only", metavar="NAMES", help="candidates, with commas; bearerd is always there")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the results go (bench.json)")
    options = parser.parse_args(arguments)
    unknown = set(options.rows) - set(names)
    if unknown:
        parser.error(f"no such row: {' '.join(sorted(unknown))}; there are {' '.join(names)}")
    if options.quick:
        options.rounds, options.seconds = 1, 1
    if not (1 <= options.rounds <= 50 and 1 <= options.seconds <= 60):
        parser.error("rounds are 1 to 50, seconds 1 to 60")
    known = {kind.name.lower(): kind.name for kind in ALL}
    wanted = [name.lower() for name in options.only.split(",")] if options.only else list(known)
    if not set(wanted) <= set(known):
        parser.error(f"candidates are {', '.join(known.values())}")
    options.candidates = ["bearerd"] + [known[name] for name in wanted if name != "bearerd"]
    return options


def main():
    options = parse(sys.argv[1:])
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("bench: two cores are needed: one for the candidate, one for all others")
    if raise_file_limit() < 2 * CONNECTIONS + 1000:
        sys.exit(f"bench: more open files are needed: ulimit -Hn {2 * CONNECTIONS + 1000}")
    os.sched_setaffinity(0, cores[1:2])
    # Whatever ends it, the blocks below end what they started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tools = {
        name: os.environ[f"BENCH_{name.upper()}"] for name in ("bearerd", "nginx", "haproxy", "envoy", "wrk", "h2load")
    }
    state = Path(tempfile.mkdtemp(prefix="bearerd-bench-"))
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": report.machine(),
        "versions": report.versions(tools),
        "binary_mib": os.path.getsize(tools["bearerd"]) / MIB,
        "rows": {},
    }
    try:
        with World(tools, state, cores) as world:
            prove_fairness(world, options)
            for row in rows():
                if options.rows and row.name not in options.rows:
                    continue
                print(f"bench: {row.title}", file=sys.stderr, flush=True)
                do = start if row.do is None else measure
                results["rows"][row.name] = {"title": row.title, "turns": do(world, row, options)}
    except Failure as failure:
        sys.exit(f"bench: {failure}")
    finally:
        stop_all()
        if results["rows"]:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        if os.environ.get("BENCH_KEEP"):
            print(f"bench: configurations and logs are in {state}", file=sys.stderr)
        else:
            shutil.rmtree(state)
    report.show(results)
    voids = report.voids(results)
    for void in voids:
        print(f"void: {void}")
    sys.exit(1 if voids else 0)


if __name__ == "__main__":
    main()
