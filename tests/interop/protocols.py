"""What is not one request and one answer: gRPC over HTTP/2, and WebSocket. Servers, clients, and the cases."""

import contextlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from harness import Failure, expect, free_port, wait_until

TIMEOUT = 20  # seconds a call may take on a machine under load
LARGE = bytes(range(256)) * 4096  # 1 MiB, of every byte there is


# --- a payments API in gRPC ---------------------------------------------------------------------------------


class Ledger:
    """A gRPC server whose messages are plain bytes, so that nothing needs to be generated for it."""

    def __init__(self, tls=None):
        """`tls` is a folder with server.key and server.pem."""
        self.tls = tls
        self.calls = []  # the metadata of each call, oldest first
        self.cancelled = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(8))
        methods = {
            "Pay": grpc.unary_unary_rpc_method_handler(self.pay),
            "List": grpc.unary_stream_rpc_method_handler(self.list),
            "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "RefuseLate": grpc.unary_stream_rpc_method_handler(self.refuse_late),
            "Hang": grpc.unary_stream_rpc_method_handler(self.hang),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("payments.Ledger", methods),))
        if tls:
            key, chain = ((tls / name).read_bytes() for name in ("server.key", "server.pem"))
            credentials = grpc.ssl_server_credentials([(key, chain)])
            self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        else:
            self.port = self.server.add_insecure_port("127.0.0.1:0")

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(grace=None).wait(TIMEOUT)

    @property
    def url(self):
        return f"https://localhost:{self.port}" if self.tls else f"http://127.0.0.1:{self.port}"

    def record(self, context):
        self.calls.append(list(context.invocation_metadata()))

    def pay(self, payment, context):
        self.record(context)
        context.send_initial_metadata((("seconds-left", f"{context.time_remaining():.0f}"),))
        context.set_trailing_metadata((("balance", "10.01"), ("receipt-bin", b"\x00\xff\r\n")))
        return payment

    def list(self, count, context):
        self.record(context)
        for number in range(int(count)):
            yield b"payment %d" % number
        context.set_trailing_metadata((("listed", count.decode()),))

    def sum(self, payments, context):
        self.record(context)
        total = sum(len(payment) for payment in payments)
        context.set_trailing_metadata((("summed", str(total)),))
        return b"%d" % total

    def chat(self, messages, context):
        self.record(context)
        for message in messages:
            yield message.upper()

    def refuse(self, _payment, context):
        """Fails before anything was sent, so status and metadata come in one HEADERS frame: trailers-only."""
        self.record(context)
        context.set_trailing_metadata((("reason", "limit"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "over the limit: 10 %")

    def refuse_late(self, _payment, context):
        self.record(context)
        yield b"one"
        context.set_trailing_metadata((("reason", "late"),))
        context.abort(grpc.StatusCode.DATA_LOSS, "after one message")

    def hang(self, _payment, context):
        self.record(context)
        context.add_callback(self.cancelled.set)
        yield b"begun"
        self.cancelled.wait(TIMEOUT)


@contextlib.contextmanager
def channel(port, authority=None):
    options = [("grpc.enable_http_proxy", 0)]
    if authority:
        options.append(("grpc.default_authority", authority))
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as opened:
        yield opened


def method(name):
    return f"/payments.Ledger/{name}"


def expect_trailing(call, expected):
    found = dict(call.trailing_metadata())
    for name, value in expected.items():
        expect(found.get(name) == value, f"trailing metadata: {name} {value!r} expected, got {found}")


def expect_error(code, ask):
    """`ask` fails with this code; returns the error, which is the call too."""
    try:
        answer = ask()
    except grpc.RpcError as error:
        expect(error.code() == code, f"{code} expected, got {error.code()}: {error.details()!r}")
        return error
    raise Failure(f"{code} expected, got the answer {answer!r}")


def unary(api, metadata=None):
    ask = api.unary_unary(method("Pay"))
    for payment in (b"", b"\x00pay\xff", LARGE):
        answer, call = ask.with_call(payment, timeout=TIMEOUT, metadata=metadata)
        expect(answer == payment, f"a payment of {len(payment)} bytes came back changed")
        expect(call.code() == grpc.StatusCode.OK, f"status {call.code()}")
        left = dict(call.initial_metadata()).get("seconds-left")
        expect(left and 0 < int(left) <= TIMEOUT, f"the server believes it has {left} s")
        expect_trailing(call, {"balance": "10.01", "receipt-bin": b"\x00\xff\r\n"})


def streams(api):
    listing = api.unary_stream(method("List"))(b"1000", timeout=TIMEOUT)
    expect(list(listing) == [b"payment %d" % number for number in range(1000)], "the list came back changed")
    expect_trailing(listing, {"listed": "1000"})

    total, call = api.stream_unary(method("Sum")).with_call(iter([LARGE] * 4), timeout=TIMEOUT)
    expect(total == b"%d" % (4 * len(LARGE)), f"4 messages, together {total!r} bytes")
    expect_trailing(call, {"summed": total.decode()})

    # Each message waits for the answer to the one before: neither direction may wait for the end of the other.
    messages = queue.SimpleQueue()
    answers = api.stream_stream(method("Chat"))(iter(messages.get, None), timeout=TIMEOUT)
    for message in (b"one", b"two", b"three"):
        messages.put(message)
        expect(next(answers) == message.upper(), "an answer to another message")
    messages.put(None)
    expect(list(answers) == [], "more answers than messages")
    expect(answers.code() == grpc.StatusCode.OK, f"status {answers.code()}")


def errors(api):
    error = expect_error(
        grpc.StatusCode.FAILED_PRECONDITION, lambda: api.unary_unary(method("Refuse"))(b"", timeout=TIMEOUT)
    )
    expect(error.details() == "over the limit: 10 %", f"details {error.details()!r}")
    expect_trailing(error, {"reason": "limit"})

    listing = api.unary_stream(method("RefuseLate"))(b"", timeout=TIMEOUT)
    expect(next(listing) == b"one", "the message before the error")
    error = expect_error(grpc.StatusCode.DATA_LOSS, lambda: next(listing))
    expect(error.details() == "after one message", f"details {error.details()!r}")
    expect_trailing(error, {"reason": "late"})

    expect_error(grpc.StatusCode.UNIMPLEMENTED, lambda: api.unary_unary(method("Unknown"))(b"", timeout=TIMEOUT))


def cancellation(api, ledger):
    hanging = api.unary_stream(method("Hang"))(b"", timeout=TIMEOUT)
    expect(next(hanging) == b"begun", "the first message")
    hanging.cancel()
    expect(ledger.cancelled.wait(TIMEOUT), "the server was not told of the cancellation")


def expect_our_token_in_calls(w, app, ledger):
    issued = {token.token for token in w.tokens(app)}
    expect(ledger.calls, "no call arrived")
    for call in ledger.calls:
        schemes, tokens = zip(*(value.split(" ", 1) for name, value in call if name == "authorization"))
        expect(schemes == ("Bearer",) and set(tokens) <= issued, f"Authorization arrived as {schemes}")


def config(w, app, url, upstream="", tables=""):
    """A file for bearerd that takes HTTP/2 and forwards to this URL; `upstream` are more lines about it."""
    file = w.state / f"{app.client_id}.toml"
    file.write_text(
        f"""
[proxy]
http2 = true

[upstream.payments]
url = "{url}"
{upstream}

[credential.payments]
token_url = "{w.auth.token_url}"
client_id = "{app.client_id}"
client_secret_file = "{app.secret_file}"
scope = "read write"
{tables}
"""
    )
    return str(file)


def grpc_calls(w, app, ledger, upstream):
    with ledger, w.bearerd_with(BEARERD_CONFIG=config(w, app, ledger.url, upstream)) as b:
        b.wait_ready()
        with channel(b.port) as api:
            try:
                unary(api)
                unary(api, metadata=[("authorization", "Bearer theirs"), ("tenant", "shop")])
                streams(api)
                errors(api)
                cancellation(api, ledger)
            except grpc.RpcError as error:
                raise Failure(f"{error.code()}: {error.details()}") from error
        b.wait_ready()
    expect_our_token_in_calls(w, app, ledger)
    tenants = [value for call in ledger.calls for name, value in call if name == "tenant"]
    expect(tenants == ["shop"] * 3, f"metadata of the application: {tenants}")
    w.note(f"{len(ledger.calls)} calls")


def grpc_over_h2c(w):
    grpc_calls(w, w.app(), Ledger(), 'http = "2"')


def grpc_over_tls(w):
    authority = w.state / "ca.pem"
    grpc_calls(w, w.app(), Ledger(tls=w.state), f'ca_file = "{authority}"')


def grpc_refusals(w):
    """What bearerd answers itself is HTTP, not gRPC; the client's library makes a status of it."""
    gone = f"http://127.0.0.1:{free_port()}"
    with w.bearerd_with(BEARERD_CONFIG=config(w, w.app(), gone, 'http = "2"')) as b:
        b.wait_ready()
        for authority, code in (
            (None, grpc.StatusCode.UNAVAILABLE),
            ("evil.example", grpc.StatusCode.PERMISSION_DENIED),
        ):
            with channel(b.port, authority) as api:
                error = expect_error(code, lambda: api.unary_unary(method("Pay"))(b"", timeout=TIMEOUT))
                w.note(error.details())


# --- WebSocket ----------------------------------------------------------------------------------------------


class Echo:
    """A WebSocket server that sends back what it gets, and closes with a code of its own when told to."""

    def __init__(self):
        self.requests = []  # the headers of each handshake, oldest first
        self.closes = queue.SimpleQueue()  # the code and reason that ended each connection
        self.server = serve(
            self.echo,
            "127.0.0.1",
            0,
            subprotocols=["payments.v2"],
            process_request=self.record,
            max_size=2 * len(LARGE),
        )
        self.port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join(TIMEOUT)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def record(self, connection, request):
        self.requests.append(request.headers)
        if request.path == "/socket/full":
            return connection.respond(429, "too many sockets\n")

    def echo(self, connection):
        try:
            while True:
                message = connection.recv()
                if message == "close":
                    connection.close(4001, "told to")
                else:
                    connection.send(message)
        except ConnectionClosed as closed:
            code = closed.rcvd and (closed.rcvd.code, closed.rcvd.reason)
            self.closes.put(code)


def open_socket(port, path="/socket/", **more):
    return connect(
        f"ws://127.0.0.1:{port}{path}",
        subprotocols=["payments.v1", "payments.v2"],
        proxy=None,
        open_timeout=TIMEOUT,
        max_size=2 * len(LARGE),
        **more,
    )


def messages_pass(port):
    with open_socket(port) as socket:
        expect(socket.subprotocol == "payments.v2", f"subprotocol {socket.subprotocol!r}")
        for message in ("", "Zoë €", b"", bytes(range(256)), LARGE, "€" * (1 << 18)):
            socket.send(message)
            expect(socket.recv(TIMEOUT) == message, f"a message of {len(message)} came back changed")
        # Sent in fragments, answered in one piece.
        socket.send(["one, ", "two, ", "three"])
        expect(socket.recv(TIMEOUT) == "one, two, three", "the fragments came back changed")
        expect(socket.ping(b"still there?").wait(TIMEOUT), "no pong")


def closes_pass(port, echo):
    with open_socket(port) as socket:
        socket.close(4000, "enough")
    seen = echo.closes.get(timeout=TIMEOUT)
    expect(seen == (4000, "enough"), f"the server saw the close {seen}")

    with open_socket(port) as socket:
        socket.send("close")
        try:
            message = socket.recv(TIMEOUT)
        except ConnectionClosed as closed:
            got = closed.rcvd and (closed.rcvd.code, closed.rcvd.reason)
            expect(got == (4001, "told to"), f"the client saw the close {got}")
        else:
            raise Failure(f"the message {message!r}, not the close")
    echo.closes.get(timeout=TIMEOUT)


def expect_handshake_refused(status, port, **more):
    try:
        with open_socket(port, **more):
            raise Failure("the handshake went through")
    except InvalidStatus as refused:
        got = refused.response.status_code
        expect(got == status, f"the handshake got {got}, not {status}")
        return refused.response


def sockets_at_once(port, number=20):
    """All are open, each with a message under way, before the first is read from."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(port)) for _ in range(number)]
        for index, socket in enumerate(sockets):
            socket.send(f"message {index}")
        for index, socket in enumerate(sockets):
            expect(socket.recv(TIMEOUT) == f"message {index}", "a message of another socket")


def websocket(w):
    app = w.app()
    route = """
[[route]]
name = "socket"
path = "/socket"
upstream = "payments"
credential = "payments"
upgrade = ["websocket"]

[[route]]
name = "rest"
path = "/"
upstream = "payments"
credential = "payments"
"""
    with Echo() as echo, w.bearerd_with(BEARERD_CONFIG=config(w, app, echo.url, tables=route)) as b:
        b.wait_ready()
        messages_pass(b.port)
        echo.closes.get(timeout=TIMEOUT)
        closes_pass(b.port, echo)
        sockets_at_once(b.port)
        refused = expect_handshake_refused(429, b.port, path="/socket/full")
        expect(refused.body == b"too many sockets\n", f"its body is {refused.body!r}")
        accepted = len(echo.requests)
        expect_handshake_refused(426, b.port, path="/elsewhere")
        expect_handshake_refused(403, b.port, origin="https://evil.example")
        wait_until("all tunnels have ended", lambda: b.metric("bearerd_tunnels_open") == 0, TIMEOUT)
    issued = {f"Bearer {token.token}" for token in w.tokens(app)}
    expect(accepted == 24, f"{accepted} handshakes arrived")
    for headers in echo.requests[:accepted]:
        expect(set(headers.get_all("Authorization")) <= issued, "a handshake without our token alone")
