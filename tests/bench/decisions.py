"""What a broker waits for when it asks the authority: decisions per second over HTTP, beside an endpoint that always says yes."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from gateway.errors import CtxtError
from tests.bench.measure import MOSQUITTO, REPORTER, create, gateway_target, percentile, surroundings, typical
from tests.bench.steps import steps
from tests.running import OWN_NAMESPACE, ROOT, UNLIMITED, free_port, gateway, mosquitto, usage

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SECRET = "the-benchmarks-own-secret"
PASSWORD = "correct horse"
CLIENTS = tuple(f"client{number}" for number in range(20))
ALLOW, DENY = b'"allow"', b'"deny"'


class Asker(asyncio.Protocol):
    """One connection of a broker's pool: a question, its answer, the next question."""

    def __init__(self, questions: list[tuple[bytes, bytes]], start: int) -> None:
        self._questions = questions
        self._at = start
        self._asked = 0.0
        self._answer = b""
        self.times: list[float] = []
        self.wrong = 0
        self.lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one of a stream
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self._asked = time.perf_counter()
        self.transport.write(self._questions[self._at % len(self._questions)][0])

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, content = self._answer.partition(b"\r\n\r\n")
        if not found or not content.endswith(b"}"):
            return
        self._answer = b""
        self.times.append(time.perf_counter() - self._asked)
        self.wrong += self._questions[self._at % len(self._questions)][1] not in content or b" 200 " not in head[:20]
        self._at += 1
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def questions(port: int, objects: int, *, yes: bool = False) -> list[tuple[bytes, bytes]]:
    """Requests as EMQX sends them, and what has to be in the answer; `yes`: always that."""
    dice = random.Random(7)
    found = []
    for _ in range(5_000):
        name = dice.choice(CLIENTS)
        topic = f"ctxt/home.local/{REPORTER}/o{dice.randrange(objects)}/temperature"
        action, wanted, may = dice.choice(
            (
                ("publish", f"report/{name}/ctxt/home.local/{name}/x", True),
                ("publish", f"report/{REPORTER}/{topic}", False),
                ("subscribe", f"delta/{topic}", True),
                ("subscribe", f"delta/ctxt/home.local/{REPORTER}/+/#", True),
                ("subscribe", "report/#", False),
            )
        )
        content = orjson.dumps({"username": name, "clientid": name, "action": action, "topic": wanted})
        head = (
            f"POST /acl/emqx/authorization HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {SECRET}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        found.append((head.encode() + content, ALLOW if may or yes else DENY))
    return found


def asked(port: int, asking: list[tuple[bytes, bytes]], connections: int, seconds: float) -> tuple[float, list[float]]:
    """(answers per second, how long each took, sorted). Raises CtxtError for one that is wrong."""

    async def run() -> tuple[float, list[float]]:
        loop = asyncio.get_running_loop()
        pool = [
            (await loop.create_connection(lambda at=at: Asker(asking, at * 97), "127.0.0.1", port))[1]  # type: ignore[misc]
            for at in range(connections)
        ]
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        times = [each for asker in pool for each in asker.times]
        took = time.perf_counter() - began
        if any(asker.wrong or asker.lost for asker in pool):
            raise CtxtError("an answer was wrong, or a connection was closed")
        for asker in pool:
            asker.transport.abort()
        return len(times) / took, sorted(times)

    return uvloop.run(run())


@contextmanager
def bare() -> Iterator[tuple[int, int]]:
    """The endpoint that says yes: its port and process id."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.bare_web"], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()


def decisions(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a broker waits for when it asks over HTTP; medians of alternating rounds."""
    around = surroundings()
    rates: dict[str, list[float]] = {}
    took: dict[str, list[list[float]]] = {}
    cpu: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name,
        steps(4 * arguments.rounds + 1) as step,
        mosquitto(Path(name), MOSQUITTO) as broker,
        bare() as (bare_port, bare_pid),
    ):
        folder = Path(name, "gateway")
        folder.mkdir()
        for file, text in (("secret", SECRET), ("link", PASSWORD)):
            (folder / file).write_text(text + "\n")
        port = free_port()
        rest = (
            f'{OWN_NAMESPACE}{UNLIMITED}[link]\nopen = true\nusername = "gateway"\npassword_file = "{folder}/link"\n'
            f'[acl]\nplugin = "http"\n[web]\nlisten = "http://127.0.0.1:{port}"\n[authority]\nsecret_file = "{folder}/secret"\n'
        )
        url = f"mqtt://127.0.0.1:{broker.port}"
        clients = dict.fromkeys(CLIENTS, PASSWORD)
        with gateway(folder, rest=rest, clients=clients, outside=url) as running:
            step(f"create {arguments.objects:,} objects")
            target = gateway_target(broker.port, running.pid, 1)
            create(target._replace(user=None, watcher=None, password=None), arguments.objects, 200)
            step.done()
            judged = questions(port, arguments.objects)
            yes = questions(bare_port, arguments.objects, yes=True)
            for turn in range(arguments.rounds):
                for width in (arguments.connections, 1):
                    for who, at, pid, asking in (
                        ("bare", bare_port, bare_pid, yes),
                        ("authority", port, running.pid, judged),
                    ):
                        label = f"{who} {width}"
                        step(f"round {turn + 1}: {who}, {width} at a time")
                        before = usage(pid).cpu
                        rate, times = asked(at, asking, width, arguments.seconds)
                        cpu.setdefault(label, []).append((usage(pid).cpu - before) / len(times))
                        rates.setdefault(label, []).append(rate)
                        took.setdefault(label, []).append(times)
                        step.done()

    def per_second(label: str) -> float:
        return typical(rates[label])

    def late(label: str, share: float) -> float:
        return typical([percentile(times, share) for times in took[label]]) * 1e3

    many = arguments.connections
    return {
        "ratio_to_an_endpoint_that_says_yes": per_second(f"authority {many}") / per_second(f"bare {many}"),
        "ratio_p50_one_at_a_time": late("authority 1", 0.5) / late("bare 1", 0.5),
        "decisions_per_second": per_second(f"authority {many}"),
        "bare_answers_per_second": per_second(f"bare {many}"),
        "decisions_per_second_one_at_a_time": per_second("authority 1"),
        "p50_ms": late("authority 1", 0.5),
        "p99_ms": late("authority 1", 0.99),
        "bare_p50_ms": late("bare 1", 0.5),
        "cpu_us_per_decision": typical(cpu[f"authority {many}"]) * 1e6,
        "cpu_us_per_bare_answer": typical(cpu[f"bare {many}"]) * 1e6,
        "connections": many,
        "objects": arguments.objects,
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
        **around,
    }
