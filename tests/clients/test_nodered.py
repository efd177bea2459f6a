"""Node-RED with a flow that reports a value and copies each snapshot's data to topics of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.clients.conftest import FOLDER, PACKAGES
from tests.inside import PASSWORD, clients, inside

if TYPE_CHECKING:
    from pathlib import Path

    from tests.inside import Client

SETTINGS = '[timing]\noffline_grace = "100ms"\n[[topic]]\nfilter = "mirror/#"\nwrite = ["nodered"]\nread = ["dash"]\n'

NODE_RED = """
module.exports = {
  flowFile: "flows.json",
  credentialSecret: false,
  httpAdminRoot: false,
  httpNodeRoot: false,
  telemetry: { enabled: false, updateNotification: false },
  externalModules: { autoInstall: false, palette: { allowInstall: false }, modules: { allowInstall: false } },
  logging: { console: { level: "info", metrics: false, audit: false } },
};
"""
"""No page and so no port; nothing is asked of the network."""

pytestmark = pytest.mark.timeout(300)  # the first test installs the packages


def copied(dash: Client, topic: str, value: float) -> bool:
    return any(
        heard == topic and json.loads(payload)["values"]["temperature"]["value"] == value
        for heard, payload, *_ in dash.heard
    )


def test_a_flow_reports_and_observes(node: str, tmp_path: Path) -> None:
    folder = tmp_path / "node-red"
    folder.mkdir()
    shutil.copy(FOLDER / "flows.json", folder)
    (folder / "settings.js").write_text(NODE_RED)
    (folder / "flows_cred.json").write_text(json.dumps({"broker": {"user": "nodered", "password": PASSWORD}}))
    with (
        inside(tmp_path, SETTINGS, "nodered", "sensor", "dash") as gateway,
        clients(gateway.port, "sensor", "dash") as (sensor, dash),
    ):
        sensor.report("sensor/hall", {"values": {"temperature": {"value": 18}}})
        dash.subscribe("mirror/#", "delta/#")
        with (tmp_path / "node-red.log").open("wb") as log:
            flows = subprocess.Popen(
                [node, "--no-warnings", str(PACKAGES / "node-red" / "red.js"), "--userDir", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": str(gateway.port)},
            )
        try:
            # What was there before it came, and what it has reported itself.
            dash.wait(lambda: copied(dash, "mirror/ctxt/home.local/sensor/hall", 18), 60)
            dash.wait(lambda: copied(dash, "mirror/ctxt/home.local/nodered/kitchen", 21.5))
            sensor.report("sensor/hall", {"values": {"temperature": {"value": 19}}})
            dash.wait(lambda: copied(dash, "mirror/ctxt/home.local/sensor/hall", 19))
        finally:
            flows.kill()
            flows.wait()
            print((tmp_path / "node-red.log").read_text())  # read where the test fails
        dash.wait(lambda: any(m.get("status") == "disconnected" for m in dash.messages()))
        with clients(gateway.port, "dash") as (late,):
            late.subscribe("mirror/#")
            late.wait(lambda: copied(late, "mirror/ctxt/home.local/nodered/kitchen", 21.5))
            assert all(retained for *_, retained in late.heard)
