"""The packages of Node.js that these tests need, installed once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest

from tests.running import need

FOLDER = Path(__file__).resolve().parent
PACKAGES = FOLDER / "node_modules"
SCRIPTS = FOLDER / "js"
CLIENT = FOLDER.parents[1] / "gateway" / "client" / "js"
APT = "nodejs npm"


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js, with what package-lock.json lists installed beside it; skips where Node.js or npm is missing."""
    program, npm = need("node", APT), need("npm", APT)
    listed = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = PACKAGES / ".installed"
    with (FOLDER / ".installing").open("w") as turn:
        # Tests may run in several processes.
        flock(turn, LOCK_EX)
        _install(npm, stamp, listed)
    return program


def _install(npm: str, stamp: Path, listed: str) -> None:
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


@pytest.fixture(scope="session")
def project(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this folder's scripts, where `import "ctxt-client"` finds our client as if it had been installed."""
    return laid_out(tmp_path_factory.mktemp("project"))


def laid_out(folder: Path) -> Path:
    """The same in any empty folder; the packages must be installed."""
    (folder / "node_modules").symlink_to(PACKAGES)
    app = folder / "app"
    shutil.copytree(SCRIPTS, app)
    installed = app / "node_modules" / "ctxt-client"
    shutil.copytree(CLIENT, installed)
    return app
