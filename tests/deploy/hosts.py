"""systemd and compose: what can be seen of them without a systemd or an engine that runs them."""

import contextlib
import re

import yaml

from harness import DEPLOY, HERE, Process, Skip, answers, case, clean_environment, expect, free_port, run

SYSTEMD, COMPOSE = DEPLOY / "systemd", DEPLOY / "compose"
# What systemd-analyze security may say at most, of 100; a unit without any hardening is at 96.
MAX_EXPOSURE = 15


@case("systemd finds the units sound, and the service well enclosed")
def units(w):
    # It wants to see the program.
    folder = w.state / "units"
    folder.mkdir()
    for unit in SYSTEMD.glob("bearerd*.s*"):
        (folder / unit.name).write_text(unit.read_text().replace("/usr/local/bin/bearerd", str(w.binary)))
    names = ["bearerd.service", "bearerd.socket", "bearerd-admin.socket"]
    expect(sorted(names) == sorted(p.name for p in folder.iterdir()), "other units than expected")
    _, output = run("systemd-analyze", "verify", *(folder / name for name in names), may_fail=True)
    found = {line for line in output.splitlines() if str(folder) in line or "bearerd" in line}
    # systemd before 253 knows no notify-reload, and takes the line before it.
    found = {line for line in found if "Failed to parse service type, ignoring: notify-reload" not in line}
    expect(not found, "\n".join(found))
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MAX_EXPOSURE}"]
    _, table = run(*command, folder / "bearerd.service", may_fail=True)
    exposure = re.search(r"Overall exposure level for bearerd.service: ([\d.]+)", table)
    expect(exposure, table)
    expect(float(exposure[1]) * 10 <= MAX_EXPOSURE, f"exposure {exposure[1]}")
    w.note(f"exposure {exposure[1]} of 10")


@case("bearerd takes the sockets that systemd passes, by the names the units give them")
def sockets(w):
    names = {}
    for unit in SYSTEMD.glob("*.socket"):
        name = re.search(r"^FileDescriptorName=(\w+)$", unit.read_text(), re.MULTILINE)[1]
        port = int(re.search(r"^ListenStream=127\.0\.0\.1:(\d+)$", unit.read_text(), re.MULTILINE)[1])
        names[name] = port
    expect(names == {"proxy": 8080, "admin": 9090}, f"sockets {names}")
    port, admin, auth, api = (free_port() for _ in range(4))
    secret = w.state / "socket_secret"
    secret.write_text("s3cret\n")
    settings = {
        "BEARERD_UPSTREAM_URL": f"http://127.0.0.1:{api}",
        "BEARERD_TOKEN_URL": f"http://127.0.0.1:{auth}/o/token/",
        "BEARERD_CLIENT_ID": "shop-backend",
        "BEARERD_CLIENT_SECRET_FILE": secret,
    }
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", f"--listen=127.0.0.1:{admin}"]
    command += ["--fdname=proxy:admin"]
    # It passes on nothing of its own environment.
    command += [f"--setenv={name}={value}" for name, value in settings.items()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(Process([w.python, HERE / "fakes.py", auth, api, secret], w.state / "socket-fakes.log"))
        try:
            process = stack.enter_context(Process([*command, w.binary], w.state / "socket.log", clean_environment()))
        except FileNotFoundError:
            raise Skip("systemd-socket-activate is missing (package systemd)") from None
        # The first connection starts it.
        answers(process, admin, "/readyz")
        answers(process, port, "/payments/")


@case("the compose file satisfies its schema, and its parts fit together")
def compose(w):
    file = COMPOSE / "compose.yaml"
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)
    services = yaml.safe_load(file.read_text())["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = (COMPOSE / volume.split(":")[0]).resolve()
            expect(source.exists(), f"{name} mounts {source}, which is not there")
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    config["rule_files"] = [str(DEPLOY / "monitoring" / "rules" / "bearerd.rules.yaml")]
    there = w.state / "compose-prometheus.yml"
    there.write_text(yaml.safe_dump(config))
    run("promtool", "check", "config", there)
    targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
    port = services["bearerd"]["environment"]["BEARERD_ADMIN_LISTEN"].rsplit(":", 1)[1]
    expect(targets == [f"bearerd:{port}"], f"Prometheus scrapes {targets}")
    # The case on configurations reads it.
    text = (COMPOSE / "config" / "bearerd.toml").read_text()
    expect(text == (DEPLOY / "kubernetes/examples/settings/bearerd.toml").read_text(), "the examples' bearerd.toml differ")
