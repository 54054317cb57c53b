"""What the cases stand on: the servers, applications and their secrets, and what several cases expect."""

import base64
import contextlib
import os
import re
import secrets
from collections import namedtuple
from hashlib import sha256
from urllib.parse import quote_plus

import certs
from harness import Bearerd, Django, expect, fetch, records
from provider import Provider

App = namedtuple("App", "client_id secret secret_file")

SHORT = 5  # seconds an access token of the `short` server lives


class World:
    """The servers, and what the driver knows of them: their database and the token requests they counted."""

    def __init__(self, state, binary):
        self.state, self.binary = state, binary
        self.logs = state / "logs"
        self.logs.mkdir()
        self.apps, self.runs, self.notes = [], [], []
        # What no log and no page may show, and what it is: beside the secrets and tokens of the database.
        self.hidden = {}
        self.ca = certs.Authority(state)
        self.ca.server()
        os.environ.update(INTEROP_STATE=str(state), DJANGO_SETTINGS_MODULE="payments.settings")
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        self.auth = Django(state, "auth")
        self.short = Django(state, "short", lifetime=SHORT)
        self.api = Django(state, "api")
        self.tls_api = Django(state, "tls-api", tls=True)
        self.provider = Provider(state)
        self.servers = [self.auth, self.short, self.api, self.tls_api, self.provider]

    def start(self):
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_answering()

    def stop(self):
        for run in self.runs:
            run.stop()
        for server in self.servers:
            server.stop()

    def note(self, text):
        self.notes.append(text)

    def app(self, client_id=None, secret=None):
        """Registers an application for the client credentials grant, its secret hashed as by default."""
        from oauth2_provider.models import Application

        number = len(self.apps)
        client_id = client_id or f"shop-{number}"
        secret = secret or secrets.token_urlsafe(24)
        Application.objects.create(
            name=f"shop {number}",
            client_id=client_id,
            client_secret=secret,
            client_type=Application.CLIENT_CONFIDENTIAL,
            authorization_grant_type=Application.GRANT_CLIENT_CREDENTIALS,
        )
        app = App(client_id, secret, self.state / f"secret-{number}")
        app.secret_file.touch(mode=0o600)
        app.secret_file.write_text(secret)
        self.apps.append(app)
        self.hide_secret(client_id, secret)
        return app

    def wrong_secret(self, app):
        """Makes the file hold a secret the server does not know."""
        wrong = "wrong-" + secrets.token_urlsafe(24)
        app.secret_file.write_text(wrong)
        self.hide_secret(app.client_id, wrong)

    def new_secret(self):
        """A secret no application has yet."""
        return secrets.token_urlsafe(24)

    def register_secret(self, app, secret):
        """The server forgets the secret of the application, and knows this one."""
        from oauth2_provider.models import Application

        application = Application.objects.get(client_id=app.client_id)
        application.client_secret = secret
        application.save()
        self.hide_secret(app.client_id, secret)

    def hide_secret(self, client_id, secret):
        self.hidden[secret] = "a secret"
        self.hidden[quote_plus(secret)] = "an encoded secret"
        for pair in (f"{client_id}:{secret}", f"{quote_plus(client_id)}:{quote_plus(secret)}"):
            self.hidden[base64.b64encode(pair.encode()).decode()] = "Basic credentials"

    def bearerd(self, app, scope="read write", token_url=None, upstream=None, **more):
        """A bearerd for the application, not yet started; `more` are further variables or replacements."""
        return self.bearerd_with(
            BEARERD_UPSTREAM_URL=upstream or self.api.url,
            BEARERD_TOKEN_URL=token_url or self.auth.token_url,
            BEARERD_CLIENT_ID=app.client_id,
            BEARERD_CLIENT_SECRET_FILE=str(app.secret_file),
            BEARERD_SCOPE=scope,
            **more,
        )

    def bearerd_with(self, **settings):
        number = len(self.runs)
        # Both formats take their turn: they write fields through different code.
        settings.setdefault("BEARERD_LOG_FORMAT", ("json", "text")[number % 2])
        run = Bearerd(self.binary, self.logs / f"{number:02}.log", settings)
        self.runs.append(run)
        return run

    def bearerd_file(self, text, **more):
        """A bearerd configured by a file of this text."""
        file = self.state / f"bearerd-{len(self.runs)}.toml"
        file.write_text(text)
        return self.bearerd_with(BEARERD_CONFIG=str(file), **more)

    def token_requests(self, app):
        """What the token endpoint recorded of this application's requests, oldest first."""
        lines = records(self.state / "token-requests.jsonl")
        return [line for line in lines if line["client_id"] == app.client_id]

    def api_requests(self, *token_hashes):
        """What the API recorded of the requests with these tokens, oldest first."""
        return [line for line in records(self.state / "api-requests.jsonl") if line["token"] in token_hashes]

    def tokens(self, app=None):
        """The access tokens in the server's database, oldest first."""
        from oauth2_provider.models import AccessToken

        tokens = AccessToken.objects.order_by("id")
        return list(tokens.filter(application__client_id=app.client_id) if app else tokens)

    def revoke(self, app):
        for token in self.tokens(app):
            self.hidden[token.token] = "a revoked token"
            token.delete()

    def revoke_by_request(self, app):
        """The same in the application's name, by RFC 7009."""
        basic = base64.b64encode(f"{app.client_id}:{app.secret}".encode()).decode()
        for token in self.tokens(app):
            self.hidden[token.token] = "a revoked token"
            headers = [
                ("Authorization", f"Basic {basic}"),
                ("Content-Type", "application/x-www-form-urlencoded"),
            ]
            answer = fetch(self.auth.port, "POST", "/o/revoke_token/", headers, f"token={token.token}".encode())
            expect_status(answer, 200, "the revocation")

    @contextlib.contextmanager
    def holding(self, kind):
        """Holds back requests to the token endpoint (`token`) or the API (`api`); yields a test for it."""
        hold, held = self.state / f"hold-{kind}", self.state / f"held-{kind}"
        held.unlink(missing_ok=True)
        hold.touch()
        try:
            yield held.exists
        finally:
            hold.unlink(missing_ok=True)


# --- what several cases expect ------------------------------------------------------------------------------


def expect_status(answer, status, what="the request"):
    expect(answer.status == status, f"{what}: {status} expected, got {answer}")


def expect_token_requests(w, app, count):
    seen = len(w.token_requests(app))
    expect(seen == count, f"the server saw {seen} token requests, {count} expected")


def expect_unavailable(answer):
    """bearerd's own answer without a token; a 401 would tell the application that it did something wrong."""
    expect(answer.status == 503 and answer.code == "token_unavailable", f"503 expected, got {answer}")
    retry_after = answer.headers.get("Retry-After", "")
    expect(re.fullmatch("[1-9][0-9]*", retry_after), f"Retry-After is {retry_after!r}")
    expect("WWW-Authenticate" not in answer.headers, "503 with a WWW-Authenticate")


def expect_our_token(w, app, answer):
    """Exactly one Authorization arrived, and it carries a token issued to this application."""
    lines = answer.headers.get("X-Seen-Authorization-Lines")
    expect(lines == "1", f"{lines} Authorization lines arrived")
    scheme = answer.headers.get("X-Seen-Scheme")
    expect(scheme == "Bearer", f"the scheme that arrived is {scheme!r}")
    issued = {sha256(token.token.encode()).hexdigest() for token in w.tokens(app)}
    expect(answer.token_hash in issued, "the token that arrived was not issued to this application")
