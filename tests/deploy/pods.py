"""The image, and the pods of the examples run by podman: hardened, read-only, in a network namespace of their own.

podman knows no native sidecars, no probes of an image without a shell, and no projected volumes. So the sidecar becomes a
container of the same pod, its volume of secrets a folder laid out as the kubelet does it, and this file does what the
kubelet would: it starts the sidecar, asks its startup probe, starts the application, and ends them in the other order.
"""

import contextlib
import json
import os
import re
import shutil
import time

import yaml

from harness import DEPLOY, Failure, Process, Skip, case, expect, metric, run, wait_until
from manifests import KUBERNETES, pod_of, render

IMAGE, APPLICATION = "localhost/bearerd:test", "localhost/shop:test"
MAX_IMAGE_BYTES = 12 * 1024 * 1024
# Inside the pod; nothing else is there.
AUTH, API, DNS = 9000, 9001, 53


# --- the image -------------------------------------------------------------------------------------------------


def podman(w, *arguments, **options):
    if w.no_podman:
        raise Skip(w.no_podman)
    return run("podman", *arguments, env=w.podman_environment, **options)


@case("both Containerfiles end in the same image")
def same_image(w):
    def last_stage(name):
        text = (DEPLOY / "image" / name).read_text()
        lines = text[text.rindex("FROM scratch") :].splitlines()
        return [line for line in lines if not line.startswith("COPY")]

    expect(last_stage("Containerfile") == last_stage("Containerfile.prebuilt"), "their last stages differ")


@case("the image holds one file, and needs nothing else")
def image(w):
    folder = w.state / "image"
    folder.mkdir()
    os.link(w.binary, folder / "bearerd")
    prebuilt = DEPLOY / "image" / "Containerfile.prebuilt"
    podman(w, "build", "--quiet", "--tag", IMAGE, "--build-arg", "VERSION=0.1.0", "--file", prebuilt, folder)
    about = json.loads(podman(w, "image", "inspect", IMAGE))[0]
    size = about["Size"]
    expect(size <= MAX_IMAGE_BYTES, f"{size} bytes, more than {MAX_IMAGE_BYTES}")
    expect(about["Config"]["User"] == "65532:65532", f"runs as {about['Config'].get('User')}")
    expect(about["Labels"]["org.opencontainers.image.version"] == "0.1.0", "the label of the version")
    mount = podman(w, "image", "mount", IMAGE).strip()
    files = [os.path.join(at, name) for at, _, names in os.walk(mount) for name in names]
    podman(w, "image", "unmount", IMAGE)
    expect(files == [f"{mount}/bearerd"], f"it holds {files}")
    bare = ["--rm", "--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--unsetenv-all"]
    version = podman(w, "run", *bare, IMAGE, "version").strip()
    expect(version == "bearerd 0.1.0", version)
    w.note(f"{size / 1024 / 1024:.1f} MiB, of at most {MAX_IMAGE_BYTES // 1024 // 1024}: {version}")
    # The application of the examples: a shell and wget.
    shop = w.state / "shop"
    shop.mkdir()
    shutil.copy(w.busybox, shop / "busybox")
    (shop / "Containerfile").write_text(
        "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/wget\nCOPY busybox /bin/sleep\nUSER 65532:65532\n"
    )
    podman(w, "build", "--quiet", "--tag", APPLICATION, shop)


# --- pods ------------------------------------------------------------------------------------------------------


class Secrets:
    """A folder as the kubelet lays one out: `client_secret` is a link through `..data`, which is moved at a change."""

    def __init__(self, folder, secret):
        self.folder, self.version = folder, 0
        folder.mkdir()
        self.write(secret)
        (folder / "client_secret").symlink_to("..data/client_secret")

    def write(self, secret):
        self.version += 1
        there = self.folder / f"..version_{self.version}"
        there.mkdir()
        (there / "client_secret").write_text(f"{secret}\n")
        link = self.folder / "..data_tmp"
        link.symlink_to(there.name)
        link.rename(self.folder / "..data")


def converted(w, example, name, secrets, command=None):
    """What podman can play of an example, with addresses of the pod's loopback in its configuration."""
    documents = render(KUBERNETES / "examples" / example)
    spec = next(pod for pod in map(pod_of, documents) if pod)["spec"]
    ours = [c for c in spec.pop("initContainers", []) + spec["containers"] if c["name"] == "bearerd"][0]
    # A stand-alone one has none.
    application = next((c for c in spec["containers"] if c["name"] != "bearerd"), {"name": "shop"})
    for key in ("restartPolicy", "startupProbe", "readinessProbe", "livenessProbe", "ports"):
        ours.pop(key, None)
    ours["image"], application["image"] = IMAGE, APPLICATION
    if command:
        application["command"] = command
    resolver = w.state / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    for container in (ours, application):
        mounts = container.setdefault("volumeMounts", [])
        mounts.append({"name": "resolver", "mountPath": "/etc/resolv.conf", "readOnly": True})
    volumes = [v for v in spec["volumes"] if v["name"] != "bearerd-secrets"]
    volumes.append({"name": "bearerd-secrets", "hostPath": {"path": str(secrets.folder), "type": "Directory"}})
    volumes.append({"name": "resolver", "hostPath": {"path": str(resolver), "type": "File"}})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [ours, application], "volumes": volumes},
    }
    settings = next(d for d in documents if d["kind"] == "ConfigMap" and "bearerd.toml" in d["data"])
    text = settings["data"]["bearerd.toml"]
    # The upstream by its name: the image has to look it up.
    text = text.replace("https://api.payments.example", f"http://api.payments.example:{API}")
    text = text.replace("https://auth.payments.example/o/token/", f"http://127.0.0.1:{AUTH}/o/token/")
    expect("https:" not in text, f"an address is left in {text}")
    settings["data"]["bearerd.toml"] = text
    return yaml.safe_dump_all([settings, pod])


class Pod:
    """A pod that was made and not started, and the servers inside its network namespace."""

    def __init__(self, w, example, name, command=None):
        self.w, self.name = w, name
        self.secrets = Secrets(w.state / f"{name}-secrets", "first-secret")
        self.good = w.state / f"{name}-good-secrets"
        self.good.write_text("first-secret\n")
        folder = w.state / f"{name}-play"
        folder.mkdir()
        self.file = folder / "pod.yaml"
        self.file.write_text(converted(w, example, name, self.secrets, command))
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(podman, self.w, "pod", "rm", "--force", "--time=0", "--ignore", self.name, may_fail=True)
            podman(self.w, "kube", "play", "--start=false", "--network=none", self.file)
            infra = json.loads(podman(self.w, "pod", "inspect", self.name))["InfraContainerID"]
            podman(self.w, "start", infra)
            self.namespace = ["nsenter", f"--target={self.inspect(infra)['State']['Pid']}", "--net"]
            fakes = [self.w.python, "fakes.py", AUTH, API, self.good, DNS]
            fakes[1] = os.path.join(os.path.dirname(__file__), "fakes.py")
            stack.enter_context(Process([*self.namespace, *fakes], self.w.state / f"{self.name}-fakes.log"))
            wait_until("the servers listen", lambda: f":{API:04X} " in self.sockets(), 10)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def sockets(self):
        return run(*self.namespace, "cat", "/proc/net/tcp")

    def container(self, name):
        return f"{self.name}-{name}"

    def inspect(self, container):
        return json.loads(podman(self.w, "inspect", "--type=container", container))[0]

    def start_sidecar(self):
        """As the kubelet: the next container is started when the startup probe passes."""
        podman(self.w, "start", self.container("bearerd"))
        self.wait_started()

    def wait_started(self):
        def started():
            code, _ = self.ask("/startupz")
            if self.state("bearerd")["Status"] == "exited":
                raise Failure(f"the sidecar has ended: {self.logs('bearerd')}")
            return code == 0

        try:
            wait_until("the startup probe", started, 30)
        except Failure as failure:
            raise Failure(f"{failure}\n{self.logs('bearerd')}") from None

    def ask(self, path):
        """GET on the admin port, from inside the network namespace: exit code and page."""
        url = f"http://127.0.0.1:9090{path}"
        return run(*self.namespace, self.w.busybox, "wget", "-q", "-O", "-", url, may_fail=True)

    def metrics(self):
        code, page = self.ask("/metrics")
        expect(code == 0, page)
        return page

    def state(self, name):
        return self.inspect(self.container(name))["State"]

    def logs(self, name):
        _, text = podman(self.w, "logs", self.container(name), may_fail=True)
        return text

    def wait_exit(self, name, timeout=40):
        wait_until(f"the end of {name}", lambda: self.state(name)["Status"] == "exited", timeout)
        return self.state(name)["ExitCode"]

    def stop(self, name, grace=30):
        """Its exit code and how long it took."""
        started = time.monotonic()
        podman(self.w, "stop", "--time", grace, self.container(name))
        return self.state(name)["ExitCode"], time.monotonic() - started


def check_hardened(pod):
    pid = pod.state("bearerd")["Pid"]
    with open(f"/proc/{pid}/status") as status:
        facts = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    expect(set(facts["Uid"].split()) == {"65532"}, f"user {facts['Uid']}")
    expect(int(facts["CapEff"], 16) == 0 and int(facts["CapPrm"], 16) == 0, f"capabilities {facts['CapPrm']}")
    expect(facts["NoNewPrivs"] == "1", "it could gain privileges")
    expect(facts["Seccomp"] == "2", "no seccomp filter")
    with open(f"/proc/{pid}/mountinfo") as mounts:
        root = next(line.split() for line in mounts if line.split()[4] == "/")
    expect("ro" in root[5].split(","), f"its root is {root[5]}")
    return int(re.match(r"\d+", facts["VmRSS"].strip())[0])


@case("a pod: the application calls through the sidecar, the secret is rotated, and it stops with 0")
def deployment(w):
    with Pod(w, "deployment", "bearerd-test-deployment", ["/bin/sleep", "600"]) as pod:
        pod.start_sidecar()
        podman(w, "start", pod.container("shop"))
        call = ["exec", pod.container("shop"), "/bin/sh", "-c", 'wget -q -O - "$PAYMENTS_URL/payments/"']
        answer = json.loads(podman(w, *call))
        expect(answer["payments"] == [42], f"the API answered {answer}")
        w.note(f"the application got {json.dumps(answer)}")
        memory = check_hardened(pod)
        w.note(f"user 65532, no capabilities, seccomp, read-only root; {memory / 1024:.1f} MiB resident")
        podman(w, "exec", pod.container("bearerd"), "/bearerd", "health", "ready")

        # The server learns the new secret, then the kubelet moves ..data.
        pod.good.write_text("first-secret\nsecond-secret\n")
        accepted = {"name": "bearerd_secret_reloads_total", "outcome": "accepted"}
        expect(metric(pod.metrics(), **accepted) == 0, "a rotation before the rotation")
        moved = time.monotonic()
        pod.secrets.write("second-secret")
        wait_until("the rotated secret is accepted", lambda: metric(pod.metrics(), **accepted) == 1, 5)
        w.note(f"the rotated secret was in use after {time.monotonic() - moved:.1f} s")
        pod.good.write_text("second-secret\n")
        expect(json.loads(podman(w, *call))["payments"] == [42], "no answer after the rotation")

        # The application first, then the sidecar.
        podman(w, "stop", "--time", 0, pod.container("shop"))
        code, seconds = pod.stop("bearerd")
        expect(code == 0, f"exit code {code}\n{pod.logs('bearerd')}")
        log = pod.logs("bearerd")
        for secret in ("first-secret", "second-secret"):
            expect(secret not in log, "a secret is in the log")
        w.note(f"SIGTERM: exit code {code} after {seconds:.1f} s")


@case("a stand-alone pod is called by the names that its Service has, and by no other")
def standalone(w):
    with Pod(w, "standalone", "bearerd-test-standalone", ["/bin/sleep", "600"]) as pod:
        pod.start_sidecar()
        podman(w, "start", pod.container("shop"))

        def call(host):
            script = f"wget -q -O - http://{host}:8080/payments/"
            return podman(w, "exec", pod.container("shop"), "/bin/sh", "-c", script, may_fail=True)

        for host in ("bearerd", "bearerd.default.svc", "bearerd.default.svc.cluster.local"):
            code, output = call(host)
            expect(code == 0 and '"payments": [42]' in output, f"{host}: {output}")
        code, output = call("shop.default.svc")
        expect(code != 0 and "403" in output, f"another name: {output}")
        podman(w, "stop", "--time", 0, pod.container("shop"))
        code, _ = pod.stop("bearerd")
        expect(code == 0, f"exit code {code}\n{pod.logs('bearerd')}")


@case("a Job: the application ends, then the sidecar with 0")
def job(w):
    with Pod(w, "job", "bearerd-test-job") as pod:
        pod.start_sidecar()
        podman(w, "start", pod.container("settlement"))
        code = pod.wait_exit("settlement")
        output = pod.logs("settlement").strip()
        expect(code == 0 and '"payments": [42]' in output, f"the application: exit code {code}, {output}")
        code, seconds = pod.stop("bearerd")
        expect(code == 0, f"exit code {code}\n{pod.logs('bearerd')}")
        w.note(f"application and sidecar ended with 0, the sidecar after {seconds:.1f} s")


@case("a Job before Kubernetes 1.29: the application asks the sidecar to quit, and it ends with 0")
def job_classic(w):
    if not w.has_quit:
        raise Skip("this bearerd has no `quit`")
    with Pod(w, "job-classic", "bearerd-test-job-classic") as pod:
        # All at once, and nobody ends the sidecar.
        for name in ("settlement", "bearerd"):
            podman(w, "start", pod.container(name))
        code = pod.wait_exit("settlement")
        output = pod.logs("settlement").strip()
        expect(code == 0 and '"payments": [42]' in output, f"the application: exit code {code}, {output}")
        code = pod.wait_exit("bearerd")
        expect(code == 0, f"exit code {code}\n{pod.logs('bearerd')}")
        w.note("both ended with 0, by themselves")
