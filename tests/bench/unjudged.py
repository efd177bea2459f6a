"""`ctxt` with a broker inside that asks nobody who may what: what a benchmark compares the rights with. For nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import cli, service
from gateway.acl.embedded import EmbeddedAcl

if TYPE_CHECKING:
    from gateway.rights import Rights


def _yes(_client: str, _topic: str) -> bool:
    return True


class Unjudged(EmbeddedAcl):
    """Says yes."""

    def __init__(self, rights: Rights) -> None:
        super().__init__(rights)
        for question in ("may_publish", "may_subscribe", "may_receive"):
            setattr(self, question, _yes)


if __name__ == "__main__":
    setattr(service, "EmbeddedAcl", Unjudged)  # noqa: B010  # the one place where the service has it from
    cli.main()
