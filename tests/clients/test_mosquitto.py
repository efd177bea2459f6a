"""mosquitto's programs, in what needs more than one packet: a session that is kept, and a request with its answer."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.inside import PASSWORD, inside
from tests.running import need

if TYPE_CHECKING:
    from pathlib import Path

OBJECT = "ctxt/home.local/sensor/room"
READING = '{{"values":{{"temperature":{{"value":{}}}}}}}'


def run(program: str, port: int, name: str, version: str, *arguments: str) -> str:
    """Run one of its programs to its end: what it writes."""
    done = subprocess.run(
        [
            need(program, "mosquitto-clients"),
            *("-h", "127.0.0.1", "-p", str(port), "-u", name, "-P", PASSWORD, "-V", version, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_sub_gets_what_came_while_it_was_away(tmp_path: Path, version: str) -> None:
    kept = ["-c", "-i", "panel", "-q", "1", "-t", "delta/#"] + (["-x", "600"] if version == "5" else [])
    with inside(tmp_path) as gateway:
        run("mosquitto_sub", gateway.port, "dash", version, *kept, "-E")
        for qos in "012":
            report = ("-t", "report/sensor/" + OBJECT, "-q", qos, "-m", READING.format(qos))
            run("mosquitto_pub", gateway.port, "sensor", version, *report)
        heard = run("mosquitto_sub", gateway.port, "dash", version, *kept, "-C", "3", "-W", "10")
        assert [json.loads(line)["version"] for line in heard.splitlines()] == [1, 2, 3]


def test_mosquitto_rr_asks_and_is_answered(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        report = ("-t", "report/sensor/" + OBJECT, "-q", "1", "-m", READING.format(21))
        run("mosquitto_pub", gateway.port, "sensor", "5", *report)
        question = {"id": "1", "type": "read", "body": {"resource": "ctxt://home.local/sensor/room"}}
        topics = ("-t", "request/dash", "-e", "inbox/dash/rr", "-q", "1", "-W", "10")
        answer = json.loads(run("mosquitto_rr", gateway.port, "dash", "5", *topics, "-m", json.dumps(question)))
        assert (answer["id"], answer["type"], answer["code"]) == ("1", "response", 200)
        assert answer["body"]["data"] == json.loads(READING.format(21))
