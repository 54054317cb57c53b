"""An authorization server, a payments API and a name server, on loopback, in one process.

Arguments: the port of the authorization server, the port of the API, a file with the client secrets that are good (one a
line, read for each request), and, if there is to be a name server, its port.

It runs inside the network namespace of a pod too, where nothing but the standard library is to be had.
"""

import base64
import json
import secrets
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CLIENT = "shop-backend"
LIFETIME = 300
TOKENS = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class AuthorizationServer(Handler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        good = Path(sys.argv[3]).read_text().split()
        kind, _, pair = self.headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(pair).decode().partition(":")
        if kind != "Basic" or client != CLIENT or secret not in good:
            return self.answer(401, {"error": "invalid_client"})
        token = secrets.token_urlsafe(24)
        TOKENS.add(token)
        self.answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": "read write"})


class Payments(Handler):
    def do_GET(self):
        got = self.headers.get_all("Authorization") or []
        if len(got) != 1 or not got[0].startswith("Bearer ") or got[0][len("Bearer ") :] not in TOKENS:
            return self.answer(401, {"error": f"{len(got)} Authorization fields, or a token that was never issued"})
        self.answer(200, {"payments": [42], "path": self.path, "host": self.headers.get("Host")})


def name_server(port):
    """Says of every name that it is 127.0.0.1."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", port))
    while True:
        query, peer = listener.recvfrom(512)
        end = query.index(0, 12) + 1
        question, (kind,) = query[12 : end + 4], struct.unpack_from("!H", query, end)
        is_a = kind == 1
        head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1 if is_a else 0, 0, 0)
        address = struct.pack("!HHHIH4s", 0xC00C, 1, 1, 60, 4, bytes([127, 0, 0, 1])) if is_a else b""
        listener.sendto(head + question + address, peer)


def main():
    servers = [
        ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
        for port, handler in zip(sys.argv[1:], (AuthorizationServer, Payments))
    ]
    jobs = [server.serve_forever for server in servers]
    if len(sys.argv) > 4:
        jobs.append(lambda: name_server(int(sys.argv[4])))
    for job in jobs[1:]:
        threading.Thread(target=job, daemon=True).start()
    jobs[0]()


if __name__ == "__main__":
    main()
