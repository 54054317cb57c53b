"""Counts the instructions that bearerd spends on one request, and says whether they are more than they were.

    guard.py BEARERD [--record]

bearerd runs under callgrind between a client, an upstream and an authorization server of this process, all on loopback,
one request at a time. Two runs differ in the number of requests alone; what they differ by in instructions is the cost
of these requests, whatever start and end cost. The kernel's share is not seen: `run.py` measures that.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

RECORD = Path(__file__).resolve().parent / "instructions.toml"
# What a run costs besides its requests varies by some 200,000 instructions; so many requests make that 0.1 %.
FEW, MANY = 500, 4500
JSON = b'{"payments":[%s]}' % b",".join(b'{"id":"pay_%04d","amount":"19.90"}' % number for number in range(8))
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(JSON), JSON)
)
GRANT = b'{"access_token":"bench-0123456789abcdef","token_type":"Bearer","expires_in":36000}'
TOKEN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    % (len(GRANT), GRANT)
)
# As applications send it.
FIELDS = (
    b"Host: 127.0.0.1:%d\r\nUser-Agent: shop/1.0\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\n"
    b"X-Request-Id: 0123456789abcdef0123456789abcdef\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
)
BODY = b'{"amount":"19.90","currency":"EUR"}'
GET = b"GET /v1/payments?limit=8 HTTP/1.1\r\n" + FIELDS + b"\r\n"
POST = b"POST /v1/payments HTTP/1.1\r\n" + FIELDS + b"Idempotency-Key: 7\r\nContent-Length: 35\r\n\r\n" + BODY

REQUESTS = {"get": GET, "post": POST}

class Failure(Exception):
    """What went wrong, in one line."""


def read_message(connection, left=b""):
    """A message with a Content-Length, or none, and what follows it; empty at the end of the connection."""
    data = left
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b"", b""
        data += piece
    end = data.index(b"\r\n\r\n") + 4
    length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", data[:end], re.IGNORECASE)
    end += int(length[1]) if length else 0
    while len(data) < end:
        piece = connection.recv(65536)
        if not piece:
            raise Failure("a message broke off")
        data += piece
    return data[:end], data[end:]


class Server:
    """Answers every request on every connection with the same bytes."""

    def __init__(self, answer, must_hold=b""):
        self.answer, self.must_hold, self.count, self.wrong = answer, must_hold, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection):
        left = b""
        while True:
            message, left = read_message(connection, left)
            if not message:
                return connection.close()
            self.count += 1
            self.wrong += self.must_hold not in message
            connection.sendall(self.answer)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        return chosen.getsockname()[1]


class Bearerd:
    """bearerd under callgrind, for as long as the block lasts."""

    def __init__(self, binary, folder, upstream, authorization_server):
        self.port, self.counts = free_port(), folder / f"callgrind.{free_port()}"
        secret, configuration = folder / "client_secret", folder / "bearerd.toml"
        secret.write_text("not a secret")
        configuration.write_text(f"""
proxy.listen = "127.0.0.1:{self.port}"
admin.listen = "127.0.0.1:{free_port()}"
runtime.workers = 1

[upstream.payments]
url = "http://127.0.0.1:{upstream.port}"

[credential.payments]
token_url = "http://127.0.0.1:{authorization_server.port}/token"
client_id = "bench"
client_secret_file = "{secret}"
""")
        self.log = folder / "log"
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={self.counts}"]
        self.command = [*valgrind, binary, "--config", configuration]
        self.process = None

    def __enter__(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BEARERD_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def connect(self):
        give_up = time.monotonic() + 60
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise Failure(f"bearerd does not start: {self.log.read_text()[-500:]}") from None
                time.sleep(0.05)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def stop(self):
        """Ends it, and returns how many instructions it was in all."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        total = re.search(r"^(?:summary|totals): (\d+)", self.counts.read_text(), re.MULTILINE)
        if not total:
            raise Failure("callgrind counted nothing")
        return int(total[1])


def instructions(binary, folder, request, count):
    """Of a whole run with `count` requests."""
    upstream = Server(ANSWER, must_hold=b"Bearer bench-0123456789abcdef\r\n")
    authorization_server = Server(TOKEN)
    with Bearerd(binary, folder, upstream, authorization_server) as bearerd:
        connection = bearerd.connect()
        request = request % bearerd.port
        left = b""
        for _ in range(count):
            connection.sendall(request)
            answer, left = read_message(connection, left)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise Failure(f"an answer was {answer[:80]}")
        connection.close()
        total = bearerd.stop()
    if (upstream.count, upstream.wrong) != (count, 0):
        raise Failure(f"the upstream saw {upstream.count} of {count} requests, {upstream.wrong} without the token")
    return total


def per_request(binary, folder, request):
    few, many = (instructions(binary, folder, request, count) for count in (FEW, MANY))
    return round((many - few) / (MANY - FEW))


def verdict(name, found, recorded, growth):
    """One line, and whether it is good."""
    if recorded is None:
        return f"{name}: {found:,} instructions for a request; none recorded", False
    allowed = round(recorded * (1 + growth))
    line = f"{name}: {found:,} instructions for a request; {recorded:,} recorded, {allowed:,} allowed"
    if found > allowed:
        return f"{line}: TOO MANY", False
    if found < recorded * (1 - growth):
        return f"{line}: ok; record the gain with --record, or it may be lost unseen", True
    return f"{line}: ok", True


def main():
    binary, is_recording = sys.argv[1], "--record" in sys.argv[2:]
    with tempfile.TemporaryDirectory(prefix="bearerd-guard-") as folder:
        found = {name: per_request(binary, Path(folder), request) for name, request in REQUESTS.items()}
    text = RECORD.read_text()
    if is_recording:
        for name, count in found.items():
            text = re.sub(rf"^{name} = .*$", f"{name} = {count}", text, flags=re.MULTILINE)
        RECORD.write_text(text)
    record = tomllib.loads(text)
    verdicts = [verdict(name, count, record["requests"].get(name), record["growth"]) for name, count in found.items()]
    for line, _ in verdicts:
        print(line)
    sys.exit(0 if all(is_good for _, is_good in verdicts) else 1)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"guard: {failure}")
