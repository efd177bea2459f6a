"""What can go wrong with the web listener."""

from __future__ import annotations

from gateway.errors import CtxtError


class WebError(CtxtError):
    """The web listener cannot be opened."""


class BodyError(CtxtError):
    """A body that is too large, too slow, or cut off. `status` is what HTTP has for it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
