"""Tells the test driver what arrived, and holds requests back when the driver asks for it."""

import base64
import hashlib
import json
import os
import time
from urllib.parse import unquote_plus

from django.conf import settings

HOLD_LIMIT = 10.0


class Recorder:
    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        is_token = request.path == "/o/token/"
        hold("token" if is_token else "api")
        request.body  # Read here once, so that it is there for every later reader too.
        response = self.get_response(request)
        if is_token:
            record_token_request(request, response)
        else:
            describe_arrival(request, response)
        return response


def hold(kind):
    """Waits while the driver's file `hold-KIND` exists; `held-KIND` tells that a request is waiting."""
    gate = settings.STATE / f"hold-{kind}"
    give_up = time.monotonic() + HOLD_LIMIT
    while gate.exists() and time.monotonic() < give_up:
        (settings.STATE / f"held-{kind}").touch()
        time.sleep(0.02)


def record_token_request(request, response):
    """One line for each token request: this is how the driver counts them."""
    basic = request.headers.get("Authorization", "")
    client_id, how, decoded = request.POST.get("client_id"), [], ""
    if basic.lower().startswith("basic "):
        decoded = base64.b64decode(basic[6:]).decode()
        client_id = unquote_plus(decoded.partition(":")[0])
        how.append("basic")
    if "client_secret" in request.POST:
        how.append("post")
    secret = request.POST.get("client_secret") or unquote_plus(decoded.partition(":")[2])
    record(
        "token-requests",
        client_id=client_id,
        how="+".join(how),
        secret=sha256(secret),
        scope=request.POST.get("scope"),
        status=response.status_code,
    )


def describe_arrival(request, response):
    """Says in the response how the request looked on arrival, the token as its SHA-256 only."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    response["X-Seen-Authorization-Lines"] = request.headers.get("X-Authorization-Lines", "?")
    response["X-Seen-Scheme"] = scheme
    response["X-Seen-Token-Sha256"] = sha256(token) if token else ""
    record(
        "api-requests",
        method=request.method,
        path=request.path,
        token=response["X-Seen-Token-Sha256"],
        status=response.status_code,
    )


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def record(kind, **fields):
    """One line in the driver's file KIND.jsonl."""
    # One write to a file opened for appending: lines of several threads and processes never mix.
    fd = os.open(settings.STATE / f"{kind}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, json.dumps(fields).encode() + b"\n")
    finally:
        os.close(fd)
