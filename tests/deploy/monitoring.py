"""Rules, dashboard and scrape configuration, held against a bearerd that runs and a Prometheus that scrapes it."""

import contextlib
import json
import re
import urllib.parse

import yaml

from harness import (
    DEPLOY,
    HERE,
    ROOT,
    Process,
    answers,
    case,
    clean_environment,
    expect,
    fetch,
    free_port,
    run,
    series,
    wait_until,
)

MONITORING = DEPLOY / "monitoring"
RULES = MONITORING / "rules" / "bearerd.rules.yaml"
DASHBOARD = MONITORING / "dashboard" / "bearerd.json"

# Labels whose values are all there from the start.
ENUMERATED = {"action", "outcome", "reason", "result", "trigger"}
# Prometheus makes these itself.
OWN = {"ALERTS"}


def rules():
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_expressions():
    """With its variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    fill = {"$__rate_interval": "1m", "$namespace": ".*", "$job": ".*", "$pod": ".*"}
    for expression in found:
        for variable, value in fill.items():
            expression = expression.replace(variable, value)
        yield expression


def variables():
    """(metric, label) of each label_values()."""
    dashboard = json.loads(DASHBOARD.read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"]).groups()


def metric_names(expression):
    """What stands before braces, brackets or operators, and is no function, keyword or label."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    plain = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", plain)
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", plain)
    names = re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()", plain)
    return {name for name in names if name not in {"and", "or", "unless", "bool", "by", "without"}}


def matchers(expression):
    """(metric, label, value) of each matcher that names values."""
    for metric, inside in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, operator, text in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', inside):
            for value in text.split("|") if "~" in operator else [text]:
                if not re.search(r"[.*$\[]", value):
                    yield metric, label, value


class Live:
    """A bearerd under way, with some requests behind it, and what its /metrics holds."""

    def __init__(self, w, stack):
        self.port, self.admin = free_port(), free_port()
        auth, api = free_port(), free_port()
        secret, good = w.state / "live_secret", w.state / "live_good_secrets"
        secret.write_text("live-secret\n")
        good.write_text("live-secret\n")
        stack.enter_context(Process([w.python, HERE / "fakes.py", auth, api, good], w.state / "live-fakes.log"))
        settings = clean_environment(
            BEARERD_LISTEN=f"127.0.0.1:{self.port}",
            BEARERD_ADMIN_LISTEN=f"127.0.0.1:{self.admin}",
            BEARERD_UPSTREAM_URL=f"http://127.0.0.1:{api}",
            BEARERD_TOKEN_URL=f"http://127.0.0.1:{auth}/o/token/",
            BEARERD_CLIENT_ID="shop-backend",
            BEARERD_CLIENT_SECRET_FILE=secret,
        )
        self.process = stack.enter_context(Process([w.binary], w.state / "live.log", settings))
        answers(self.process, self.admin, "/readyz")
        # One of each: an answer of the API, and one of bearerd's own.
        wait_until("an answer of the API", lambda: fetch(self.port, "/payments/").status == 200, 10)
        expect(fetch(self.port, "/payments/\\..").status != 500, "an odd path is a 500")

    def page(self):
        return answers(self.process, self.admin, "/metrics")


@contextlib.contextmanager
def live(w):
    with contextlib.ExitStack() as stack:
        yield Live(w, stack)


@case("the rules are sound, and each alert was seen firing and not firing")
def rule_tests(w):
    run("promtool", "check", "rules", RULES)
    tests_file = RULES.with_name("bearerd.rules.test.yaml")
    run("promtool", "test", "rules", tests_file.name, cwd=tests_file.parent)
    fires, silent = set(), set()
    for test in yaml.safe_load(tests_file.read_text())["tests"]:
        for expected in test["alert_rule_test"]:
            (fires if expected.get("exp_alerts") else silent).add(expected["alertname"])
    names = [rule["alert"] for rule in rules()]
    expect(len(set(names)) == len(names), "an alert stands there twice")
    expect(set(names) == fires == silent, f"without a test: {set(names) ^ (fires & silent)}")
    w.note(f"{len(names)} alerts")


@case("the runbook has a section for each alert, and for no other")
def runbook(w):
    sections = re.findall(r"^## (Bearerd\w+)$", (MONITORING / "RUNBOOK.md").read_text(), re.MULTILINE)
    expect(sorted(sections) == sorted(rule["alert"] for rule in rules()), "sections and alerts differ")
    for rule in rules():
        url = rule["annotations"]["runbook_url"]
        expect(url == f"RUNBOOK.md#{rule['alert'].lower()}", f"{rule['alert']} leads to {url}")
    anchors = {section.lower() for section in sections}
    links = re.findall(r"\]\(#([^)]*)\)", (MONITORING / "RUNBOOK.md").read_text())
    expect(set(links) <= anchors, f"dead links {set(links) - anchors}")


@case("each metric and label that rules and dashboard name is in a live /metrics, which promtool finds clean")
def names(w):
    with live(w) as sidecar:
        page = sidecar.page()
    found = series(page)
    present = {name for name, _, _ in found}
    labels = {(name, label, value) for name, with_labels, _ in found for label, value in with_labels.items()}
    label_names = {(name, label) for name, label, _ in labels}
    expressions = [rule["expr"] for rule in rules()] + list(dashboard_expressions())
    used = set().union(*map(metric_names, expressions)) | {metric for metric, _ in variables()}
    expect(used - OWN <= present, f"not in /metrics: {sorted(used - OWN - present)}")
    checked = 0
    for expression in expressions:
        for metric, label, value in matchers(expression):
            if metric in OWN or label in {"namespace", "job", "pod"}:
                continue
            expect((metric, label) in label_names, f"{metric} has no label {label}")
            if label in ENUMERATED:
                expect((metric, label, value) in labels, f"{metric} has no {label} {value}")
                checked += 1
    # And the other way round: what is measured is shown.
    families = set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
    shown = {re.sub("_(bucket|count|sum)$", "", name) for name in used} | used
    hidden = {name for name in families - shown if name.startswith("bearerd_")}
    w.note(f"{len(used)} metrics and {checked} label values are named; neither alert nor panel has {sorted(hidden)}")
    run("promtool", "check", "metrics", input=page)
    w.note(f"{len(found)} series, promtool check metrics finds nothing")


@case("README.md lists the metrics that there are, with the values of their labels")
def readme_table(w):
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (`(?:bearerd|http)_\w+`.*?) \| ?(.*?) ?\|$", text, re.MULTILINE)
    listed = {name: labels for names, labels in rows for name in re.findall(r"`(\w+)`", names)}
    with live(w) as sidecar:
        page = sidecar.page()
    there = {name for name in re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE) if not name.startswith("process_")}
    expect(set(listed) == there, f"listed or there, not both: {sorted(set(listed) ^ there)}")
    for name, labels in listed.items():
        for label, values in re.findall(r"`(\w+)`: ([a-z0-9_, ]+)(?=;|$)", labels):
            found = {with_labels[label] for n, with_labels, _ in series(page) if n == name}
            expect(set(values.split(", ")) == found, f"{name} has for {label}: {sorted(found)}")
    w.note(f"{len(listed)} metrics")


def scrape_configuration(w, sidecar):
    """The example, with targets of this machine. What Kubernetes would tell of pods is told by hand, so that the
    relabelling is tried: a native sidecar, a port of the application, and a pod that is done."""
    config = yaml.safe_load((MONITORING / "scrape-config.example.yaml").read_text())
    pods, hosts = config["scrape_configs"]
    expect(pods.pop("kubernetes_sd_configs") == [{"role": "pod"}], "the example looks for something else than pods")
    meta = {
        "__meta_kubernetes_pod_container_init": "true",
        "__meta_kubernetes_pod_container_port_name": "bearerd-metrics",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_namespace": "shop",
        "__meta_kubernetes_pod_name": "shop-1",
    }
    others = [
        {"__meta_kubernetes_pod_container_port_name": "metrics", "__meta_kubernetes_pod_name": "port-of-another"},
        {"__meta_kubernetes_pod_phase": "Succeeded", "__meta_kubernetes_pod_name": "done"},
    ]
    target = f"127.0.0.1:{sidecar.admin}"
    pods["static_configs"] = [{"targets": [target], "labels": {**meta, **other}} for other in ({}, *others)]
    hosts["static_configs"] = [{"targets": [target]}]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES.parent / name) for name in config["rule_files"]]
    file = w.state / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


@case("Prometheus scrapes a bearerd with the example's configuration, and answers every query of rules and dashboard")
def prometheus(w):
    with live(w) as sidecar, contextlib.ExitStack() as stack:
        config = scrape_configuration(w, sidecar)
        run("promtool", "check", "config", config)
        port = free_port()
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={w.state / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        server = stack.enter_context(Process(command, w.state / "prometheus.log"))
        answers(server, port, "/-/ready", 60)

        def query(expression):
            page = fetch(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
            document = json.loads(page.body)
            expect(document["status"] == "success", f"{expression}: {document.get('error')}")
            return document["data"]["result"]

        def scraped():
            for _ in range(3):
                fetch(sidecar.port, "/payments/")
            return len(query("bearerd_ready == 1")) == 2 and query(
                'sum(rate(http_server_request_duration_seconds_count{http_response_status_code="200"}[1m])) > 0'
            )

        rate = wait_until("two targets, and a rate of requests", scraped, 30)
        ready = {(r["metric"]["job"], r["metric"].get("namespace"), r["metric"].get("pod")) for r in query("bearerd_ready")}
        expect(ready == {("bearerd-pods", "shop", "shop-1"), ("bearerd-hosts", None, None)}, f"scraped: {ready}")
        w.note(f"scraped {len(ready)} targets: {float(rate[0]['value'][1]):.2f} requests a second")
        without_data = []
        for panel in panels():
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in (("$__rate_interval", "1m"), ("$namespace", ".*"), ("$job", ".*"), ("$pod", ".*")):
                    expression = expression.replace(variable, value)
                if not query(expression):
                    without_data.append(panel["title"])
        w.note(f"{len(panels())} panels; nothing to show, as nothing went wrong: {', '.join(sorted(set(without_data)))}")

        def evaluated():
            groups = json.loads(fetch(port, "/api/v1/rules").body)["data"]["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            return found if all(rule["health"] == "ok" for rule in found) else None

        found = wait_until("all rules are evaluated", evaluated, 20)
        expect(len(found) == len(list(rules())), f"{len(found)} rules are loaded")
        loud = [rule["name"] for rule in found if rule["state"] != "inactive"]
        expect(not loud, f"of a healthy bearerd, these fire: {loud}")
        w.note(f"{len(found)} rules evaluated, none fires")


@case("the dashboard is one that Grafana can read")
def dashboard(w):
    document = json.loads(DASHBOARD.read_text())
    for key in ("uid", "title", "schemaVersion", "templating", "time", "panels"):
        expect(key in document, f"no {key}")
    ids = [panel["id"] for panel in document["panels"]]
    expect(len(ids) == len(set(ids)), "two panels have the same id")
    cells = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        expect(max(x for x, _ in own) < 24, f"{panel['title']} leaves the page")
        expect(not own & cells, f"{panel['title']} covers another panel")
        cells |= own
    for panel in panels():
        for target in panel["targets"]:
            expect(target["datasource"]["uid"] == "$datasource", f"{panel['title']} has a data source of its own")
            if "{" in target["expr"]:
                expect("$namespace" in target["expr"], f"{panel['title']} does not follow the variables")
