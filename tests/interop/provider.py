"""The second authorization server, oidc-provider: its process, its clients' keys, an API that asks it about tokens."""

import base64
import json
import os
import ssl
import subprocess
import threading
from collections import namedtuple
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

import certs
from harness import Server, expect, fetch, listen_somewhere, records

Client = namedtuple("Client", "client_id secret")


class Provider(Server):
    """A node process serving `oidc_provider/server.mjs` on two ports; one asks for client certificates."""

    def __init__(self, state):
        self.state = state
        self.port = self.mtls_port = None
        self.introspecting = None

    def launch(self):
        with listen_somewhere() as plain, listen_somewhere() as mtls, open(self.state / "provider.log", "ab") as log:
            self.port, self.mtls_port = plain.getsockname()[1], mtls.getsockname()[1]
            environment = dict(
                os.environ,
                PROVIDER_ISSUER=self.issuer,
                PROVIDER_MTLS_URL=f"https://localhost:{self.mtls_port}",
                PROVIDER_FD=str(plain.fileno()),
                PROVIDER_MTLS_FD=str(mtls.fileno()),
            )
            self.process = subprocess.Popen(
                ["node", os.environ["INTEROP_PROVIDER"]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[plain.fileno(), mtls.fileno()],
            )

    def wait_answering(self):
        answer = self.fetch("GET", "/.well-known/openid-configuration", timeout=30)
        expect(answer.status == 200, f"oidc-provider does not start: {answer}")
        self.introspecting = self.client("client_secret_basic")

    @property
    def issuer(self):
        return f"https://localhost:{self.port}"

    def fetch(self, *request, **more):
        return fetch(self.port, *request, authority=self.state / "ca.pem", **more)

    def client(self, how, **metadata):
        """Registers a client that authenticates in this way (RFC 7591)."""
        metadata |= {
            "token_endpoint_auth_method": how,
            "grant_types": ["client_credentials"],
            "redirect_uris": [],
            "response_types": [],
        }
        headers = [("Content-Type", "application/json")]
        answer = self.fetch("POST", "/reg", headers, json.dumps(metadata).encode())
        expect(answer.status == 201, f"the registration: {answer}")
        registered = json.loads(answer.body)
        return Client(registered["client_id"], registered.get("client_secret"))

    def is_active(self, token):
        """What the provider says of a token (RFC 7662)."""
        basic = base64.b64encode(":".join(self.introspecting).encode()).decode()
        headers = [
            ("Authorization", f"Basic {basic}"),
            ("Content-Type", "application/x-www-form-urlencoded"),
        ]
        answer = self.fetch("POST", "/token/introspection", headers, f"token={token}".encode())
        expect(answer.status == 200, f"the introspection: {answer}")
        return json.loads(answer.body)["active"]

    def requests(self, client=None, route="token"):
        """What the provider recorded of a client's requests, or of all, oldest first."""
        lines = records(self.state / "provider-requests.jsonl")
        return [
            line for line in lines if line["route"] == route and (not client or line["client_id"] == client.client_id)
        ]

    def hidden(self):
        """What no log may show, and what it is."""
        found = {}
        for line in self.requests():
            if line.get("access_token"):
                found[line["access_token"]] = "a token"
            if line.get("assertion"):
                found[line["assertion"].rpartition(".")[2]] = "the signature of an assertion"
        return found


# --- keys ---------------------------------------------------------------------------------------------------

# The algorithms, each with a key of its kind and one of the forms that tools write it in.
SIGNING = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL),
    "PS256": (lambda: rsa.generate_private_key(65537, 3072), PrivateFormat.PKCS8),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, PrivateFormat.PKCS8),
}


class SigningKey:
    """A client's private key."""

    def __init__(self, algorithm, key_id=None):
        self.algorithm, self.key_id = algorithm, key_id
        make, self.form = SIGNING[algorithm]
        self.key = make()
        self.public = JWK.from_pyca(self.key.public_key())

    def write(self, file):
        certs.write_key(file, self.key, self.form)

    def jwk(self):
        """The public half, as the authorization server gets it."""
        named = {"kid": self.key_id} if self.key_id else {}
        return self.public.export_public(as_dict=True) | {"alg": self.algorithm, "use": "sig"} | named

    def body(self):
        """The last whole line of the file: enough to find it again in a log."""
        lines = self.key.private_bytes(Encoding.PEM, self.form, certs.NO_PASSWORD).decode().splitlines()
        return next(line for line in reversed(lines) if len(line) == 64)

    def signed(self, assertion):
        jws = JWS()
        jws.deserialize(assertion)
        try:
            jws.verify(self.public, self.algorithm)
        except Exception:
            return False
        return True

    def sign(self, claims):
        jws = JWS(json.dumps(claims))
        jws.add_signature(JWK.from_pyca(self.key), protected=json.dumps({"alg": self.algorithm}))
        return jws.serialize(compact=True)


def opened(assertion):
    """Header and claims of a JWT; the signature is not looked at."""
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in assertion.split(".")[:2]]


def jwk_of_certificate(certificate):
    """A key that comes in a certificate (RFC 7517 section 4.7)."""
    der = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    return JWK.from_pyca(certificate.public_key()).export_public(as_dict=True) | {"x5c": [der]}


def fingerprint(certificate):
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


# --- a payments API -----------------------------------------------------------------------------------------


class Api:
    """A payments API that asks the provider about the token of each request."""

    def __init__(self, provider, mtls=None):
        """`mtls` is a folder with server.key, server.pem and ca.pem: TLS, for clients with a certificate of that CA."""
        self.provider, self.mtls = provider, mtls
        self.requests = []  # the token and the answer's status of each request, oldest first
        self.certificates = []  # the SHA-256 of the client certificate of each request
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                api.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if mtls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=mtls / "ca.pem")
            context.load_cert_chain(mtls / "server.pem", mtls / "server.key")
            context.verify_mode = ssl.CERT_REQUIRED
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self):
        host = "https://localhost" if self.mtls else "http://127.0.0.1"
        return f"{host}:{self.server.server_port}"

    def answer(self, request):
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        active = scheme == "Bearer" and self.provider.is_active(token)
        self.requests.append((token, 200 if active else 401))
        if self.mtls:
            self.certificates.append(sha256(request.connection.getpeercert(binary_form=True)).hexdigest())
        body = b"[]" if active else b"{}"
        request.send_response(200 if active else 401)
        if not active:
            request.send_header("WWW-Authenticate", 'Bearer error="invalid_token"')
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
