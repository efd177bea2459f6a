"""Reporter and Observer over real sockets: asyncio and blocking, on the broker inside and beside mosquitto."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.client import (
    Action,
    Changed,
    Connected,
    Created,
    Delegated,
    Delegation,
    Deleted,
    Disconnected,
    Invitation,
    NoAnswerError,
    NotConnectedError,
    PatchError,
    RefusedError,
    Rejection,
    Revoked,
    UsageError,
)
from gateway.ulid import ulid
from tests.client.conftest import NAMES, SETTINGS
from tests.inside import PASSWORD, inside
from tests.links.world import ALLOW_ALL, OPEN
from tests.running import mosquitto, need

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.client.conftest import Place
    from tests.client.edges import Edge

BOTH = pytest.mark.parametrize("place", ["inside", "mosquitto"], indirect=True, scope="module")
PATIENCE = 15.0


def reading(value: Any, **more: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value, **more}}}


def fresh(client: str, scheme: str = "ctxt") -> str:
    """A URL that nobody has used."""
    return f"{scheme}://home.local/{client}/{ulid(time.time())}"


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return found


@BOTH
def test_what_is_reported_is_observed_with_its_paths(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui")) as rui:
        room = ana.create(url, schema="Context", data=reading(20, unit="Cel"), name="Room", tags=["upstairs"])
        assert room.data == reading(20, unit="Cel")
        with rui.observe(url) as seen:
            assert (seen.data, seen.version, seen.status, seen.reporter) == (room.data, 1, "live", "ana")
            assert (seen.copy.name, seen.copy.tags) == ("Room", ("upstairs",))
            changes = seen.changes(timeout=PATIENCE)
            assert room.update(reading(21.5)) is True
            event = next(changes)
            assert isinstance(event, Changed)
            assert event.paths == ["/values/temperature/value"]
            assert (event.url, event.parent, event.copy.version) == (url, None, 2)
            room.patch([{"op": "add", "path": "/values/humidity", "value": {"value": 40}}])
            assert next(changes).paths == ["/values/humidity"]
            with room.edit() as data:
                data["values"]["humidity"]["value"] = 41
                del data["values"]["temperature"]["unit"]
            assert next(changes).paths == ["/values/temperature/unit", "/values/humidity/value"]
            assert seen.data == room.data == place.stored(url)
            room.describe(name="Attic")
            event = next(changes)
            assert (event.paths, event.copy.name) == ([], "Attic")
            room.delete()
            assert isinstance(next(changes), Deleted)
            with pytest.raises(RefusedError, match="410"):
                _ = seen.data


@BOTH
def test_a_refused_report_is_told_and_changes_nothing(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana")) as ana:
        events = ana.events(timeout=PATIENCE)
        room = ana.create(url, data=reading(20))
        if place.broker == "inside":
            with pytest.raises(RefusedError) as caught:
                room.update(reading({}))
            assert (caught.value.code, caught.value.place) == (422, "/values/temperature/value")
            assert caught.value.resource == url
            assert room.data == reading(20)
        else:
            room.update(reading({}))
        told = next(events)
        assert isinstance(told, Rejection)
        assert (told.resource, told.code, told.place) == (url, 422, "/values/temperature/value")
        with pytest.raises(RefusedError) as caught:
            room.update(reading({}), confirm=True)
        assert caught.value.code == 422
        assert room.update(reading(22), confirm=True)
        assert place.stored(url) == reading(22)
        with pytest.raises(PatchError):
            room.patch([{"op": "remove", "path": "/nothing"}])


@BOTH
def test_children_are_told_to_whoever_observes_the_parent(place: Place, edge: Edge) -> None:
    url = fresh("ana", "comm")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui")) as rui:
        chat = ana.create(url, data={"status": "open"})
        with pytest.raises(RefusedError, match="403"):
            rui.observe(url).__enter__()
        invitations = rui.events(timeout=PATIENCE)
        assert chat.invite("rui") == []
        invitation = until(lambda: next(invitations), 5)
        assert isinstance(invitation, Invitation)
        assert rui.accept(invitation)["url"] == url
        with rui.observe(url) as seen, ana.observe(url) as own:
            changes = own.changes(timeout=PATIENCE)
            message = seen.add_child("messages", {"type": "chat", "content": "hello"})
            event = next(changes)
            assert isinstance(event, Created)
            assert (event.parent, event.copy.collection, event.copy.reporter) == (url, "messages", "rui")
            message.update({"content": "hello!"})
            assert next(changes).paths == ["/content"]
            assert [copy.data["content"] for copy in own.children("messages")] == ["hello!"]
            named = chat.add_child("messages", {"type": "chat", "content": "hi"}, id="second")
            assert named.url == f"{url}/children/messages/ana/second"
            assert next(changes).url == named.url
            message.delete()
            assert next(changes).url == message.url
            news = seen.changes(timeout=PATIENCE)
            chat.revoke("rui")
            assert isinstance(next(invitations), Revoked)
            chat.update({"status": "paused"})
            assert {next(news).url, next(news).url} == {url, named.url}
            assert seen.copy is None
            assert news.get(0.5) is None


@BOTH
def test_requests_are_decided_and_objects_change_hands(place: Place, edge: Edge) -> None:
    url = fresh("ana", "comm")
    with (
        edge.connect(place.url("ana")) as ana,
        edge.connect(place.url("rui")) as rui,
        edge.connect(place.url("eva")) as eva,
    ):
        chat = ana.create(url, data={"status": "open"})
        asked = chat.requests(timeout=PATIENCE)
        with pytest.raises(NoAnswerError):
            rui.subscribe(url, wait=0.2)
        request = next(asked)
        assert (request.client, request.resource) == ("rui", url)
        ana.accept(request)
        assert rui.subscribe(url)["url"] == url
        with pytest.raises(RefusedError, match="410"):
            ana.accept(request)
        assert ana.pending == []
        inbox = eva.events(timeout=PATIENCE)
        with rui.observe(url) as seen:
            changes = seen.changes(timeout=PATIENCE)
            assert chat.delegate("eva") is False
            offer = next(inbox)
            assert isinstance(offer, Delegation)
            eva.accept(offer)
            moved = next(changes)
            assert isinstance(moved, Delegated)
            assert seen.reporter == "eva"
            hers = eva.resume(url)
            hers.update({"status": "closed"})
            assert next(changes).copy.data["status"] == "closed"
        with pytest.raises(UsageError, match="reported by 'eva'"):
            rui.resume(url)
        assert [each["url"] for each in eva.owned()] == [url]
        hers.delete()


@BOTH
def test_an_action_is_done_by_the_reporter(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui")) as rui:
        lamp = ana.create(url, data=reading(0))

        def act(action: Action) -> Any:
            if action.method == "on":
                return {"by": action.client, "level": action.params["level"]}
            if action.method == "break":
                raise ZeroDivisionError
            raise RefusedError(404, f"no method {action.method!r}")

        stop = lamp.on_action(act)
        with rui.observe(url) as seen:
            assert seen.execute("on", {"level": 3}) == {"by": "rui", "level": 3}
            with pytest.raises(RefusedError, match="404 no method 'off'"):
                seen.execute("off", idempotent=True)
            with pytest.raises(RefusedError, match="500 `break` failed"):
                seen.execute("break")
            stop()
            with pytest.raises(RefusedError, match="504"):
                seen.execute("on", {"level": 1}, timeout=1)
        with pytest.raises(RefusedError, match="404"):
            rui.execute(fresh("ana"), "on")


@BOTH
def test_a_lost_connection_comes_back_and_everything_is_in_sync(place: Place, edge: Edge) -> None:
    url, other = fresh("ana"), fresh("zoe")
    with (
        edge.connect(place.url("ana")) as ana,
        edge.connect(place.url("zoe")) as zoe,
        edge.connect(place.url("rui", cuttable=True)) as rui,
    ):
        room, attic = ana.create(url, data=reading(1)), zoe.create(other, data=reading(1))
        events = rui.events(timeout=PATIENCE)
        with rui.observe(url) as seen, rui.observe_all("ctxt://home.local/zoe/") as below:
            assert seen.in_sync
            place.wire.cut()
            assert isinstance(next(events), Disconnected)
            assert seen.status == "unknown"
            room.update(reading(2))
            attic.delete()
            assert next(events) == Connected(again=True)
            assert seen.wait_for(lambda data: data == reading(2), PATIENCE)
            until(lambda: other not in below)
            until(lambda: seen.in_sync and below.in_sync)
            assert seen.status == "live"


def test_what_is_refused_when_the_connection_is_back_is_not_in_sync(place: Place, edge: Edge) -> None:
    url = fresh("ana", "comm")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui", cuttable=True)) as rui:
        chat = ana.create(url, data={"status": "open"}, observers=["rui"])
        events = rui.events(timeout=PATIENCE)
        with rui.observe(url) as seen:
            assert seen.in_sync
            place.wire.stall()
            place.wire.cut()
            until(lambda: not rui.connected)
            chat.revoke("rui")
            place.wire.flow()
            while next(events) != Connected(again=True):
                pass
            until(lambda: seen.copy is None)
            time.sleep(2)  # the comparison comes, and is no proof
            assert not seen.in_sync
            # Whoever is let in again and observes it again subscribes again, for both.
            chat.invite("rui")
            with rui.observe(url) as again:
                assert again.in_sync
                chat.update({"status": "paused"})
                assert seen.wait_for(lambda data: data == {"status": "paused"}, PATIENCE)
                until(lambda: seen.in_sync)


def test_what_is_said_offline_is_sent_at_last_with_its_own_time(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana", cuttable=True)) as ana, edge.connect(place.url("ana")) as twin:
        room = ana.create(url, data=reading(1))
        events = ana.events(timeout=PATIENCE)
        place.wire.stall()
        place.wire.cut()
        assert isinstance(next(events), Disconnected)
        begun = time.time()
        assert room.update(reading(2)) is False
        assert room.update({"values": {"humidity": {"value": 40}}}) is False
        assert room.update(reading(3)) is False
        assert (ana.held, room.held, room.data["values"]["temperature"]["value"]) == (1, True, 3)
        with pytest.raises(NotConnectedError):
            ana.wait_connected(0.1)
        place.wire.flow()
        until(lambda: not room.held)
        stored = place.stored(url)
        assert stored == room.data
        assert stored["values"]["temperature"]["value"] == 3
        assert abs(_seconds(stored["values"]["temperature"]["time"]) - begun) < 5
        assert ana.dropped == 0
        # What somebody says under the same name meanwhile, and is newer, stays.
        place.wire.stall()
        place.wire.cut()
        until(lambda: not ana.connected)
        assert room.update(reading(4)) is False
        time.sleep(0.01)
        twin.resume(url).update(reading(5))
        place.wire.flow()
        until(lambda: not room.held)
        assert place.stored(url)["values"]["temperature"]["value"] == 5
        assert isinstance(next(e for e in events if not isinstance(e, Connected | Disconnected)), Rejection)


def _seconds(text: str) -> float:
    from gateway.messages import instant

    found = instant(text)
    assert found is not None
    return found


def test_a_queue_on_disk_keeps_every_report_in_order(place: Place, edge: Edge, tmp_path: Any) -> None:
    from gateway.client import Outbox

    url = fresh("ana")
    box = Outbox(tmp_path / "queue.db", max_reports=50)
    with edge.connect(place.url("rui")) as rui, rui.observe_all("ctxt://home.local/ana/") as seen:
        changes = seen.changes(timeout=PATIENCE)
        with edge.connect(place.url("ana", cuttable=True), queue=box) as ana:
            room = ana.create(url, data=reading(0))
            while next(changes).url != url:
                pass
            place.wire.stall()
            place.wire.cut()
            until(lambda: not ana.connected)
            for value in range(1, 61):
                assert room.update(reading(value)) is False
            assert (ana.held, ana.dropped) == (50, 10)
        # The process may end: another one goes on.
        with edge.connect(place.url("ana", cuttable=True), queue=tmp_path / "queue.db", wait=True) as ana:
            assert ana.held == 50
            place.wire.flow()
            got = [next(changes).copy.data["values"]["temperature"] for _ in range(50)]
            assert [each["value"] for each in got] == list(range(11, 61))
            assert [each["time"] for each in got] == sorted(each["time"] for each in got)
            until(lambda: ana.held == 0)
            assert ana.dropped == 0


def test_it_begins_without_a_connection_where_it_may(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    place.wire.stall()
    try:
        with edge.connect(place.url("ana", cuttable=True), wait=True, timeout=1) as ana:
            room = ana.reporter(url)
            assert room.update(reading(1)) is False
            assert room.update({"values": {"humidity": {"value": 2}}}) is False
            with pytest.raises(UsageError, match="a JSON Patch cannot wait"):
                room.patch([{"op": "remove", "path": "/values/humidity"}])
            place.wire.flow()
            until(lambda: not room.held)
            assert {name: each["value"] for name, each in place.stored(url)["values"].items()} == {
                "temperature": 1,
                "humidity": 2,
            }
            # It knows the object now.
            with room.edit() as data:
                data["values"] = {}
            assert place.stored(url) == {"values": {}}
    finally:
        place.wire.flow()


def test_a_query_shows_what_matches_as_long_as_it_does(place: Place, edge: Edge) -> None:
    one, two, light = fresh("eva"), fresh("eva"), ulid(time.time())
    with edge.connect(place.url("eva")) as eva, edge.connect(place.url("rui")) as rui:
        lamp = eva.create(one, data=reading(1), tags=[light])
        eva.create(two, data=reading(2), tags=["heat"])
        with rui.observe_all("ctxt://home.local/eva/", tag=light, schema="Context") as lights:
            assert [copy.url for copy in lights] == [one]
            assert len(lights) == 1
            assert one in lights
            assert two not in lights
            changes = lights.changes(timeout=PATIENCE)
            third = eva.create(fresh("eva"), data=reading(3), tags=[light, "new"])
            assert isinstance(event := next(changes), Created)
            assert event.url == third.url
            lamp.update(reading(4))
            assert next(changes).copy.data == reading(4)
            lamp.describe(tags=[])
            assert isinstance(event := next(changes), Deleted)
            assert event.url == one
            lamp.update(reading(5))
            lamp.describe(tags=[light])
            assert isinstance(event := next(changes), Created)
            assert event.copy.data == reading(5)
            lights.wait_for(lambda copies: len(copies) == 2, PATIENCE)
            assert lights.status(lights[one]) == "live"
        with rui.observe_all("ctxt://home.local/eva/", tag="none") as nothing:
            assert len(nothing) == 0


def test_observers_of_one_client_share_and_let_go(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui")) as rui:
        room = ana.create(url, data=reading(1))
        with rui.observe(url) as one, rui.observe_all("ctxt://home.local/ana/") as all_of_it:
            with rui.observe(url) as two:
                seen: list[Any] = []
                two.on_change(seen.append, replay=True)
                room.update(reading(2))
                until(lambda: [type(each) for each in seen] == [Created, Changed])
            room.update(reading(3))
            one.wait_for(lambda data: data == reading(3), PATIENCE)
            assert all_of_it[url].data == reading(3)
            assert len(seen) == 2
        with rui.observe(url) as again:
            assert again.data == reading(3)


def test_what_is_not_there_yet_may_come(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with edge.connect(place.url("ana")) as ana, edge.connect(place.url("rui")) as rui:
        with pytest.raises(RefusedError, match="404"):
            rui.observe(url).__enter__()
        with rui.observe(url, absent_ok=True) as seen:
            assert seen.copy is None
            ana.create(url, data=reading(7))
            assert seen.wait_for(lambda data: data == reading(7), PATIENCE)


def test_iterators_end_with_what_they_are_about(place: Place, edge: Edge) -> None:
    with edge.connect(place.url("ana")) as ana:
        room = ana.create(fresh("ana"), data=reading(1))
        with ana.observe(room.url) as seen:
            changes = seen.changes()
            room.update(reading(2))
            seen.wait_for(lambda data: data == reading(2), PATIENCE)
        assert [type(each) for each in changes] == [Changed]
        events, actions = ana.events(), room.actions()
    assert list(actions) == []
    list(events)
    with pytest.raises(NotConnectedError):
        room.update(reading(3), confirm=True)
    with pytest.raises(UsageError):
        edge.connect(place.url("ana")).create(fresh("ana"))


def test_a_slow_reader_misses_events_and_is_told(place: Place, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.client.feed.MOST", 5)
    with edge.connect(place.url("ana")) as ana:
        room = ana.create(fresh("ana"), data=reading(0))
        with ana.observe(room.url) as seen:
            changes = seen.changes(timeout=PATIENCE)
            for value in range(1, 10):
                room.update(reading(value))
            seen.wait_for(lambda data: data == reading(9), PATIENCE)
            assert next(changes).count == 4
            assert next(changes).copy.data == reading(5)


def test_old_mqtt_does_it_too(place: Place, edge: Edge) -> None:
    url = fresh("ana")
    with (
        edge.connect(place.url("ana"), protocol="3.1.1") as ana,
        edge.connect(place.url("rui"), protocol="3.1.1") as rui,
    ):
        events = ana.events(timeout=PATIENCE)
        room = ana.create(url, data=reading(1))
        with rui.observe(url) as seen:
            room.update(reading(2))
            assert seen.wait_for(lambda data: data == reading(2), PATIENCE)
            room.update(reading({}))
            assert isinstance(next(events), Rejection)


def test_who_has_no_name_has_all_copies_however_long_they_take(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if thousands of snapshots took longer than a second.
    monkeypatch.setattr("gateway.client.following.SETTLE", 0.001)
    anybody = SETTINGS.replace('observe = ["*"]', 'observe = ["*", "anonymous"]') + "[broker]\nanonymous = true\n"
    with inside(tmp_path, anybody, "ana") as gateway:
        word = PASSWORD.replace(" ", "%20")
        with edge.connect(f"mqtt://ana:{word}@127.0.0.1:{gateway.port}") as ana:
            urls = {f"ctxt://home.local/ana/{number}" for number in range(1500)}
            for url in urls:
                ana.reporter(url).update(reading(1))
        with edge.connect(f"mqtt://127.0.0.1:{gateway.port}") as nobody:
            with nobody.observe_all("ctxt://home.local/") as seen:
                assert {copy.url for copy in seen} == urls
            with nobody.observe("ctxt://home.local/ana/7") as one:
                assert one.data == reading(1)
            with pytest.raises(RefusedError, match="404"):
                nobody.observe("ctxt://home.local/ana/nothing").__enter__()


def test_a_handler_decides_who_observes(place: Place, edge: Edge) -> None:
    url = fresh("ana", "comm")
    with (
        edge.connect(place.url("ana")) as ana,
        edge.connect(place.url("rui")) as rui,
        edge.connect(place.url("eva")) as eva,
        edge.connect(place.url("zoe")) as zoe,
    ):
        chat = ana.create(url, data={"status": "open"})
        with pytest.raises(NoAnswerError):
            rui.subscribe(url, wait=0.2)

        def decide(request: Any) -> bool:
            if request.client == "zoe":
                raise RefusedError(403, "not you")
            return bool(request.client == "rui")

        chat.on_request(decide)
        assert until(lambda: _subscribed(rui, url))["url"] == url
        with pytest.raises(RefusedError, match="403"):
            eva.subscribe(url, wait=10)
        with pytest.raises(RefusedError, match=r"403 .*'ana' has rejected it: not you"):
            zoe.subscribe(url, wait=10)


def _subscribed(client: Any, url: str) -> Any:
    try:
        return client.subscribe(url, wait=5)
    except (NoAnswerError, RefusedError):
        return None


def test_a_broker_whose_topics_cannot_have_all_characters(edge: Edge, tmp_path: Any) -> None:
    need("mosquitto", "mosquitto")
    settings = SETTINGS + OPEN + 'topic_escape = ".-"\n'
    with mosquitto(tmp_path, ALLOW_ALL) as broker:
        outside = f"mqtt://127.0.0.1:{broker.port}"
        with inside(tmp_path / "gateway", settings, *NAMES, url=outside):
            options = {"topic_escape": ".-"}
            url = f"mqtt://ana:x@127.0.0.1:{broker.port}"
            with edge.connect(url, **options) as ana, edge.connect(url, **options, presence=False) as twin:
                room = ana.create("ctxt://home.local/ana/living-room", data=reading(1))
                with twin.observe(room.url) as seen, twin.observe_all("ctxt://home.local/") as home:
                    room.update(reading(2))
                    assert seen.wait_for(lambda data: data == reading(2), PATIENCE)
                    assert [copy.url for copy in home] == [room.url]
