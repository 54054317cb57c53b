"""Secrets that change while bearerd runs: the cases with django-oauth-toolkit."""

import os
from hashlib import sha256

from harness import Load, expect, wait_until
from world import expect_our_token, expect_status

NOTICED = 15  # seconds until a changed file is read, or a short-lived token is renewed, at most
OUTCOMES = ("accepted", "refused")  # of a changed secret


def replace(file, text):
    """Replaces a secret at once, as tools do that rotate what others read."""
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    os.replace(new, file)


def tried(w, app):
    """The secrets in the token requests of the application by their SHA-256, each with the status of the answer."""
    return [(request["secret"], request["status"]) for request in w.token_requests(app)]


def hashed(text):
    return sha256(text.encode()).hexdigest()


def bearerd_with_list(w, app, *files, token_url=None):
    names = ", ".join(f'"{file}"' for file in files)
    return w.bearerd_file(
        f"""
[upstream.payments]
url = "{w.api.url}"

[credential.payments]
token_url = "{token_url or w.auth.token_url}"
client_id = "{app.client_id}"
client_secret_file = [{names}]
scope = "read"
"""
    )


def second_of_two(w):
    app = w.app()
    next_file = w.state / f"{app.client_id}-next"
    wrong = w.new_secret()
    w.hide_secret(app.client_id, wrong)
    replace(next_file, wrong)
    with bearerd_with_list(w, app, next_file, app.secret_file) as b:
        b.wait_ready()
        answer = b.get()
        expect_status(answer, 200)
        expect_our_token(w, app, answer)
    expected = [(hashed(wrong), 401), (hashed(app.secret), 200)]
    expect(tried(w, app) == expected, f"the server answered {[status for _, status in tried(w, app)]}")


def list_of_both(w):
    """The short-lived tokens are renewed with the old secret before the server knows the new one, and after it."""
    app, new = w.app(), w.new_secret()
    next_file = w.state / f"{app.client_id}-next"
    replace(next_file, new)
    with bearerd_with_list(w, app, next_file, app.secret_file, token_url=w.short.token_url) as b:
        b.wait_ready()
        with Load(b) as load:

            def renewed_with(secret):
                return lambda: tried(w, app)[-1] == (hashed(secret), 200)

            first = len(tried(w, app))
            wait_until("a renewal", lambda: len(tried(w, app)) > first and renewed_with(app.secret)(), NOTICED)
            w.register_secret(app, new)
            wait_until("a renewal with the new secret", renewed_with(new), NOTICED)
    w.note(f"{load}")
    load.expect_no_failure()


def database_first(w):
    rotate(w, database_first=True)


def file_first(w):
    rotate(w, database_first=False)


def rotate(w, database_first):
    """With short-lived tokens: each one comes for the secret that the server knows at that moment."""
    app, new = w.app(), w.new_secret()
    old_works, new_works = (hashed(app.secret), 200), (hashed(new), 200)
    with w.bearerd(app, token_url=w.short.token_url) as b:
        b.wait_ready()
        with Load(b) as load:
            if database_first:
                w.register_secret(app, new)
                replace(app.secret_file, new)
            else:
                w.hide_secret(app.client_id, new)
                replace(app.secret_file, new)
                # Not known yet, so the one before is used on: at once, and for a renewal.
                refused = [(hashed(new), 401), old_works]
                wait_until("the old secret is kept", lambda: tried(w, app)[1:3] == refused, NOTICED)
                page = b.admin("/readyz?verbose").body.decode()
                expect("invalid_client" in page, f"/readyz?verbose does not tell of the refused secret: {page!r}")
                wait_until("a renewal with it", lambda: tried(w, app)[3:5] == refused, NOTICED)
                w.register_secret(app, new)
            wait_until("the new secret is used", lambda: tried(w, app)[-1] == new_works, NOTICED)
            wait_until("its token is used", lambda: hashed(w.tokens(app)[-1].token) in load.token_hashes, NOTICED)
        b.wait_ready()
        outcomes = {outcome: b.metric("bearerd_secret_reloads_total", outcome=outcome) for outcome in OUTCOMES}
    statuses = [status for _, status in tried(w, app)]
    w.note(f"{load}, token requests: {statuses}, reloads: {outcomes}")
    load.expect_no_failure()
    # Until the database has it, each attempt asks with the new one in vain; from then on none fails.
    expect(statuses.count(401) == (0 if database_first else 2), f"the server answered {statuses}")
