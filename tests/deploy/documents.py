"""Runs what `deploy/README.md` and the runbook tell a person to type, as it stands there.

In a copy of the repository, with mounts of its own over /etc and /usr/local and a network with nothing in it, so that
nothing of the host changes or matters. Where a cluster, a service manager, an engine or a compiler would be needed, a
stand-in of that name looks at what it is given:

- `kubectl apply -k` renders, `kubectl create` makes the object and sends it nowhere
- `systemctl` knows the units that were installed
- `cargo` was run before, with this very command line
- `docker compose` reads the file; a `podman build` that needs an image of a registry checks what it would copy
- `bearerd wait` has nothing to wait for
"""

import os
import re
import shutil
import stat

from harness import DEPLOY, HERE, ROOT, Skip, case, expect, run

README = DEPLOY / "README.md"

STAND_INS = {
    "kubectl": """
        case "$1 $2" in
        "apply -k") exec "$REAL_KUBECTL" kustomize "$3" ;;
        "create "*) exec "$REAL_KUBECTL" "$@" --dry-run=client --output=yaml ;;
        *) exit 64 ;;
        esac""",
    "systemctl": """
        case "$1" in
        daemon-reload) ;;
        enable) [ -f "/etc/systemd/system/$3" ] && grep -q "^WantedBy=" "/etc/systemd/system/$3" ;;
        *) exit 64 ;;
        esac""",
    "cargo": """
        grep -qF -- "cargo $1 $2 $3 $4 $5" deploy/image/Containerfile && [ "$RUSTFLAGS" = "-C target-feature=+crt-static" ]""",
    "docker": """
        [ "$1 $2 $3 $4" = "compose -f deploy/compose/compose.yaml up" ] && [ -s deploy/compose/secrets/client_secret ] &&
            setpriv --reuid=65532 --regid=65532 --clear-groups cat deploy/compose/secrets/client_secret >/dev/null""",
    "podman": """
        case "$*" in
        "build -f deploy/image/Containerfile -t bearerd .") [ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -d src ] ;;
        *) [ -n "$NO_PODMAN" ] || exec "$REAL_PODMAN" "$@" ;;
        esac""",
    # The one of this test is told by the others.
    "tests/deploy/run.sh": "true",
}


def blocks(file, language):
    text = file.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(file):
    for block in blocks(file, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield re.sub(r"\s{3,}#.*", "", line[2:])


def table_commands():
    """Those of the table of cases."""
    return [c for c in re.findall(r"\| `([a-z]\w* [^`]*)` ?(?:\(|\|)", README.read_text()) if " " in c]


def copy_of_the_repository(w):
    there = w.state / "repository"
    shutil.copytree(DEPLOY, there / "deploy")
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, there)
    (there / "src").mkdir()
    for folder in ("target/release", "target/x86_64-unknown-linux-gnu/release"):
        (there / folder).mkdir(parents=True)
        shutil.copy(w.binary, there / folder / "bearerd")
    (there / "client_secret").write_text("s3cret\n")
    shutil.copy(DEPLOY / "kubernetes/examples/settings/bearerd.toml", there)
    for name, script in STAND_INS.items():
        stand_in = (w.state / "stand-ins" / name) if "/" not in name else there / name
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    return there


@case("what deploy/README.md tells to type works")
def readme(w):
    if os.geteuid() != 0:
        raise Skip("only root can install, and mount over what is installed")
    there = copy_of_the_repository(w)
    for name in ("upper-etc", "work-etc", "upper-local", "work-local"):
        (w.state / name).mkdir()
    in_sections = list(commands(README))
    typed = [command for command in table_commands() if command not in in_sections] + in_sections
    script = ["set -eu"]
    for name, at in (("etc", "/etc"), ("local", "/usr/local")):
        options = f"lowerdir={at},upperdir={w.state}/upper-{name},workdir={w.state}/work-{name}"
        script.append(f"mount -t overlay overlay -o {options} {at}")
    script.append("mkdir -p /etc/systemd/system /usr/local/bin")
    script.append(f'cd "{there}"')
    for command in typed:
        script.append(f"echo {shell_quoted('$ ' + command)}")
        if command == "bearerd wait":
            # Nothing listens: it must say so, not that it does not know the command.
            script.append("/usr/local/bin/bearerd wait --timeout 200ms 2>&1 | grep 'no answer'")
        else:
            script.append(f"( {command} ) >/dev/null")
    environment = dict(
        w.podman_environment,
        PATH=f"{w.state / 'stand-ins'}:{os.environ['PATH']}",
        REAL_KUBECTL=shutil.which("kubectl"),
        REAL_PODMAN=shutil.which("podman") or "",
        NO_PODMAN=w.no_podman,
    )
    code, output = run("unshare", "--mount", "--net", "sh", input="\n".join(script), env=environment, may_fail=True)
    expect(code == 0, f"exit code {code}:\n{output}")
    expect(output.count("$ ") == len(typed), f"some were not run:\n{output}")
    w.note(f"{len(typed)} commands")


def shell_quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


@case("what deploy/README.md shows and names is there")
def names(w):
    text = README.read_text()
    for shown in blocks(README, "yaml"):
        lines = [re.sub(r"\s+#.*", "", line) for line in shown.splitlines()]
        real = (DEPLOY / "kubernetes/examples/deployment/kustomization.yaml").read_text().splitlines()
        expect(all(line in real for line in lines), "the kustomization differs from examples/deployment")
    for link in re.findall(r"\]\(([^)#]+)", text):
        expect((DEPLOY / link).exists(), f"a link to {link}")
    known = len(blocks(README, "console")) + len(blocks(README, "yaml"))
    expect(text.count("```") == 2 * known, "a block of a kind that is not tried")
    # Every folder that can be applied is in it.
    for folder in (DEPLOY / "kubernetes/examples").iterdir():
        expect(folder.name == "settings" or f"kubernetes/examples/{folder.name}" in text, f"{folder.name} is not named")


@case("what the runbook tells to type works")
def runbook(w):
    typed = list(commands(DEPLOY / "monitoring" / "RUNBOOK.md"))
    expect(typed, "no commands were found")
    for command in typed:
        program, *arguments = command.split()
        expect(program == "bearerd", command)
        code, output = run(w.binary, *arguments, "--help", may_fail=True)
        expect(code == 0, f"{command}: {output}")
    # Each reason, action and outcome it names, the program knows.
    labels = (ROOT / "src/metrics/labels.rs").read_text()
    tables = re.findall(r"^\| (`.*?) \|", (DEPLOY / "monitoring" / "RUNBOOK.md").read_text(), re.MULTILINE)
    for value in re.findall(r"`(\w+)`", "\n".join(tables)):
        expect(f'"{value}"' in labels, f"nothing has the label {value}")
