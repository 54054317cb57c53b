"""An authorization server with one answer: every client gets a new token that lives as long as the path says.

    authorization_server.py PORT LOG

`POST /36000/token` is a token for ten hours. Each request is a line in LOG: microseconds since the epoch.
"""

import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class TokenEndpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        begun = time.time_ns() // 1000
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = f"bench-{secrets.token_hex(16)}"
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": int(self.path.split("/")[1])}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        with open(sys.argv[2], "a", encoding="ascii") as log:
            log.write(f"{begun}\n")

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), TokenEndpoint).serve_forever()
