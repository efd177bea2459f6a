from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.data import folder
from gateway.rights import VERBS
from gateway.settings import (
    KIB,
    MAX_FILE_BYTES,
    MIB,
    RESERVED_VARIABLES,
    NamespaceSettings,
    Problem,
    Settings,
    SettingsError,
    TopicSettings,
    default_state_dir,
    duration,
    duration_text,
    listener,
    load,
    nearest,
    reference,
    render_default,
    show,
    size,
    size_text,
    warnings,
)

HOME = {"HOME": "/home/user"}


def from_text(tmp_path: Path, text: str, **environ: str) -> Settings:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    return load(file, {**HOME, **environ})


def problems_of(tmp_path: Path, text: str, **environ: str) -> dict[str, Problem]:
    with pytest.raises(SettingsError) as caught:
        from_text(tmp_path, text, **environ)
    return {problem.place: problem for problem in caught.value.problems}


def only_problem(tmp_path: Path, text: str, **environ: str) -> Problem:
    found = problems_of(tmp_path, text, **environ)
    assert len(found) == 1, found
    return next(iter(found.values()))


# Sources


def test_without_a_file_and_environment_the_defaults_are_in_effect() -> None:
    settings = load(None, HOME)
    assert settings.id == "gateway1"
    assert settings.broker.url == "embedded://127.0.0.1:1883"
    assert settings.broker.queue_bytes == 8 * MIB
    assert settings.timing.tombstone_ttl == 86400
    assert settings.limits.payload_bytes == 64 * KIB
    assert settings.state_dir == Path("/home/user/.local/state/ctxt-gateway")
    assert settings.topic == ()
    assert warnings(settings) == []


def test_the_file_goes_before_the_defaults_and_the_environment_before_the_file(tmp_path: Path) -> None:
    text = 'id = "one"\ntopic_prefix = "site"\n[broker]\ninflight = 7\nqueue_messages = 8\n'
    settings = from_text(tmp_path, text, CTXT_ID="two", CTXT_BROKER__INFLIGHT="9")
    assert (settings.id, settings.topic_prefix) == ("two", "site")
    assert (settings.broker.inflight, settings.broker.queue_messages, settings.broker.subscriptions) == (9, 8, 1000)


def test_only_the_given_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTXT_ID", "from-the-process")
    monkeypatch.setenv("CTXT_BROKER__INFLIGHT", "3")
    settings = load(None, HOME)
    assert (settings.id, settings.broker.inflight) == ("gateway1", 100)
    assert Settings().id == "gateway1"


@pytest.mark.parametrize("name", sorted(RESERVED_VARIABLES))
def test_the_command_line_has_environment_names_of_its_own(name: str) -> None:
    assert load(None, {**HOME, name: "anything"}) == load(None, HOME)


def test_every_single_setting_can_be_set_by_its_environment_name() -> None:
    plain = orjson.loads(show(load(None, HOME), json=True))
    environ = dict(HOME)
    for key, value in plain.items():
        members = {f"{key}__{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        for name, item in members.items():
            if item is None:
                continue  # left out is what it is
            environ[f"CTXT_{name.upper()}"] = item if isinstance(item, str) else orjson.dumps(item).decode()
    assert len(environ) > 40
    assert load(None, environ) == load(None, HOME)


def test_the_environment_sets_lists_and_groups_as_json() -> None:
    settings = load(
        None,
        {
            **HOME,
            "CTXT_SCHEMAS": '["/a", "/b"]',
            "CTXT_GROUPS": '{"office": ["lamp"]}',
            "CTXT_GROUPS__kitchen": '["oven"]',
            "CTXT_NAMESPACE": '[{"match": "ctxt://x.org/**", "report": ["@kitchen"], "stale_after": "5m"}]',
        },
    )
    assert settings.schemas == (Path("/a"), Path("/b"))
    assert settings.groups == {"office": ("lamp",), "kitchen": ("oven",)}
    assert settings.namespace[0].report == ("@kitchen",)
    assert settings.namespace[0].stale_after == 300


def test_environment_text_becomes_numbers_and_truth_values() -> None:
    settings = load(
        None,
        {
            **HOME,
            "CTXT_BROKER__ANONYMOUS": "True",
            "CTXT_NUMBER": "255",
            "CTXT_LIMITS__PAYLOAD_BYTES": "2048",
            "CTXT_TIMING__SNAPSHOT_INTERVAL": "0.25",
        },
    )
    assert settings.broker.anonymous is True
    assert (settings.number, settings.limits.payload_bytes, settings.timing.snapshot_interval) == (255, 2048, 0.25)


def test_relative_folders_in_the_file_count_from_the_files_folder(tmp_path: Path) -> None:
    settings = from_text(tmp_path, 'state_dir = "state"\nschemas = ["mine", "/abs"]\n')
    assert settings.state_dir == tmp_path / "state"
    assert settings.schemas == (tmp_path / "mine", Path("/abs"))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_text(tmp_path, 'state_dir = "~/state"\n').state_dir == tmp_path / "state"
    problem = only_problem(tmp_path, 'state_dir = "~nobody-of-this-name/state"\n')
    assert problem.place == "state_dir"
    assert "home folder" in problem.reason


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/ctxt-gateway"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/ctxt-gateway"),
        ({"HOME": "/h"}, "/h/.local/state/ctxt-gateway"),
    ],
)
def test_the_state_folder_is_systemds_then_xdgs_then_the_homes(environ: dict[str, str], expected: str) -> None:
    assert default_state_dir(environ) == Path(expected)
    assert load(None, environ).state_dir == Path(expected)


# Refusals


@pytest.mark.parametrize(
    ("text", "place", "suggestion"),
    [
        ('idd = "x"', "idd", "id"),
        ("[brokr]", "brokr", "broker"),
        ("[broker]\nqueue_byte = 5", "broker.queue_byte", "queue_bytes"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nstale_aftr = "5s"', "namespace[0].stale_aftr", "stale_after"),
        ('[[topic]]\nfilter = "a/#"\nwrit = ["*"]', "topic[0].writ", "write"),
        ("payload_bytes = 5", "payload_bytes", "payload_bytes in [limits]"),
        (
            '[log]\ntopic_prefix = "x"',
            "log.topic_prefix",
            "topic_prefix at the top of the file, before the first [section]",
        ),
        ("zzzzzzzz = 1", "zzzzzzzz", None),
        ('_env_file = "/etc/passwd"', "_env_file", None),
        ('"a b" = 1', '"a b"', None),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, text: str, place: str, suggestion: str | None
) -> None:
    assert only_problem(tmp_path, text) == Problem(place, "unknown key", suggestion)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("CTXT_BROKER__ULR", "CTXT_BROKER__URL"),
        ("CTXT_BROKER_URL", "CTXT_BROKER__URL"),
        ("CTXT_broker__url", "CTXT_BROKER__URL"),
        ("CTXT_PASSWD", "CTXT_PASSWORD"),
        ("CTXT_QQQQQQQQQQQQQQQQQQQQQQ", None),
    ],
)
def test_an_unknown_environment_name_is_refused_with_the_nearest_known_one(name: str, suggestion: str | None) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {**HOME, name: "x"})
    (problem,) = caught.value.problems
    assert (problem.place, problem.suggestion) == (name, suggestion)


def test_environment_names_of_other_programs_are_left_alone() -> None:
    assert load(None, {**HOME, "CTXTX": "1", "PATH": "/bin", "ctxt_id": "x"}).id == "gateway1"


def test_every_problem_of_file_and_environment_is_listed_at_once(tmp_path: Path) -> None:
    text = """
idd = "x"
number = 300
[groups]
kitchen = ["oven"]
[[namespace]]
match = "ctxt://home.local/**"
report = ["@kitchn"]
qos = 2
[[topic]]
filter = "report/#"
[timing]
snapshot_max = "1ms"
"""
    found = problems_of(tmp_path, text, CTXT_LIMITS__DEPHT="3", CTXT_BROKER__INFLIGHT="many", CTXT_SCHEMAS="a,b")
    assert set(found) == {
        "idd",
        "number",
        "namespace[0].report[0]",
        "namespace[0].qos",
        "topic[0].filter",
        "timing.snapshot_max",
        "CTXT_LIMITS__DEPHT",
        "CTXT_BROKER__INFLIGHT",
        "CTXT_SCHEMAS",
    }
    assert found["namespace[0].report[0]"].suggestion == '"@kitchen"'


def test_the_error_is_a_text_that_names_the_file_each_place_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("numbr = 1\n[broker]\ninflight = 0\n")
    with pytest.raises(SettingsError) as caught:
        load(file, HOME)
    assert str(caught.value).splitlines() == [
        f"{file} cannot be used, 2 problems:",
        "  numbr: unknown key; did you mean number?",
        "  broker.inflight: must be at least 1",
        "Put this right; `ctxt config check` looks again.",
    ]
    assert caught.value.path == file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("id = \n", 1),
        ('id = "a"\nid = "b"\n', 2),
        ("number = 1\n\n  [broker\n", 3),
        ('id = "', 1),
    ],
)
def test_a_toml_syntax_error_has_file_line_and_column(tmp_path: Path, text: str, line: int) -> None:
    problem = only_problem(tmp_path, text)
    assert problem.reason.startswith("is not TOML: ")
    assert "line" not in problem.reason
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'gateway.toml'))}:{line}:[1-9]\d*", problem.place)


def test_a_file_that_is_not_utf8_has_the_place_of_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_bytes(b'number = 1\nid = "\xff"\n')
    with pytest.raises(SettingsError) as caught:
        load(file, HOME)
    assert caught.value.problems == (Problem(f"{file}:2:7", "is not UTF-8: save the file as UTF-8"),)


def test_a_file_that_is_missing_huge_or_nested_without_end_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(SettingsError, match="cannot be read"):
            load(place, HOME)
    assert "larger" in only_problem(tmp_path, "#" * (MAX_FILE_BYTES + 1)).reason
    assert only_problem(tmp_path, "id = " + "[" * 100_000).place.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("number = true", "number", "whole number"),
        ("number = 1.5", "number", "whole number"),
        ("number = -1", "number", "at least 0"),
        ("id = 5", "id", "text"),
        ('id = "a/b"', "id", "A-Z"),
        ('state_dir = ""', "state_dir", "empty"),
        ("broker = 5", "broker", "table"),
        ("namespace = 5", "namespace", "list"),
        ("namespace = [5]", "namespace[0]", "table"),
        ("[broker]\nanonymous = 1", "broker.anonymous", "true or false"),
        ('[broker]\npacket_bytes = "64KB"', "broker.packet_bytes", "64KiB"),
        ('[broker]\npacket_bytes = "1GiB"', "broker.packet_bytes", "at most 256MiB"),
        ('[broker]\nkeep_alive_max = "2d"', "broker.keep_alive_max", "at most 65535s"),
        ('[timing]\noffline_grace = "soon"', "timing.offline_grace", "duration"),
        ("[timing]\noffline_grace = nan", "timing.offline_grace", "at"),
        ("[timing]\noffline_grace = inf", "timing.offline_grace", "at most 24h"),
        ("[timing]\noffline_grace = true", "timing.offline_grace", "duration"),
        ('[log]\nlevel = "warn"', "log.level", "'warning'"),
        ('durability = "safe"', "durability", "'power'"),
        ("[[namespace]]", "namespace[0].match", "missing"),
        ('[[namespace]]\nmatch = "no-url"', "namespace[0].match", ""),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nqos = true', "namespace[0].qos", "0 or 1"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nstale_after = 0', "namespace[0].stale_after", "at least 100ms"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nreport = "*"', "namespace[0].report", "list"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nreport = ["a b"]', "namespace[0].report[0]", "@NAME"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nreport = ["gateway"]', "namespace[0].report[0]", "own name"),
        ('[[namespace]]\nmatch = "ctxt://a/**"\nobserve = ["@x"]', "namespace[0].observe[0]", "no group 'x'"),
        ('[[topic]]\nfilter = "a/#/b"', "topic[0].filter", "MQTT topic filter"),
        ('[[topic]]\nfilter = ""', "topic[0].filter", "MQTT topic filter"),
        ('[[topic]]\nfilter = "a/{user}/b"', "topic[0].filter", "braces"),
        ('[[topic]]\nfilter = "$SYS/#"', "topic[0].filter", "$SYS, $share"),
        ('[[topic]]\nfilter = "$share/g/x"', "topic[0].filter", "$SYS, $share"),
        ('[[topic]]\nfilter = "$CONTROL"', "topic[0].filter", "$SYS, $share"),
        ('[[topic]]\nfilter = "a"\nread = ["@x"]', "topic[0].read[0]", "no group 'x'"),
        ('[groups]\nkitchen = ["*"]', "groups.kitchen[0]", "client name"),
        ('[groups]\n"a b" = []', 'groups."a b"', "group name"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, place: str, reason: str) -> None:
    problem = only_problem(tmp_path, text)
    assert problem.place == place
    assert reason in problem.reason


def test_a_bad_value_from_the_environment_is_named_by_its_variable() -> None:
    environ = {**HOME, "CTXT_BROKER__INFLIGHT": "0", "CTXT_GROUPS__kitchen": '["oven", 5]', "CTXT_NUMBER": "1_"}
    with pytest.raises(SettingsError) as caught:
        load(None, environ)
    assert {problem.place for problem in caught.value.problems} == {
        "CTXT_BROKER__INFLIGHT",
        "CTXT_GROUPS__kitchen[1]",
        "CTXT_NUMBER",
    }


@pytest.mark.parametrize(
    "prefix", ["/a", "a/", "/", "a//b", "a/+/b", "a/#", "$SYS", "a\0b", "a\nb", "x" * 129, "a/" * 64 + "a"]
)
def test_a_topic_prefix_has_proper_levels(tmp_path: Path, prefix: str) -> None:
    assert only_problem(tmp_path, "", CTXT_TOPIC_PREFIX=prefix).place == "CTXT_TOPIC_PREFIX"


# The broker's URL


@pytest.mark.parametrize(
    ("url", "host", "port", "loopback"),
    [
        ("embedded://127.0.0.1:1883", "127.0.0.1", 1883, True),
        ("embedded://127.8.9.1:1", "127.8.9.1", 1, True),
        ("embedded://localhost", "localhost", 1883, True),
        ("embedded://[::1]:0", "::1", 0, True),
        ("embedded://0.0.0.0:8883", "0.0.0.0", 8883, False),
        ("embedded://[::]", "::", 1883, False),
        ("embedded://pi.local:1884/", "pi.local", 1884, False),
        ("embedded://127.0.0.1.example.org", "127.0.0.1.example.org", 1883, False),
    ],
)
def test_the_url_of_the_broker_inside_is_a_host_and_a_port(url: str, host: str, port: int, loopback: bool) -> None:
    found = listener(url)
    assert (found.host, found.port, found.loopback) == (host, port, loopback)
    assert load(None, {**HOME, "CTXT_BROKER__URL": url}).broker.listener == found


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mqtt://broker.local", ("mqtt", "broker.local", 1883, "")),
        ("mqtts://broker.local", ("mqtts", "broker.local", 8883, "")),
        ("ws://[::1]:9001", ("ws", "::1", 9001, "/mqtt")),
        ("wss://broker.local:443/x", ("wss", "broker.local", 443, "/x")),
        ("unix:///run/mosquitto.sock", ("unix", "", 0, "/run/mosquitto.sock")),
    ],
)
def test_a_broker_outside_is_named_by_its_url(url: str, place: tuple[str, str, int, str]) -> None:
    broker = load(None, {**HOME, "CTXT_BROKER__URL": url}).broker
    assert broker.outside == place
    assert broker.listener is None


OUTSIDE = '[broker]\nurl = "mqtt://127.0.0.1:1884"\n'


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('[broker]\nurl = "ws://broker.local"\n', "broker.url", "needs a port"),
        ('[broker]\nurl = "mqtt://0.0.0.0"\n', "broker.url", "name the broker's"),
        ('[broker]\nurl = "mqtt://a:b@broker.local"\n', "broker.url", "takes no user name and password"),
        (f'{OUTSIDE}[[listener]]\nurl = "mqtt://127.0.0.1:1885"\n', "listener", "remove the [[listener]]s"),
        (f"{OUTSIDE}anonymous = true\n", "broker.anonymous", "in its own settings"),
        (f'{OUTSIDE}[link]\npassword_file = "x"\n', "link.password_file", "without link.username"),
        (f'{OUTSIDE}[link]\nca = "x"\n', "link.ca", "mqtt:// speaks no TLS"),
        (f'{OUTSIDE}[link]\nserver_name = "x"\n', "link.server_name", "mqtt:// speaks no TLS"),
        ('[broker]\nurl = "mqtts://h"\n[link]\nkey = "x"\n', "link.key", "belongs to link.certificate"),
        ('[link]\ntopic_escape = "a"\n', "link.topic_escape", "neither letters nor digits"),
        ('[link]\ntopic_escape = "%"\n', "link.topic_escape", "neither letters nor digits"),
        ('[link]\ntopic_escape = ".."\n', "link.topic_escape", "each once"),
        ('[link]\nprotocol = "4"\n', "link.protocol", "must be 'auto', '5' or '3.1.1'"),
    ],
)
def test_what_does_not_go_with_a_broker_outside_is_refused(tmp_path: Path, text: str, place: str, reason: str) -> None:
    problem = only_problem(tmp_path, text)
    assert problem.place == place
    assert reason in problem.reason


def test_a_broker_outside_is_warned_of_where_nobody_enforces_what_is_set(tmp_path: Path) -> None:
    text = '[broker]\nurl = "mqtt://broker.local"\n[[namespace]]\nmatch = "ctxt://h/{client}/**"\nobserve = ["a"]\n'
    found = warnings(from_text(tmp_path, text))
    assert {each.split(":")[0] for each in found} == {"namespace[0].observe", "broker.url"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:1883",
        "embedded://",
        "embedded://:1883",
        "embedded://127.0.0.1:65536",
        "embedded://127.0.0.1:x",
        "embedded://127.0.0.1/path",
        "embedded://127.0.0.1?x=1",
        "embedded://[::1",
        "embedded://a b",
        "embedded://a\nb",
        "embedded://a_b",
        "http://127.0.0.1",
        "embedded://user:secret@127.0.0.1",
        "mqtt://user:secret@127.0.0.1",
        "user:secret@127.0.0.1",
    ],
)
def test_another_url_is_refused_and_no_password_in_it_is_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {**HOME, "CTXT_BROKER__URL": url})
    (problem,) = caught.value.problems
    assert problem.place == "CTXT_BROKER__URL"
    assert "secret" not in str(caught.value)


# What single values cannot show


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize(
    "form", ["{verb}", "{verb}/#", "{verb}/x/y", "+/x/y", "#", "{{client}}/#", "{verb}/{{client}}"]
)
def test_a_topic_rule_cannot_open_the_gateways_own_topics(tmp_path: Path, verb: str, form: str) -> None:
    for prefix in ("", "site/one"):
        head = f"{prefix}/" if prefix else ""
        topic_filter = head + form.format(verb=verb)
        text = f'topic_prefix = "{prefix}"\n[[topic]]\nfilter = "{topic_filter}"\n'
        problem = only_problem(tmp_path, text)
        assert problem.place == "topic[0].filter"
        assert f"{head}{verb}/" in problem.reason


def test_a_client_named_like_the_rest_of_a_verb_does_not_get_round_this(tmp_path: Path) -> None:
    assert "report/" in only_problem(tmp_path, '[[topic]]\nfilter = "re{client}t/x"\n').reason


@pytest.mark.parametrize(
    ("prefix", "topic_filter"),
    [
        ("", "homeassistant/#"),
        ("", "reports/#"),
        ("", "tele/{client}/+"),
        ("", "dev-{client}/#"),
        ("site", "report/#"),
        ("site", "site/tele/#"),
    ],
)
def test_a_topic_rule_may_open_any_other_topic(tmp_path: Path, prefix: str, topic_filter: str) -> None:
    settings = from_text(tmp_path, f'topic_prefix = "{prefix}"\n[[topic]]\nfilter = "{topic_filter}"\nread = ["*"]\n')
    assert settings.topic[0].topic_filter == topic_filter


def test_clients_without_a_name_are_admitted_on_loopback_only(tmp_path: Path) -> None:
    assert from_text(tmp_path, "[broker]\nanonymous = true\n").broker.anonymous
    problem = only_problem(tmp_path, '[broker]\nanonymous = true\nurl = "embedded://0.0.0.0"\n')
    assert problem.place == "broker.anonymous"
    assert "loopback" in problem.reason


def test_settings_that_contradict_each_other_cannot_be_built() -> None:
    with pytest.raises(ValidationError, match=r"topic\[0\]\.filter: overlaps"):
        Settings(topic=(TopicSettings(filter="{client}/x"),))
    with pytest.raises(ValidationError, match=r"no group 'x'"):
        Settings(namespace=(NamespaceSettings(match="ctxt://a/**", report=("@x",)),))


def test_settings_are_frozen() -> None:
    settings = load(None, {**HOME, "CTXT_GROUPS": '{"a": ["b"]}'})
    with pytest.raises(ValidationError):
        settings.id = "x"
    with pytest.raises(ValidationError):
        settings.broker.inflight = 5
    with pytest.raises(TypeError):
        settings.groups["c"] = ()  # type: ignore[index]


# Warnings


def check(tmp_path: Path, text: str) -> list[str]:
    return [warning.split(": ", 1)[0] for warning in warnings(from_text(tmp_path, text))]


def test_letting_everyone_report_anywhere_is_warned_about(tmp_path: Path) -> None:
    text = '[[namespace]]\nmatch = "ctxt://a/{}**"\nreport = ["*"]\n'
    assert check(tmp_path, text.replace("{}", "")) == ["namespace[0].report"]
    assert check(tmp_path, text.replace("{}", "{client}/")) == []


def test_a_namespace_behind_one_that_matches_all_of_it_is_warned_about(tmp_path: Path) -> None:
    tables = [
        f'[[namespace]]\nmatch = "ctxt://a/{path}"\n'
        for path in ("kitchen/**", "*/temperature", "{client}/**", "hall/**")
    ]
    assert check(tmp_path, "".join(tables)) == ["namespace[3].match"]
    assert check(tmp_path, "".join([tables[3], *tables[:3]])) == []


def test_the_object_above_everything_below_it_is_not_behind_it(tmp_path: Path) -> None:
    assert check(tmp_path, '[[namespace]]\nmatch = "ctxt://a/b/**"\n[[namespace]]\nmatch = "ctxt://a/b"\n') == []


def test_groups_that_nobody_uses_and_no_namespace_are_warned_about(tmp_path: Path) -> None:
    text = 'namespace = []\n[groups]\na = ["x"]\nb = ["y"]\n[[topic]]\nfilter = "t"\nread = ["@a"]\n'
    assert check(tmp_path, text) == ["namespace", "groups.b"]


def test_what_is_open_to_others_is_warned_about(tmp_path: Path) -> None:
    assert check(tmp_path, "[broker]\nanonymous = true\n") == ["broker.anonymous"]
    assert check(tmp_path, '[broker]\nurl = "embedded://0.0.0.0"\n') == ["broker.url"]


def test_anonymous_in_a_list_without_anonymous_clients_is_warned_about(tmp_path: Path) -> None:
    text = '[[namespace]]\nmatch = "ctxt://a/**"\nobserve = ["anonymous"]\n'
    assert check(tmp_path, text) == ["namespace[0].observe[0]"]
    assert check(tmp_path, text + "[broker]\nanonymous = true\n") == ["broker.anonymous"]


def test_limits_that_others_forestall_are_warned_about(tmp_path: Path) -> None:
    text = '[limits]\npayload_bytes = "256KiB"\n[broker]\nqueue_bytes = "64KiB"\n'
    assert check(tmp_path, text) == ["limits.payload_bytes", "broker.queue_bytes"]


# Durations, sizes, names


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5s", 5),
        ("100ms", 0.1),
        ("10m", 600),
        ("24h", 86400),
        ("7d", 604800),
        ("1.5 s", 1.5),
        ("3", 3),
        (5, 5),
        (0.1, 0.1),
    ],
)
def test_durations_are_seconds_or_texts(value: object, seconds: float) -> None:
    assert duration(value) == seconds


@pytest.mark.parametrize(
    ("value", "number"), [("64KiB", 65536), ("8MiB", 8 * MIB), ("1 GiB", 1 << 30), ("512B", 512), ("7", 7), (7, 7)]
)
def test_sizes_are_bytes_or_texts(value: object, number: int) -> None:
    assert size(value) == number


@pytest.mark.parametrize("value", ["", "s", "-5s", "5 minutes", "1h30m", "5S", "٣s", "1e3s", True, None, [], "9" * 13])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration(value)


@pytest.mark.parametrize("value", ["", "KiB", "-5", "64KB", "64k", "1.5MiB", "٣", 1.5, True, None, "9" * 16])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        size(value)


@given(st.integers(0, 10**9))
def test_a_duration_is_written_so_that_it_is_read_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert duration(duration_text(seconds)) == seconds


@given(st.integers(0, 1 << 48))
def test_a_size_is_written_so_that_it_is_read_back(number: int) -> None:
    assert size(size_text(number)) == number


def test_the_nearest_key_is_found_whatever_its_case() -> None:
    assert nearest("URL", ["url", "id"]) == "url"
    assert nearest("stale-after", ["stale_after", "schema"]) == "stale_after"
    assert nearest("qqqq", ["url", "id"]) is None
    assert nearest("x" * 1_000_000, ["url"]) is None


# What is written


def uncommented(text: str) -> str:
    """Every setting of the commented file switched on."""
    return re.sub(r"(?m)^#(?=\[|\w+ = )", "", text)


def test_the_shipped_file_is_what_the_declarations_say() -> None:
    assert (folder("config") / "gateway.toml").read_text() == render_default()


def test_the_shipped_file_as_it_is_gives_the_defaults() -> None:
    assert load(folder("config") / "gateway.toml", HOME) == load(None, HOME)


def test_the_shipped_file_shows_every_setting_with_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", HOME["HOME"])
    # Of the two files with keys of tokens only one can be named.
    settings = from_text(tmp_path, re.sub(r"(?m)^jwks = .*\n", "", uncommented(render_default())))
    default = load(None, HOME)
    shown = orjson.loads(show(settings, json=True))
    for key, value in orjson.loads(show(default, json=True)).items():
        if key in ("link", "mosquitto", "authority", "nats", "web", "tokens"):
            # What is left out by default is shown with an example.
            assert {
                name: shown[key][name] for name, item in value.items() if item not in (None, "")
            }.items() <= value.items()
        elif key not in ("namespace", "topic", "groups", "listener", "adapter"):
            assert shown[key] == value, key
    assert settings.namespace[-1] == default.namespace[0]
    assert len(settings.namespace) == 2
    assert len(settings.topic) == 1
    assert [each.split(":")[0] for each in warnings(settings)] == ["link", "mosquitto", "authority", "nats"], (
        "their examples are of no use to the broker inside"
    )


def test_the_default_namespace_binds_the_client() -> None:
    (namespace,) = load(None, HOME).namespace
    assert "{client}" in namespace.match
    assert namespace.report == ("*",)


def test_the_reference_page_is_what_the_declarations_say() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
    assert page.read_text() == reference()


def test_the_reference_page_names_every_setting_and_variable() -> None:
    page = reference()
    for key, value in orjson.loads(show(load(None, HOME), json=True)).items():
        for name in value if isinstance(value, dict) else ():
            assert f"| `{name}`<br>`CTXT_{key.upper()}__{name.upper()}` |" in page
        assert f"`{key}`" in page or f"`[{key}]`" in page or f"`[[{key}]]`" in page
    for name in RESERVED_VARIABLES:
        assert name in page


RICH = """
id = "pi"
topic_prefix = "site/one"
schemas = ["/etc/schemas"]
[broker]
url = "embedded://[::1]:0"
keep_alive_max = "90s"
[groups]
kitchen = ["oven", "fridge"]
[[namespace]]
match = "ctxt://home.local/kitchen/**"
report = ["@kitchen"]
observe = ["*"]
stale_after = 0.25
qos = 0
[[namespace]]
match = "ctxt://home.local/{client}/**"
[[topic]]
filter = "a//b@c/+"
write = ["oven"]
[limits]
payload_bytes = 1000
"""


@pytest.mark.parametrize("text", ["", "namespace = []", RICH])
def test_what_is_shown_is_read_back_to_the_same_settings(tmp_path: Path, text: str) -> None:
    settings = from_text(tmp_path, text)
    assert from_text(tmp_path, show(settings, json=False)) == settings


def test_shown_as_json_durations_are_seconds_and_sizes_bytes(tmp_path: Path) -> None:
    shown = orjson.loads(show(from_text(tmp_path, RICH), json=True))
    assert shown["broker"]["keep_alive_max"] == 90
    assert shown["broker"]["packet_bytes"] == 256 * KIB
    assert shown["namespace"][0] == {
        "match": "ctxt://home.local/kitchen/**",
        "schema": "Context",
        "report": ["@kitchen"],
        "observe": ["*"],
        "execute": [],
        "value_view": False,
        "stale_after": 0.25,
        "public": False,
        "ask": ["*"],
        "moderate": True,
        "qos": 0,
    }
    assert shown["topic"][0]["filter"] == "a//b@c/+"


def test_a_password_in_a_url_is_masked_when_shown(tmp_path: Path) -> None:
    url = "hyperty-catalogue://user:hidden99@catalogue.home.local/.well-known/dataschema/Context"
    settings = from_text(tmp_path, f'[[namespace]]\nmatch = "ctxt://a/**"\nschema = "{url}"\n')
    assert settings.namespace[0].schema_name == url
    for text in (show(settings, json=False), show(settings, json=True)):
        assert "hidden99" not in text
        assert "://****@catalogue" in text


@given(st.binary(max_size=60) | st.text("ab=[]{}\"'#.\n 1_", max_size=60).map(str.encode))
def test_a_file_of_any_bytes_is_settings_or_one_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    try:
        settings = load(file, HOME)
    except SettingsError as error:
        found = error.problems
    else:
        found = ()
        assert settings.broker == load(None, HOME).broker
    assert all(problem.place and problem.reason for problem in found)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5) | st.just("@x"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["match", "report", "filter", "url", "anonymous", "zz"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(["namespace", "topic", "listener"]),
)
def test_any_json_value_in_the_place_of_a_list_is_settings_or_one_error_of_ours(value: object, key: str) -> None:
    text = orjson.dumps(value).decode()
    try:
        settings = load(None, {**HOME, f"CTXT_{key.upper()}": text})
    except SettingsError as error:
        found = error.problems
    else:
        found = ()
        assert len(getattr(settings, key)) == len(orjson.loads(text))
    assert all(problem.place and problem.reason for problem in found)


# The unit for systemd


def test_the_systemd_unit_keeps_its_state_and_does_not_retry_bad_settings() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((folder("config") / "ctxt-gateway.service").read_text())
    service = unit["Service"]
    assert service["ExecStart"].endswith("ctxt run --config /etc/ctxt-gateway/gateway.toml")
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "7 78")
    assert service["StateDirectory"] == service["ConfigurationDirectory"] == service["User"]
    assert int(service["LimitNOFILE"]) > load(None, HOME).broker.connections
    assert load(None, {"STATE_DIRECTORY": f"/var/lib/{service['StateDirectory']}"}).state_dir == Path(
        "/var/lib/ctxt-gateway"
    )


def test_the_shipped_file_is_toml_with_every_section() -> None:
    raw = tomllib.loads(uncommented(render_default()))
    assert set(raw) == set(orjson.loads(show(load(None, HOME), json=True)))
