"""What stands around the candidates: certificates, the upstream, the authorization server."""

import os
import subprocess
import sys
from pathlib import Path

from processes import Failure, Process, expect, free_port

HERE = Path(__file__).resolve().parent

# The header that nginx, HAProxy and Envoy add; bearerd's comes from the authorization server, and is as long.
AUTHORIZATION = f"Bearer bench-{'0123456789abcdef' * 2}"
PAYMENTS = ",".join('{"id":"pay_%04d","amount":"19.90","currency":"EUR"}' % number for number in range(1, 6))
# 280 bytes, as small answers of an API are.
JSON = f'{{"payments":[{PAYMENTS}],"n":5}}'
MIB = 1 << 20

# Requests on one connection, and connections, that nothing ever comes near to.
MANY = 1_000_000_000
CONNECTIONS = 8_000


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    expect(done.returncode == 0, f"openssl {arguments[0]}: {done.stderr.strip()}")


def make_certificates(folder):
    """`ca.pem` signs `server.pem`, for localhost; `stranger.pem` is signed by nobody that a candidate trusts."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(
        *["req", "-x509", *curve, "-subj", "/CN=bench CA", "-keyout", folder / "ca.key", "-out", folder / "ca.pem"],
        *["-addext", "keyUsage=critical,keyCertSign"],
    )
    openssl("req", *curve, "-subj", "/CN=localhost", "-keyout", folder / "server.key", "-out", folder / "server.csr")
    extensions = folder / "server.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    openssl(
        *["x509", "-req", "-in", folder / "server.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key"],
        *["-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", folder / "server.pem"],
    )
    openssl(
        *["req", "-x509", *curve, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        *["-keyout", folder / "stranger.key", "-out", folder / "stranger.pem"],
    )


def nginx_frame(folder, workers, http):
    """What every nginx of a run needs to keep to its own folder, and to measure what is to be measured."""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root, nginx would give its workers to a user that may not read the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
daemon off;
{user}
pid {folder}/nginx.pid;
worker_processes {workers};
worker_rlimit_nofile {2 * CONNECTIONS + 1000};
events {{ worker_connections {2 * CONNECTIONS}; }}
http {{
{temporary}
    access_log off;
    keepalive_requests {MANY};
    keepalive_timeout 300s;
    client_max_body_size 8m;
{http}
}}
"""


class Upstream:
    """An nginx that answers only who brings the token: plain, over TLS with HTTP/1.1 alone, and with HTTP/2."""

    def __init__(self, tools, state, cores):
        folder = state / "upstream"
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "mib").write_bytes(b"0123456789abcdef" * (MIB // 16))
        self.ports = {kind: free_port() for kind in ("plain", "h1", "h2", "stranger")}
        self.folder = folder
        configuration = folder / "nginx.conf"
        configuration.write_text(nginx_frame(folder, 1, self.servers(state)))
        self.process = Process(
            [tools["nginx"], "-p", folder, "-e", "stderr", "-c", configuration], state / "upstream.log", cores
        )

    def servers(self, state):
        # One suite for all, or each candidate would be measured with the one that its library likes best.
        tls = """
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"""
        own = f"ssl_certificate {state}/server.pem; ssl_certificate_key {state}/server.key; {tls}"
        stranger = f"ssl_certificate {state}/stranger.pem; ssl_certificate_key {state}/stranger.key; {tls}"
        kinds = [("plain", "", ""), ("h1", " ssl", own), ("h2", " ssl http2", own), ("stranger", " ssl", stranger)]
        servers = "\n".join(
            f"""
    server {{
        listen 127.0.0.1:{self.ports[kind]} backlog=4096{options};
        {settings}
        if ($is_allowed = 0) {{ return 403; }}
        location / {{ default_type application/json; return 200 '{JSON}'; }}
        location /mib {{ root {self.folder}/files; }}
        # Answers when the whole body is here.
        location /upload {{
            client_body_buffer_size 2m;
            proxy_pass http://unix:{self.folder}/sink.sock;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}"""
            for kind, options, settings in kinds
        )
        return f"""
    map $http_authorization $is_allowed {{ default 0; "~^Bearer bench-[0-9a-f]+$" 1; }}
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10;
{servers}
    server {{
        listen unix:{self.folder}/sink.sock;
        location / {{ return 200 'taken'; }}
    }}
"""


class AuthorizationServer:
    """Knows when it was asked for a token."""

    def __init__(self, state, cores):
        self.port, self.log = free_port(), state / "token_requests"
        self.log.touch()
        command = [sys.executable, HERE / "authorization_server.py", str(self.port), self.log]
        self.process = Process(command, state / "authorization_server.log", cores)

    def token_url(self, lifetime):
        """Where tokens live for so many seconds."""
        return f"http://127.0.0.1:{self.port}/{lifetime}/token"

    def asked(self):
        """When, in microseconds since the epoch."""
        return [int(line) for line in self.log.read_text().split()]


class World:
    """The servers of a run, from the first line of the block to its last."""

    def __init__(self, tools, state, cores):
        make_certificates(state)
        self.tools, self.state = tools, state
        # The candidate has a core for itself; all others share the second.
        self.own_core, self.other_core = [cores[0]], [cores[1]]
        self.upstream = self.authorization_server = None

    def __enter__(self):
        self.upstream = Upstream(self.tools, self.state, self.other_core)
        self.authorization_server = AuthorizationServer(self.state, self.other_core)
        return self

    def __exit__(self, *_):
        for server in (self.upstream, self.authorization_server):
            if server:
                server.process.stop()

    def processes(self):
        return [self.upstream.process, self.authorization_server.process]

    def expect_alive(self):
        for process in self.processes():
            if process.has_ended:
                raise Failure(f"{process.name} has ended: {process.log.read_text()[-300:]}")
