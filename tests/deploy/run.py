"""Tries what is in `deploy/`. `run.sh` prepares everything and starts this.

Arguments, if any, are parts of the names of the cases to run.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

import documents, hosts, manifests, monitoring, pods  # noqa: E401,F401  their cases, in this order
from harness import CASES, Failure, Skip, run


class World:
    """What `run.sh` found."""

    def __init__(self):
        self.state = Path(os.environ["DEPLOY_STATE"])
        self.binary = Path(os.environ["BEARERD_BIN"])
        self.python = sys.executable
        self.busybox = os.environ.get("DEPLOY_BUSYBOX") or None
        # Why there is no podman; empty if there is one.
        self.no_podman = os.environ.get("DEPLOY_NO_PODMAN", "")
        # podman keeps all it makes in here, and the configuration of the host does not matter.
        self.podman_environment = dict(
            os.environ,
            CONTAINERS_CONF=str(self.state / "containers.conf"),
            CONTAINERS_STORAGE_CONF=str(self.state / "storage.conf"),
        )
        self.has_quit = run(self.binary, "quit", "--help", may_fail=True)[0] == 0
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def run_case(w, name, function):
    w.notes.clear()
    why = mark = None
    try:
        function(w)
        mark = "ok  "
    except Skip as skip:
        mark, why = "SKIP", str(skip)
    except Failure as failure:
        mark, why = "FAIL", str(failure)
    except Exception:
        mark, why = "FAIL", traceback.format_exc()
    print(f"{mark} {name}" + (f": {why}" if why else ""))
    for note in w.notes:
        print(f"     - {note}")
    sys.stdout.flush()
    return mark


def main():
    # Ended from outside, it still takes its processes and pods along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    w = World()
    chosen = [c for c in CASES if not sys.argv[1:] or any(part in c[0] for part in sys.argv[1:])]
    results = [run_case(w, name, function) for name, function in chosen]
    failed, skipped = results.count("FAIL"), results.count("SKIP")
    passed = len(results) - failed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
