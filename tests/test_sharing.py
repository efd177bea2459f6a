"""What clients ask of each other from the shell, against a running gateway."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.commands.outcome import Exit
from tests.inside import Client
from tests.running import gateway
from tests.test_cli import PASSWORD, ROOT, at, ctxt, environ, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.running import Gateway

REST = """
[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]
execute = ["rui"]
public = true
"""
OPEN = '{"status":"open"}'


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("sharing")
    with gateway(folder, rest=REST, clients=dict.fromkeys(("ana", "rui", "eva"), PASSWORD)) as made:
        yield made


def run(house: Gateway, who: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return ctxt(*arguments, env=at(house, f"{who}:{PASSWORD}"), text=text)


def done(house: Gateway, who: str, *arguments: str, text: str = "") -> Any:
    """What a command prints as JSON."""
    result = run(house, who, *arguments, "--json", text=text)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def chat(house: Gateway, name: str, *more: str) -> str:
    url = f"comm://home.local/ana/{name}"
    result = run(house, "ana", "create", url, "--value", OPEN, *more)
    assert (result.returncode, result.stdout) == (0, url + "\n"), result.stderr
    return url


def test_an_object_is_created_found_changed_and_listed_with_its_children(house: Gateway) -> None:
    url = chat(house, "made", "--name", "our chat", "--tag", "family", "--tag", "friends", "--resource", "chat")
    assert [each["url"] for each in done(house, "ana", "ls", "--tag", "family")] == [url]
    assert done(house, "ana", "discover", "--name", "our chat", "--reporter", "ana", "--resource", "chat")
    assert not done(house, "ana", "discover", "--resource", "file")
    made = done(house, "ana", "create", "--scheme", "comm", "--authority", "home.local", "--value", "-", text=OPEN)
    assert made["url"].startswith("comm://home.local/ana/")
    child = done(
        house, "ana", "create", "--parent", url, "--collection", "messages", "--value", '{"type":"chat","content":"hi"}'
    )
    assert [each["url"] for each in done(house, "ana", "children", url, "messages")] == [child["url"]]
    assert done(house, "ana", "children", url, "others") == []
    assert "messages/ana/" in run(house, "ana", "children", url).stdout
    version = done(house, "ana", "update", url, "--merge", '{"status":"paused"}', "--version", "1")["version"]
    assert run(house, "ana", "update", url, "--merge", OPEN, "--version", "1").returncode == Exit.INVALID
    assert done(house, "ana", "update", url, "--description", "ours", "--policy", "closed")["version"] == version + 1
    shown = done(house, "ana", "get", url)
    assert (shown["name"], shown["description"], shown["data"]["status"]) == ("our chat", "ours", "paused")
    assert run(house, "rui", "subscribe", url).returncode == Exit.NOT_ALLOWED


def test_who_asks_is_admitted_and_revoked(house: Gateway) -> None:
    url = chat(house, "asked")
    item = run(house, "rui", "subscribe", url).stdout.strip()
    assert item in run(house, "ana", "pending").stdout
    assert [each["id"] for each in done(house, "ana", "pending")] == [item]
    assert done(house, "ana", "accept", item, "--expires", "1h") == {"url": url, "client": "rui"}
    assert done(house, "rui", "get", url)["url"] == url
    assert done(house, "rui", "subscribe", url)["url"] == url
    assert done(house, "ana", "revoke", url, "rui") == {"url": url, "client": "rui", "observes": False}
    assert run(house, "rui", "get", url).returncode == Exit.NOT_ALLOWED
    assert run(house, "ana", "revoke", url, "rui").returncode == Exit.NOT_FOUND
    assert run(house, "ana", "accept", item).returncode == Exit.NOT_FOUND


def test_who_waits_for_the_decision_gets_it(house: Gateway) -> None:
    url = chat(house, "waited")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "subscribe", url, "--wait", "30"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ(**at(house, f"rui:{PASSWORD}")),
    )  # fmt: skip
    while not (items := done(house, "ana", "pending")):
        assert waiting.poll() is None
    assert run(house, "ana", "reject", items[0]["id"], "--description", "not now").returncode == 0
    _, error = waiting.communicate(timeout=30)
    assert waiting.returncode == Exit.NOT_ALLOWED
    assert "not now" in error
    result = run(house, "rui", "subscribe", url, "--wait", "0.3")
    assert result.returncode == Exit.NO_CONNECTION
    assert "408" in one_sentence(result)


def test_an_object_is_shared_and_handed_over(house: Gateway) -> None:
    url = chat(house, "shared", "--observer", "eva")
    assert [each["type"] for each in done(house, "eva", "pending")] == ["invitation"]
    assert done(house, "ana", "invite", url, "rui", "--expires", "7d")["invited"] == ["rui"]
    assert done(house, "rui", "unsubscribe", url)["observes"] is False
    item = done(house, "ana", "delegate", url, "eva")["request"]
    assert run(house, "ana", "delegate", url, "rui").returncode == Exit.INVALID
    assert done(house, "eva", "accept", item)["reporter"] == "eva"
    assert run(house, "ana", "update", url, "--merge", "{}").returncode != 0
    assert run(house, "eva", "update", url, "--merge", '{"status":"closed"}').returncode == 0


def test_the_reporter_acts_and_answers(house: Gateway) -> None:
    url = "ctxt://home.local/ana/lamp"
    assert run(house, "ana", "report", url, "on=false").returncode == 0
    ana = Client(house.port, "ana", login=("ana", PASSWORD))
    try:
        ana.subscribe("inbox/ana")

        def act(_client: Any, _data: Any, message: Any) -> None:
            action = json.loads(message.payload)
            if action["type"] == "action":
                level = action.get("params", {}).get("level")
                body = {"id": action["id"], "code": 200 if level else 503}
                body |= {"body": {"level": level}} if level else {"description": "how bright?"}
                ana.paho.publish("request/ana", json.dumps({"id": "r", "type": "response", "body": body}))

        ana.paho.on_message = act
        assert done(house, "rui", "execute", url, "dim", "--params", '{"level":40}', "--idempotent") == {"level": 40}
        failed = run(house, "rui", "execute", url, "dim")
        assert failed.returncode == Exit.FAILED
        assert "503 how bright?" in one_sentence(failed)
    finally:
        ana.close()
    silent = run(house, "rui", "execute", url, "dim", "--wait", "0.3")
    assert silent.returncode == Exit.NO_CONNECTION
    assert "504" in one_sentence(silent)
    assert run(house, "eva", "execute", url, "dim").returncode == Exit.NOT_ALLOWED


def test_a_kill_in_the_middle_of_a_delegation_leaves_one_owner(tmp_path: Path) -> None:
    dice = random.Random(6)
    names = ("ana", "rui")
    url = "comm://home.local/ana/chat"
    with gateway(tmp_path, rest=REST, clients=dict.fromkeys(names, PASSWORD)) as house:

        def people() -> dict[str, Client]:
            return {name: Client(house.port, name, login=(name, PASSWORD)) for name in names}

        clients = people()
        assert clients["ana"].request("create", {"resource": url, "value": json.loads(OPEN)})["code"] == 201
        owner, version, moved = "ana", 1, 0
        for turn in range(12):
            other = "rui" if owner == "ana" else "ana"
            body = {"resource": url, "to": other}
            offered = clients[owner].request("delegate", body, f"d{turn}")
            clients[other].subscribe(f"inbox/{other}")
            request = {"id": f"a{turn}", "type": "accept", "body": {"request": offered["body"]["request"]}}
            clients[other].paho.publish(f"request/{other}", json.dumps(request), qos=1)
            time.sleep(dice.choice([0, 0.001, 0.003, 0.01]))
            house.kill()
            answers = [each for each in clients[other].messages() if each.get("id") == f"a{turn}"]
            for client in clients.values():
                client.drop()
            house.start()
            clients = people()
            seen = {name: clients[name].request("resume", {}, f"s{turn}")["body"] for name in names}
            owners = [name for name in names if url in [each["url"] for each in seen[name]["objects"]]]
            assert len(owners) == 1
            snapshot = clients[owners[0]].request("read", {"resource": url}, f"r{turn}")["body"]
            assert snapshot["reporter"] == owners[0]
            assert snapshot["version"] == version + (owners[0] != owner)
            # What was answered holds; and an offer waits as long as it was not taken.
            assert owners == [other] or not answers
            assert bool(seen[other]["pending"]) == (owners == [owner])
            code = clients[owners[0]].request("update", {"resource": url, "meta": {"name": f"n{turn}"}}, f"u{turn}")
            assert code["code"] == 200
            moved += owners[0] != owner
            owner, version = owners[0], snapshot["version"] + 1
            for item in seen[other]["pending"]:
                assert clients[other].request("reject", {"request": item["id"]}, f"x{turn}")["code"] == 200
        for client in clients.values():
            client.close()
        assert moved


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("create", "ctxt://home.local/ana/x", "--parent", "ctxt://home.local/ana/y", "--collection", "z"),
        ("create", "--scheme", "ctxt"),
        ("create", "ctxt://home.local/ana/x", "--value", "{"),
        ("create", "ctxt://home.local/ana/x", "--expires", "1h"),
        ("update", "ctxt://home.local/ana/x"),
        ("update", "ctxt://home.local/ana/x", "--merge", "{}", "--name", "x"),
        ("invite", "ctxt://home.local/ana/x", "rui", "--expires", "soon"),
        ("accept", "x", "--expires", "2026-13-01T00:00:00Z"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    result = ctxt(*arguments, env={"CTXT_CONNECT": "mqtt://ana:x@127.0.0.1:1"})
    assert result.returncode == Exit.USAGE
    one_sentence(result)
