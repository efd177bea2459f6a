"""What the README shows, runs as it is pasted (but for the port)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.inside import PASSWORD, clients, inside

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_reporter_and_the_observer_of_the_readme_run_as_pasted(tmp_path: Path) -> None:
    reporter, observer = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = {**os.environ, "PASSWORD": PASSWORD}
    with inside(tmp_path, "", "room-sensor", "dashboard") as gateway:

        def start(text: str) -> subprocess.Popen[str]:
            program = text.replace('@127.0.0.1"', f'@127.0.0.1:{gateway.port}"')
            return subprocess.Popen(
                [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True, env=environment
            )

        watching = start(observer)
        try:
            deadline = time.monotonic() + 20
            assert watching.stdout is not None
            assert watching.stdout.readline() == "\n"
            assert time.monotonic() < deadline
            reporting = start(reporter)
            reporting.communicate(timeout=20)
            assert reporting.returncode == 0
            lines = [watching.stdout.readline(), watching.stdout.readline()]
        finally:
            watching.kill()
            watching.communicate()
        url = "ctxt://home.local/room-sensor/temperature"
        assert lines[0].startswith(f"{url} Created(")
        assert "21.5" in lines[0]
        assert lines[1].startswith(f"{url} Changed(")
        assert "21.7" in lines[1]


def test_the_shell_lines_of_the_readme_report_what_they_say(tmp_path: Path) -> None:
    found = re.search(r"-t (report/\S+) \\\n\s+-m '([^']+)'", README)
    assert found is not None
    topic, payload = found.groups()
    with inside(tmp_path, "", "room-sensor") as gateway, clients(gateway.port, "room-sensor") as (sensor,):
        assert sensor.publish(topic, json.loads(payload)) == (0, "")


def test_sharing_goes_as_the_readme_shows(tmp_path: Path) -> None:
    section = README.partition("\n## Share it\n")[2].partition("\n## ")[0]
    (settings,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (script,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    with inside(tmp_path, settings, "ana", "rui", "eva") as gateway:
        script = script.replace(":secret@127.0.0.1", f":{PASSWORD.replace(' ', '%20')}@127.0.0.1:{gateway.port}")
        script = script.replace(".venv/bin/ctxt", f"{sys.executable} -m gateway.cli")
        done = subprocess.run(
            ["bash", "-ec", script], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
        )  # fmt: skip
        listening = gateway.call(lambda service: service.rights.may_observe("rui", "comm/home.local/ana/chat"))
    assert done.returncode == 0, done.stderr
    assert "subscription" in done.stdout
    assert "messages/rui/" in done.stdout
    assert not listening


def test_every_page_that_is_linked_is_there() -> None:
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
