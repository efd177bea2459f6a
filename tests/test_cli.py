"""The command line: real commands as processes, against a real gateway where one is needed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from gateway import cli
from gateway.client.scopes import Scope
from gateway.client.target import Target
from gateway.commands.changes import changed, described
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.scopes import report_of
from gateway.commands.terminal import age, printable
from gateway.patch import merge
from gateway.ulid import ulid
from tests.running import HOST, OWN_NAMESPACE, Gateway, free_port, gateway, mosquitto, need

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DOCS = (ROOT / "docs/cli.md").read_text()
URL = "ctxt://home.local/sensor/climate"

NAMESPACES = """
[[namespace]]
match = "ctxt://home.local/open/**"
report = ["sensor"]
observe = ["*", "anonymous"]

[[namespace]]
match = "ctxt://home.local/private/**"
report = ["sensor"]
observe = ["sensor"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]

[limits]
report_burst = 60
reports_per_second = 1
"""
# The bucket of reports is small so that one test can empty it: as the client `hasty`, who disturbs nobody.


def environ(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("CTXT_", "XDG_", "STATE_"))}
    return {**clean, "NO_COLOR": "1", "COLUMNS": "100", **more}


def ctxt(
    *arguments: str, text: str = "", cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        input=text, capture_output=True, text=True, timeout=60, check=False, cwd=cwd,
        env=environ(PYTHONPATH=str(ROOT), **(env or {})),
    )  # fmt: skip


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error, which is an error's sentence."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


# ---- without a gateway -------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Each command's name as it is typed, and its declaration."""
    root: Any = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {below}", each) for below, each in command.commands.items())
        else:
            yield name, command


def test_every_command_and_every_option_is_in_the_reference() -> None:
    for name, command in commands():
        head, _, verb = name.partition(" ")
        section = DOCS.partition(f"\n## ctxt {head}\n")[2].partition("\n## ")[0]
        assert section, f"docs/cli.md has no section for ctxt {head}"
        assert f"ctxt {name}" in section
        assert not verb or verb in section
        for parameter in command.params:
            for option in (each for each in parameter.opts if each.startswith("--") and each != "--help"):
                shared = option in ("--connect", "--timeout")
                assert option in (DOCS if shared else section), f"{option} of ctxt {name} is not in docs/cli.md"


def test_every_exit_code_is_in_the_reference() -> None:
    table = DOCS.partition("## Exit codes")[2].partition("\n## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(Exit)


def test_every_command_has_help_with_an_example() -> None:
    for name, command in commands():
        assert command.help
        examples = command.help.partition("For example:")[2]
        assert f"ctxt {name}" in examples, f"the help of ctxt {name} has no example of it"


def test_the_examples_of_the_help_are_valid_usage() -> None:
    root: Any = typer.main.get_command(cli.app)
    for name, command in commands():
        for line in command.help.partition("For example:")[2].splitlines():
            words = re.match(r"\s*ctxt (.*?)(?: \|.*| <.*)?$", line)
            if words is None or "$" in line:
                continue
            arguments = [each.strip("'") for each in re.findall(r"'[^']*'|\S+", words[1])][len(name.split()) :]
            command.make_context(name, arguments, parent=root.make_context("ctxt", [name], resilient_parsing=True))


def test_help_answers_as_a_process() -> None:
    result = ctxt("report", "--help")
    assert result.returncode == 0
    assert "--merge" in result.stdout
    assert not result.stderr


def test_the_version_is_the_packages() -> None:
    import gateway as package

    result = ctxt("--version")
    assert (result.returncode, result.stdout) == (0, f"ctxt-gateway {package.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("ls", "--bogus"),
        ("get",),
        ("report", URL),
        ("report", URL, "temperature"),
        ("report", URL, "temperature=1", "--merge", "{}"),
        ("report", URL, "--merge", "[]"),
        ("report", URL, "--merge", "{"),
        ("report", URL, "--patch", "{}"),
        ("ls", "--connect", "http://home.local"),
        ("ls", "--connect", "mqtt://home.local:99999"),
        ("ls", "--connect", "mqtt://ana@home.local"),
        ("ls", "--status", "asleep"),
        ("demo", "--port", "70000"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = ctxt(*arguments)
    assert result.returncode == Exit.USAGE
    assert "rror" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("url", ["home", "ctxt://home.local", "ctxt://home.local/a//b", "ctxt://home.local/a?b"])
def test_a_url_that_is_none_exits_with_6(url: str) -> None:
    result = ctxt("get", url)
    assert result.returncode == Exit.INVALID
    assert "is no object URL" in one_sentence(result)


def test_nobody_there_exits_with_5_and_says_what_to_do() -> None:
    result = ctxt("ls", "--connect", f"mqtt://{HOST}:{free_port()}")
    assert result.returncode == Exit.NO_CONNECTION
    assert "is the gateway running? start it with `ctxt run`" in one_sentence(result)


def test_a_server_that_never_answers_exits_with_5() -> None:
    with socket.create_server((HOST, 0)) as silent:
        result = ctxt("ls", "--timeout", "0.3", "--connect", f"mqtt://{HOST}:{silent.getsockname()[1]}")
    assert result.returncode == Exit.NO_CONNECTION
    assert "timed out" in one_sentence(result)


def test_no_error_tells_the_password() -> None:
    for url in ("mqtts://ana:s3cret@x", "mqtt://ana:s3cret@x:1:2", f"mqtt://ana:s3cret@{HOST}:{free_port()}"):
        result = ctxt("ls", "--connect", url)
        assert result.returncode != 0
        assert "s3cret" not in result.stderr + result.stdout


# ---- clients -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"CTXT_STATE_DIR": str(tmp_path / "state")}


def test_a_made_password_is_alone_on_standard_output(home: dict[str, str]) -> None:
    result = ctxt("client", "add", "ana", env=home)
    assert result.returncode == 0
    assert re.fullmatch(r"[A-Za-z0-9]{20}\n", result.stdout)
    assert result.stdout.strip() not in result.stderr


def test_a_password_from_standard_input_is_not_shown(home: dict[str, str]) -> None:
    result = ctxt("client", "add", "ana", "--password-stdin", text="open sesame\n", env=home)
    assert result.returncode == 0
    assert "sesame" not in result.stdout + result.stderr
    assert ctxt("client", "passwd", "ana", "--password-stdin", text="", env=home).returncode == Exit.INVALID


def test_clients_are_listed_disabled_enabled_and_removed(home: dict[str, str]) -> None:
    assert "there are no clients yet" in ctxt("client", "ls", env=home).stderr
    for name in ("ana", "bob"):
        assert ctxt("client", "add", name, env=home).returncode == 0
    assert ctxt("client", "disable", "bob", env=home).returncode == 0
    listed = json.loads(ctxt("client", "ls", "--json", env=home).stdout)
    assert [(each["name"], each["disabled"]) for each in listed] == [("ana", False), ("bob", True)]
    table = ctxt("client", "ls", env=home).stdout
    assert re.search(r"^bob +no ", table, re.MULTILINE)
    assert not re.search(r" $", table, re.MULTILINE)
    assert ctxt("client", "enable", "bob", env=home).returncode == 0
    assert ctxt("client", "rm", "ana", env=home).returncode == 0
    assert [each["name"] for each in json.loads(ctxt("client", "ls", "--json", env=home).stdout)] == ["bob"]


def test_a_clients_mistakes_have_exit_codes(home: dict[str, str]) -> None:
    assert ctxt("client", "add", "ana", env=home).returncode == 0
    assert ctxt("client", "add", "ana", env=home).returncode == Exit.INVALID
    assert ctxt("client", "add", "a/b", env=home).returncode == Exit.INVALID
    for verb in ("rm", "passwd", "disable", "enable"):
        assert ctxt("client", verb, "nobody", env=home).returncode == Exit.NOT_FOUND
    result = ctxt("client", "ls", env={"CTXT_STATE_DIR": "/dev/null/state"})
    assert result.returncode == Exit.IO
    assert "state_dir" in one_sentence(result)


# ---- schemas and settings ----------------------------------------------------------------------------------------------


def test_schemas_are_listed_and_shown() -> None:
    listed = {each["name"]: each for each in json.loads(ctxt("schema", "ls", "--json").stdout)}
    assert {"Connection", "Communication", "Context", "Device"} <= set(listed)
    assert listed["Context"]["scheme"] == "ctxt"
    table = ctxt("schema", "ls").stdout
    assert all(name in table for name in listed)
    shown = json.loads(ctxt("schema", "show", "Context").stdout)
    assert shown["$id"] == listed["Context"]["url"]
    assert json.loads(ctxt("schema", "show", shown["$id"], "--json").stdout) == shown
    result = ctxt("schema", "show", "Contxt")
    assert result.returncode == Exit.NOT_FOUND
    assert "'Context'" in one_sentence(result)


def test_schema_files_are_checked(tmp_path: Path) -> None:
    good = tmp_path / "Tide.json"
    good.write_text(
        json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": "hyperty-catalogue://catalogue.sea.example/.well-known/dataschema/Tide",
                "title": "Tide",
                "description": "The water's height.",
                "x-scheme": "tide",
                "type": "object",
                "properties": {"height": {"description": "Metres.", "type": "number"}},
                "additionalProperties": False,
            }
        )
    )
    bad = tmp_path / "Bad.json"
    bad.write_text('{"type": 5')
    assert ctxt("schema", "check", str(good)).returncode == 0
    result = ctxt("schema", "check", str(good), str(bad), "--json")
    assert result.returncode == Exit.INVALID
    assert [each["ok"] for each in json.loads(result.stdout)] == [True, False]
    assert "1 of 2" in one_sentence(result)


def test_a_first_settings_file_is_written_once_and_can_be_used(tmp_path: Path) -> None:
    assert ctxt("config", "init", cwd=tmp_path).returncode == 0
    result = ctxt("config", "init", cwd=tmp_path)
    assert result.returncode == Exit.FAILED
    assert "--force" in one_sentence(result)
    assert ctxt("config", "init", "--force", cwd=tmp_path).returncode == 0
    assert ctxt("config", "init", "no/such/folder.toml", cwd=tmp_path).returncode == Exit.IO
    checked = json.loads(ctxt("config", "check", "--json", cwd=tmp_path).stdout)
    assert (checked["file"], checked["ok"], checked["problems"]) == ("gateway.toml", True, [])


def test_settings_are_found_by_option_by_environment_and_here(tmp_path: Path) -> None:
    for name in ("gateway", "other", "third"):
        (tmp_path / f"{name}.toml").write_text(f'id = "{name}"\n')

    def id_of(*arguments: str, **more: str) -> str:
        shown = ctxt("config", "show", "--json", *arguments, cwd=tmp_path, env=more)
        return str(json.loads(shown.stdout)["id"])

    assert id_of() == "gateway"
    assert id_of(CTXT_CONFIG="other.toml") == "other"
    assert id_of("--config", "third.toml", CTXT_CONFIG="other.toml") == "third"
    assert id_of(CTXT_ID="fourth") == "fourth"


def test_bad_settings_are_all_told_and_exit_with_78(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('durabilty = "power"\n[broker]\nurl = "http://elsewhere"\n[[namespace]]\nmatch = "x"\n')
    for arguments in (("config", "check"), ("config", "show"), ("run",), ("client", "ls"), ("schema", "ls")):
        result = ctxt(*arguments, "--config", str(file))
        assert result.returncode == Exit.CONFIG, arguments
        assert "durability" in result.stderr
        assert "broker.url" in result.stderr
        assert "Traceback" not in result.stderr
    checked = ctxt("config", "check", "--json", "--config", str(file))
    assert checked.returncode == Exit.CONFIG
    assert len(json.loads(checked.stdout)["problems"]) == 3
    missing = ctxt("run", "--config", str(tmp_path / "missing.toml"))
    assert missing.returncode == Exit.CONFIG


def test_a_schema_that_the_settings_name_in_vain_exits_with_78(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'state_dir = "{tmp_path}/state"\n[[namespace]]\nmatch = "ctxt://home.local/**"\nschema = "Contxt"\n'
    )
    for arguments in (("config", "check"), ("run",)):
        result = ctxt(*arguments, "--config", str(file))
        assert result.returncode == Exit.CONFIG
        assert "'Context'" in result.stderr


# ---- small parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "patch"),
    [
        (["temperature=21.5"], {"values": {"temperature": {"value": 21.5}}}),
        (["temperature=21.5:Cel"], {"values": {"temperature": {"value": 21.5, "unit": "Cel"}}}),
        (["a=-1e3:/min", "b=48:%RH"], {"values": {"a": {"value": -1000.0, "unit": "/min"}, "b": {"value": 48, "unit": "%RH"}}}),
        (["at=12:30"], {"values": {"at": {"value": "12:30"}}}),
        (["note=a:b"], {"values": {"note": {"value": "a:b"}}}),
        (['note="21:Cel"'], {"values": {"note": {"value": "21:Cel"}}}),
        (["open=true", "place=[1,2]"], {"values": {"open": {"value": True}, "place": {"value": [1, 2]}}}),
        (["gone=null"], {"values": {"gone": None}}),
        (["empty=", "odd=a=b"], {"values": {"empty": {"value": ""}, "odd": {"value": "a=b"}}}),
        (["bad=NaN"], {"values": {"bad": {"value": "NaN"}}}),
        (["/unit=W", "/a~1b/c~0d=1"], {"unit": "W", "a/b": {"c~d": 1}}),
        (["t=1", '/values/t/time="x"'], {"values": {"t": {"value": 1, "time": "x"}}}),
    ],
)  # fmt: skip
def test_assignments_are_a_merge_patch(assignments: list[str], patch: dict[str, Any]) -> None:
    assert report_of(assignments) == patch


@pytest.mark.parametrize("assignments", [["t"], ["=1"], ["/=1"], ["/a=1", "/a/b=2"]])
def test_what_is_no_assignment_is_wrong_usage(assignments: list[str]) -> None:
    with pytest.raises(CommandError) as caught:
        report_of(assignments)
    assert caught.value.code == Exit.USAGE


def test_an_object_is_observed_exactly_with_its_children() -> None:
    scope = Scope.parse("CTXT://Home.Local/room")
    assert scope.filters == ("ctxt/home.local/room", "ctxt/home.local/room/children/#")
    assert scope.holds("ctxt://home.local/room")
    assert scope.holds("ctxt://home.local/room/children/actions/ana/1")
    assert not scope.holds("ctxt://home.local/room/temperature")


@pytest.mark.parametrize(
    ("text", "prefix", "topic_filter"),
    [
        ("**", "", "#"),
        ("ctxt://", "ctxt://", "ctxt/#"),
        ("ctxt://**", "ctxt://", "ctxt/#"),
        ("ctxt://Home.Local/", "ctxt://home.local/", "ctxt/home.local/#"),
        ("ctxt://home.local/room/**", "ctxt://home.local/room/", "ctxt/home.local/room/#"),
        ("ctxt://home.local/Küche/", "ctxt://home.local/K%C3%BCche/", "ctxt/home.local/K%C3%BCche/#"),
        ("comm://h/1/children/", "comm://h/1/children/", "comm/h/1/children/#"),
    ],
)
def test_a_prefix_means_all_below(text: str, prefix: str, topic_filter: str) -> None:
    scope = Scope.parse(text)
    assert (scope.prefix, scope.filters) == (prefix, (topic_filter,))
    assert scope.holds(prefix.rstrip("/") + "/below") or prefix in ("", "ctxt://")
    assert not prefix.endswith("/") or prefix.endswith("//") or not scope.holds(prefix[:-1])


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ({"values": {"t": {"value": 21.5, "unit": "Cel"}}}, {"values": {"t": {"value": 21.7, "unit": "Cel"}}}, ["t 21.5 → 21.7 Cel"]),
        ({"unit": "W", "values": {"p": {"value": 1}}}, {"unit": "W", "values": {"p": {"value": 2}}}, ["p 1 → 2 W"]),
        ({}, {"values": {"open": {"value": True}}}, ["open yes"]),
        ({"values": {"open": {"value": True}}}, {"values": {}}, ["open removed"]),
        ({"a": 1}, {"a": True}, ["/a 1 → yes"]),
        ({"a": {"b~": [1]}}, {"a": {"b~": [2]}}, ["/a/b~0 [1] → [2]"]),
        ({"a": 1}, {}, ["/a removed"]),
        ({"a": 1}, {"a": 1.0}, ["/a 1 → 1.0"]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
    ],
)  # fmt: skip
def test_changes_are_told_in_few_words(old: Any, new: Any, texts: list[str]) -> None:
    assert changed(old, new) == texts


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("values"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_json, _json)
def test_changes_are_told_exactly_where_there_are_some(old: Any, new: Any) -> None:
    # Like objects in the gateway: without nulls.
    old, new = merge({}, {"data": old}), merge({}, {"data": new})
    texts = changed(old, new)
    assert bool(texts) == (json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True))
    assert described(new) == changed({}, new)


def test_nothing_from_elsewhere_steers_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\u202ec") == "a\\x1b[31mb\\x07\\x202ec"


def test_ages_are_short() -> None:
    assert [age(s) for s in (-1, 0.4, 59, 61, 7200, 10 * 86400)] == ["0 s", "0 s", "59 s", "1 min", "2 h", "10 d"]


def test_ids_are_ulids_and_differ() -> None:
    ids = {ulid(time.time()) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", each) for each in ids)


def test_a_target_is_read_from_its_url() -> None:
    target = Target.parse("mqtt://an%40:p%3Aw@[::1]:2883/site/one/", {})
    assert (target.host, target.port, target.name, target.password) == ("::1", 2883, "an@", "p:w")
    assert target.topic("snapshot/#") == "site/one/snapshot/#"
    assert target.without_prefix("site/one/snapshot/x") == "snapshot/x"
    assert Target.parse("mqtt://ana@h", {"CTXT_PASSWORD": "x"}).password == "x"
    assert Target.parse("mqtt://h", {"CTXT_PASSWORD": "x"}) == Target("h", 1883)


# ---- with a gateway ----------------------------------------------------------------------------------------------------

PASSWORD = "correct-horse"
SENSOR = f"sensor:{PASSWORD}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    names = ("sensor", "ana", "hasty", "changing")
    with gateway(
        tmp_path_factory.mktemp("house"),
        broker="anonymous = true",
        rest=NAMESPACES,
        clients=dict.fromkeys(names, PASSWORD),
    ) as running:
        yield running


def at(house: Gateway, who: str = SENSOR) -> dict[str, str]:
    return {"CTXT_CONNECT": f"mqtt://{who}@{HOST}:{house.port}" if who else f"mqtt://{HOST}:{house.port}"}


def report(house: Gateway, path: str, *arguments: str, who: str = SENSOR, text: str = "") -> int:
    return ctxt("report", f"ctxt://home.local/{path}", *arguments, env=at(house, who), text=text).returncode


def data_of(house: Gateway, path: str) -> Any:
    return json.loads(ctxt("get", f"ctxt://home.local/{path}", "--data", "--json", env=at(house)).stdout)


def test_a_report_brings_an_object_to_life_and_changes_it(house: Gateway) -> None:
    result = ctxt("report", URL, "temperature=21.5:Cel", "humidity=48:%RH", env=at(house))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert report(house, "sensor/climate", "--merge", '{"values":{"humidity":null}}') == 0
    assert (
        report(house, "sensor/climate", "--patch", '[{"op":"replace","path":"/values/temperature/value","value":22}]')
        == 0
    )
    assert data_of(house, "sensor/climate") == {"values": {"temperature": {"value": 22, "unit": "Cel"}}}
    said = ctxt("report", URL, "temperature=22", "-v", env=at(house))
    assert "accepted and stored" in said.stderr


def test_reports_from_standard_input_go_in_order_and_past_a_refused_one(house: Gateway) -> None:
    lines = 'a=1\n\n{"values":{"b":{"value":2}}}\na={}\n[{"op":"remove","path":"/values/a"}]\nc="x y" d=4'
    result = ctxt("report", "ctxt://home.local/sensor/lines", "--stdin", env=at(house), text=lines)
    assert result.returncode == Exit.INVALID
    assert "line 4: " in result.stderr
    assert "/values/a/value" in result.stderr
    assert "1 of 5 reports were refused" in result.stderr
    assert data_of(house, "sensor/lines") == {"values": {"b": {"value": 2}, "c": {"value": "x y"}, "d": {"value": 4}}}


def test_ctrl_c_ends_a_reporter_that_waits_for_its_next_line(house: Gateway) -> None:
    url = "ctxt://home.local/open/waits"
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "report", url, "--stdin"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ(**at(house)),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("t=1\n")
        process.stdin.flush()
        while ctxt("get", url, env=at(house)).returncode != 0:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == Exit.INTERRUPTED
        assert process.stderr.read() == ""


def test_a_line_that_is_no_report_stops_there(house: Gateway) -> None:
    result = ctxt("report", "ctxt://home.local/sensor/stops", "--stdin", env=at(house), text="a=1\nwhat\na=2\n")
    assert result.returncode == Exit.USAGE
    assert "line 2" in one_sentence(result)
    assert data_of(house, "sensor/stops") == {"values": {"a": {"value": 1}}}


def test_what_the_gateway_refuses_has_its_exit_code_and_its_words(house: Gateway) -> None:
    assert report(house, "sensor/mine", "t=1") == 0

    def refused(who: str, url: str, *arguments: str) -> tuple[int, str]:
        result = ctxt(*arguments[:1], url, *arguments[1:], env=at(house, who))
        assert not result.stdout
        return result.returncode, one_sentence(result)

    ana = f"ana:{PASSWORD}"
    mine = "ctxt://home.local/sensor/mine"
    for who, url, arguments, code, words in [
        (SENSOR, mine, ("report", "/values/t/value={}"), Exit.INVALID, "422 /values/t/value: "),
        (SENSOR, mine, ("report", "--patch", '[{"op":"remove","path":"/x"}]'), Exit.INVALID, "409 "),
        (SENSOR, mine, ("report", f"t={'x' * 70_000}"), Exit.INVALID, "413 "),
        (ana, mine, ("report", "t=1"), Exit.NOT_ALLOWED, "its Reporter is 'sensor'"),
        (ana, mine, ("delete",), Exit.NOT_ALLOWED, "its Reporter is 'sensor'"),
        (ana, "ctxt://home.local/private/x", ("get",), Exit.NOT_ALLOWED, "403 "),
        (ana, "ctxt://home.local/ana/nothing", ("get",), Exit.NOT_FOUND, "404 "),
        (ana, "comm://home.local/ana/talk", ("report", "t=1"), Exit.NOT_ALLOWED, "403 "),
        ("", mine, ("delete",), Exit.NOT_ALLOWED, "needs a name"),
        ("", "ctxt://home.local/open/nothing", ("get",), Exit.NOT_FOUND, "does not exist"),
        ("", mine, ("get",), Exit.NOT_ALLOWED, "may not read"),
        ("nobody:x", mine, ("get",), Exit.NOT_ALLOWED, "does not admit 'nobody'"),
        ("sensor:wrong", mine, ("get",), Exit.NOT_ALLOWED, "ctxt client passwd sensor"),
    ]:
        found, sentence = refused(who, url, *arguments)
        assert (found, words in sentence) == (code, True), (who, url, arguments, found, sentence)
    assert data_of(house, "sensor/mine") == {"values": {"t": {"value": 1}}}


def test_a_client_that_is_too_fast_fails_with_1(house: Gateway) -> None:
    lines = "".join(f"t={i}\n" for i in range(100))
    result = ctxt("report", "ctxt://home.local/hasty/x", "--stdin", env=at(house, f"hasty:{PASSWORD}"), text=lines)
    assert result.returncode == Exit.FAILED
    assert "429 " in result.stderr


def test_an_object_is_printed_for_people_and_for_programs(house: Gateway) -> None:
    url = "ctxt://home.local/open/shown"
    assert report(house, "open/shown", "temperature=21.5:Cel") == 0
    shown = ctxt("get", url, env=at(house)).stdout
    assert re.search(r"^  reporter +sensor$", shown, re.MULTILINE)
    snapshot = json.loads(ctxt("get", url, "--json", env=at(house)).stdout)
    assert (snapshot["url"], snapshot["version"], snapshot["status"]) == (url, 1, "live")
    assert json.loads(ctxt("get", url, "--json", env=at(house, "")).stdout) == snapshot
    data = ctxt("get", url, "--data", env=at(house)).stdout
    assert data.count("\n") > 1
    assert json.loads(data) == snapshot["data"]


def test_the_list_is_complete_and_can_be_narrowed(house: Gateway) -> None:
    paths = ["open/list/a", "open/list/b", "open/listed"]
    for path in paths:
        assert report(house, path, "t=1") == 0
    assert report(house, "ana/other", "t=1", who=f"ana:{PASSWORD}") == 0

    def listed(*arguments: str, who: str = SENSOR) -> list[str]:
        result = ctxt("ls", "--json", *arguments, env=at(house, who))
        assert result.returncode == 0, result.stderr
        return [each["url"].removeprefix("ctxt://home.local/") for each in json.loads(result.stdout)]

    everything = listed()
    assert set(paths) < set(everything)
    assert everything == sorted(everything)
    assert listed("ctxt://home.local/open/list/") == paths[:2]
    assert listed("ctxt://home.local/open/list/**", who="") == paths[:2]
    assert listed("ctxt://home.local/open/listed") == paths[2:]
    assert "ana/other" not in listed("--mine")
    assert "ana/other" in listed("--schema", "Context", "--status", "live")
    assert not listed("--status", "stale")
    table = ctxt("ls", "ctxt://home.local/open/list", env=at(house)).stdout.splitlines()
    assert table[0].split() == ["URL", "SCHEMA", "REPORTER", "VERSION", "STATUS", "AGE"]
    assert [line.split()[:5] for line in table[1:]] == [
        [f"ctxt://home.local/{path}", "Context", "sensor", "1", "live"] for path in paths[:2]
    ]
    assert ctxt("ls", "--mine", env=at(house, "")).returncode == Exit.USAGE


def test_a_deleted_object_is_not_found_for_anybody(house: Gateway) -> None:
    url = "ctxt://home.local/open/brief"
    assert report(house, "open/brief", "t=1") == 0
    assert ctxt("delete", url, env=at(house)).returncode == 0
    for who in (SENSOR, ""):
        assert ctxt("get", url, env=at(house, who)).returncode == Exit.NOT_FOUND
    assert report(house, "open/brief", "t=1") == Exit.NOT_FOUND


def test_a_client_is_added_disabled_and_given_another_password_while_the_gateway_runs(house: Gateway) -> None:
    password = house.command("client", "add", "new").stdout.strip()
    assert report(house, "new/x", "t=1", who=f"new:{password}") == 0
    assert house.command("client", "disable", "new").returncode == 0
    assert report(house, "new/x", "t=2", who=f"new:{password}") == Exit.NOT_ALLOWED
    assert house.command("client", "enable", "new").returncode == 0
    assert house.command("client", "passwd", "new", "--password-stdin", text="another\n").returncode == 0
    assert report(house, "new/x", "t=2", who=f"new:{password}") == Exit.NOT_ALLOWED
    assert report(house, "new/x", "t=2", who="new:another") == 0
    assert house.command("client", "rm", "new").returncode == 0
    assert report(house, "new/x", "t=3", who="new:another") == Exit.NOT_ALLOWED


class Watch:
    """A running `ctxt observe --json`: `next` gives its events as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def next(self, event: str) -> dict[str, Any]:
        """The next event of this kind; others before it are passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event:
                return found
        raise AssertionError(f"no {event!r} before the end")


@contextmanager
def watching(house: Gateway, *targets: str, who: str = SENSOR) -> Iterator[Watch]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "observe", "--json", *targets],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environ(**at(house, who)),
    )  # fmt: skip
    try:
        yield Watch(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("who", [SENSOR, ""])
def test_an_observer_sees_what_is_there_and_each_change(house: Gateway, who: str) -> None:
    place = "open/seen-by-" + ("name" if who else "nobody")
    url = f"ctxt://home.local/{place}/x"
    assert report(house, f"{place}/x", "t=1") == 0
    with watching(house, f"ctxt://home.local/{place}/", who=who) as watch:
        first = watch.next("snapshot")
        assert (first["url"], first["version"], first["data"]) == (url, 1, {"values": {"t": {"value": 1}}})
        assert report(house, f"{place}/x", "t=2:Cel") == 0
        second = watch.next("changed")
        assert (second["version"], second["epoch"]) == (2, first["epoch"])
        assert second["data"] == {"values": {"t": {"value": 2, "unit": "Cel"}}}
        assert report(house, f"{place}/y", "t=1") == 0
        assert watch.next("created")["url"] == url[:-1] + "y"
        assert ctxt("delete", url, env=at(house)).returncode == 0
        assert watch.next("deleted")["url"] == url
        watch.process.send_signal(signal.SIGINT)
        assert watch.process.wait(10) == Exit.INTERRUPTED


def test_an_observer_comes_back_after_a_restart_of_the_gateway(tmp_path: Path) -> None:
    with gateway(tmp_path, clients={"sensor": PASSWORD}) as house:
        assert report(house, "sensor/x", "t=1") == 0
        with watching(house, "ctxt://home.local/sensor/x") as watch:
            before = watch.next("snapshot")
            house.kill()
            house.start()
            assert report(house, "sensor/x", "t=2") == 0
            after = watch.next("changed")
            assert after["epoch"] > before["epoch"]
            assert (after["version"], after["data"]) == (2, {"values": {"t": {"value": 2}}})


@contextmanager
def observing(house: Gateway, *targets: str, who: str = SENSOR) -> Iterator[subprocess.Popen[str]]:
    """A running `ctxt observe` for people."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "observe", *targets],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ(**at(house, who)),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line on standard output without its time."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n").partition("  ")[2]


def test_an_observer_tells_people_that_the_gateway_goes_and_comes_back(tmp_path: Path) -> None:
    with gateway(tmp_path, clients={"sensor": PASSWORD}) as house:
        assert report(house, "sensor/x", "t=1") == 0
        with observing(house, "ctxt://home.local/sensor/") as process:
            assert line(process) == "ctxt://home.local/sensor/x  t 1"
            house.kill()
            house.start()
            assert process.stderr is not None
            assert re.fullmatch(
                rf"the connection to {HOST} port \d+ was lost; connecting again in 0\.\d s\n", process.stderr.readline()
            )
            while "; connecting again in " in (note := process.stderr.readline()):
                assert "is the gateway running?" in note
            assert note == f"connected to {HOST} port {house.port} again\n"
            assert report(house, "sensor/x", "t=2") == 0
            assert line(process) == "ctxt://home.local/sensor/x  t 1 → 2"
            assert report(house, "sensor/y", "t=1") == 0
            assert line(process) == "ctxt://home.local/sensor/y  created  t 1"


def test_an_observer_where_no_gateway_is_waits_for_it_and_says_so(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path) as broker:
        where = {"CTXT_CONNECT": f"mqtt://ana:x@{HOST}:{broker.port}"}
        result = ctxt("report", "ctxt://home.local/ana/x", "t=1", env=where)
        assert (result.returncode, "no gateway at" in one_sentence(result)) == (Exit.NO_CONNECTION, True)
        with subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "observe", "ctxt://home.local/ana/"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ(**where),
        ) as process:  # fmt: skip
            assert process.stderr is not None
            assert "no gateway has announced itself" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == Exit.INTERRUPTED


def test_an_observer_that_is_not_admitted_any_more_ends_with_4(house: Gateway) -> None:
    password = house.command("client", "add", "leaving").stdout.strip()
    assert report(house, "open/left", "t=1") == 0
    with observing(house, "ctxt://home.local/open/left", who=f"leaving:{password}") as process:
        assert line(process) == "ctxt://home.local/open/left  t 1"
        assert house.command("client", "rm", "leaving").returncode == 0
        assert process.wait(20) == Exit.NOT_ALLOWED
        assert process.stderr is not None
        assert "error: " in (said := process.stderr.read())
        assert "does not admit 'leaving'" in said
        assert "Traceback" not in said


def test_an_observer_of_what_is_not_there_or_not_for_it_says_so(house: Gateway) -> None:
    for url, code in (("open/never", Exit.NOT_FOUND), ("private/never", Exit.NOT_ALLOWED)):
        result = ctxt("observe", f"ctxt://home.local/{url}", env=at(house, f"ana:{PASSWORD}"))
        assert (result.returncode, result.stdout) == (code, "")
        one_sentence(result)


def test_what_several_scopes_hold_is_told_once(house: Gateway) -> None:
    url = "ctxt://home.local/open/both/x"
    assert report(house, "open/both/x", "t=1") == 0
    with observing(house, url, "ctxt://home.local/open/**", url) as process:
        while not (first := line(process)).startswith(url):
            pass
        assert first == f"{url}  t 1"
        for value in (2, 3):
            assert report(house, "open/both/x", f"t={value}") == 0
        assert report(house, "open/both/y", "t=1") == 0
        told = [line(process)]
        while "both/y" not in told[-1]:
            told.append(line(process))
        assert [each for each in told if each.startswith(url)] == [f"{url}  t 1 → 2", f"{url}  t 2 → 3"]


def test_an_observer_ends_when_nobody_reads_what_it_prints(house: Gateway) -> None:
    assert report(house, "open/piped", "t=1") == 0
    with observing(house, "ctxt://home.local/open/piped") as process:
        assert line(process) == "ctxt://home.local/open/piped  t 1"
        assert process.stdout is not None
        process.stdout.close()
        assert report(house, "open/piped", "t=2") == 0
        assert report(house, "open/piped", "t=3") == 0
        assert process.wait(20) == Exit.FAILED
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_commands_connect_by_tls(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    made = ctxt("tls", "init", "127.0.0.1", "--folder", str(folder))
    assert made.returncode == 0, made.stderr
    listener = made.stdout.replace("mqtts://[::]:8883", f"mqtts://{HOST}:0")
    with gateway(tmp_path, rest=OWN_NAMESPACE + listener, clients={"sensor": PASSWORD}) as house:
        found = re.search(r"also on mqtts://\S+:(\d+)", (tmp_path / "gateway.out").read_text())
        assert found is not None
        where = {"CTXT_CONNECT": f"mqtts://{SENSOR}@{HOST}:{found[1]}"}
        trusting = {**where, "SSL_CERT_FILE": str(folder / "ca.pem")}
        assert ctxt("report", "ctxt://home.local/sensor/x", "t=1", env=trusting).returncode == 0
        assert data_of(house, "sensor/x") == {"values": {"t": {"value": 1}}}
        result = ctxt("ls", env=where)
        assert result.returncode == Exit.NO_CONNECTION
        assert "SSL_CERT_FILE" in one_sentence(result)


def test_what_is_there_is_printed_once(house: Gateway) -> None:
    for path in ("open/once/a", "open/once/b", "open/once/b/c"):
        assert report(house, path, "t=1:Cel") == 0

    def once(*arguments: str, who: str = SENSOR) -> list[str]:
        return ctxt("observe", "--once", *arguments, env=at(house, who)).stdout.splitlines()

    for who in (SENSOR, ""):
        assert [line.split("  ", 1)[1] for line in once("ctxt://home.local/open/once/**", who=who)] == [
            f"ctxt://home.local/open/once/{name}  t 1 Cel" for name in ("a", "b", "b/c")
        ]
        assert len(once("ctxt://home.local/open/once/b", "--json", who=who)) == 1
    result = ctxt("observe", "--once", "ctxt://home.local/open/once/z", env=at(house))
    assert result.returncode == Exit.NOT_FOUND
    assert ctxt("observe", "ctxt://home.local/private/z", env=at(house, "")).returncode == Exit.NOT_ALLOWED


def test_what_changes_all_the_time_is_printed_once_all_the_same(tmp_path: Path) -> None:
    with gateway(tmp_path, clients={"sensor": PASSWORD}) as house, contextlib.ExitStack() as last:
        changing = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "report", "ctxt://home.local/sensor/x", "--stdin"],
            stdin=subprocess.PIPE, text=True, cwd=ROOT, env=environ(**at(house)),
        )  # fmt: skip
        stop = threading.Event()

        def change() -> None:
            with changing.stdin or contextlib.nullcontext() as lines:
                for i in range(100_000):
                    if stop.wait(0.002) or lines is None:
                        return
                    lines.write(f"t={i}\n")
                    lines.flush()

        worker = threading.Thread(target=change)
        last.callback(changing.wait, 10)
        last.callback(worker.join)
        last.callback(stop.set)
        worker.start()
        ends = time.monotonic() + 30
        while ctxt("get", "ctxt://home.local/sensor/x", env=at(house)).returncode:
            assert time.monotonic() < ends
        result = ctxt("observe", "--once", "ctxt://home.local/sensor/**", env=at(house))
        assert (result.returncode, result.stdout.count("\n")) == (0, 1), result.stderr
    assert changing.returncode == 0


# ---- the process -------------------------------------------------------------------------------------------------------


def test_the_gateway_stops_cleanly_and_starts_with_its_objects_and_a_greater_epoch(tmp_path: Path) -> None:
    with gateway(tmp_path, clients={"sensor": PASSWORD}) as house:
        epoch = house.epoch
        assert report(house, "sensor/x", "t=1") == 0
        assert house.stop() == 0
        house.start()
        assert house.epoch > epoch
        assert house.objects == 1
        assert house.process is not None
        house.process.send_signal(signal.SIGINT)
        assert house.process.wait(20) == 0
        assert "Traceback" not in house.errors()


def test_a_taken_port_and_a_taken_folder_exit_with_74(house: Gateway, tmp_path: Path) -> None:
    folder = ctxt("run", env={"CTXT_STATE_DIR": str(house.state_dir), "CTXT_BROKER__URL": f"embedded://{HOST}:0"})
    assert folder.returncode == Exit.IO
    assert "in use by another gateway" in one_sentence(folder)
    port = ctxt("run", env={"CTXT_STATE_DIR": str(tmp_path), "CTXT_BROKER__URL": f"embedded://{HOST}:{house.port}"})
    assert port.returncode == Exit.IO
    assert f"port {house.port}" in one_sentence(port)
    assert not port.stdout


def test_the_log_is_json_where_the_settings_say_so(tmp_path: Path) -> None:
    with gateway(tmp_path, broker="anonymous = true", rest='[log]\nformat = "json"\n') as house:
        assert house.stop() == 0
        lines = [json.loads(line) for line in house.errors().splitlines()]
    assert any(line["level"] == "warning" and "broker.anonymous" in line["message"] for line in lines)
    assert lines[-1]["message"] == "stopped"
    assert all(re.fullmatch(r"\d{4}-.*\.\d{3}Z", line["time"]) for line in lines)


def test_a_gateway_that_cannot_store_says_so_and_exits_with_74(tmp_path: Path) -> None:
    with gateway(tmp_path, clients={"sensor": PASSWORD}) as house:
        assert report(house, "sensor/x", "t=1") == 0
        # As on a full disk: the kernel refuses every write beyond what the files have now.
        resource.prlimit(house.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        assert report(house, "sensor/x", f"t={'x' * 4000}") == Exit.NO_CONNECTION
        assert house.process is not None
        assert house.process.wait(20) == Exit.IO
        assert "error: the gateway cannot go on: " in house.errors()
        assert "Traceback" not in house.errors()
        house.start()
        assert data_of(house, "sensor/x") == {"values": {"t": {"value": 1}}}
