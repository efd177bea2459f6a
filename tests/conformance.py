"""`python -m tests.conformance FOLDER`: the Eclipse Paho interoperability clients against mosquitto and against the broker inside.

FOLDER is `interoperability` of a checkout of eclipse/paho.mqtt.testing, which is no part of this project. Every test of
client_test.py (3.1.1) and client_test5.py (5) runs in a process of its own with a time-out, against both brokers. Exit code 1 where mosquitto passes a test that ours does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.running import gateway, mosquitto, mosquitto_version

SCRIPTS = {"client_test": "3.1.1", "client_test5": "5"}

TEST_SECONDS = 90.0
"""The longest test takes about 30 s."""

TOPICS = [
    "client_test5/#",
    "client_test311/#",
    "TopicA/#",
    "Topic/C",
    "/TopicA",
    "test/nosubscribe",
    "fromb/#",
    "$TopicA/B",
]

RULES = "".join(
    f"""
[[topic]]
filter = "{topic_filter}"
write = ["anonymous"]
read = [{"" if topic_filter == "test/nosubscribe" else '"anonymous"'}]
"""
    for topic_filter in TOPICS
)
"""The suite's clients have no name, so its topics are opened to `anonymous`; one is closed, as the suite wants it."""

OWN_PLACE = 'topic_prefix = "own/place"'
"""The suite counts what `+/+` brings: the gateway's own announcement is elsewhere."""

MOSQUITTO = """
allow_anonymous true
set_tcp_nodelay true
max_keepalive 60
"""


RUN = """
import sys, unittest
sys.path.insert(0, ".")
module = __import__(sys.argv[1])
if len(sys.argv) == 2:
    print(*unittest.defaultTestLoader.getTestCaseNames(module.Test))
    sys.exit()
module.host, module.port = "127.0.0.1", int(sys.argv[3])
module.topics = ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")
module.wildtopics = ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")
module.nosubscribe_topics = ("test/nosubscribe",)
module.topic_prefix = "client_test5/"
unittest.main(module=module, argv=["suite", "Test." + sys.argv[2]])
"""
"""Sets what the suite's scripts set only when they are called themselves; without a test's name it lists the tests."""


class Verdict(NamedTuple):
    """What one test said of the two brokers: `ok`, `FAIL`, or `hangs` where its time was over."""

    level: str
    test: str
    mosquitto: str
    ours: str


def tests(folder: Path, module: str) -> list[str]:
    """The names of a script's tests; none where there is no such script."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, module],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def verdict(folder: Path, module: str, test: str, port: int) -> tuple[str, str]:
    """Run one test, in a process of its own, against whoever listens on a port: what it says, and all that it wrote."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN, module, test, str(port)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return "hangs", (error.stdout or b"").decode(errors="replace")
    return ("FAIL" if done.returncode else "ok"), done.stdout


def main() -> int:
    """Run test after test, each against both brokers at the same time, and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="tests whose name contains this")
    parser.add_argument("--verbose", action="store_true", help="what the tests that fail with ours wrote")
    parser.add_argument("--json", action="store_true", help="JSON, for programs")
    arguments = parser.parse_args()
    verdicts: list[Verdict] = []
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        mosquitto(Path(one), MOSQUITTO) as theirs,
        gateway(Path(other), top=OWN_PLACE, broker="anonymous = true\nkeep_alive_max = 60\n", rest=RULES) as ours,
        ThreadPoolExecutor(2) as pool,
    ):
        for module, level in SCRIPTS.items():
            for test in tests(arguments.folder, module):
                if arguments.only not in test:
                    continue
                of_theirs = pool.submit(verdict, arguments.folder, module, test, theirs.port)
                said, wrote = verdict(arguments.folder, module, test, ours.port)
                verdicts.append(Verdict(level, test, of_theirs.result()[0], said))
                if not arguments.json:
                    print(f"{level:6} {test:32} mosquitto {verdicts[-1].mosquitto:6} ours {said}", flush=True)
                if arguments.verbose and said != "ok":
                    print(wrote, file=sys.stderr)
    if not verdicts:
        print(
            f"error: no test ran: is {arguments.folder} the folder `interoperability` of that suite?", file=sys.stderr
        )
        return 2
    if arguments.json:
        print(json.dumps([found._asdict() for found in verdicts], indent=2))
    else:
        print(
            f"mosquitto {mosquitto_version()} passes {sum(found.mosquitto == 'ok' for found in verdicts)} "
            f"of {len(verdicts)}, ours {sum(found.ours == 'ok' for found in verdicts)}"
        )
    return int(any(found.mosquitto == "ok" != found.ours for found in verdicts))


if __name__ == "__main__":
    sys.exit(main())
