"""The ACL plugin of the broker inside: every question goes to `rights.may`, in the same loop turn as the packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.rights import Rights


class EmbeddedAcl:
    """Asked at every publish, subscription, delivery, retained delivery, and when a will fires."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights
        self.join = rights.join
        self.may_publish = rights.may_publish
        self.may_subscribe = rights.may_subscribe
        self.may_receive = rights.may_receive

    @property
    def generation(self) -> int:
        """Grows whenever an earlier answer could have become different."""
        return self._rights.generation
