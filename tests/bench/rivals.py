"""What others do with the same messages on the same broker: a Node-RED flow from npm, thingsboard-gateway from PyPI.

Both are installed into a temporary folder for the run, and only when they are asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway.errors import CtxtError
from tests.bench.measure import reports
from tests.running import find

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE_RED = "node-red@4.1.8"
THINGSBOARD = "thingsboard-gateway==3.8.5"
PATIENCE = 180.0
"""Seconds that a rival has to be installed, and to answer its first message."""

FLOW = """
const about = msg.topic.split("/").slice(2).join("/");
const patch = JSON.parse(msg.payload);
const held = context.held = context.held || {};
const merge = (into, from) => {
  for (const key of Object.keys(from)) {
    const value = from[key];
    if (value === null) delete into[key];
    else if (typeof value === "object" && !Array.isArray(value)) {
      into[key] = merge(typeof into[key] === "object" && into[key] !== null ? into[key] : {}, value);
    } else into[key] = value;
  }
  return into;
};
const object = held[about] = held[about] || { version: 0, data: {} };
merge(object.data, patch);
object.version += 1;
return [
  { topic: "delta/" + about, payload: JSON.stringify({ epoch: 1, version: object.version, merge: patch }) },
  { topic: "snapshot/" + about, payload: JSON.stringify({ url: about, epoch: 1, version: object.version, data: object.data }) },
];
"""
"""Merge, delta, retained snapshot: no schema, no rights, no store."""

SETTINGS = """
module.exports = {
  flowFile: "flows.json", credentialSecret: false, httpAdminRoot: false, httpNodeRoot: false,
  telemetry: { enabled: false, updateNotification: false },
  logging: { console: { level: "warn", metrics: false, audit: false } },
};
"""


class RivalError(CtxtError):
    """A rival could not be installed or does not answer."""


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE * 2)
    if done.returncode:
        raise RivalError(
            f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stdout[-500:]}{done.stderr[-500:]}"
        )


def _flow(port: int, qos: int) -> list[dict[str, Any]]:
    broker = {
        "id": "broker",
        "type": "mqtt-broker",
        "broker": "127.0.0.1",
        "port": str(port),
        "clientid": "flow",
        "autoConnect": True,
        "usetls": False,
        "protocolVersion": "4",
        "keepalive": "60",
        "cleansession": True,
    }
    out = {"type": "mqtt out", "z": "tab", "broker": "broker", "topic": "", "qos": str(qos), "wires": []}
    return [
        {"id": "tab", "type": "tab", "label": "bench"},
        broker,
        {
            "id": "in",
            "type": "mqtt in",
            "z": "tab",
            "broker": "broker",
            "topic": "report/#",
            "qos": str(qos),
            "datatype": "utf8",
            "inputs": 0,
            "wires": [["merge"]],
        },
        {"id": "merge", "type": "function", "z": "tab", "outputs": 2, "func": FLOW, "wires": [["delta"], ["snapshot"]]},
        {"id": "delta", "retain": "false", **out},
        {"id": "snapshot", "retain": "true", **out},
    ]


@contextmanager
def node_red(port: int, qos: int) -> Iterator[int]:
    """A Node-RED that merges reports into deltas and retained snapshots: its process id. Raises RivalError."""
    node, npm = find("node", "nodejs"), find("npm", "npm")
    with tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name:
        folder = Path(name)
        _run([npm, "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", NODE_RED], folder)
        (folder / "flows.json").write_text(json.dumps(_flow(port, qos)))
        (folder / "settings.js").write_text(SETTINGS)
        process = subprocess.Popen(
            [node, "--no-warnings", "node_modules/node-red/red.js", "--userDir", name],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            answers(port, "delta/#", process)
            yield process.pid
        finally:
            process.kill()
            process.wait()


def answers(port: int, topic_filter: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a report is answered on a topic. Raises RivalError."""
    heard: list[bytes | bytearray] = []

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        if message.topic.startswith(SERVER):
            # What ThingsBoard itself says when it is asked for its limits: there are none.
            client.publish(message.topic.replace("request", "response"), LIMITS)
        else:
            heard.append(message.payload)

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.subscribe([(topic_filter, 0), (SERVER + "+", 0)])
    client.loop_start()
    deadline = time.monotonic() + PATIENCE
    try:
        for i in range(int(PATIENCE)):
            topic, payload = reports(1, 64, salt=60)[i % 64]
            client.publish(topic, payload)
            time.sleep(1)
            if heard:
                return
            if process.poll() is not None or time.monotonic() > deadline:
                break
        raise RivalError(f"a rival does not answer on {topic_filter}")
    finally:
        client.loop_stop()
        client.disconnect()


def _things(folder: Path, port: int) -> None:
    """Settings of thingsboard-gateway: it reads reports on the broker and sends telemetry to the same one."""
    (folder / "logs").mkdir()
    (folder / "tb_gateway.json").write_text(
        json.dumps(
            {
                "thingsboard": {
                    "host": "127.0.0.1",
                    "port": port,
                    "remoteShell": False,
                    "remoteConfiguration": False,
                    "statistics": {"enable": False},
                    "deviceFiltering": {"enable": False},
                    "minPackSendDelayMS": 0,
                    "qos": 1,
                    "security": {"type": "accessToken", "accessToken": "bench"},
                },
                "storage": {"type": "memory", "read_records_count": 1_000, "max_records_count": 1_000_000},
                "grpc": {"enabled": False},
                "connectors": [{"name": "bench", "type": "mqtt", "configuration": "mqtt.json"}],
            }
        )
    )
    (folder / "mqtt.json").write_text(
        json.dumps(
            {
                "broker": {
                    "host": "127.0.0.1",
                    "port": port,
                    "clientId": "things",
                    "version": 5,
                    "maxMessageNumberPerWorker": 1_000,
                    "maxNumberOfWorkers": 10,
                    "sendDataOnlyOnChange": False,
                    "security": {"type": "anonymous"},
                },
                "mapping": [
                    {
                        "topicFilter": "report/#",
                        "subscriptionQos": 1,
                        "converter": {
                            "type": "json",
                            "deviceInfo": {
                                "deviceNameExpressionSource": "topic",
                                "deviceNameExpression": r"report/(?:[^/]+/){4}([^/]+)/.*",
                                "deviceProfileExpressionSource": "constant",
                                "deviceProfileExpression": "bench",
                            },
                            "timeout": 60_000,
                            "attributes": [],
                            "timeseries": [
                                {"type": "double", "key": "temperature", "value": "${values.temperature.value}"}
                            ],
                        },
                    }
                ],
            }
        )
    )


@contextmanager
def thingsboard(port: int) -> Iterator[int]:
    """A thingsboard-gateway that converts reports into telemetry on `v1/gateway/telemetry`: its process id. Raises RivalError."""
    with tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name:
        folder = Path(name)
        _run([sys.executable, "-m", "venv", "venv"], folder)
        _run(["venv/bin/pip", "install", "-q", THINGSBOARD], folder)
        settings = folder / "config"
        settings.mkdir()
        _things(settings, port)
        (settings / "logs.json").write_text(json.dumps(LOGS))
        process = subprocess.Popen(
            [str(folder / "venv/bin/python"), "-c", RUN, str(settings / "tb_gateway.json")],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=(folder / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            answers(port, "v1/gateway/telemetry", process)
            yield process.pid
        except RivalError as error:
            raise RivalError(f"{error}:\n{(folder / 'out').read_text()[-1500:]}") from error
        finally:
            process.kill()
            process.wait()


SERVER = "v1/devices/me/rpc/request/"
_NONE = {"messages": "0:0,", "telemetryMessages": "0:0,", "telemetryDataPoints": "0:0,"}
LIMITS = json.dumps(
    {"maxPayloadSize": 65_536, "maxInflightMessages": 1_000, "rateLimits": _NONE, "gatewayRateLimits": _NONE}
)

LOGS = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
    "root": {"level": "WARNING", "handlers": ["console"]},
}

RUN = """
import sys
from thingsboard_gateway.gateway.tb_gateway_service import TBGatewayService
TBGatewayService(sys.argv[1])
"""


def converted(port: int, seconds: float, window: int) -> float:
    """Readings a second that thingsboard-gateway passes on: it puts many into one message, so they are counted one by one."""
    count = 0

    def heard(_client: Any, _data: Any, message: Any) -> None:
        nonlocal count
        count += message.payload.count(b'"temperature"')

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = heard
    client.max_inflight_messages_set(window)
    client.connect("127.0.0.1", port)
    client.subscribe("v1/gateway/telemetry", 1)
    client.loop_start()
    time.sleep(1)
    stream = reports(100)
    start, sent, began = count, 0, time.monotonic()
    try:
        while time.monotonic() - began < seconds:
            if sent - (count - start) < window:
                client.publish(*stream[sent % len(stream)], qos=1)
                sent += 1
            else:
                time.sleep(0.0005)
        return (count - start) / (time.monotonic() - began)
    finally:
        client.loop_stop()
        client.disconnect()
