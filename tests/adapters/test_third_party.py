"""The worked example of docs/adapters/README.md, installed as a stranger's package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.test_cli import ROOT, environ

PAGE = Path(ROOT) / "docs" / "adapters" / "README.md"


def installed(folder: Path) -> dict[str, str]:
    """The example as a distribution that Python finds, without an installer."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    entry = re.findall(
        r"```toml\n# pyproject.toml\n\[project\.entry-points\.\"(.*?)\"\]\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    ((group, line),) = entry
    (folder / "ctxt_door.py").write_text(code)
    info = folder / "ctxt_door-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ctxt-door\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}")
    return environ(PYTHONPATH=f"{folder}:{ROOT}")


def ctxt(env: dict[str, str], *arguments: str) -> Any:
    found = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "adapter", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=env,
    )
    return json.loads(found.stdout)


def test_the_worked_example_works(tmp_path: Path) -> None:
    env = installed(tmp_path)
    assert "door" in [one["type"] for one in ctxt(env, "ls")]
    assert list(ctxt(env, "show", "door")["methods"]) == ["set"]
    found = ctxt(env, "try", "door", "-t", "door/front/state", "-m", "open")
    (made,) = found["objects"]
    assert (made["url"], made["data"]["values"]) == ("ctxt://home.local/door/front", {"open": {"value": True}})


def test_the_page_names_every_adapter() -> None:
    from gateway import dialects

    for name in dialects.BUILTIN:
        summary = dialects.find(name).summary
        assert f"| [{name}]({name}.md) | {summary} |" in PAGE.read_text()
