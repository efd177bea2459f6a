"""What can go wrong for an application: four errors, each with a sentence that names the thing and the remedy."""

from __future__ import annotations

from typing import Any

from gateway.errors import CtxtError


class ClientError(CtxtError):
    """Root of what the clients raise on purpose."""


class UsageError(ClientError):
    """The call itself cannot be: a URL of a broker that is none, a method that the object at hand does not have."""


class NotConnectedError(ClientError):
    """There is no connection to the broker, or it was lost before the answer came.

    `reason` is the MQTT reason code of a connection that was refused, None where the broker has said nothing.
    """

    def __init__(self, sentence: str, reason: int | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason

    @property
    def not_admitted(self) -> bool:
        """Whether the broker does not let this name in with this password or certificate."""
        return self.reason in (0x86, 0x87, 0x8A)


class NoAnswerError(ClientError):
    """Connected, but what was asked for is not answered in time: no gateway is there, or somebody does not decide."""


class RefusedError(ClientError):
    """The gateway, the broker or another client says no. `code` follows HTTP (docs/protocol.md lists them)."""

    def __init__(self, code: int, description: str, *, resource: str = "", place: str | None = None) -> None:
        super().__init__(f"{code} {description}")
        self.code = code
        self.description = description
        self.resource = resource
        """The object URL that it is about, where there is one."""
        self.place = place
        """JSON pointer of the member that is wrong, where the gateway gave one."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Keyword arguments do not survive the pickling of exceptions by themselves."""
        return _refused, (self.code, self.description, self.resource, self.place)


def _refused(code: int, description: str, resource: str, place: str | None) -> RefusedError:
    return RefusedError(code, description, resource=resource, place=place)
