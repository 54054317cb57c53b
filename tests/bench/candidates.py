"""The four proxies, each set up to do the same: add one header, verify the upstream's certificate, keep connections.

Whatever a candidate does by default stays on, but for logs of every request, and limits that a load would meet.
"""

import json
import os
import socket
import time
from collections import namedtuple

from processes import Failure, Process, free_port
from world import AUTHORIZATION, CONNECTIONS, JSON, MANY, nginx_frame

# `upstream`: plain, h1, h2, stranger. `crowd`: pools and limits fit for thousands of connections at once.
# `lifetime`: of bearerd's tokens, in seconds.
Setup = namedtuple("Setup", "upstream workers crowd lifetime", defaults=(1, False, 36000))


class Candidate:
    """A proxy in front of the upstream, from the first line of the block to its last."""

    name = None

    def __init__(self, world, setup):
        self.world, self.setup = world, setup
        self.port = free_port()
        self.upstream_port = world.upstream.ports[self.best(setup.upstream)]
        self.folder = world.state / f"{self.name}-{self.port}"
        self.folder.mkdir()
        self.is_tls = setup.upstream != "plain"
        # Idle connections to the upstream that are kept.
        self.kept = CONNECTIONS if setup.crowd else 512
        self.process = None

    def best(self, upstream):
        """What it can use of what the upstream offers."""
        return upstream

    def __enter__(self):
        cores = self.world.own_core
        if self.setup.workers > 1:
            cores = cores + self.world.other_core
        self.process = Process(self.command(), self.folder / "log", cores, self.environment())
        return self

    def __exit__(self, *_):
        self.process.stop()

    def environment(self):
        """Nothing of the surrounding environment may configure it."""
        return {name: value for name, value in os.environ.items() if not name.startswith("BEARERD_")}

    def wait_forwarding(self, wanted=b" 200 ", timeout=15):
        """Seconds from its start to its first forwarded answer."""
        give_up = time.monotonic() + timeout
        answer = b"no answer"
        while time.monotonic() < give_up:
            if self.process.has_ended:
                raise Failure(f"{self.name} has ended: {self.process.log.read_text()[-500:]}")
            try:
                answer = ask_once(self.port)
            except OSError:
                time.sleep(0.0005)
                continue
            if wanted in answer.split(b"\r\n", 1)[0] and (wanted != b" 200 " or JSON.encode() in answer):
                return time.monotonic() - self.process.started
            time.sleep(0.02)
        raise Failure(f"{self.name} does not forward: {answer[:80]}")

    def refuses_the_stranger(self):
        """An upstream whose certificate nobody vouches for gets nothing, least of all the token."""
        self.wait_forwarding(wanted=b" 50")


def ask_once(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /payments HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


class Nginx(Candidate):
    name = "nginx"

    def best(self, upstream):
        return "h1" if upstream == "h2" else upstream

    def command(self):
        tls = f"""
            proxy_ssl_server_name on;
            proxy_ssl_name localhost;
            proxy_ssl_protocols TLSv1.3;
            proxy_ssl_trusted_certificate {self.world.state}/ca.pem;
            proxy_ssl_verify on;"""
        scheme, settings = ("https", tls) if self.is_tls else ("http", "")
        http = f"""
    upstream payments {{
        server 127.0.0.1:{self.upstream_port};
        keepalive {self.kept};
        keepalive_requests {MANY};
    }}
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        location / {{
            proxy_pass {scheme}://payments;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_set_header Authorization "{AUTHORIZATION}";
            # Bodies are passed on as they come, and never over the disk.
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;{settings}
        }}
    }}"""
        configuration = self.folder / "nginx.conf"
        configuration.write_text(nginx_frame(self.folder, self.setup.workers, http))
        return [self.world.tools["nginx"], "-p", self.folder, "-e", "stderr", "-c", configuration]


class HAProxy(Candidate):
    name = "HAProxy"

    def command(self):
        tls = ""
        if self.is_tls:
            alpn = "h2" if self.setup.upstream == "h2" else "http/1.1"
            tls = f" ssl verify required ca-file {self.world.state}/ca.pem sni str(localhost) alpn {alpn}"
        configuration = self.folder / "haproxy.cfg"
        configuration.write_text(f"""
global
    nbthread {self.setup.workers}
    maxconn {CONNECTIONS}
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 60s
    http-reuse always
frontend applications
    bind 127.0.0.1:{self.port} backlog 4096
    http-request set-header Authorization "{AUTHORIZATION}"
    default_backend payments
backend payments
    server payments 127.0.0.1:{self.upstream_port}{tls}
""")
        return [self.world.tools["haproxy"], "-db", "-f", configuration]


class Envoy(Candidate):
    name = "Envoy"

    def command(self):
        configuration = self.folder / "envoy.json"
        configuration.write_text(json.dumps({"static_resources": self.resources()}, indent=1))
        return [
            *[self.world.tools["envoy"], "-c", configuration, "--concurrency", str(self.setup.workers)],
            *["--use-dynamic-base-id", "--log-level", "warning"],
        ]

    def resources(self):
        return {
            "secrets": [{"name": "token", "generic_secret": {"secret": {"inline_string": AUTHORIZATION}}}],
            "listeners": [
                {
                    "name": "applications",
                    "address": address(self.port),
                    "tcp_backlog_size": 4096,
                    "filter_chains": [{"filters": [self.connection_manager()]}],
                }
            ],
            "clusters": [self.cluster()],
        }

    def connection_manager(self):
        injector = typed(
            "extensions.filters.http.credential_injector.v3.CredentialInjector",
            overwrite=True,
            credential={
                "name": "envoy.http.injected_credentials.generic",
                "typed_config": typed(
                    "extensions.http.injected_credentials.generic.v3.Generic", credential={"name": "token"}
                ),
            },
        )
        return {
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": typed(
                "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                stat_prefix="applications",
                route_config={
                    "virtual_hosts": [
                        {
                            "name": "all",
                            "domains": ["*"],
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "payments"}}],
                        }
                    ]
                },
                http_filters=[
                    {"name": "envoy.filters.http.credential_injector", "typed_config": injector},
                    {
                        "name": "envoy.filters.http.router",
                        "typed_config": typed("extensions.filters.http.router.v3.Router"),
                    },
                ],
            ),
        }

    def cluster(self):
        protocol = {"http_protocol_options": {}}
        if self.setup.upstream == "h2":
            # As many as nginx takes. More at once, before its SETTINGS are there, would make it close the connection.
            protocol = {"http2_protocol_options": {"max_concurrent_streams": 128}}
        limits = ("max_connections", "max_pending_requests", "max_requests")
        cluster = {
            "name": "payments",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "payments",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(self.upstream_port)}}]}],
            },
            "circuit_breakers": {"thresholds": [dict.fromkeys(limits, CONNECTIONS)]},
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                    "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol
                )
            },
        }
        if self.is_tls:
            cluster["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": typed(
                    "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    sni="localhost",
                    common_tls_context={
                        # Its default ends at 1.2.
                        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                        "validation_context": {
                            "trusted_ca": {"filename": str(self.world.state / "ca.pem")},
                            "match_typed_subject_alt_names": [
                                {"san_type": "DNS", "matcher": {"exact": "localhost"}}
                            ],
                        },
                    },
                ),
            }
        return cluster


def typed(name, **fields):
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


class Bearerd(Candidate):
    name = "bearerd"

    def __init__(self, world, setup):
        super().__init__(world, setup)
        self.admin_port = free_port()

    def command(self):
        secret = self.folder / "client_secret"
        secret.write_text("not a secret")
        limits = upstream = ""
        if self.setup.crowd:
            limits = f"max_connections = {CONNECTIONS}\nmax_in_flight = {CONNECTIONS}"
            upstream = f"max_idle_connections = {self.kept}"
        if self.is_tls:
            upstream += f'\nca_file = "{self.world.state}/ca.pem"'
        scheme = "https" if self.is_tls else "http"
        configuration = self.folder / "bearerd.toml"
        configuration.write_text(f"""
[proxy]
listen = "127.0.0.1:{self.port}"
{limits}

[admin]
listen = "127.0.0.1:{self.admin_port}"

[runtime]
workers = {self.setup.workers}

[upstream.payments]
url = "{scheme}://localhost:{self.upstream_port}"
{upstream}

[credential.payments]
token_url = "{self.world.authorization_server.token_url(self.setup.lifetime)}"
client_id = "bench"
client_secret_file = "{secret}"
""")
        return [self.world.tools["bearerd"], "--config", configuration]


ALL = (Bearerd, Nginx, HAProxy, Envoy)
