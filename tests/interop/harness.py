"""Starts and stops the processes, speaks HTTP with them, and waits for conditions."""

import http.client
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Failure(Exception):
    """What a case found wrong, in one line."""


def expect(condition, why):
    if not condition:
        raise Failure(why)


def wait_until(what, condition, timeout):
    """Calls `condition` until it returns something true, and returns that."""
    give_up = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        expect(time.monotonic() < give_up, f"{what}: not within {timeout} s")
        time.sleep(0.05)


def listen_somewhere():
    """A listening socket on a free port.

    The range lies below the one outgoing connections usually take their ports from. A port that is given up
    and taken again (a server restarted, a port chosen for bearerd) is then still free.
    """
    while True:
        try:
            return socket.create_server(("127.0.0.1", random.randrange(20000, 32000)))
        except OSError:
            continue


def free_port():
    with listen_somewhere() as chosen:
        return chosen.getsockname()[1]


# --- HTTP ---------------------------------------------------------------------------------------------------


class Answer(namedtuple("Answer", "status headers body")):
    @property
    def code(self):
        """The `code` of an answer bearerd made itself; None for the upstream's answers."""
        if self.headers.get_content_type() != "application/problem+json":
            return None
        return json.loads(self.body).get("code")

    @property
    def token_hash(self):
        return self.headers.get("X-Seen-Token-Sha256")

    def __str__(self):
        return f"{self.status} {self.code or self.body[:120]!r}"


def send(connection, method, path, headers=(), body=None):
    """Writes a request; a list of pairs as headers allows a name to come twice."""
    connection.putrequest(method, path)
    for name, value in headers:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)


def receive(connection):
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def fetch(port, method, path, headers=(), body=None, timeout=20, authority=None):
    """One request on a connection of its own; over TLS if `authority`, the file of a CA, is given."""
    if authority:
        context = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection("localhost", port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        send(connection, method, path, headers, body)
        return receive(connection)
    finally:
        connection.close()


def records(file):
    """What a server wrote down, oldest first: one JSON object in each line."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Load:
    """Applications that keep asking over connections that stay open, for as long as the block lasts."""

    def __init__(self, bearerd, clients=4, pace=0.03):
        """Each client rests `pace` seconds between an answer and its next request."""
        self.port, self.pace = bearerd.port, pace
        self.count, self.slowest, self.failures, self.token_hashes = 0, 0.0, [], set()
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.keep_asking) for _ in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def keep_asking(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self.ended.is_set():
            begun = time.monotonic()
            try:
                send(connection, "GET", "/payments/")
                answer = receive(connection)
                failure = None if answer.status == 200 else str(answer)
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
                connection.close()
            with self.lock:
                self.count += 1
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if failure:
                    self.failures.append(failure)
                else:
                    self.token_hashes.add(answer.token_hash)
            self.ended.wait(self.pace)
        connection.close()

    def expect_no_failure(self):
        expect(self.count, "no request was made")
        failed = len(self.failures)
        expect(not failed, f"{failed} of {self.count} requests failed, the first: {self.failures[:1]}")

    def __str__(self):
        return f"{self.count} requests, the slowest {self.slowest * 1000:.0f} ms"


# --- servers ------------------------------------------------------------------------------------------------


class Server:
    """A process that serves until it is told to end."""

    process = None

    def start(self):
        """Starts it, on the port it had before if there was one, and waits until it answers."""
        self.launch()
        self.wait_answering()

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Django(Server):
    """A gunicorn serving the `payments` project: an authorization server, the API, or both."""

    def __init__(self, state, name, lifetime=36000, tls=False):
        self.state, self.name, self.lifetime, self.tls = state, name, lifetime, tls
        self.port = None

    def launch(self):
        listener = socket.create_server(("127.0.0.1", self.port)) if self.port else listen_somewhere()
        self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--config", HERE / "payments" / "gunicorn.conf.py"]
        command += ["--bind", f"fd://{listener.fileno()}"]
        if self.tls:
            command += ["--certfile", self.state / "server.pem", "--keyfile", self.state / "server.key"]
        environment = dict(os.environ, ACCESS_TOKEN_EXPIRE_SECONDS=str(self.lifetime))
        # gunicorn gets the socket ready made, so no connection is ever refused while it starts.
        with listener, open(self.state / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=HERE, env=environment, stdout=log, stderr=log, pass_fds=[listener.fileno()]
            )

    def wait_answering(self):
        authority = self.state / "ca.pem" if self.tls else None
        answer = fetch(self.port, "GET", "/payments/", timeout=30, authority=authority)
        expect(answer.status == 401, f"{self.name} does not start: {answer}")

    @property
    def url(self):
        return f"https://localhost:{self.port}" if self.tls else f"http://127.0.0.1:{self.port}"

    @property
    def token_url(self):
        return f"{self.url}/o/token/"


# --- bearerd ------------------------------------------------------------------------------------------------


class Bearerd:
    """One bearerd, logging everything it can into a file of its own."""

    def __init__(self, binary, log, settings):
        self.binary, self.log = binary, log
        self.port, self.admin_port = free_port(), free_port()
        # Nothing of the surrounding environment may configure it.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("BEARERD_")}
        self.environment.update(
            BEARERD_LISTEN=f"127.0.0.1:{self.port}",
            BEARERD_ADMIN_LISTEN=f"127.0.0.1:{self.admin_port}",
            BEARERD_LOG_LEVEL="trace",
            **settings,
        )
        self.process = None
        self.exit_code = None

    def __enter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.binary], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.process and self.exit_code is None:
            self.keep_admin_pages()
            self.process.terminate()
            self.wait_exit()

    def wait_exit(self, timeout=40):
        """Waits for the end of it; never sends a second SIGTERM, which would cut a drain short."""
        try:
            self.exit_code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.exit_code = self.process.wait()
        return self.exit_code

    def keep_admin_pages(self):
        """What the admin port shows must hold no secret either, so it goes where the logs go."""
        for number, path in enumerate(("/metrics", "/readyz?verbose", "/status", "/")):
            try:
                page = fetch(self.admin_port, "GET", path, timeout=5).body
            except OSError:
                continue
            self.log.with_suffix(f".page{number}").write_bytes(page)

    def command(self, *arguments):
        """Runs one of the other commands with the same configuration; returns exit code and output."""
        done = subprocess.run(
            [self.binary, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            text=True,
        )
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(done.stderr)
            if "--show" not in arguments:
                log.write(done.stdout)
        return done.returncode, done.stdout + done.stderr

    # As the application sees it:

    def get(self, path="/payments/", headers=()):
        return fetch(self.port, "GET", path, headers)

    def post(self, body, path="/payments/"):
        return fetch(self.port, "POST", path, [("Content-Type", "application/json")], body)

    # As the platform sees it:

    def admin(self, path):
        """An answer of the admin port, or None while there is none."""
        code = self.process.poll()
        expect(code is None, f"bearerd has ended with exit code {code}")
        try:
            return fetch(self.admin_port, "GET", path)
        except ConnectionError:
            return None

    def wait_ready(self, timeout=15):
        page = "no answer"

        def ready():
            nonlocal page
            answer = self.admin("/readyz?verbose")
            page = answer.body.decode().strip() if answer else "no answer"
            return answer and answer.status == 200

        try:
            wait_until("ready", ready, timeout)
        except Failure as failure:
            raise Failure(f"{failure} ({page})") from None

    def wait_pending(self, word, timeout=15):
        """Waits until /readyz is 503 and names `word`; returns the page."""

        def pending():
            answer = self.admin("/readyz?verbose")
            return answer and answer.status == 503 and word in (text := answer.body.decode()) and text

        return wait_until(f"/readyz?verbose names {word}", pending, timeout)

    def wait_listening(self, timeout=15):
        def connects():
            code = self.process.poll()
            expect(code is None, f"bearerd has ended with exit code {code}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until("listening", connects, timeout)

    def metric(self, name, **labels):
        """The sum of all series of that name that have these labels."""
        total = 0.0
        for line in self.admin("/metrics").body.decode().splitlines():
            series = re.fullmatch(re.escape(name) + r"(?:\{(.*)\})? (\S+)", line)
            if series:
                found = dict(re.findall(r'(\w+)="([^"]*)"', series[1] or ""))
                if labels.items() <= found.items():
                    total += float(series[2])
        return total
