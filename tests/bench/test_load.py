"""The load generator itself: it counts what really arrives, and notices what does not behave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.load import LoadError, Observer, Stream, check_versions, frame
from tests.bench.measure import MOSQUITTO, PAYLOAD_BYTES, head, mosquitto_target, one_round, reports
from tests.bench.plain import fan_out
from tests.running import mosquitto, need

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("window", [1, 50])
def test_every_message_that_is_sent_through_mosquitto_is_counted(tmp_path: Path, qos: int, window: int) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path, MOSQUITTO) as broker:
        target = mosquitto_target(broker.port, broker.pid, qos)
        result = one_round(target, Stream(reports(100), qos), seconds=0.2, window=window)
    assert result.messages > 100
    assert len(result.times) == (result.messages if window == 1 else 0)


def test_a_message_that_never_arrives_ends_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("mosquitto", "mosquitto")
    monkeypatch.setattr("tests.bench.load.QUIET", 0.2)
    with mosquitto(tmp_path, MOSQUITTO) as broker:
        target = mosquitto_target(broker.port, broker.pid, 1)._replace(topic_filter="elsewhere/#")
        with pytest.raises(LoadError, match="nothing has arrived"):
            one_round(target, Stream(reports(100), 1), seconds=0.2, window=50)


def test_reports_have_sixty_bytes_and_no_two_on_one_object_are_the_same() -> None:
    messages = reports(7, 64) + reports(7, 3, salt=1)
    assert len(set(messages)) == len(messages) == 7 * 67
    assert {len(payload) for _, payload in messages} == {PAYLOAD_BYTES}


def test_a_stream_goes_round_and_round() -> None:
    stream = Stream([("t", b"a"), ("t", b"bb"), ("t", b"ccc")], 0)
    a, b, c = (frame(0x30, b"\0\1t" + text) for text in (b"a", b"bb", b"ccc"))
    assert stream.take(0, 3) == a + b + c
    assert stream.take(4, 2) == b + c
    assert stream.take(5, 3) == c + a + b


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [1, 7, 41, 1000])
def test_heads_are_found_however_the_bytes_are_cut(qos: int, size: int) -> None:
    stream = Stream(reports(20, 5), qos)
    data = stream.take(0, 100)
    observer = Observer(head(qos, rb'\{"values"'), qos)
    wrote: list[bytes] = []
    observer.transport = type("Out", (), {"write": lambda _, data: wrote.append(data)})()
    for at in range(0, len(data), size):
        observer.data_received(data[at : at + size])
    assert observer.received == 100
    assert [payload for _, payload in observer.frames()] == [payload for _, payload in reports(20, 5)]
    if qos:
        assert b"".join(wrote) == b"".join(b"\x40\2" + (i + 1).to_bytes(2) for i in range(100))


@pytest.mark.parametrize(
    "wrong", [(5, 4), (5, 2), (5, 1), (6, 3), (4, 3)], ids=["gap", "twice", "back", "new epoch", "old epoch"]
)
def test_versions_that_do_not_run_on_are_noticed(wrong: tuple[int, int]) -> None:
    def delta(epoch: int, version: int) -> tuple[str, bytes]:
        return "delta/o", b'{"epoch":%d,"version":%d,"merge":{}}' % (epoch, version)

    assert check_versions([delta(5, 1), delta(5, 2), delta(5, 3)], {}) == 3
    with pytest.raises(LoadError, match="after"):
        check_versions([delta(5, 1), delta(5, 2), delta(*wrong)], {})


@pytest.mark.parametrize("qos", [0, 1])
def test_many_observers_are_counted_together_and_each_has_everything(tmp_path: Path, qos: int) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path, MOSQUITTO) as broker:
        target = mosquitto_target(broker.port, broker.pid, qos)
        result = fan_out(target, Stream(reports(10), qos), observers=5, window=3, seconds=0.2)
    assert result.rate > 0
