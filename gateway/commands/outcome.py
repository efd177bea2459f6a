"""How a command ends: exit codes, and the one error that carries one."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


class Exit(IntEnum):
    """The exit codes of `ctxt`; docs/cli.md lists them. 74 and 78 are EX_IOERR and EX_CONFIG of sysexits(3)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    NO_CONNECTION = 5
    INVALID = 6
    NO_PLACE = 7
    IO = 74
    CONFIG = 78
    INTERRUPTED = 130


_BY_CODE = {
    400: Exit.INVALID,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.NOT_FOUND,
    408: Exit.NO_CONNECTION,
    409: Exit.INVALID,
    410: Exit.NOT_FOUND,
    413: Exit.INVALID,
    422: Exit.INVALID,
    504: Exit.NO_CONNECTION,
}

_BY_REASON = {
    0x83: Exit.FAILED,
    0x86: Exit.NOT_ALLOWED,
    0x87: Exit.NOT_ALLOWED,
    0x88: Exit.NO_CONNECTION,
    0x89: Exit.NO_CONNECTION,
    0x8A: Exit.NOT_ALLOWED,
    0x8F: Exit.INVALID,
    0x90: Exit.NOT_FOUND,
    0x95: Exit.INVALID,
    0x99: Exit.INVALID,
}


class CommandError(CtxtError):
    """A command that has not done what it was asked for; `code` is its exit code. Without a sentence it has said why itself."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def exit_of_code(code: int) -> Exit:
    """The exit code for an HTTP-like code of the gateway's."""
    return _BY_CODE.get(code, Exit.FAILED)


def exit_of_reason(reason: int) -> Exit:
    """The exit code for an MQTT 5 reason code of 0x80 or more."""
    return _BY_REASON.get(reason, Exit.FAILED)


def go(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine. Ctrl-C becomes CommandError with exit code 130, after the coroutine has tidied up."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise CommandError(Exit.INTERRUPTED, "interrupted") from None
