"""Cases, processes, HTTP, and waiting for conditions."""

import http.client
import os
import random
import re
import socket
import subprocess
import time
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEPLOY = ROOT / "deploy"


class Failure(Exception):
    """What a case found wrong."""


class Skip(Exception):
    """Why a case cannot be tried here."""


CASES = []


def case(name):
    def register(function):
        CASES.append((name, function))
        return function

    return register


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


def run(*command, input=None, cwd=ROOT, timeout=120, env=None, may_fail=False):
    """Runs a command to its end and returns what it printed; what it complains of, too, if it `may_fail`."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout,
            env=env,
        )
    except FileNotFoundError:
        raise Skip(f"{command[0]} is missing") from None
    if may_fail:
        return done.returncode, done.stdout + done.stderr
    expect(done.returncode == 0, f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_port():
    """One below the range that outgoing connections usually take their ports from."""
    while True:
        try:
            with socket.create_server(("127.0.0.1", random.randrange(20000, 32000))) as listener:
                return listener.getsockname()[1]
        except OSError:
            continue


Answer = namedtuple("Answer", "status body")


def fetch(port, path, timeout=10):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode())
    finally:
        connection.close()


class Process:
    """A process that ends with its `with` block."""

    def __init__(self, command, log, env=None):
        self.command, self.log, self.env = [str(part) for part in command], log, env
        self.process = None

    def __enter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env
            )
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def expect_alive(self):
        code = self.process.poll()
        expect(code is None, f"{self.command[0]} has ended with exit code {code}:\n{self.tail()}")

    def tail(self, lines=12):
        return "\n".join(Path(self.log).read_text(errors="replace").splitlines()[-lines:])


def answers(process, port, path, timeout=20):
    """Waits until GET gets a 200, and returns its body."""

    def answer():
        process.expect_alive()
        try:
            found = fetch(port, path)
        except OSError:
            return None
        return found if found.status == 200 else None

    return wait_until(f"GET {path}", answer, timeout).body


def clean_environment(**settings):
    """Nothing of the surrounding environment may configure bearerd."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BEARERD_")}
    return {**env, **{name: str(value) for name, value in settings.items()}}


def series(text):
    """(name, labels, value) of each line of a /metrics page."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match:
            found.append((match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")), float(match[3])))
    return found


def metric(text, name, **labels):
    """The sum of all series of that name that have these labels."""
    return sum(value for n, found, value in series(text) if n == name and labels.items() <= found.items())
