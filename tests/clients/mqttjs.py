"""Clients of mqtt.js in a process of Node.js, with the verbs of `tests.inside.Client`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.inside import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = Path(__file__).with_name("mqttjs.js")


class Leash:
    """The process: commands go in, events come out and are kept by the client that they are about."""

    def __init__(self, node: str) -> None:
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.answers: dict[int, dict[str, Any]] = {}
        self._ids = count(1)
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [node, "--no-warnings", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._news:
                if "client" in event:
                    self.events[event["client"]].append(event)
                else:
                    self.answers[event["id"]] = event
                self._news.notify_all()

    def tell(self, do: str, client: str, **rest: Any) -> int:
        """Give a command: its id, under which it may be answered."""
        assert self._process.stdin is not None
        number = next(self._ids)
        self._process.stdin.write(json.dumps({"do": do, "client": client, "id": number, **rest}) + "\n")
        self._process.stdin.flush()
        return number

    def ask(self, do: str, client: str, **rest: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        number = self.tell(do, client, **rest)
        answer: dict[str, Any] = self.wait(lambda: self.answers.pop(number, None))
        return answer

    def wait(self, until: Callable[[], Any], seconds: float = 10.0) -> Any:
        """Wait until events make this true; what it was."""
        found: Any = None

        def look() -> bool:
            nonlocal found
            found = until()
            return bool(found)

        with self._news:
            assert self._news.wait_for(look, seconds), f"waited {seconds} s in vain; {dict(self.events)}"
        return found

    def close(self) -> None:
        """End it; what it complains about is an error."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        self._reader.join(10)
        complaint = process.stderr.read()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
        assert not complaint, complaint


@contextlib.contextmanager
def leash(node: str) -> Iterator[Leash]:
    """A process of Node.js that makes clients of mqtt.js, gone at the end."""
    made = Leash(node)
    try:
        yield made
    finally:
        made.close()


class JsClient:
    """A client of mqtt.js: `protocolVersion` 4 is MQTT 3.1.1. It stays away after a loss until `back`."""

    def __init__(
        self, process: Leash, url: str, name: str, *, version: int, password: str = PASSWORD, **options: Any
    ) -> None:
        self.name = name
        self._process = process
        self._key = f"{name} {len(process.events)}"
        given = {"protocolVersion": version, "username": name, "password": password, **options}
        process.tell("connect", self._key, url=url, options=given)
        process.wait(lambda: self.of("connect") or self.of("error"))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Its events of one kind, in order."""
        return [event for event in self._process.events[self._key] if event["event"] == kind]

    def wait(self, until: Callable[[], Any]) -> Any:
        return self._process.wait(until)

    def messages(self, topic: str) -> list[dict[str, Any]]:
        """The JSON of what it has heard on a topic."""
        return [json.loads(event["payload"]) for event in self.of("message") if event["topic"] == topic]

    def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        granted: list[int] = self._process.ask("subscribe", self._key, filters=filters, qos=qos)["granted"]
        return granted

    def publish(self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False) -> tuple[int, str]:
        """Publish and wait for the acknowledgement: (reason code, reason string)."""
        text = payload if isinstance(payload, str) else json.dumps(payload)
        answer = self._process.ask("publish", self._key, topic=topic, payload=text, qos=qos, retain=retain)
        return answer["reason"], answer["text"]

    def cut(self) -> None:
        """Close its socket without a DISCONNECT."""
        before = len(self.of("close"))
        self._process.tell("cut", self._key)
        self.wait(lambda: len(self.of("close")) > before)

    def back(self) -> bool:
        """Connect again: whether its session was there."""
        before = len(self.of("connect"))
        self._process.tell("back", self._key)
        self.wait(lambda: len(self.of("connect")) > before)
        present: bool = self.of("connect")[-1]["present"]
        return present

    def end(self) -> None:
        """Leave with a DISCONNECT."""
        self._process.ask("end", self._key)
