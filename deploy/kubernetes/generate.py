#!/usr/bin/env python3
"""Writes what follows from `container.yaml` and `../monitoring/rules`; with --check only says what is out of date.

Needs PyYAML (Debian: python3-yaml).
"""

import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
RULES = HERE.parent / "monitoring" / "rules" / "bearerd.rules.yaml"
CONTAINER = HERE / "container.yaml"

LABEL = {"bearerd/sidecar": "enabled"}
# What a target of a patch must have. The label is on the workload; the patch puts it on the pods.
TEMPLATES = {"pod-template": "Deployment|StatefulSet|DaemonSet|ReplicaSet|Job", "cronjob": "CronJob"}


class Dumper(yaml.SafeDumper):
    """YAML as a person writes it: no aliases, modes in octal."""

    def ignore_aliases(self, data):
        return True


class Octal(int):
    pass


Dumper.add_representer(Octal, lambda dumper, mode: dumper.represent_scalar("tag:yaml.org,2002:int", f"0{mode:o}"))


def with_octal_modes(data):
    if isinstance(data, dict):
        return {key: Octal(value) if key == "defaultMode" else with_octal_modes(value) for key, value in data.items()}
    return [with_octal_modes(item) for item in data] if isinstance(data, list) else data


def document(data, source):
    text = yaml.dump(with_octal_modes(data), Dumper=Dumper, sort_keys=False, width=120)
    return f"# Made by generate.py from {source.name}; change it there.\n{text}"


# --- patches of kustomize ------------------------------------------------------------------------------------


def patch(template, pod):
    """A strategic merge patch of the pod template of a workload. Its name and kind do not matter; the target's do."""
    if template == "cronjob":
        spec = {"jobTemplate": {"spec": {"template": pod}}}
        return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "any"}, "spec": spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": {"template": pod}}


def component(patches):
    label = ",".join(f"{key}={value}" for key, value in LABEL.items())
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": [
            {"path": f"{name}.yaml", "target": {"kind": TEMPLATES[name], "labelSelector": label}} for name in patches
        ],
    }


def component_files(folder, pod, source):
    files = {f"{folder}/{name}.yaml": document(patch(name, pod), source) for name in TEMPLATES}
    files[f"{folder}/kustomization.yaml"] = document(component(TEMPLATES), source)
    return files


# --- the policy ------------------------------------------------------------------------------------------------

# These are maps in the API, not structures.
MAPS = {"requests", "limits"}


def cel(value, kind, indent):
    """`value` as a CEL expression; `kind` is its place in the object, from which CEL takes its type."""
    inner = indent + "  "
    if isinstance(value, dict) and kind.rsplit(".", 1)[1] in MAPS:
        return "{" + ", ".join(f"{json.dumps(key)}: {cel(item, kind, inner)}" for key, item in value.items()) + "}"
    if isinstance(value, dict):
        fields = [f"{inner}{key}: {cel(item, f'{kind}.{key}', inner)}" for key, item in value.items()]
        return kind + "{\n" + ",\n".join(fields) + f"\n{indent}}}"
    if isinstance(value, list):
        return "[" + ", ".join(cel(item, kind, indent) for item in value) + "]"
    if isinstance(value, Expression):
        return str(value)
    return json.dumps(value)


class Expression(str):
    """CEL, not text."""


def added(path, value, kind):
    """CEL of a patch operation that adds `value` at `path`."""
    return f'JSONPatch{{op: "add", path: "{path}", value: {cel(value, kind, "  ")}}}'


def mutation(container, volumes):
    container = {**container, "image": Expression("params.data.image"), "restartPolicy": "Always"}
    # First, so that other init containers can use it.
    operations = [added("/spec/initContainers/0", container, "Object.spec.initContainers")]
    operations += [added("/spec/volumes/-", volume, "Object.spec.volumes") for volume in volumes]
    lists = [
        f'(has(object.spec.{name}) ? [] : [JSONPatch{{op: "add", path: "/spec/{name}", value: []}}])'
        for name in ("initContainers", "volumes")
    ]
    return " +\n".join([*lists, "[\n  " + ",\n  ".join(operations) + "\n]"]) + "\n"


class Block(str):
    """Text that is written line by line."""


Dumper.add_representer(Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def policy(container, volumes):
    absent = [
        f'!has(object.spec.{name}) || !object.spec.{name}.exists(c, c.name == "bearerd")'
        for name in ("initContainers", "containers")
    ]
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "bearerd-sidecar"},
        "spec": {
            # The settings of the policy: which image.
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "objectSelector": {"matchLabels": LABEL},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
                ],
            },
            "matchConditions": [
                {"name": f"no-bearerd-in-{name}", "expression": expression}
                for name, expression in zip(("init-containers", "containers"), absent)
            ],
            # A pod that asks for its sidecar does not start without it.
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [
                {"patchType": "JSONPatch", "jsonPatch": {"expression": Block(mutation(container, volumes))}}
            ],
        },
    }


# --- the rules -------------------------------------------------------------------------------------------------


def prometheus_rule():
    """The rules as they stand, comments too, under the head that prometheus-operator wants."""
    head = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bearerd", "labels": {"app.kubernetes.io/name": "bearerd"}},
    }
    rules = "".join(f"  {line}\n" if line else "\n" for line in RULES.read_text().splitlines())
    return document(head, RULES) + "spec:\n" + rules


def files():
    source = yaml.safe_load(CONTAINER.read_text())
    container, volumes = source["container"], source["volumes"]
    native = {"initContainers": [{**container, "restartPolicy": "Always"}], "volumes": volumes}
    classic = {"containers": [container], "volumes": volumes}
    secrets = next(volume for volume in volumes if "projected" in volume)
    projected = {**secrets["projected"], "sources": source["identity_sources"]}
    identity = {"volumes": [{**secrets, "projected": projected}]}
    made = {}
    for folder, spec in (("sidecar", native), ("classic-sidecar", classic)):
        made |= component_files(folder, {"metadata": {"labels": LABEL}, "spec": spec}, CONTAINER)
    made |= component_files("addons/workload-identity", {"spec": identity}, CONTAINER)
    made["injection/policy.yaml"] = document(policy(container, volumes), CONTAINER)
    made["addons/prometheus-rule/prometheusrule.yaml"] = prometheus_rule()
    return {HERE / name: text for name, text in made.items()}


def main():
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" not in sys.argv[1:]:
            path.write_text(files()[path])
        print(path.relative_to(HERE))
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
