"""What Kubernetes would be given: rendered, held against the schemas, and its configuration read by bearerd."""

import json
import re
import sys

import yaml

from harness import DEPLOY, Skip, case, clean_environment, expect, run

KUBERNETES = DEPLOY / "kubernetes"

# The version in which sidecars are on without being asked for, the oldest with a schema, the first with policies, the newest.
NATIVE, OLDEST, POLICIES, NEWEST = "1.29", "1.25", "1.36", "1.37"


def kustomizations():
    """The folders that can be rendered by themselves; components cannot."""
    for file in sorted(DEPLOY.rglob("kustomization.yaml")):
        if yaml.safe_load(file.read_text())["kind"] == "Kustomization":
            yield file.parent


def render(folder):
    return [d for d in yaml.safe_load_all(run("kubectl", "kustomize", folder)) if d]


def pod_of(workload):
    """The pod template of a workload; None for everything else."""
    spec = workload.get("spec", {})
    return spec.get("jobTemplate", {}).get("spec", spec).get("template")


def variant(w, name, example, *replacements):
    """A copy of an example with some of its text replaced."""
    there = w.state / name
    there.mkdir(exist_ok=True)
    for file in (KUBERNETES / "examples" / example).iterdir():
        text = file.read_text()
        for old, new in replacements:
            text = text.replace(old, new)
        text = text.replace("../../", "../deploy/kubernetes/")
        (there / file.name).write_text(text.replace("../settings", "../deploy/kubernetes/examples/settings"))
    link = w.state / "deploy"
    if not link.exists():
        link.symlink_to(DEPLOY)
    return there


def classic(w):
    """Examples with their native sidecars replaced by classic ones."""
    other = ("../../sidecar", "../../classic-sidecar")
    return [variant(w, f"classic-{example}", example, other) for example in ("deployment", "cronjob")]


def config_maps(documents):
    return {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}


@case("what is generated is up to date")
def generated(w):
    run(sys.executable, KUBERNETES / "generate.py", "--check")


def check_workload(documents, workload, pod):
    where = f"{workload['kind']} {workload['metadata']['name']}"
    spec = pod["spec"]
    containers = spec.get("initContainers", []) + spec["containers"]
    ours = [c for c in containers if c["name"] == "bearerd"]
    expect(len(ours) == 1, f"{where}: {len(ours)} containers bearerd")
    for container in containers:
        expect("/" in container["image"], f"{where}: image {container['image']} was not replaced")
    expect(pod["metadata"]["labels"].get("bearerd/sidecar") == "enabled", f"{where}: the pods lack the label")
    if "initContainers" in spec:
        expect(containers[0] == ours[0], f"{where}: bearerd is not the first")
        expect(ours[0].get("restartPolicy") == "Always", f"{where}: it would never end")
    secret = {c["name"] for c in containers for m in c.get("volumeMounts", []) if m["name"] == "bearerd-secrets"}
    expect(secret == {"bearerd"}, f"{where}: {secret} see the secret")
    used = next(v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "bearerd-config")
    expect(used in config_maps(documents), f"{where}: no ConfigMap {used}")
    expect(re.search("-[a-z0-9]{10}$", used), f"{where}: a change of {used} would not roll out")


@case("every kustomization renders, and what asks for a sidecar has one")
def renders(w):
    folders = [*kustomizations(), *classic(w)]
    kinds = ("StatefulSet", "DaemonSet", "ReplicaSet")
    folders += [variant(w, kind, "deployment", ("kind: Deployment", f"kind: {kind}")) for kind in kinds]
    for folder in folders:
        documents = render(folder)
        expect(documents, f"{folder} renders to nothing")
        for workload in documents:
            pod = pod_of(workload)
            if pod:
                check_workload(documents, workload, pod)
    w.note(f"{len(folders)} kustomizations")


@case("what is rendered satisfies the schemas of Kubernetes")
def schemas(w):
    try:
        import kubernetes_validate
    except ImportError:
        raise Skip("kubernetes-validate is missing") from None
    checked = 0
    for folder in [*kustomizations(), *classic(w)]:
        documents = render(folder)
        oldest = NATIVE if any("initContainers" in (pod_of(d) or {}).get("spec", {}) for d in documents) else OLDEST
        for document in documents:
            if document["apiVersion"].startswith("monitoring.coreos.com/"):
                continue
            first = POLICIES if document["kind"].startswith("Mutating") else oldest
            for version in (first, NEWEST):
                where = f"{document['kind']} {document['metadata']['name']}"
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except (kubernetes_validate.ValidationError, kubernetes_validate.utils.SchemaNotFoundError) as error:
                    expect(False, f"{folder}, {where}, Kubernetes {version}: {error}")
                checked += 1
    w.note(f"{checked} objects, by the schemas of {OLDEST} to {NEWEST}, unknown fields refused")
    # Before there were sidecars, a schema would have said so.
    native = next(d for d in render(KUBERNETES / "examples" / "job") if d["kind"] == "Job")
    try:
        kubernetes_validate.validate(native, "1.27", strict=True)
    except kubernetes_validate.ValidationError:
        return
    expect(False, "the schema of 1.27 accepts a native sidecar, so nothing was checked")


# The fields of prometheus-operator's objects that stand here; it has more.
OPERATOR = {
    "PodMonitor": {
        "selector": {"matchLabels": {"*": str}},
        "podMetricsEndpoints": [{"port": str, "path": str, "interval": str}],
    },
    "PrometheusRule": {
        "groups": [
            {
                "name": str,
                "rules": [
                    {
                        "alert": str,
                        "expr": str,
                        "for": str,
                        "labels": {"*": str},
                        "annotations": {"*": str},
                    }
                ],
            }
        ]
    },
}


def check_shape(value, shape, where):
    if isinstance(shape, type):
        expect(isinstance(value, shape), f"{where}: {value!r}")
    elif isinstance(shape, list):
        expect(isinstance(value, list) and value, f"{where}: not a list")
        for item in value:
            check_shape(item, shape[0], where)
    else:
        for key, item in value.items():
            known = shape.get(key, shape.get("*"))
            expect(known is not None, f"{where}.{key}: unknown field")
            check_shape(item, known, f"{where}.{key}")


@case("the objects for prometheus-operator have its fields")
def operator(w):
    seen = set()
    for document in render(KUBERNETES / "examples" / "full"):
        if document["kind"] in OPERATOR:
            check_shape(document["spec"], OPERATOR[document["kind"]], document["kind"])
            seen.add(document["kind"])
    expect(seen == set(OPERATOR), f"only {seen}")
    monitor = yaml.safe_load((KUBERNETES / "addons" / "pod-monitor" / "pod-monitor.yaml").read_text())["spec"]
    deployment = next(d for d in render(KUBERNETES / "examples" / "full") if d["kind"] == "Deployment")
    pod = pod_of(deployment)
    expect(monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), "it selects no sidecar")
    ports = [port["name"] for c in pod["spec"]["initContainers"] for port in c["ports"]]
    expect(monitor["podMetricsEndpoints"][0]["port"] in ports, "it names no port of the sidecar")


@case("the expressions of the admission policy are CEL")
def policy(w):
    try:
        import celpy
    except ImportError:
        raise Skip("cel-python is missing") from None
    documents = {d["kind"]: d for d in render(KUBERNETES / "injection")}
    spec = documents["MutatingAdmissionPolicy"]["spec"]
    expressions = [condition["expression"] for condition in spec["matchConditions"]]
    expressions += [mutation["jsonPatch"]["expression"] for mutation in spec["mutations"]]
    for expression in expressions:
        try:
            celpy.Environment().compile(expression)
        except celpy.CELParseError as error:
            expect(False, f"{error}\n{expression}")
    binding = documents["MutatingAdmissionPolicyBinding"]["spec"]
    settings = documents["ConfigMap"]["metadata"]
    expect(binding["policyName"] == documents["MutatingAdmissionPolicy"]["metadata"]["name"], "binds another policy")
    expect(
        (binding["paramRef"]["name"], binding["paramRef"]["namespace"]) == (settings["name"], settings["namespace"]),
        "the settings are not those that the binding names",
    )


def evaluated(expression, pod):
    """An expression of the policy for a pod. CEL's types of Kubernetes are written as maps, for they are not known here."""
    import celpy

    plain = re.sub(r"\b(?:Object[\w.]*|JSONPatch)\{", "{", expression)
    plain = re.sub(r"([{,]\s*)(\w+):", r'\1"\2":', plain)
    environment = celpy.Environment()
    known = {"object": pod, "params": {"data": {"image": "registry.example/bearerd:0.1.0"}}}
    result = environment.program(environment.compile(plain)).evaluate(
        {name: celpy.json_to_cel(value) for name, value in known.items()}
    )
    return plain_data(result)


def plain_data(value):
    """Of CEL's own types."""
    from celpy import celtypes

    if isinstance(value, celtypes.BoolType):
        return bool(value)
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_data(item) for item in value]
    return str(value) if isinstance(value, str) else int(value)


def patched(pod, operations):
    """RFC 6902, of which only `add` is used."""
    pod = json.loads(json.dumps(pod))
    for operation in operations:
        expect(operation["op"] == "add", f"operation {operation['op']}")
        *way, last = operation["path"].strip("/").split("/")
        there = pod
        for step in way:
            there = there[step]
        if isinstance(there, dict):
            there[last] = operation["value"]
        else:
            there.insert(len(there) if last == "-" else int(last), operation["value"])
    return pod


@case("the admission policy makes of a pod what the component makes of it")
def mutation(w):
    try:
        import celpy  # noqa: F401
        import kubernetes_validate
    except ImportError:
        raise Skip("cel-python or kubernetes-validate is missing") from None
    spec = next(d for d in render(KUBERNETES / "injection") if d["kind"] == "MutatingAdmissionPolicy")["spec"]
    shop = {"name": "shop", "image": "registry.example/shop:1.0.0"}
    pods = [
        ({"containers": [shop]}, True),
        ({"containers": [shop], "initContainers": [{**shop, "name": "migrate"}]}, True),
        ({"containers": [shop], "volumes": [{"name": "tmp"}]}, True),
        ({"containers": [shop], "initContainers": [{**shop, "name": "bearerd"}]}, False),
        ({"containers": [{**shop, "name": "bearerd"}]}, False),
    ]
    deployment = next(d for d in render(KUBERNETES / "examples" / "deployment") if d["kind"] == "Deployment")
    wanted = pod_of(deployment)["spec"]
    for volume in wanted["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = "bearerd"
    for pod_spec, is_injected in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop"}, "spec": pod_spec}
        matches = all(evaluated(condition["expression"], pod) for condition in spec["matchConditions"])
        expect(matches == is_injected, f"{pod_spec}: injected is {matches}")
        if not matches:
            continue
        for step in spec["mutations"]:
            pod = patched(pod, evaluated(step["jsonPatch"]["expression"], pod))
        kubernetes_validate.validate(pod, NEWEST, strict=True)
        ours, *others = pod["spec"]["initContainers"]
        expect(ours == wanted["initContainers"][0], f"another container: {ours}")
        expect(others == pod_spec.get("initContainers", []), f"others are changed: {others}")
        volumes = pod_spec.get("volumes", []) + wanted["volumes"]
        expect(pod["spec"]["volumes"] == volumes, f"other volumes: {pod['spec']['volumes']}")


@case("bearerd accepts the configuration of each example")
def configurations(w):
    for name, content in (("client_secret", "s3cret"), ("client_assertion", "e30.e30.c2lnbmVk")):
        (w.state / name).write_text(content + "\n")
    seen = 0
    for file in sorted(DEPLOY.rglob("bearerd.toml")):
        text = re.sub(r'"/run/[^"]*/(client_\w+)"', rf'"{w.state}/\1"', file.read_text())
        if "quit = true" in text and not w.has_quit:
            w.note(f"{file.relative_to(DEPLOY)}: not read, this bearerd cannot be asked to quit")
            continue
        config = w.state / "example.toml"
        config.write_text(text)
        code, output = run(w.binary, "check", "--config", config, env=clean_environment(), may_fail=True)
        expect(code == 0, f"{file.relative_to(DEPLOY)}: {output}")
        seen += 1
    expect(seen, "no configuration was found")
    w.note(f"{seen} configurations")
