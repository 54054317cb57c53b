"""What bearerd sends means the same to every server behind it. The case; and the servers, when run as a program.

Whatever an application sends, what comes out is recorded, read strictly, and given to servers with parsers of their own. Each
of them must read the same one request, or refuse it; none may see another request, or one more.
"""

import json
import random
import re
import socket
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

from harness import HERE, expect, free_port, wait_until

# What an application may send, well-formed or not, each file one connection.
INPUTS = HERE.parent / "fuzz" / "seeds" / "request_head"
# What is put into the variants of the inputs.
PIECES = [bytes([byte]) for byte in b"\0\t\n\r !\"#%&',-./0:;=?@A\\\x7f\x80\x85\xa0\xff"]
PIECES += [b"", b"\r\n", b"\n\r\n", b"\r\n ", b"\r\nX: ", b"chunked", b"0\r\n\r\n", b" HTTP/1.1\r\n"]
VARIANTS = 10  # of each input, with one thing changed
QUIET = 1  # second after which nothing more is expected of a connection
TIMEOUT = 20
# It follows each request on its connection: a server that took the end of the request for another place does not see it.
AFTER = b"GET /after HTTP/1.1\r\nHost: after\r\nConnection: close\r\n\r\n"


def reading(method, target, fields, body):
    """A request in a form in which those of all servers can be compared.

    Lines of one name are joined, because WSGI joins them, each server with other spaces. Content-Length and
    Transfer-Encoding are left out, because some servers replace one by the other; what they say is in the body.
    """
    values = {}
    for name, value in fields:
        parts = [part.strip(" \t") for part in value.split(",")]
        values.setdefault(name.lower(), []).extend(parts)
    for framing in ("content-length", "transfer-encoding"):
        values.pop(framing, None)
    return dict(method=method, target=target, fields=values, body=[len(body), sha256(body).hexdigest()])


# --- reading strictly ---------------------------------------------------------------------------------------

TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"


class Recorder(socketserver.ThreadingTCPServer):
    """An upstream that keeps each whole request: its bytes, and its reading by the grammar and nothing else."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        self.requests, self.faults = [], []
        super().__init__(("127.0.0.1", 0), Connection)

    @property
    def authority(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            while request := self.request_as_it_came():
                self.server.requests.append(request)
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (EOFError, ConnectionError):
            pass  # An upload that broke off is no request.
        except Exception as error:
            self.server.faults.append(f"{type(error).__name__}: {error}")

    def line(self):
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        self.raw += line
        expect(line.endswith(b"\r\n") and b"\r" not in line[:-2], f"a line ends in {line[-10:]!r}")
        return line[:-2].decode("latin-1")

    def exactly(self, length):
        begin = len(self.raw)
        while missing := length - (len(self.raw) - begin):
            piece = self.rfile.read(min(missing, 65536))
            if not piece:
                raise EOFError
            self.raw += piece
        return self.raw[begin:]

    def request_as_it_came(self):
        self.raw = b""
        if not self.rfile.peek(1):
            return None
        method, target, version = self.line().split(" ")
        expect(re.fullmatch(TOKEN, method) and version == "HTTP/1.1", f"{method} … {version}")
        expect(re.fullmatch(r"/[^\x00-\x20\x7f#]*", target), f"the target {target[:80]!r}")
        fields = []
        while line := self.line():
            field = re.fullmatch(rf"({TOKEN}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*", line)
            expect(field, f"the line {line[:80]!r}")
            fields.append(field.groups())
        body = self.body(fields)
        return self.raw, reading(method, target, fields, body)

    def body(self, fields):
        of = lambda wanted: [value for name, value in fields if name.lower() == wanted]
        lengths, codings = of("content-length"), of("transfer-encoding")
        for name in ("host", "authorization"):
            expect(len(of(name)) == 1, f"{len(of(name))} lines {name}")
        expect(len(lengths) + len(codings) <= 1, f"framed by {lengths} and {codings}")
        if lengths:
            expect(re.fullmatch("0|[1-9][0-9]*", lengths[0]), f"the length {lengths}")
            return self.exactly(int(lengths[0]))
        if codings:
            expect(codings == ["chunked"], f"the codings {codings}")
            return self.chunks()
        return b""

    def chunks(self):
        body = b""
        while True:
            size = self.line()
            expect(re.fullmatch("[0-9A-Fa-f]+", size), f"the chunk size {size!r}")
            piece = self.exactly(int(size, 16))
            expect(self.line() == "", "no end of a chunk, or trailers")
            if not piece:
                return body
            body += piece


# --- real servers -------------------------------------------------------------------------------------------


class Reader:
    """One of the servers below in a process of its own; it writes down each request that its application is given."""

    def __init__(self, name, w):
        self.name, self.port = name, free_port()
        self.readings = w.state / f"readings-{name}.jsonl"
        self.readings.touch()
        self.seen = 0
        with open(w.logs / f"reader-{name}.txt", "wb") as log:
            command = [sys.executable, __file__, name, str(self.port), str(self.readings)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_listening(self):
        def connects():
            expect(self.process.poll() is None, f"{self.name} has ended")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(f"{self.name} listens", connects, TIMEOUT)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def read(self, request):
        """Sends a request and the one after it. Returns what arrived at the application, and the first status."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT) as connection:
            answer = b""
            try:
                connection.sendall(request + AFTER)
                while piece := connection.recv(65536):
                    answer += piece
            except ConnectionError:
                pass  # Refused with bytes unread.
        lines = self.readings.read_text().splitlines()
        arrived, self.seen = lines[self.seen :], len(lines)
        status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
        return [json.loads(line) for line in arrived], int(status[1]) if status else None


def wsgi(record):
    def application(environ, start_response):
        fields = [
            (name.removeprefix("HTTP_").replace("_", "-"), value)
            for name, value in environ.items()
            if name.startswith("HTTP_") or name == "CONTENT_TYPE" and value
        ]
        target = environ.get("RAW_URI") or environ["REQUEST_URI"]
        record(environ["REQUEST_METHOD"], target, fields, environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Length", "0")])
        return []

    return application


def asgi(record):
    async def application(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        record(scope["method"], (scope["raw_path"] + query).decode("latin-1"), fields, body)
        await send(dict(type="http.response.start", status=200, headers=[(b"content-length", b"0")]))
        await send(dict(type="http.response.body", body=b""))

    return application


def serve_gunicorn(port, record):
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):
        def load_config(self):
            settings = dict(bind=f"127.0.0.1:{port}", worker_class="gthread", threads=2, control_socket_disable=True)
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self):
            return wsgi(record)

    Application().run()


def serve_uvicorn(port, record, http):
    import uvicorn

    uvicorn.run(asgi(record), host="127.0.0.1", port=port, http=http, lifespan="off", log_level="warning")


def serve_waitress(port, record):
    import waitress

    waitress.serve(wsgi(record), host="127.0.0.1", port=port)


def serve_tornado(port, record):
    from tornado.httpserver import HTTPServer
    from tornado.httputil import HTTPHeaders, ResponseStartLine
    from tornado.ioloop import IOLoop

    def answer(request):
        record(request.method, request.uri, request.headers.get_all(), request.body)
        start = ResponseStartLine("HTTP/1.1", 200, "OK")
        request.connection.write_headers(start, HTTPHeaders({"Content-Length": "0"}))
        request.connection.finish()

    HTTPServer(answer).listen(port, "127.0.0.1")
    IOLoop.current().start()


SERVERS = {
    "gunicorn": serve_gunicorn,
    "h11": lambda port, record: serve_uvicorn(port, record, "h11"),
    # The parser of Node.js.
    "llhttp": lambda port, record: serve_uvicorn(port, record, "httptools"),
    "waitress": serve_waitress,
    "tornado": serve_tornado,
}


def serve(name, port, file):
    def record(*request):
        with open(file, "a") as readings:
            readings.write(json.dumps(reading(*request)) + "\n")

    SERVERS[name](int(port), record)


# --- the case -----------------------------------------------------------------------------------------------


def send_raw(port, request):
    """Sends bytes and waits until nothing more comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=QUIET) as connection:
        try:
            connection.sendall(request)
            while connection.recv(65536):
                pass
        except (TimeoutError, ConnectionError):
            pass


def variants():
    """The inputs, and each of them several times with one thing changed; the same ones in every run."""
    chance = random.Random(39)
    for file in sorted(INPUTS.iterdir()):
        request = file.read_bytes()
        yield request
        for _ in range(VARIANTS):
            start = chance.randrange(len(request))
            end = start + chance.choice((0, 0, 1, 2))
            yield request[:start] + chance.choice(PIECES) + request[end:]


def what_is_sent(w):
    """All that reaches the upstream when applications send the inputs; as bytes, and as they are to be read."""
    with Recorder() as upstream, w.bearerd(w.app(), upstream=f"http://{upstream.authority}") as b:
        b.wait_ready()
        inputs = [request.replace(b"upstream.test", upstream.authority.encode()) for request in variants()]
        with ThreadPoolExecutor(32) as applications:
            list(applications.map(lambda request: send_raw(b.port, request), inputs))
    expect(not upstream.faults, f"not by the grammar: {upstream.faults}")
    expect(len(upstream.requests) > len(inputs) // 10, f"{len(upstream.requests)} requests of {len(inputs)} inputs")
    w.note(f"{len(inputs)} inputs, {len(upstream.requests)} requests")
    return upstream.requests


def difference(raw, arrived, expected):
    """How the first of the requests that arrived is another, without the token."""
    what = [part for part in expected if not arrived or arrived[0][part] != expected[part]]
    shown = re.sub(rb"(?i)(\nauthorization:)[^\r]*", rb"\1 ***", raw)[:300]
    return f"{len(arrived)} requests arrived, the first with another {what}: {shown!r}"


def differential(w):
    requests = what_is_sent(w)
    after = reading("GET", "/after", [("Host", "after"), ("Connection", "close")], b"")
    readers = [Reader(name, w) for name in SERVERS]
    try:
        for reader in readers:
            reader.wait_listening()
            expect(reader.read(b"") == ([after], 200), f"{reader.name} does not read the simplest request")
            refused = {}
            for raw, expected in requests:
                arrived, status = reader.read(raw)
                if arrived == [] and status and 400 <= status < 600:
                    refused[status] = refused.get(status, 0) + 1
                    continue
                expect(arrived == [expected, after], f"{reader.name}: {difference(raw, arrived, expected)}")
            expect(sum(refused.values()) < len(requests) // 5, f"{reader.name} refuses {refused}")
            w.note(f"{reader.name}: refused {refused}" if refused else f"{reader.name}: read all")
    finally:
        for reader in readers:
            reader.stop()


if __name__ == "__main__":
    serve(*sys.argv[1:])
