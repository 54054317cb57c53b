"""One process, several threads, persistent connections: a small but real deployment."""

import os

wsgi_app = "payments.wsgi"
worker_class = "gthread"
workers = 1
threads = 8
keepalive = 5
timeout = 60
graceful_timeout = 2
control_socket_disable = True
worker_tmp_dir = os.environ["INTEROP_STATE"]


def pre_request(worker, req):
    # WSGI joins repeated fields into one value. Only here can it be seen how many lines there were.
    lines = sum(name.upper() == "AUTHORIZATION" for name, _ in req.headers)
    req.headers.append(("X-AUTHORIZATION-LINES", str(lines)))
