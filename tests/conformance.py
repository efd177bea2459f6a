"""`python -m tests.conformance FOLDER`: the Eclipse Paho interoperability clients against mosquitto and against the broker inside.

FOLDER is `interoperability` of a checkout of eclipse/paho.mqtt.testing, which is no part of this project. Every test of
client_test.py (3.1.1) and client_test5.py (5) runs against both brokers in the same run, and both lists are printed. Exit code 1 where mosquitto passes a test that ours does not.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.running import gateway, mosquitto

SCRIPTS = {"client_test": "3.1.1", "client_test5": "5"}

TOPICS = ["client_test5/#", "client_test311/#", "TopicA/#", "Topic/C", "/TopicA", "test/nosubscribe", "fromb/#"]

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
module.host, module.port = "127.0.0.1", int(sys.argv[2])
module.topics = ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")
module.wildtopics = ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")
module.nosubscribe_topics = ("test/nosubscribe",)
unittest.main(module=module, argv=["suite", "-v"])
"""


class Verdict(NamedTuple):
    """What one test said of the two brokers."""

    level: str
    test: str
    mosquitto: bool
    ours: bool


def results(folder: Path, module: str, port: int) -> dict[str, bool]:
    """Run one script's tests against whoever listens on a port: which pass."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, module, str(port)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    # Between a test's name and its verdict stands whatever it prints.
    found = re.findall(
        r"^(test\w*) \(.*?\) \.\.\. (?:.*?)(ok|FAIL|ERROR|skipped)$", done.stderr, re.MULTILINE | re.DOTALL
    )
    return {name: verdict == "ok" for name, verdict in found}


def main() -> int:
    """Run the suite twice, at the same time, and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
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
            of_theirs = pool.submit(results, arguments.folder, module, theirs.port)
            of_ours = pool.submit(results, arguments.folder, module, ours.port)
            passed, ours_passed = of_theirs.result(), of_ours.result()
            verdicts += [
                Verdict(level, test, passed.get(test, False), ours_passed.get(test, False))
                for test in sorted(passed | ours_passed)
            ]
    if not verdicts:
        print(
            f"error: no test ran: is {arguments.folder} the folder `interoperability` of that suite?", file=sys.stderr
        )
        return 2
    if arguments.json:
        print(json.dumps([verdict._asdict() for verdict in verdicts], indent=2))
    else:
        words = {True: "ok", False: "FAIL"}
        for level, test, of_theirs_passed, of_ours_passed in verdicts:
            print(f"{level:6} {test:40} mosquitto {words[of_theirs_passed]:5} ours {words[of_ours_passed]}")
        print(
            f"mosquitto passes {sum(verdict.mosquitto for verdict in verdicts)} of {len(verdicts)}, "
            f"ours {sum(verdict.ours for verdict in verdicts)}"
        )
    return int(any(verdict.mosquitto and not verdict.ours for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
