"""What an ACL plugin is: the way in which one kind of broker is made to enforce `rights.may`. Third parties register theirs.

A plugin either lets the broker ask (`rights.may_publish`, `may_receive`, `may_subscribe`, `may_read_all`) or compiles the rights
into the broker's own rules (`rights.permissions`). The entry-point group is `ctxt_gateway.acl`; the name is what `[acl] plugin` says.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.credentials import Foreign
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from gateway.counts import Family
    from gateway.credentials import Credentials
    from gateway.rights import Action, Rights
    from gateway.settings import Settings
    from gateway.tokens import Bearers
    from gateway.web.server import Web

NONE = "none"
"""What `[acl] plugin` says where there is none."""

GROUP = "ctxt_gateway.acl"
"""The entry-point group: each entry is a `Factory`."""

BUILT_IN = {
    "http": "gateway.acl.http:HttpAcl",
    "mosquitto": "gateway.acl.mosquitto:MosquittoAcl",
    "nats": "gateway.acl.nats:NatsAcl",
}
"""The plugins for brokers outside that come with the gateway. The broker inside needs none: it asks `acl/embedded.py`."""

EXTRAS = {"http": "web", "nats": "nats"}
"""What has to be installed for some of them."""


class AclError(CtxtError):
    """The rights cannot be enforced on this broker. The sentence says what is in the way and what to do."""


class Context(NamedTuple):
    """What a plugin is made from."""

    settings: Settings
    rights: Rights
    credentials: Credentials
    """The clients; with `entries`, their passwords in the broker's own format."""
    echo: Callable[[Sequence[str], float], Awaitable[list[str]]] | None = None
    """`RemoteLink.echo`: what the broker lets the gateway write at this moment."""
    bearers: Bearers | None = None
    """Who may come with a token, where `[tokens]` is set up: for plugins that decide about log-ins."""
    web: Web | None = None
    """The web listener, where `[web] listen` names one: a plugin that brokers ask mounts itself there."""


class AclPlugin(Protocol):
    """Makes one broker outside enforce the rights.

    Where the broker keeps the clients' passwords itself the class has a static method `hashed(password: bytes) -> str`: the
    entry in the broker's own file. It is called wherever a password is set, and `credentials.entries(NAME)` has the results.
    """

    async def start(self) -> None:
        """Make the broker enforce the rights as they are now; before the link connects. Raises AclError."""

    async def joined(self) -> None:
        """The link is connected: what needs a connection, a canary among them, can be done now. Raises AclError."""

    async def enforce(self, clients: frozenset[str] | None, lost: frozenset[str]) -> None:
        """Return when the broker decides by the rights as they were when this was called, or later ones.

        `clients`: those whose permissions may be different now; None: anybody's. `lost`: those of them of whom it is known that they
        may do less, or log in otherwise; of `None` it may be anybody. Whoever lost something gets nothing more
        of it when this returns: a broker that asks only at SUBSCRIBE, or remembers answers, has their connections closed,
        and nobody else's. Raises AclError where it cannot be known whether the broker enforces it; the caller then says so
        to whoever asked and tries again.
        """

    async def stop(self) -> None:
        """Let go of files and sockets; the broker goes on enforcing what it was told last."""

    async def ask(self, client: str, action: Action, topic: str) -> bool | None:
        """The broker's own answer, where it can be asked without doing it; else None."""

    def warnings(self) -> Iterator[str]:
        """Sentences about what this broker does not enforce, or what is set up wrongly; told at the start, and within a minute of a change."""

    def families(self) -> Iterator[Family]:
        """What is counted here."""


Factory = "Callable[[Context], AclPlugin]"


def names() -> list[str]:
    """The plugins that `[acl] plugin` may name."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def make(name: str, context: Context) -> AclPlugin:
    """The plugin of a name. Raises AclError for one that is not there or cannot be loaded."""
    return _factory(name)(context)


def keeps(name: str) -> Foreign | None:
    """How the broker that `[acl] plugin` names keeps passwords, where it does. Raises AclError as `make` does."""
    hashed = None if name == NONE else getattr(_factory(name), "hashed", None)
    return None if hashed is None else Foreign(name, hashed)


def _factory(name: str) -> Callable[[Context], AclPlugin]:
    place = BUILT_IN.get(name)
    try:
        if place is not None:
            module, _, attribute = place.partition(":")
            return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
        found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        if not found:
            raise AclError(f"there is no ACL plugin {name!r}: known are {', '.join(names())}")
        return found[0].load()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        needed = f"pip install 'ctxt-gateway[{EXTRAS[name]}]'" if name in EXTRAS else "install what it needs"
        raise AclError(f"the ACL plugin {name!r} cannot be loaded ({error}): {needed}") from error
