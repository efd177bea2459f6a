"""The JavaScript client at a real gateway with the broker inside: in Node.js, and in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.conftest import CLIENT, FOLDER
from tests.running import HOST, ROOT, Gateway, free_port, gateway, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "correct horse"
SCENES = ["one", "many", "children", "actions", "reports", "connections", "unnamed"]
PATIENCE = 40.0
SETTINGS = """
[[namespace]]
match = "ctxt://home.local/{client}/**"
schema = "Context"
report = ["*"]
observe = ["*"]
execute = ["*"]

[[namespace]]
match = "ctxt://open.local/{client}/**"
schema = "Context"
report = ["*"]
observe = ["anonymous"]

[[namespace]]
match = "ctxt://closed.local/{client}/**"
report = ["sensor"]
observe = []

[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]
observe = ["*"]

[limits]
reports_per_second = 1_000_000
report_burst = 1_000_000
creations_per_minute = 1_000_000
"""

pytestmark = pytest.mark.timeout(300)  # the first test installs the packages


class House:
    """A gateway that web pages reach; `env` is what the scenes want to know of it."""

    def __init__(self, running: Gateway, named: int, anonymous: int) -> None:
        self.gateway = running
        self.env = {
            "url": f"ws://{HOST}:{named}/mqtt",
            "open": f"ws://{HOST}:{anonymous}/mqtt",
            "plain": f"mqtt://{HOST}:{running.port}",
            "nobody": f"ws://{HOST}:{free_port()}/mqtt",
            "password": PASSWORD,
        }

    def told(self, what: str) -> None:
        """Do what a scene asks for."""
        if what == "kill":
            self.gateway.kill()
        elif what == "start":
            self.gateway.start()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    named, anonymous = free_port(), free_port()
    listeners = (
        f'[[listener]]\nurl = "ws://{HOST}:{named}"\n[[listener]]\nurl = "ws://{HOST}:{anonymous}"\nanonymous = true\n'
    )
    clients = dict.fromkeys(("sensor", "dash", "mallory"), PASSWORD) | dict.fromkeys(("panel", "room-sensor"), "secret")
    with gateway(tmp_path_factory.mktemp("house"), rest=listeners + SETTINGS, clients=clients) as running:
        yield House(running, named, anonymous)


def play(node: str, project: Path, house: House, scene: str) -> None:
    """One scene in a process of Node.js, which has to end by itself."""
    command = [node, "--no-warnings", "run.mjs", scene, json.dumps({**house.env, "place": "node"})]
    with subprocess.Popen(
        command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        said = []
        for line in process.stdout:
            said.append(line.strip())
            house.told(said[-1])
            if said[-1] != "passed":
                process.stdin.write("done\n")
                process.stdin.flush()
        complaint = process.stderr.read()
        code = process.wait()
        alarm.cancel()
    assert not complaint, complaint
    assert (code, said[-1:]) == (0, ["passed"])


@pytest.mark.parametrize("scene", [*SCENES, "heal", "flood", "reconnect"])
def test_a_scene_in_node(node: str, project: Path, house: House, scene: str) -> None:
    play(node, project, house, scene)


# ---- what the docs show ------------------------------------------------------------------------------------------------


def as_it_stands(language: str, house: House) -> str:
    """The one example of docs/client-js.md in a language, but for the gateway's URL."""
    text = (ROOT / "docs" / "client-js.md").read_text()
    (example,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert "ws://home.local:9001/mqtt" in example
    return str(example).replace("ws://home.local:9001/mqtt", house.env["url"])


def test_the_program_in_the_docs(node: str, project: Path, house: House) -> None:
    done = subprocess.run(
        [node, "--input-type=module", "--eval", as_it_stands("js", house)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("created ctxt://home.local/room-sensor/temperature 21.5\n", "")


# ---- in a browser ------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<script type="importmap">
{"imports": {"mqtt": "/mqtt.esm.js", "ctxt-client": "/node_modules/ctxt-client/client.js"}}
</script>
<script type="module">
const post = (path, body) => fetch(path, {method: "POST", body: JSON.stringify(body)});
addEventListener("error", (event) => post("/result", {error: String(event.message)}));
addEventListener("unhandledrejection", (event) => post("/result", {error: String(event.reason?.stack)}));
const {names, env} = await (await fetch("/task")).json();
env.say = (text) => post("/say", text);
const {scenes} = await import("/scenes.mjs");
const result = {};
// The page of the docs, with what it shows.
const {connect} = await import("ctxt-client");
const sensor = await connect(env.url, {username: "room-sensor", password: "secret"});
await sensor.report("ctxt://home.local/room-sensor/temperature", {values: {temperature: {value: 21.5, unit: "Cel"}}});
await sensor.close();
const example = document.body.appendChild(Object.assign(document.createElement("iframe"), {src: "/example/"}));
for (const name of names)
  try {
    await scenes[name](env);
    result[name] = "passed";
  } catch (error) {
    result[name] = error.stack;
  }
const shown = () => example.contentDocument.body.textContent.includes("21.5 °C, live");
for (let i = 0; i < 100 && !shown(); i++) await new Promise((resolve) => setTimeout(resolve, 50));
result.example = shown() ? "passed" : example.contentDocument.body.textContent;
await post("/result", result);
</script>
"""


class Pages(ThreadingHTTPServer):
    """Serves the page, the scenes, the client and mqtt.js's build for browsers; keeps what the page posts."""

    daemon_threads = True

    def __init__(self, project: Path, house: House, names: list[str]) -> None:
        super().__init__((HOST, 0), partial(_Handler, directory=str(project)))
        self.house = house
        self.task = json.dumps({"names": names, "env": {**house.env, "place": "browser"}}).encode()
        self.result: dict[str, str] = {}
        self.done = threading.Event()


class _Handler(SimpleHTTPRequestHandler):
    server: Pages
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012  # as it is there

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        """Nothing: the test tells what went wrong."""

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(PAGE.encode(), "text/html")
        elif self.path == "/task":
            self._answer(self.server.task, "application/json")
        elif self.path == "/example/":
            self._answer(as_it_stands("html", self.server.house).encode(), "text/html; charset=utf-8")
        elif self.path == "/example/client.js":
            self._answer((CLIENT / "client.js").read_bytes(), "text/javascript")
        elif self.path in ("/mqtt.esm.js", "/example/mqtt.esm.js"):
            self._answer((FOLDER / "node_modules" / "mqtt" / "dist" / "mqtt.esm.js").read_bytes(), "text/javascript")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/say":
            self.server.house.told(body)
        else:
            self.server.result.update(body)
            self.server.done.set()
        self._answer(b"{}", "application/json")


def test_the_scenes_in_a_browser(node: str, project: Path, house: House, tmp_path: Path) -> None:
    chromium = need("chromium", "chromium")
    names = [*SCENES, "reconnect"]
    with Pages(project, house, names) as pages:
        server = threading.Thread(target=pages.serve_forever, args=(0.05,))
        server.start()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"]
        flags += ["--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--mute-audio"]
        with (tmp_path / "chromium.log").open("wb") as log:
            process = subprocess.Popen(
                [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"http://{HOST}:{pages.server_port}/"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                pages.done.wait(PATIENCE)
            finally:
                os.killpg(process.pid, 9)
                process.wait()
                pages.shutdown()
                server.join()
        console = [
            line for line in (tmp_path / "chromium.log").read_text(errors="replace").splitlines() if "CONSOLE" in line
        ]
        assert pages.result == dict.fromkeys([*names, "example"], "passed"), "\n".join(console)
