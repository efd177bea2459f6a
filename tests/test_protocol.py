"""What docs/protocol.md shows of requests, runs as it is pasted (but for port and password)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.catalogue import Catalogue
from tests.inside import PASSWORD, inside
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "protocol.md").read_text("utf-8")
REQUESTS = PAGE.partition("\n## Requests\n")[2].partition("\n## ")[0]


def lines() -> Iterator[str]:
    for block in re.findall(r"```sh\n(.*?)```", REQUESTS, re.DOTALL):
        yield from block.splitlines()


def test_the_examples_are_answered_as_the_page_says(tmp_path: Path) -> None:
    need("mosquitto_rr", "mosquitto-clients")
    (settings,) = re.findall(r"```toml\n(.*?)```", REQUESTS, re.DOTALL)
    codes = []
    with inside(tmp_path, settings, "ana", "rui", "eva") as gateway:
        script = ["set -e"]
        for line in lines():
            pasted = line.replace("mosquitto_rr ", f"mosquitto_rr -W 20 -p {gateway.port} ")
            script.append(pasted.replace("-P secret", f"-P '{PASSWORD}'"))
            found = re.search(r"# (\d{3})$", line)
            if found:
                codes.append(int(found[1]))
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(each) for each in done.stdout.splitlines()]
    assert [answer["code"] for answer in answers] == codes, done.stdout
    assert len(codes) >= 20


def test_every_type_of_request_has_its_section() -> None:
    heads = " ".join(re.findall(r"^### (.*)$", REQUESTS, re.MULTILINE))
    for kind in Catalogue.load().messages:
        assert kind == "request" or re.search(rf"\b{kind}\b", heads), kind
