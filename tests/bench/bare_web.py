"""The web listener with an application that says yes to everybody: what a benchmark compares the authority with. For nothing else."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from gateway.web.server import Web, answer, body


async def yes(_scope: Any, receive: Any, send: Any) -> None:
    """Read the question, say yes."""
    await body(receive, 64 << 10)
    await answer(send, 200, b"application/json", b'{"result":"allow","is_superuser":false}')


async def main() -> None:
    """Say the port, serve until killed."""
    web = Web("127.0.0.1", 0)
    web.mount("acl", yes)
    await web.start()
    sys.stdout.write(f"{web.address[1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
