"""The status page of a running `bearerd demo` in a headless Chromium: it is drawn, its countdown moves, it survives the
end of bearerd, and it asks nobody but its own port. Usage: page.py BEARERD FOLDER

WebDriver (W3C) over HTTP, with nothing but the standard library. Screenshots of it in light, in dark and at 380 px are
left in FOLDER to be looked at.
"""

import base64
import contextlib
import http.client
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE = 60


class Failure(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failure(message)


def eventually(what, probe):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.1)
    raise Failure(f"{what}: not within {PATIENCE} s")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def running(command, **options):
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Browser:
    """One session of chromedriver."""

    def __init__(self, port, profile):
        self.port = port
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--hide-scrollbars", "--window-size=1120,900",
        ]
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        self.session = ""
        answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"/session/{answer['sessionId']}"

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = json.dumps(body) if body is not None else None
        connection.request(method, self.session + path, body, {"Content-Type": "application/json"})
        value = json.loads(connection.getresponse().read())["value"]
        if isinstance(value, dict) and "error" in value:
            raise Failure(f"chromedriver: {value['error']}: {value['message'].splitlines()[0]}")
        return value

    def go(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script):
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def run_async(self, script):
        return self.call("POST", "/execute/async", {"script": script, "args": []})

    def text(self):
        return self.run("return document.body.innerText")

    def devtools(self, command, **params):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def logs(self, kind):
        return self.call("POST", "/se/log", {"type": kind})

    def screenshot(self, file, width, dark=False):
        scheme = "dark" if dark else "light"
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=2, mobile=False)
        # Drawn anew at this width.
        self.run("dispatchEvent(new Event('resize'))")
        time.sleep(0.5)
        wide = self.run("return document.documentElement.scrollWidth")
        expect(wide <= width, f"at {width} px the page is {wide} px wide")
        image = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        file.write_bytes(base64.b64decode(image["data"]))
        print(f"    {file}")


def requested(browser):
    """Every URL that the page has asked for, by the browser's own account."""
    urls = []
    for entry in browser.logs("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return urls


def bar(browser):
    return browser.run("return document.querySelector('.bar').getAttribute('aria-valuetext')")


def check(browser, origin, folder):
    browser.go(origin + "/")
    eventually("the page is drawn", lambda: "ready" in browser.run("return document.title"))
    for part in ("Tokens", "default", "to the renewal", "to its end", "scope read write admin", "at start"):
        eventually(part, lambda part=part: part in browser.text())
    print("ok  it is drawn")

    widths = "return document.querySelector('.bar i').getBoundingClientRect().width"
    before, width = bar(browser), browser.run(widths)
    expect(re.fullmatch(r"\d+ s left", before), f"the bar says {before!r}")
    eventually("the countdown moves", lambda: bar(browser) != before and browser.run(widths) != width)
    print(f"ok  the countdown moves: {before}, {bar(browser)}")

    curve = "return document.querySelectorAll('.chart path.line')[0].getAttribute('d').length"
    eventually("a curve of two samples", lambda: browser.run(curve) > 15)
    expect(browser.run("return document.querySelectorAll('.chart svg').length") == 4, "there are four charts")
    print("ok  curves are drawn")

    eventually("a renewal", lambda: "as planned" in browser.text())
    print("ok  a renewal shows without a reload of the page")

    folder.mkdir(parents=True, exist_ok=True)
    browser.screenshot(folder / "light.png", 1120)
    browser.screenshot(folder / "dark.png", 1120, dark=True)
    browser.screenshot(folder / "phone-light.png", 380)
    browser.screenshot(folder / "phone-dark.png", 380, dark=True)

    urls = requested(browser)
    own = [url for url in urls if url.startswith(origin + "/")]
    others = [url for url in urls if url not in own and not url.startswith("data:")]
    expect(len(own) > 5, f"the log of the browser has its requests: {urls}")
    expect({url[len(origin):] for url in own} <= {"/", "/status"}, f"only / and /status: {set(own)}")
    # The browser's own first page is none of ours.
    others = [url for url in others if not url.startswith(("chrome:", "about:"))]
    expect(not others, f"requests to others: {others}")
    complaints = [entry["message"] for entry in browser.logs("browser")]
    expect(not complaints, f"the console says: {complaints}")
    print(f"ok  {len(own)} requests, all to {origin}, and the console is empty")

    # What a script that got in could do: ask elsewhere, run, or dress up.
    elsewhere = free_port()
    fetched = browser.run_async(
        f"const done = arguments[0]; fetch('http://127.0.0.1:{elsewhere}/', {{mode: 'no-cors'}})"
        ".then(() => done('sent'), (error) => done(String(error)))"
    )
    expect("Failed to fetch" in fetched, f"a fetch from elsewhere: {fetched}")
    ran = browser.run(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">');"
        "return Boolean(window.ran)"
    )
    expect(not ran, "an inline script runs")
    complaints = " ".join(entry["message"] for entry in browser.logs("browser"))
    expect("Content Security Policy" in complaints, f"the policy is what stopped it: {complaints}")
    print("ok  the policy stops other scripts and requests to others")


def main():
    bearerd, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    with (
        tempfile.TemporaryDirectory() as profile,
        running([bearerd, "demo", "--expires-in", "20s", "--fail-after", "300s"], stdout=subprocess.PIPE, text=True) as demo,
        running(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, env={**environment, "HOME": profile}),
    ):
        for line in demo.stdout:
            found = re.search(r"http://([\d.]+:\d+)/metrics", line)
            if found:
                break
        else:
            raise Failure("the demo does not say where the admin port is")

        def is_up():
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), 1).close() is None

        eventually("chromedriver", is_up)
        browser = Browser(port, f"{profile}/profile")
        try:
            check(browser, f"http://{found[1]}", folder)
            demo.terminate()
            demo.communicate()
            eventually("the end shows", lambda: "No answer from bearerd for" in browser.text())
            print("ok  it says so when bearerd is gone")
        finally:
            browser.call("DELETE", "")


try:
    main()
except Failure as failure:
    print(f"FAILED: {failure}", file=sys.stderr)
    sys.exit(1)
