"""What an Observer looks at: one object with its children, everything below a prefix, or what a query matches. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.address import CHILDREN, Address, AddressError

if TYPE_CHECKING:
    from gateway.client.replica import Copy


@dataclass(frozen=True, slots=True)
class Scope:
    """The objects that a command is about. `prefix` is what `discover` and `read` take ("" for everything).

    `filters` are MQTT filters of object topics; an object's own are exactly `{object}` and `{object}/children/#`.
    """

    text: str
    prefix: str
    filters: tuple[str, ...]
    single: Address | None = None

    @classmethod
    def one(cls, url: str) -> Scope:
        """One object and its children. Raises AddressError."""
        found = Address.parse(url)
        filters = (found.topic,) if found.is_child else (found.topic, f"{found.topic}/{CHILDREN}/#")
        return cls(found.url, found.url, filters, found)

    @classmethod
    def below(cls, text: str) -> Scope:
        """A prefix: everything (""), a scheme, an authority, or a URL; one that ends in `/` leaves out the object itself.

        A final `**` (or `*`) is the same as nothing there. Raises AddressError.
        """
        bare = text.rstrip("*")
        if bare in ("", "/"):
            return cls(text or "**", "", ("#",))
        scheme = bare.rstrip("/").removesuffix(":")
        if scheme.isalnum() and scheme.isascii() and "://" in bare:
            return cls(text, f"{scheme.lower()}://", (f"{scheme.lower()}/#",))
        stem = bare.rstrip("/")
        normal = _normal(stem)
        topic = normal.replace("://", "/", 1)
        ends = "/" if bare.endswith("/") else ""
        return cls(normal + ends, normal + ends, (f"{topic}/#",))

    @classmethod
    def parse(cls, text: str) -> Scope:
        """One object's URL, or a prefix that ends in `/`, `*` or `**`. Raises AddressError."""
        if text.endswith(("/", "*")):
            return cls.below(text)
        return cls.one(text)

    def holds(self, url: str) -> bool:
        """Whether an object's URL belongs to the scope."""
        if self.single is not None:
            return url == self.prefix or url.startswith(f"{self.prefix}/{CHILDREN}/")
        if not self.prefix or self.prefix.endswith("/"):
            return url.startswith(self.prefix)
        return url == self.prefix or url.startswith(self.prefix + "/")


def _normal(stem: str) -> str:
    """The normal form of what may end before an object's name does."""
    try:
        return Address.parse(stem).url
    except AddressError as error:
        first = error
    for rest in ("/x", "/x/x", "/x/x/x"):
        try:
            return Address.parse(stem + rest).url.removesuffix(rest)
        except AddressError:
            continue
    raise first


@dataclass(frozen=True, slots=True)
class Query:
    """What copies have to be like; what is None does not matter. The members mean what they mean to `discover`."""

    schema: str | None = None
    name: str | None = None
    tag: str | None = None
    resource: str | None = None
    reporter: str | None = None
    status: str | None = None

    def matches(self, copy: Copy) -> bool:
        """Whether a copy is like that."""
        return (
            (self.schema is None or self._of_schema(copy.schema))
            and (self.name is None or copy.name == self.name)
            and (self.tag is None or self.tag in (copy.tags or ()))
            and (self.resource is None or self.resource in (copy.resources or ()))
            and (self.reporter is None or copy.reporter == self.reporter)
            and (self.status is None or copy.status == self.status)
        )

    def _of_schema(self, schema: str | None) -> bool:
        return schema is not None and self.schema in (schema, schema.rpartition("/dataschema/")[2])
