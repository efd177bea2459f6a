"""What a batch of inputs did, and how requests are answered: what the engine hands to the service. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.adapter import Send
    from gateway.objects import DataObject
    from gateway.pending import Item


class Refused:
    """A report or request that changed nothing: an HTTP-like code, whole sentences, and the place in the payload."""

    __slots__ = ("code", "place", "text", "url")

    def __init__(self, code: int, url: str, text: str, place: str | None = None) -> None:
        self.code = code
        self.url = url
        self.text = text
        self.place = place

    def __repr__(self) -> str:
        return f"Refused({self.code}, {self.url!r}, {self.text!r}, {self.place!r})"


class Answer(NamedTuple):
    """What a request is answered with; `code` follows HTTP. `settled`: not before the broker goes by what it changed."""

    code: int
    body: Any = None
    description: str | None = None
    settled: bool = False


class Reply:
    """A message for one client's inbox, with the MQTT 5 correlation it asked for.

    `request`: the id of the request that it answers. `expiry`: seconds after which nobody shall get it any more.
    """

    __slots__ = ("client", "correlation", "expiry", "payload", "qos", "request", "topic")

    def __init__(
        self,
        client: str,
        payload: bytes,
        topic: str = "",
        correlation: bytes | None = None,
        *,
        request: str = "",
        qos: int = 1,
        expiry: int | None = None,
    ) -> None:
        self.client = client
        self.payload = payload
        self.topic = topic or "inbox/" + client
        self.correlation = correlation
        self.request = request
        self.qos = qos
        self.expiry = expiry


class Effects:
    """What a batch did. `touched` are objects to store; `deltas` go out in order; `fresh` need their snapshot at once.

    `heads`: objects of which more than data, version and status is to be stored. `gained` and `lost`: clients that may do more
    (or whose objects are forgotten), or less, than before; `everyone`: that holds for anybody. `opened`: objects that somebody can see now who could not;
    `sends`: what adapters send to devices; `listening`: they want to hear other topics than before; `notes`: sentences for the log.
    `shut`: objects that are no longer public. `settled`: replies that wait until the broker goes by all that. `pending`: items to be stored (True) or forgotten.
    """

    __slots__ = (
        "deltas",
        "everyone",
        "floors",
        "fresh",
        "gained",
        "heads",
        "ids",
        "listening",
        "lost",
        "notes",
        "opened",
        "pending",
        "purged",
        "replies",
        "sends",
        "settled",
        "shut",
        "touched",
        "work",
    )

    def __init__(self) -> None:
        self.deltas: list[tuple[DataObject, bytes]] = []
        self.touched: dict[DataObject, None] = {}
        self.fresh: list[DataObject] = []
        self.purged: list[DataObject] = []
        self.floors: dict[str, int] = {}
        self.ids: list[tuple[str, str, int]] = []
        self.replies: list[Reply] = []
        self.work: list[Iterator[Reply | None]] = []
        self.heads: set[DataObject] = set()
        self.gained: set[str] = set()
        self.lost: set[str] = set()
        self.everyone = False
        self.opened: list[DataObject] = []
        self.shut: list[DataObject] = []
        self.settled: list[Reply] = []
        self.pending: dict[Item, bool] = {}
        self.sends: list[Send] = []
        self.listening = False
        self.notes: list[str] = []

    def durable(self) -> bool:
        """Whether anything here must be stored before the rest goes out."""
        return bool(self.touched or self.purged or self.floors or self.ids or self.pending)
