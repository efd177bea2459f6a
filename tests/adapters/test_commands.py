"""`ctxt adapter`: as a process, without a gateway, beside one, and beside a mosquitto that knows nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gateway import dialects
from gateway.commands.outcome import Exit
from tests.adapters.sockets import DEVICE, adapter, house
from tests.adapters.trial import CAPTURES
from tests.inside import PASSWORD, Client
from tests.running import HOST, mosquitto, need
from tests.test_cli import ROOT, ctxt, environ, one_sentence

if TYPE_CHECKING:
    from pathlib import Path

SENSOR = '{"Time":"2026-07-15T17:37:10","ENERGY":{"Power":12,"Voltage":231}}'
VALUES = {
    "power": {"value": 12, "unit": "W", "time": "2026-07-15T17:37:10.000Z"},
    "voltage": {"value": 231, "unit": "V", "time": "2026-07-15T17:37:10.000Z"},
}


def tried(*arguments: str, code: int = 0, text: str = "") -> dict[str, Any]:
    result = ctxt("adapter", "try", *arguments, "--json", text=text)
    assert result.returncode == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_dialects_are_listed_and_shown() -> None:
    listed = json.loads(ctxt("adapter", "ls", "--json").stdout)
    assert [one["type"] for one in listed] == dialects.names()
    assert all(one["problem"] is None and one["summary"] and one["home"].startswith("https://") for one in listed)
    for name in dialects.BUILTIN:
        spec = dialects.find(name)
        shown = json.loads(ctxt("adapter", "show", name, "--json").stdout)
        assert shown["methods"] == dict(spec.methods)
        assert set(shown["options"].get("properties", {})) == set(spec.options.model_fields)
        text = ctxt("adapter", "show", name).stdout
        assert all(each in text for each in (*spec.options.model_fields, *spec.methods, spec.example))
    assert "did you mean tasmota?" in one_sentence(ctxt("adapter", "show", "tasmotta"))
    assert ctxt("adapter", "show", "nothing").returncode == Exit.NOT_FOUND


def test_what_the_settings_name_is_in_the_list(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[adapter]]\ntype = "tasmota"\nname = "plugs"\n')
    listed = json.loads(ctxt("adapter", "ls", "--json", "--config", str(file)).stdout)
    assert {one["type"]: one["in_use"] for one in listed if one["in_use"]} == {"tasmota": ["plugs"]}


def test_a_message_is_tried_without_a_broker() -> None:
    found = tried("tasmota", "-t", "tele/plug/SENSOR", "-m", SENSOR)
    assert found["results"] == ["read"]
    (one,) = found["objects"]
    assert (one["url"], one["schema"], one["status"]) == ("ctxt://home.local/tasmota/plug", "Context", "live")
    assert one["data"]["values"] == VALUES
    assert tried("tasmota", "-t", "tele/plug/SENSOR", "--payload-file", "-", text=SENSOR) == found
    people = ctxt("adapter", "try", "tasmota", "-t", "tele/plug/SENSOR", "-m", SENSOR).stdout
    assert "ctxt://home.local/tasmota/plug" in people
    assert "power" in people


def test_a_message_that_cannot_be_read_says_why() -> None:
    found = tried("tasmota", "-t", "tele/plug/SENSOR", "-m", '{"ENER', code=Exit.INVALID)
    assert (found["results"], found["objects"]) == (["unreadable"], [])
    result = ctxt("adapter", "try", "tasmota", "-t", "tele/plug/SENSOR", "-m", '{"ENER')
    assert "not JSON" in one_sentence(result)
    other = ctxt("adapter", "try", "tasmota", "-t", "x/plug/SENSOR", "-m", "{}")
    assert other.returncode == Exit.NOT_FOUND
    assert "tele/+/#" in one_sentence(other)


@pytest.mark.parametrize(
    "arguments",
    [(), ("-t", "tele/a/LWT"), ("-m", "x"), ("-t", "tele/a/LWT", "-m", "x", "--payload-file", "-")],
)
def test_what_is_tried_has_to_be_said(arguments: tuple[str, ...]) -> None:
    assert ctxt("adapter", "try", "tasmota", *arguments).returncode == Exit.USAGE


def test_captures_can_be_tried(tmp_path: Path) -> None:
    path = CAPTURES / "tasmota" / "sonoff-pow-r2.json"
    wanted = json.loads(path.read_text())["objects"]
    found = tried("tasmota", "--capture", str(path))
    assert {one["url"].removeprefix("ctxt://home.local/tasmota/"): one["data"] for one in found["objects"]} == wanted
    broken = tmp_path / "broken.json"
    for text in ("[]", '{"messages":[{}]}', '{"messages":[{"topic":"a","hex":"x"}]}', "{"):
        broken.write_text(text)
        result = ctxt("adapter", "try", "tasmota", "--capture", str(broken))
        assert result.returncode == Exit.INVALID
        assert "is no capture" in one_sentence(result)
    assert ctxt("adapter", "try", "tasmota", "--capture", str(tmp_path / "none")).returncode == Exit.IO


def test_settings_with_adapters_that_cannot_serve_are_told(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    for text, words in (
        ('type = "tasmotta"', "did you mean tasmota"),
        ('type = "tasmota"\n[adapter.options]\ntime_zon = "UTC"', "did you mean time_zone"),
        ('type = "tasmota"\n[[adapter]]\ntype = "tasmota"\nname = "b"', "both listen to"),
        (
            'type = "tasmota"\n[adapter.options]\nfull_topic = "report/%prefix%/%topic%"',
            "overlaps the gateway's own topics",
        ),
    ):
        file.write_text(f'state_dir = "{tmp_path}/state"\n[[adapter]]\n{text}\n')
        for arguments in (("config", "check"), ("run",)):
            result = ctxt(*arguments, "--config", str(file))
            assert result.returncode == Exit.CONFIG, (arguments, text)
            assert words in result.stderr, result.stderr
    assert (
        json.loads(ctxt("config", "check", "--json", "--config", str(file)).stdout)["problems"][0]["place"] == "adapter"
    )


def process(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "adapter", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ(PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1", **env),
    )


def test_what_devices_say_is_recorded_and_becomes_the_same_objects_again(tmp_path: Path) -> None:
    file = tmp_path / "plug.json"
    with house(tmp_path, "inside", adapter("tasmota", 'time_zone = "UTC"') + READS, "reader") as home:
        url = f"mqtt://reader@{HOST}:{home.port}"
        running = process(
            *("record", str(file), "--adapter", "tasmota", "--most", "2", "--for", "60", "--connect", url),
            CTXT_PASSWORD=PASSWORD,
            CTXT_CONFIG=str(home.gateway.path),
        )
        plug = home.client()
        plug.publish("tele/plug/LWT", b"Online", retain=True)
        while running.poll() is None:
            # Until it has subscribed, which nobody tells.
            plug.publish("tele/plug/SENSOR", json.loads(SENSOR))
            running_wait(running)
        assert running.returncode == 0, running.communicate()
        running.communicate()
        refused = ctxt(
            *("adapter", "record", str(tmp_path / "b.json"), "--filter", "cmnd/#", "--for", "5"),
            env={"CTXT_CONNECT": f"mqtt://ana@{HOST}:{home.port}", "CTXT_PASSWORD": PASSWORD},
        )
        assert refused.returncode == Exit.NOT_ALLOWED
        assert "cmnd/#" in one_sentence(refused)
    written = json.loads(file.read_text())
    assert [(one["topic"], one.get("retain")) for one in written["messages"]] == [
        ("tele/plug/LWT", True),
        ("tele/plug/SENSOR", None),
    ]
    assert written["objects"]["plug"]["values"] == VALUES
    again = tried("tasmota", "--capture", str(file))
    assert again["objects"][0]["data"] == written["objects"]["plug"]
    assert ctxt("adapter", "record", str(file)).returncode == Exit.FAILED


READS = """
[[topic]]
filter = "tele/#"
read = ["reader"]
[[topic]]
filter = "stat/#"
read = ["reader"]
"""


def running_wait(running: subprocess.Popen[str]) -> None:
    """A moment for a process."""
    try:
        running.wait(0.1)
    except subprocess.TimeoutExpired:
        return


def test_the_broker_inside_tells_who_is_not_heard(tmp_path: Path) -> None:
    with house(
        tmp_path, "inside", adapter("tasmota") + '[[topic]]\nfilter = "other/#"\nwrite = ["*"]\n', "eve"
    ) as home:
        running = process("watch", "--json", "--for", "6", CTXT_CONFIG=str(home.gateway.path))
        plug, eve = home.client(), home.client("eve")
        while running.poll() is None:
            plug.publish("tele/plug/SENSOR", json.loads(SENSOR))
            plug.publish("other/thing", b"21.5")
            eve.publish("tele/plug/SENSOR", {"mine": 1})
            eve.publish("report/ana/ctxt/home.local/x", {"not": "a device"})
            running_wait(running)
        said, problem = running.communicate()
        assert running.returncode == 0, problem
    lines = {line["topic"]: line for line in map(json.loads, said.splitlines())}
    assert lines == {
        "other/thing": {
            "topic": "other/thing",
            "guess": "template",
            "sample": "21.5",
            "client": DEVICE,
            "refused": False,
        },
        "tele/plug/SENSOR": {
            "topic": "tele/plug/SENSOR",
            "guess": "tasmota",
            "sample": '{"mine": 1}',
            "client": "eve",
            "refused": True,
        },
    }


def test_a_broker_outside_is_watched_by_a_client(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path) as broker:
        running = process("watch", "--json", "--for", "4", "--connect", f"mqtt://{HOST}:{broker.port}")
        plug = Client(broker.port, None)
        try:
            while running.poll() is None:
                plug.publish("tele/plug/SENSOR", json.loads(SENSOR))
                plug.publish("stranger", b"\xff")
                plug.publish("snapshot/ctxt/home.local/x", {"not": "a device"})
                running_wait(running)
        finally:
            plug.close()
        said, problem = running.communicate()
        assert running.returncode == 0, problem
    assert {(line["topic"], line["guess"]) for line in map(json.loads, said.splitlines())} == {
        ("tele/plug/SENSOR", "tasmota"),
        ("stranger", "template"),
    }
