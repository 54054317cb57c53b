"""Client authentication by signature and by certificate, discovery, and revocation: the cases with oidc-provider."""

import contextlib
import os
import secrets
import time

import certs
from harness import expect, wait_until
from provider import Api, SigningKey, fingerprint, jwk_of_certificate, opened
from world import expect_status

LIFETIME = 5  # seconds a token lives whose renewal a case waits for
RENEWAL = 15  # seconds to wait for it at most


@contextlib.contextmanager
def bearerd(w, client, how, *more, proxy="", api=None, upstream=""):
    """A ready bearerd for a client of the provider, and its API; `more` are further lines about the credential."""
    with api or Api(w.provider) as api:
        with w.bearerd_file(text(w, client, how, more, proxy, api, upstream)) as b:
            b.wait_ready()
            yield b, api


def text(w, client, how, more, proxy="", api=None, upstream=""):
    lines = "\n".join(more)
    return f"""
[proxy]
{proxy}

[upstream.payments]
url = "{api.url if api else "http://127.0.0.1:9"}"
{upstream}

[credential.payments]
issuer = "{w.provider.issuer}"
ca_file = "{w.state / "ca.pem"}"
client_id = "{client.client_id}"
client_auth = "{how}"
scope = "read"
{lines}
"""


def secret_file(w, client):
    file = w.state / f"secret-{client.client_id}"
    file.touch(mode=0o600)
    file.write_text(client.secret)
    w.hide_secret(client.client_id, client.secret)
    return f'client_secret_file = "{file}"'


def new_key(w, *arguments):
    key = SigningKey(*arguments)
    w.hidden[key.body()] = "a private key"
    return key


def signing_client(w, *keys, how="private_key_jwt", **metadata):
    return w.provider.client(how, jwks={"keys": [key.jwk() for key in keys]}, **metadata)


def replace(file, write):
    """Replaces a file at once, as tools do that rotate what others read."""
    new = file.with_suffix(".new")
    write(new)
    os.replace(new, file)


def expect_passes(w, b, api, client, how):
    """A request passes with the one token this client was given; returns the provider's record of it."""
    expect_status(b.get(), 200)
    requests = w.provider.requests(client)
    seen = [(request["how"], request["status"]) for request in requests]
    expect(seen == [(how, 200)], f"one token request by {how} expected, the server saw {seen}")
    expect(requests[0]["scope"] == "read", f"scope asked for: {requests[0]['scope']!r}")
    expect(api.requests == [(requests[0]["access_token"], 200)], "another token arrived than the one issued")
    return requests[0]


def expect_assertion(w, client, algorithm, assertion):
    """What RFC 7523 section 3 asks for, and no more life than a minute."""
    header, claims = opened(assertion)
    expect(header["alg"] == algorithm, f"signed by {header['alg']}")
    for claim in ("iss", "sub"):
        expect(claims[claim] == client.client_id, f"{claim} is {claims[claim]!r}")
    audience = (w.provider.issuer, f"{w.provider.issuer}/token")
    expect(claims["aud"] in audience, f"aud is {claims['aud']!r}")
    left = claims["exp"] - time.time()
    expect(0 < left <= 60, f"it lives for {left:.0f} s more")
    expect(len(claims["jti"]) >= 16, f"jti is {claims['jti']!r}")


def refused(w, client, how, *more):
    """The provider refuses; that is what readiness and the commands say. Returns its record of the first try."""
    with w.bearerd_file(text(w, client, how, more)) as b:
        b.wait_pending("invalid_client")
        code, output = b.command("token")
        expect(code == 77, f"`bearerd token` exits with {code}, not 77: {output[:200]!r}")
    requests = w.provider.requests(client)
    errors = [request["error"] for request in requests]
    expect(errors == ["invalid_client"] * 2, f"the server answered {errors}")
    return requests[0]


# --- secrets and signatures ---------------------------------------------------------------------------------


def discovered(w):
    """Not found by RFC 8414, found by OpenID Connect Discovery: `token_url` is not configured."""
    for path, status in (("oauth-authorization-server", 404), ("openid-configuration", 200)):
        expect_status(w.provider.fetch("GET", f"/.well-known/{path}"), status, path)
    how = "client_secret_basic"
    client = w.provider.client(how)
    with bearerd(w, client, how, secret_file(w, client)) as (b, api):
        request = expect_passes(w, b, api, client, how)
        expect(not request["mtls"], "the endpoint for client certificates was used")
        code, output = b.command("check", "--online")
        expect(code == 0, f"`bearerd check --online` exits with {code}: {output[:200]!r}")


def private_key_jwt(algorithm):
    def run(w):
        how = "private_key_jwt"
        key = new_key(w, algorithm, f"key-{secrets.token_hex(4)}")
        other = new_key(w, algorithm, "other")
        client = signing_client(w, other, key, token_endpoint_auth_signing_alg=algorithm)
        file = w.state / f"{client.client_id}.pem"
        key.write(file)
        more = [f'private_key_file = "{file}"', f'key_id = "{key.key_id}"', f'signing_algorithm = "{algorithm}"']
        with bearerd(w, client, how, *more) as (b, api):
            request = expect_passes(w, b, api, client, how)
        expect(not request["mtls"], "the endpoint for client certificates was used")
        expect_assertion(w, client, algorithm, request["assertion"])
        kid = opened(request["assertion"])[0].get("kid")
        expect(kid == key.key_id, f"kid is {kid!r}")
        expect(key.signed(request["assertion"]), "the signature does not verify")

    return run


def client_secret_jwt(w):
    how = "client_secret_jwt"
    client = w.provider.client(how, token_endpoint_auth_signing_alg="HS256")
    with bearerd(w, client, how, secret_file(w, client)) as (b, api):
        request = expect_passes(w, b, api, client, how)
    expect_assertion(w, client, "HS256", request["assertion"])


def wrong_key(w):
    client = signing_client(w, new_key(w, "ES256", "k"))
    file = w.state / f"{client.client_id}.pem"
    wrong = new_key(w, "ES256", "k")
    wrong.write(file)
    request = refused(w, client, "private_key_jwt", f'private_key_file = "{file}"', 'key_id = "k"')
    expect(wrong.signed(request["assertion"]), "the assertion is not signed by the key of the file")


def key_rotated(w):
    old, new = new_key(w, "ES256"), new_key(w, "ES256")
    client = signing_client(w, old, new, token_lifetime=LIFETIME)
    file = w.state / f"{client.client_id}.pem"
    old.write(file)
    with bearerd(w, client, "private_key_jwt", f'private_key_file = "{file}"') as (b, _):
        expect_status(b.get(), 200, "before")
        replace(file, new.write)
        replaced = len(w.provider.requests(client))
        wait_until("a renewal", lambda: len(w.provider.requests(client)) > replaced, RENEWAL)
        expect_status(b.get(), 200, "after")
    requests = w.provider.requests(client)
    expect(all(request["status"] == 200 for request in requests), "a token request was refused")
    signers = ["old" if old.signed(r["assertion"]) else "new" if new.signed(r["assertion"]) else "?" for r in requests]
    expect(signers[0] == "old" and set(signers[replaced:]) == {"new"}, f"signed by {signers}")
    unique = {opened(request["assertion"])[1]["jti"] for request in requests}
    expect(len(unique) == len(requests), "a jti came twice")


def assertion_from_file(w):
    """Somebody else signs, as Kubernetes does for a service account; bearerd reads the file for each request."""
    key = new_key(w, "RS256")
    client = signing_client(w, key, token_lifetime=LIFETIME)
    file = w.state / f"{client.client_id}.jwt"
    written = []

    def write(file):
        now = int(time.time())
        claims = {
            "iss": client.client_id,
            "sub": client.client_id,
            "aud": w.provider.issuer,
            "iat": now,
            "exp": now + 300,
            "jti": secrets.token_hex(16),
        }
        written.append(key.sign(claims))
        file.touch(mode=0o600)
        file.write_text(written[-1] + "\n")

    write(file)
    with bearerd(w, client, "client_assertion_file", f'client_assertion_file = "{file}"') as (b, _):
        expect_status(b.get(), 200, "before")
        replace(file, write)
        # This provider takes an assertion once only, so nothing but the new one can get a token.
        wait_until("a renewal", lambda: len(w.provider.requests(client)) > 1, RENEWAL)
        expect_status(b.get(), 200, "after")
    seen = [(request["assertion"], request["status"]) for request in w.provider.requests(client)][:2]
    expect(seen == [(assertion, 200) for assertion in written], "other assertions than those of the file")


# --- certificates -------------------------------------------------------------------------------------------


def pair(w, file):
    return f'client_cert_file = "{w.state / file}.pem"', f'client_key_file = "{w.state / file}.key"'


def tls_client_auth(w):
    how = "tls_client_auth"
    certificate = w.ca.client("shop", certs.name("shop", "Interop"))
    client = w.provider.client(how, tls_client_auth_subject_dn="CN=shop,O=Interop")
    with bearerd(w, client, how, *pair(w, "shop")) as (b, api):
        request = expect_passes(w, b, api, client, how)
        for command in (["check", "--online"], ["token"]):
            code, output = b.command(*command)
            expect(code == 0, f"`bearerd {' '.join(command)}` exits with {code}: {output[:200]!r}")
    expect(request["certificate"] == fingerprint(certificate), "another certificate arrived")
    expect(request["mtls"], "not the token endpoint of mtls_endpoint_aliases")


def wrong_certificate(w):
    w.ca.client("stranger", certs.name("stranger", "Interop"))
    client = w.provider.client("tls_client_auth", tls_client_auth_subject_dn="CN=shop,O=Interop")
    request = refused(w, client, "tls_client_auth", *pair(w, "stranger"))
    expect(request["subject"] == "CN=stranger,O=Interop", f"the certificate of {request['subject']} arrived")


def self_signed_rotated(w):
    how = "self_signed_tls_client_auth"
    certificates = [certs.self_signed(w.state, file) for file in ("own", "own-next")]
    keys = [jwk_of_certificate(certificate) for certificate in certificates]
    client = w.provider.client(how, jwks={"keys": keys}, token_lifetime=LIFETIME)
    old, new = map(fingerprint, certificates)
    with bearerd(w, client, how, *pair(w, "own")) as (b, api):
        request = expect_passes(w, b, api, client, how)
        expect(request["certificate"] == old, "another certificate arrived")
        for end in ("key", "pem"):
            os.replace(w.state / f"own-next.{end}", w.state / f"own.{end}")

        def presented():
            return [request["certificate"] for request in w.provider.requests(client)]

        wait_until("a token request with the new certificate", lambda: new in presented(), RENEWAL)
        expect_status(b.get(), 200, "after")
    statuses = {request["status"] for request in w.provider.requests(client)}
    expect(statuses == {200}, f"the token requests got {statuses}")


def upstream_with_certificate(w):
    """The API asks for a certificate too; the credential has none."""
    certificate = w.ca.client("caller", certs.name("caller"))
    how = "client_secret_post"
    client = w.provider.client(how)
    upstream = "\n".join((f'ca_file = "{w.state / "ca.pem"}"', *pair(w, "caller")))
    api = Api(w.provider, mtls=w.state)
    with bearerd(w, client, how, secret_file(w, client), api=api, upstream=upstream) as (b, _):
        request = expect_passes(w, b, api, client, how)
    expect(request["certificate"] is None, "the provider saw the certificate for the upstream")
    expect(api.certificates == [fingerprint(certificate)], "another certificate arrived")


# --- the end ------------------------------------------------------------------------------------------------


def revoked_on_shutdown(w):
    key = new_key(w, "EdDSA")
    file = w.state / "revoking-key.pem"
    key.write(file)
    w.ca.client("holder", certs.name("holder"))
    signer = signing_client(w, key, token_endpoint_auth_signing_alg="EdDSA")
    holder = w.provider.client("tls_client_auth", tls_client_auth_subject_dn="CN=holder")
    for client, how, more in (
        (signer, "private_key_jwt", [f'private_key_file = "{file}"', 'signing_algorithm = "EdDSA"']),
        (holder, "tls_client_auth", pair(w, "holder")),
    ):
        for revoke in (True, False):
            line = f"revoke_on_shutdown = {str(revoke).lower()}"
            with bearerd(w, client, how, line, *more, proxy='drain_delay = "0s"') as (b, _):
                expect_status(b.get(), 200)
                token = w.provider.requests(client)[-1]["access_token"]
                expect(w.provider.is_active(token), "the token is not active while bearerd runs")
                b.process.terminate()
                begun = time.monotonic()
                code = b.wait_exit()
                expect(code == 0, f"exit code {code}")
                took = time.monotonic() - begun
            active = w.provider.is_active(token)
            expect(active != revoke, f"{how}, {line}: the token is {'still' if active else 'not'} active")
            if revoke:
                w.note(f"{how}: ended within {took:.1f} s")
        seen = [(r["how"], r["status"], r["mtls"]) for r in w.provider.requests(client, route="revocation")]
        expect(seen == [(how, 200, how == "tls_client_auth")], f"the server saw the revocations {seen}")
