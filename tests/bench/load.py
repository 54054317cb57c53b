"""What applications do to a candidate: ask as fast as they get answers, ask at a fixed rate, or stay connected."""

import json
import os
import re
import socket
import subprocess
import time

from processes import expect
from world import HERE, JSON

RATE = 5000
# h2load opens so many connections in each millisecond, and each sends every 10 ms: so requests are spread evenly.
RATE_CONNECTIONS = 50
# What it costs to notice when a load has ended; RSS is looked at as often.
PACE = 0.1


def run(command, cores, watch):
    """Runs a load to its end, calling `watch` all the while; returns what it printed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    give_up = time.monotonic() + 120
    try:
        while process.poll() is None:
            expect(time.monotonic() < give_up, f"{command[0]} does not end")
            time.sleep(PACE)
            watch()
    finally:
        if process.poll() is None:
            process.kill()
        output, _ = process.communicate()
    expect(process.returncode == 0, f"{command[0]}: {output[-300:]}")
    return output


def closed_loop(tools, port, cores, connections, seconds, path, upload, watch):
    """wrk: each connection sends when it has its answer."""
    command = [tools["wrk"], "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "load.lua")]
    command += ["--timeout", "10s", f"http://127.0.0.1:{port}{path}", "--", str(upload)]
    output = run(command, cores, watch)
    found = re.search(r"^RESULT (\{.*\})$", output, re.MULTILINE)
    expect(found, f"wrk printed no result: {output[-300:]}")
    result = json.loads(found[1])
    expect(result["failures"] == 0, f"{result['failures']} of {result['requests']} requests failed")
    expect(result["requests"] > 0, "no request was answered")
    return {
        "requests": result["requests"],
        "rate": result["requests"] / result["seconds"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
    }


def fixed_rate(tools, port, cores, seconds, log, watch):
    """h2load: each connection sends on its own beat, whatever becomes of the requests of others."""
    total = RATE * seconds
    log.unlink(missing_ok=True)
    command = [tools["h2load"], "--h1", "-t1", f"-c{RATE_CONNECTIONS}", f"-n{total}"]
    command += ["-r5", "--rate-period=1ms", f"--rps={RATE // RATE_CONNECTIONS}"]
    command += [f"--log-file={log}", f"http://127.0.0.1:{port}/payments"]
    output = run(command, cores, watch)
    # Start in microseconds since the epoch, status, microseconds to the end of the answer.
    answers = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    # h2load knows no status where the reason phrase is empty, as HAProxy sends it; the bodies are those of a 200 then.
    bad = total - sum(status == 0 or 200 <= status < 300 for _, status, _ in answers)
    data = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    is_whole = re.search(r" 0 errored, 0 timeout$", output, re.MULTILINE) and data and int(data[1]) == total * len(JSON)
    expect(bad == 0 and is_whole, f"{bad} of {total} requests failed: {output[-400:]}")
    span = (max(start + took for start, _, took in answers) - min(start for start, _, _ in answers)) / 1e6
    rate = total / span
    expect(rate > 0.95 * RATE, f"only {rate:.0f} requests in a second")
    times = sorted(took for _, _, took in answers)
    result = {"requests": total, "rate": rate, "p50_us": share(times, 0.5), "p99_us": share(times, 0.99)}
    return result, answers


def share(ordered, part):
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


class Crowd:
    """Connections that have had one answer each, and stay open for as long as the block lasts."""

    AT_ONCE = 50

    def __init__(self, port, count):
        self.port, self.count = port, count
        self.connections = []

    def __enter__(self):
        request = f"GET /payments HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode()
        while len(self.connections) < self.count:
            few = [socket.create_connection(("127.0.0.1", self.port), timeout=10) for _ in range(self.AT_ONCE)]
            self.connections += few
            for connection in few:
                connection.sendall(request)
            for connection in few:
                answer = b""
                while JSON.encode() not in answer:
                    piece = connection.recv(65536)
                    expect(piece, f"an answer of the crowd: {answer[:80]}")
                    answer += piece
        return self

    def __exit__(self, *_):
        for connection in self.connections:
            connection.close()
