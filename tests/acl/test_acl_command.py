"""`ctxt acl test` beside real brokers: what it says of those that go by the rights, and of one that does not."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from gateway.commands import attacks
from gateway.commands.outcome import CommandError, Exit
from gateway.credentials import Credentials
from tests.acl.attacks import SETTINGS
from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.inside import inside
from tests.running import OWN_NAMESPACE, gateway, mosquitto

if TYPE_CHECKING:
    from pathlib import Path

    from tests.inside import Inside


def verdicts(
    given: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *only: str
) -> dict[str, dict[str, Any]]:
    """What the command says of each attack."""
    monkeypatch.setenv("CTXT_BROKER__URL", url)
    capsys.readouterr()
    with suppress(CommandError):
        attacks.test(given, only, json=True)
    found = json.loads(capsys.readouterr().out)
    return {each["attack"]: each for each in found}


def nothing_is_left(gateway: Inside) -> None:
    known = Credentials(gateway.state / "clients.db")
    assert not [client for client in known.names() if client.name.startswith(attacks.NAME)]
    known.close()
    assert gateway.call(lambda service: all(obj.deleted for obj in service.engine.objects))


def test_the_broker_inside_withstands_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(tmp_path, SETTINGS) as running:
        url = f"embedded://127.0.0.1:{running.port}"
        found = verdicts(running.path, url, monkeypatch, capsys)
        assert {each["verdict"] for each in found.values()} == {"withstood"}, found
        assert list(found) == list(attacks.ATTACKS)
        nothing_is_left(running)
        # People are shown the same, and can ask for some.
        attacks.test(running.path, ("live after revocation", "no name"), json=False)
        shown = capsys.readouterr()
        assert "revoked in" in shown.out
        assert "2 of 2 attacks withstood" in shown.err


@pytest.mark.parametrize("names_are_ids", [True, False])
def test_mosquitto_withstands_all_but_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names_are_ids: bool
) -> None:
    with beside_mosquitto(tmp_path, SETTINGS, names_are_ids=names_are_ids) as (running, broker):
        found = verdicts(running.path, f"mqtt://127.0.0.1:{broker.port}", monkeypatch, capsys)
        other = {name: each["verdict"] for name, each in found.items() if each["verdict"] != "withstood"}
        if names_are_ids:
            assert other == {"shared subscription": "not tried", "anothers session": "not tried"}
        else:
            assert other == {"shared subscription": "known", "anothers session": "got through"}
        nothing_is_left(running)


def test_a_broker_that_asks_nobody_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateway(tmp_path, rest=OWN_NAMESPACE, module="tests.bench.unjudged") as running:
        found = verdicts(running.config, f"embedded://127.0.0.1:{running.port}", monkeypatch, capsys)
        with pytest.raises(CommandError, match="1 of 1 attacks got through: forged") as stopped:
            attacks.test(running.config, ("forged",), json=False)
        assert stopped.value.code == Exit.FAILED
        through = {name for name, each in found.items() if each["verdict"] == "got through"}
        assert {"forged", "wide filters", "retained", "live after revocation", "will"} <= through
        assert {"no name", "wrong password", "reserved names"}.isdisjoint(through)


def test_what_it_cannot_do_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with inside(tmp_path, SETTINGS) as running:
        monkeypatch.setenv("CTXT_BROKER__URL", f"embedded://127.0.0.1:{running.port}")
        with pytest.raises(CommandError, match="there is no attack 'x'"):
            attacks.test(running.path, ("x",), json=False)
        # Clients of a run that was killed are removed by the next one.
        known = Credentials(running.state / "clients.db")
        known.add(f"{attacks.NAME}reporter-0", "a password")
        known.close()
        running.admin("probe", client=f"{attacks.NAME}reporter-0")
        attacks.test(running.path, ("no name",), json=True)
        nothing_is_left(running)
    with pytest.raises(CommandError) as stopped:
        attacks.test(running.path, (), json=False)
    assert stopped.value.code == Exit.NO_CONNECTION
    with mosquitto(tmp_path) as broker:
        monkeypatch.setenv("CTXT_BROKER__URL", f"mqtt://127.0.0.1:{broker.port}")
        with pytest.raises(CommandError, match="names no plugin"):
            attacks.test(running.path, (), json=False)
