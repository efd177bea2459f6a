"""The packages of Node.js that these tests need, installed once."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.running import need

FOLDER = Path(__file__).resolve().parent
PACKAGES = FOLDER / "node_modules"
APT = "nodejs npm"


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js, with what package-lock.json lists installed beside it; skips where Node.js or npm is missing."""
    program, npm = need("node", APT), need("npm", APT)
    listed = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = PACKAGES / ".installed"
    if not stamp.exists() or stamp.read_text() != listed:
        done = subprocess.run(
            [npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"],
            cwd=FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        stamp.write_text(listed)
    return program
