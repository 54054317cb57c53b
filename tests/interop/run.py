"""Tries bearerd against django-oauth-toolkit. `run.sh` prepares everything and starts this.

Arguments, if any, are parts of the names of the cases to run.
"""

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path

import client_auth
import differential
import protocols
import rotation
from harness import Django, Failure, Load, expect, fetch, free_port, receive, send, wait_until
from world import World, expect_our_token, expect_status, expect_token_requests, expect_unavailable

OUTAGE = 8  # seconds an access token lives of the server that is stopped and started again

CASES = []


def case(name):
    def register(function):
        CASES.append((name, function))
        return function

    return register


def authenticates(w, app, how):
    with w.bearerd(app, BEARERD_CLIENT_AUTH=f"client_secret_{how}") as b:
        b.wait_ready()
        answer = b.get()
        expect_status(answer, 200)
        expect_our_token(w, app, answer)
    requests = w.token_requests(app)
    expect(
        [(r["how"], r["status"]) for r in requests] == [(how, 200)],
        f"one token request by {how} expected, the server saw {requests}",
    )


# --- client authentication ----------------------------------------------------------------------------------


@case("client_secret_basic")
def client_secret_basic(w):
    authenticates(w, w.app(), "basic")


@case("client_secret_post")
def client_secret_post(w):
    authenticates(w, w.app(), "post")


# C-01
@case("id and secret with reserved characters, client_secret_basic")
def reserved_characters_basic(w):
    authenticates(w, w.app("1PpG/Q 1+:%=B", f"z/t+H:X%= {secrets.token_urlsafe(9)}%20+"), "basic")


# C-01, C-03
@case("id and secret with reserved characters, client_secret_post")
def reserved_characters_post(w):
    authenticates(w, w.app("1PpG/Q 1+:%=P", f"z/t+H:X%= {secrets.token_urlsafe(9)}%20+"), "post")


# C-15
@case("the token endpoint found from the issuer, by RFC 8414")
def issuer(w):
    app = w.app()
    text = f"""
[upstream.payments]
url = "{w.api.url}"

[credential.payments]
issuer = "{w.auth.url}"
client_id = "{app.client_id}"
client_secret_file = "{app.secret_file}"
scope = "read"
"""
    with w.bearerd_file(text) as b:
        b.wait_ready()
        answer = b.get()
        expect_status(answer, 200)
        expect_our_token(w, app, answer)
    expect_token_requests(w, app, 1)


# --- scopes -------------------------------------------------------------------------------------------------


# C-60
@case("scope read: GET is 200, POST is the API's own 403 and renews nothing")
def scope_read(w):
    app = w.app()
    with w.bearerd(app, scope="read") as b:
        b.wait_ready()
        expect_status(b.get(), 200, "GET")
        expect_status(b.get("/payments/p-7"), 200, "GET of one payment")
        for _ in range(3):
            refused = b.post(b"{}")
            expect_status(refused, 403, "POST")
            expect(b"permission" in refused.body, f"the 403 is not the API's: {refused}")
        expect_status(b.get(), 200, "GET after the 403")
    expect_token_requests(w, app, 1)
    asked = w.token_requests(app)[0]["scope"]
    expect(asked == "read", f"scope asked for: {asked!r}")
    granted = [token.scope for token in w.tokens(app)]
    expect(granted == ["read"], f"scopes of the tokens issued: {granted}")


@case("scopes read and write: POST is 201, bodies are untouched both ways")
def scope_read_write(w):
    app = w.app()
    small = b'{ "amount" : 1.10,\t"to":"Zo\xc3\xab \\u20ac",\r\n "n":1e2 }'
    large = json.dumps({"lines": [secrets.token_hex(32) for _ in range(4000)]}).encode()
    with w.bearerd(app) as b:
        b.wait_ready()
        for body in (small, large):
            answer = b.post(body)
            expect_status(answer, 201, "POST")
            expect(answer.body == body, f"a body of {len(body)} bytes came back changed")
            kind = answer.headers.get("Content-Type")
            expect(kind == "application/json", f"its content type came back as {kind!r}")
        expect_status(b.get("/admin/report"), 403, "the report without scope admin")
    expect_token_requests(w, app, 1)
    granted = [set(token.scope.split()) for token in w.tokens(app)]
    expect(granted == [{"read", "write"}], f"scopes of the tokens issued: {granted}")


@case("scope admin: the report is 200")
def scope_admin(w):
    app = w.app()
    with w.bearerd(app, scope="read write admin") as b:
        b.wait_ready()
        answer = b.get("/admin/report")
        expect_status(answer, 200, "the report")
        expect(json.loads(answer.body)["payments"] == 2, f"unexpected report {answer}")


# C-07
@case("scope per route: each request carries a token that can do no more than it needs")
def scope_per_route(w):
    app = w.app()
    routes = [
        # path, methods, scope; then a request: method, path, status
        ("/", ["GET", "HEAD"], "read", ("GET", "/payments/", 200)),
        ("/", ["POST"], "read write", ("POST", "/payments/", 201)),
        ("/admin", ["GET"], "read write admin", ("GET", "/admin/report", 200)),
    ]
    tables = "".join(
        f"""
[[route]]
path = "{path}"
methods = {methods}
scope = "{scope}"
upstream = "payments"
credential = "payments"
"""
        for path, methods, scope, _ in routes
    )
    text = f"""
[upstream.payments]
url = "{w.api.url}"

[credential.payments]
token_url = "{w.auth.token_url}"
client_id = "{app.client_id}"
client_secret_file = "{app.secret_file}"
scope = "read write admin"
{tables}
"""
    with w.bearerd_file(text) as b, ThreadPoolExecutor(12) as pool:
        b.wait_listening()

        def ask(scope, method, path, status):
            body = b'{"amount": "1.00"}' if method == "POST" else None
            answer = fetch(b.port, method, path, [("Content-Type", "application/json")], body)
            expect_status(answer, status, f"{method} {path}")
            return scope, answer.token_hash

        # All at once, from the start: none may wait with the token of another, or get one of its own.
        asked = [pool.submit(ask, scope, *request) for _, _, scope, request in routes for _ in range(8)]
        seen = {answer.result() for answer in asked}
        expect_status(fetch(b.port, "DELETE", "/payments/"), 404, "DELETE, which has no route")
        b.wait_ready()
    issued = {sha256(token.token.encode()).hexdigest(): token.scope for token in w.tokens(app)}
    expected = sorted(scope for _, _, scope, _ in routes)
    expect(sorted(issued.values()) == expected, f"scopes of the tokens issued: {sorted(issued.values())}")
    for scope, token_hash in seen:
        expect(issued.get(token_hash) == scope, f"a request for {scope!r} went with {issued.get(token_hash)!r}")
    expect(len(seen) == 3, f"{len(seen)} pairs of scope and token")
    expect_token_requests(w, app, 3)


@case("unknown scope: not ready, 503 token_unavailable")
def scope_unknown(w):
    app = w.app()
    with w.bearerd(app, scope="read refund") as b:
        b.wait_pending("invalid_scope")
        expect_unavailable(b.get())
        code, output = b.command("token")
        expect(code != 0, "`bearerd token` exits with 0")
        expect("invalid_scope" in output, f"`bearerd token` does not name invalid_scope: {output[:200]!r}")
        w.note(f"`bearerd token` exits with {code}")


# --- credentials that are refused ---------------------------------------------------------------------------


# C-42
@case("wrong secret: 503 and never 401, invalid_client named, the server left in peace")
def wrong_secret(w):
    app = w.app()
    w.wrong_secret(app)
    with w.bearerd(app) as b:
        page = b.wait_pending("invalid_client")
        w.note(next(line.strip() for line in page.splitlines() if "invalid_client" in line))
        # An application that keeps asking must not become a storm on the authorization server.
        until = time.monotonic() + 3
        with ThreadPoolExecutor(10) as pool:
            while time.monotonic() < until:
                for answer in pool.map(lambda _: b.get(), range(10)):
                    expect_unavailable(answer)
        seen = len(w.token_requests(app))
        expect(seen <= 2, f"the server saw {seen} token requests in a few seconds")
        expect(b.metric("bearerd_token_requests_total", outcome="invalid_client") == seen, "metric differs")
        expect(b.metric("bearerd_token_available") == 0, "bearerd_token_available is not 0")
        for command in (["token"], ["check", "--online"]):
            code, output = b.command(*command)
            expect(code == 77, f"`bearerd {' '.join(command)}` exits with {code}, not 77: {output[:200]!r}")


@case("wrong secret corrected in its file: picked up while running")
def corrected_secret(w):
    app = w.app()
    w.wrong_secret(app)
    with w.bearerd(app) as b:
        b.wait_pending("invalid_client")
        app.secret_file.write_text(app.secret)
        # A secret that stays as it is would be tried again only after half a minute at the earliest.
        b.wait_ready(15)
        expect_status(b.get(), 200)
    statuses = [request["status"] for request in w.token_requests(app)]
    expect(statuses == [401, 200], f"the token requests got {statuses}")


# C-57, C-59, C-64
@case("revoked token: recovered in one round trip, by exactly one token request")
def revoked_token(w):
    """Several applications, so that they wait for their tokens to grow older together."""
    reader, payer, sender, crowd = apps = [w.app() for _ in range(4)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        r, p, s, c = running = [stack.enter_context(w.bearerd(app)) for app in apps]
        before = {}
        for app, b in zip(apps, running):
            b.wait_ready()
            before[app] = b.get()
            expect_status(before[app], 200, "the request before")
        # A token refused within its first 10 s counts as a server that refuses every token, and is not replaced.
        issued = w.tokens(crowd)[0].created.timestamp()
        wait_until("tokens older than 10 s", lambda: time.time() > issued + 11, 15)

        w.revoke(reader)
        after = r.get()
        expect_recovered(w, reader, before[reader], after, [200, 401, 200])

        # A POST without an Idempotency-Key: that the API has not executed it is known from the challenge alone.
        w.revoke_by_request(payer)
        body = b'{"amount": "1.00"}'
        after = p.post(body)
        expect(after.status == 201 and after.body == body, f"the payment: {after}")
        expect_recovered(w, payer, before[payer], after, [200, 401, 201])

        # A body that is too large to keep cannot be sent again; who sent it is told, and may.
        w.revoke(sender)
        body = b"[" + b" " * (64 << 10) + b"]"
        refused = s.post(body)
        challenge = refused.headers.get("WWW-Authenticate", "")
        expect_status(refused, 401, "the large payment")
        expect('error="invalid_token"' in challenge, f"the 401 lost its challenge: {challenge!r}")
        wait_until("a new token", lambda: len(w.tokens(sender)) == 1, 5)
        expect_status(s.post(body), 201, "the large payment again")

        w.revoke(crowd)
        answers = list(pool.map(lambda _: c.get(), range(8)))
        for answer in answers:
            expect_status(answer, 200, "one of 8 at once")
        hashes = {answer.token_hash for answer in answers}
        expect(len(hashes) == 1 and before[crowd].token_hash not in hashes, f"{len(hashes)} tokens for 8 requests")
        met = [request["status"] for request in w.api_requests(before[crowd].token_hash)].count(401)
        expect(1 <= met <= 8, f"{met} requests met the revoked token")
        w.note(f"{met} of 8 at once met the revoked token")
        for app, b in zip(apps, running):
            for _ in range(5):
                expect_status(b.get(), 200, "a request after")
            expect_token_requests(w, app, 2)


def expect_recovered(w, app, before, after, statuses):
    """The API saw the request twice: with the revoked token, and then with the new one."""
    expect_our_token(w, app, after)
    expect(after.token_hash != before.token_hash, "still the same token")
    seen = [request["status"] for request in w.api_requests(before.token_hash, after.token_hash)]
    expect(seen == statuses, f"the API answered {seen}, {statuses} expected")
    expect_token_requests(w, app, 2)


# --- secrets that change ------------------------------------------------------------------------------------

case("two secret files, the first is wrong: the second is tried in the same attempt")(rotation.second_of_two)
case("secret rotated, both in a list: no request fails, whichever the server knows")(rotation.list_of_both)
case("secret rotated under load, database first")(rotation.database_first)
# C-43
case("secret rotated under load, file first")(rotation.file_first)


# --- time ---------------------------------------------------------------------------------------------------


@case("short-lived tokens: renewed under traffic, no request fails or waits")
def short_lived(w):
    app = w.app()
    with w.bearerd(app, token_url=w.short.token_url) as b:
        b.wait_listening()
        expect_status(b.get(), 200, "the very first request")
        with Load(b) as load:
            time.sleep(15)
        results = ("fresh", "refreshing", "waited", "missing")
        lookups = {result: b.metric("bearerd_token_lookups_total", result=result) for result in results}
        # A renewal may be under way right now: the server has recorded it, bearerd has not got it yet.
        wait_until(
            "bearerd counts as many scheduled renewals as the server",
            lambda: b.metric("bearerd_token_requests_total", trigger="scheduled", outcome="success")
            == len(w.token_requests(app)) - 1,
            3,
        )
        renewals = len(w.token_requests(app)) - 1
    w.note(f"{load}, {renewals} renewals, lookups {lookups}")
    load.expect_no_failure()
    tokens = len(load.token_hashes)
    expect(renewals >= 2 and tokens > 2, f"{renewals} renewals, {tokens} tokens reached the API")
    expect(renewals <= 5, f"{renewals} renewals in 15 s are too many")
    expect(lookups["waited"] <= 1 and lookups["missing"] == 0, f"lookups: {lookups}")
    expect(lookups["fresh"] + lookups["refreshing"] >= load.count, f"lookups: {lookups}, {load}")


# C-54
@case("authorization server stopped and started: served while the token lives, then 503, then clean")
def outage(w):
    app = w.app()
    auth = Django(w.state, "outage", lifetime=OUTAGE)
    w.servers.append(auth)
    auth.start()
    with w.bearerd(app, token_url=auth.token_url) as b:
        b.wait_ready()
        auth.stop()
        issued = w.tokens(app)[-1].created.timestamp()
        last_good = 0.0
        give_up = time.monotonic() + OUTAGE + 10
        while (answer := b.get()).status == 200:
            last_good = time.time()
            expect(time.monotonic() < give_up, "requests are served long after the token expired")
            time.sleep(0.1)
        expect_unavailable(answer)
        lived = last_good - issued
        # Renewals failed from 80 % of the lifetime on at the latest; up to 90 % the token serves all the same. The
        # tolerance is for the time the server takes to check a secret, which counts as age of the token.
        expect(lived > 0.75 * OUTAGE, f"the token was used for {lived:.1f} s of its {OUTAGE} s only")
        for _ in range(2):
            expect_unavailable(b.get())
        b.wait_pending("token")
        auth.start()
        back = time.monotonic()
        while (answer := b.get()).status != 200:
            expect_unavailable(answer)
            expect(time.monotonic() < back + 10, "not recovered within 10 s")
            time.sleep(0.1)
        w.note(f"token used for {lived:.1f} s of {OUTAGE} s, recovered {time.monotonic() - back:.1f} s after the start")
        for _ in range(20):
            expect_status(b.get(), 200, "a request after the outage")
        b.wait_ready()


# C-50
@case("50 requests at a cold start: exactly one token request")
def cold_start(w):
    app = w.app()
    sent = threading.Barrier(51)

    def ask(b):
        connection = HTTPConnection("127.0.0.1", b.port, timeout=20)
        try:
            send(connection, "GET", "/payments/")
            sent.wait(10)
            return receive(connection)
        finally:
            connection.close()

    with ThreadPoolExecutor(50) as pool:
        with w.holding("token") as held, w.bearerd(app) as b:
            b.wait_listening()
            answers = [pool.submit(ask, b) for _ in range(50)]
            sent.wait(10)
            wait_until("a token request has arrived", held, 10)
            # Only now, with every request under way, may the token be issued.
            (w.state / "hold-token").unlink()
            for answer in answers:
                expect_status(answer.result(), 200, "one of the 50")
            waited = b.metric("bearerd_token_lookups_total", result="waited")
    w.note(f"{waited:.0f} of 50 waited for it")
    expect_token_requests(w, app, 1)


# --- what reaches the upstream ------------------------------------------------------------------------------


@case("the application's own Authorization is replaced")
def own_authorization(w):
    app = w.app()
    with w.bearerd(app) as b:
        b.wait_ready()
        theirs = [("Authorization", "Bearer theirs"), ("authorization", "Basic dGhlaXJzOnRvbw==")]
        for headers in (theirs[:1], theirs[1:], theirs):
            answer = b.get(headers=headers)
            expect_status(answer, 200)
            expect_our_token(w, app, answer)


@case("upstream over TLS with its own CA, configured by a file")
def upstream_tls(w):
    app = w.app()
    file = w.state / "payments.toml"
    file.write_text(
        f"""
[upstream.payments]
url = "{w.tls_api.url}"
ca_file = "{w.state / 'ca.pem'}"

[credential.payments]
token_url = "{w.auth.token_url}"
client_id = "{app.client_id}"
client_secret_file = "{app.secret_file}"
client_auth = "client_secret_post"
scope = "read write"
"""
    )
    with w.bearerd_with(BEARERD_CONFIG=str(file)) as b:
        b.wait_ready()
        answer = b.get()
        expect_status(answer, 200, "GET")
        expect_our_token(w, app, answer)
        body = b'{"amount": "1.00"}'
        answer = b.post(body)
        expect_status(answer, 201, "POST")
        expect(answer.body == body, "the body came back changed")
        code, output = b.command("check", "--online")
        expect(code == 0, f"`bearerd check --online` exits with {code}: {output[:200]!r}")
    how = [r["how"] for r in w.token_requests(app)]
    expect(set(how) == {"post"}, f"token requests by {how}")


@case("upstream over TLS without its CA: 502 upstream_tls_error")
def upstream_tls_unknown_ca(w):
    with w.bearerd(w.app(), upstream=w.tls_api.url) as b:
        b.wait_ready()
        answer = b.get()
        expect(answer.status == 502 and answer.code == "upstream_tls_error", f"got {answer}")


# --- a second authorization server --------------------------------------------------------------------------

# C-15
case("oidc-provider: endpoints found from the issuer, client_secret_basic")(client_auth.discovered)
# C-14
for algorithm in ("RS256", "PS256", "ES256", "EdDSA"):
    case(f"oidc-provider: private_key_jwt, {algorithm}")(client_auth.private_key_jwt(algorithm))
case("oidc-provider: client_secret_jwt, HS256")(client_auth.client_secret_jwt)
case("oidc-provider: private_key_jwt with another key: invalid_client named")(client_auth.wrong_key)
case("oidc-provider: private key rotated, the next renewal signs with it")(client_auth.key_rotated)
case("oidc-provider: an assertion from a file, read for each request")(client_auth.assertion_from_file)
# C-13
case("oidc-provider: tls_client_auth at the endpoint for it")(client_auth.tls_client_auth)
case("oidc-provider: tls_client_auth with another's name: invalid_client named")(client_auth.wrong_certificate)
case("oidc-provider: self_signed_tls_client_auth, its certificate rotated")(client_auth.self_signed_rotated)
case("oidc-provider: a client certificate for the upstream alone")(client_auth.upstream_with_certificate)
case("oidc-provider: revoke_on_shutdown, the token is not active any more")(client_auth.revoked_on_shutdown)


# --- other protocols ----------------------------------------------------------------------------------------

case("gRPC over HTTP/2 in clear text: messages, metadata, status and cancellation pass")(protocols.grpc_over_h2c)
case("gRPC, upstream over TLS")(protocols.grpc_over_tls)
case("gRPC: bearerd's own refusals become the right status")(protocols.grpc_refusals)
case("WebSocket: messages and closes pass, refused handshakes are ordinary answers")(protocols.websocket)


# --- what servers read --------------------------------------------------------------------------------------


# D-39
case("five servers read what bearerd sends as the same requests")(differential.differential)


# --- commands and the end -----------------------------------------------------------------------------------


@case("bearerd token and bearerd check: output and exit codes")
def commands(w):
    app = w.app()
    good = w.bearerd(app, scope="read")
    for command in (["check"], ["check", "--online"], ["token"], ["token", "--format", "json"]):
        code, output = good.command(*command)
        expect(code == 0, f"`bearerd {' '.join(command)}` exits with {code}: {output[:200]!r}")
        shown = [token for token in w.tokens(app) if token.token in output]
        expect(not shown, f"`bearerd {' '.join(command)}` shows the token")
    for form in ("text", "json", "header"):
        code, output = good.command("token", "--show", "--format", form)
        newest = w.tokens(app)[-1].token
        expect(code == 0 and newest in output, f"`bearerd token --show --format {form}`: exit {code}, no token")
        if form == "header":
            line = f"Authorization: Bearer {newest}"
            expect(line.lower() in output.lower(), "the header is not a header")

    closed = w.bearerd(app, token_url=f"http://127.0.0.1:{free_port()}/o/token/")
    plain = w.bearerd(app, token_url="http://192.0.2.1/o/token/")
    for run, command, expected in (
        (closed, ["token"], 69),
        (closed, ["check", "--online"], 69),
        (plain, ["check"], 78),
        (plain, ["token"], 78),
    ):
        code, output = run.command(*command)
        expect(code == expected, f"`bearerd {' '.join(command)}` exits with {code}, not {expected}: {output[:200]!r}")


@case("SIGTERM: the request under way is finished, exit code 0")
def drain(w):
    with ThreadPoolExecutor(1) as pool, w.bearerd(w.app()) as b:
        b.wait_ready()
        with w.holding("api") as held:
            answer = pool.submit(b.get)
            wait_until("the request is at the API", held, 10)
            b.process.terminate()
            wait_until("not ready", lambda: (a := b.admin("/readyz")) is None or a.status == 503, 5)
            # Held back a little longer: one that does not wait for its requests has the time to end.
            until = time.monotonic() + 1
            while time.monotonic() < until:
                expect(b.process.poll() is None, "it ended with a request under way")
                time.sleep(0.05)
        expect_status(answer.result(), 200, "the request under way")
        code = b.wait_exit()
        expect(code == 0, f"exit code {code}")


@case("SIGTERM with revoke_on_shutdown: the database holds no token of ours any more")
def revoked_at_the_end(w):
    app = w.app()
    routes = "".join(
        f"""
[[route]]
path = "{path}"
scope = "{scope}"
"""
        for path, scope in (("/payments", "read"), ("/admin", "read admin"))
    )
    text = f"""
[proxy]
drain_delay = "0s"

[upstream.payments]
url = "{w.api.url}"

[credential.payments]
token_url = "{w.auth.token_url}"
client_id = "{app.client_id}"
client_secret_file = "{app.secret_file}"
scope = "read admin"
revoke_url = "{w.auth.url}/o/revoke_token/"
revoke_on_shutdown = true
{routes}
"""
    with w.bearerd_file(text) as b:
        b.wait_ready()
        for path in ("/payments/", "/admin/report"):
            expect_status(b.get(path), 200, path)
        issued = w.tokens(app)
        expect(len(issued) == 2, f"{len(issued)} tokens before the end")
        for token in issued:
            w.hidden[token.token] = "a revoked token"
        b.stop()
    expect(b.exit_code == 0, f"exit code {b.exit_code}")
    left = w.tokens(app)
    expect(not left, f"{len(left)} tokens are left")


@case("SIGTERM: every bearerd above ended with exit code 0")
def exit_codes(w):
    bad = {run.log.stem: run.exit_code for run in w.runs if run.process and run.exit_code != 0}
    expect(not bad, f"exit codes: {bad}")


# C-70
@case("no secret and no token in any log, page or output")
def nothing_leaked(w):
    needles = {token.token: "a token" for token in w.tokens()} | w.provider.hidden() | w.hidden
    expect(w.tokens(), "no tokens were issued, so nothing was checked")
    files = sorted(w.logs.iterdir())
    for file in files:
        text = file.read_text(errors="replace")
        expect(file.suffix != ".log" or text, f"{file.name} is empty, so nothing was checked")
        for needle, what in needles.items():
            expect(needle not in text, f"{what} in {file.name}")
    size = sum(file.stat().st_size for file in files)
    w.note(f"{len(files)} files, {size // 1024} KiB searched for {len(needles)} strings")


# --- the run ------------------------------------------------------------------------------------------------


def run_case(w, name, function):
    earlier = len(w.runs)
    w.notes.clear()
    try:
        function(w)
        why = None
    except Failure as failure:
        why = str(failure)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    print(f"FAIL {name}: {why}" if why else f"ok   {name}")
    for note in w.notes:
        print(f"     - {note}")
    if why:
        for log in (run.log for run in w.runs[earlier:] if run.log.exists()):
            for line in log.read_text(errors="replace").splitlines()[-12:]:
                print(f"     | {line[:300]}")
    sys.stdout.flush()
    return not why


def main():
    # Ended from outside, it still takes its processes along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    w = World(Path(os.environ["INTEROP_STATE"]), os.environ["BEARERD_BIN"])
    chosen = [c for c in CASES if not sys.argv[1:] or any(part in c[0] for part in sys.argv[1:])]
    try:
        w.start()
        results = [run_case(w, name, function) for name, function in chosen]
    finally:
        w.stop()
    failed = results.count(False)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
