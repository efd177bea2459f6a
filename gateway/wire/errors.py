"""The one error of this room: bytes that are not MQTT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import CtxtError
from gateway.wire.packets import Reason

if TYPE_CHECKING:
    from gateway.wire.packets import Packet


class MalformedPacket(CtxtError):  # noqa: N818  # the standard's own word (MQTT 5 section 4.13)
    """Bytes that break the standard. `reason` says how (MQTT 5 section 4.13), `packets` are the good ones before them."""

    def __init__(self, detail: str, reason: int = Reason.MALFORMED_PACKET) -> None:
        super().__init__(f"{detail} (reason 0x{reason:02X})")
        self.detail = detail
        self.reason = reason
        self.packets: list[Packet] = []
