"""What works in the checkout works installed: the wheel is built, put into an empty environment and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_code_data_and_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gateway", "adapters"}
    for needed in (
        "gateway/py.typed",
        "gateway/data/schemas/Context.json",
        "gateway/data/schemas/messages/read.json",
        "gateway/data/config/gateway.toml",
        "gateway/client/js/client.js",
        "gateway/client/js/client.d.ts",
        "gateway/client/js/package.json",
    ):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "env"
    venv.create(place, with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(
        [place / "bin" / "pip", "install", "--quiet", str(wheel)],
        check=True,
        env=environment,
        capture_output=True,
        cwd=tmp_path,
    )

    def ctxt(*arguments: str) -> str:
        done = subprocess.run(
            [place / "bin" / "ctxt", *arguments],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "ctxt" in ctxt("--help")
    names = {schema["name"] for schema in json.loads(ctxt("schema", "ls", "--json"))}
    assert {"Connection", "Communication", "Context", "Device"} <= names
    ctxt("config", "check")
    assert ctxt("demo", "--port", "0", "--duration", "3")
