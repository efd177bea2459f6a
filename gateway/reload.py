"""Settings and schemas while the gateway runs: look at all of it, then take it over in one step - or refuse it whole and say why."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gateway.catalogue import Catalogue, CatalogueError
from gateway.data import folder
from gateway.errors import CtxtError
from gateway.links.link import LinkError
from gateway.service import engine_limits, patterns_of, rights_of
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.effects import Effects
    from gateway.objects import DataObject
    from gateway.rights import Namespace
    from gateway.service import Service

CHANGEABLE = frozenset({"schemas", "broker.sys_read", "groups", "namespace", "topic", "limits", "timing", "log"})
"""The settings that can change while the gateway runs."""

SLICE = 2_000
"""Objects that are looked at before everything else has its turn."""


class ReloadError(CtxtError):
    """The new settings are not taken over; everything is as it was."""

    code = 422


def fixed(old: Settings, new: Settings) -> Iterator[str]:
    """The settings that are different and cannot change while the gateway runs."""
    for name in Settings.model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name in CHANGEABLE or before == after:
            continue
        if name == "broker":
            yield from (
                f"broker.{key}"
                for key in type(before).model_fields
                if f"broker.{key}" not in CHANGEABLE and getattr(before, key) != getattr(after, key)
            )
        else:
            yield name


def _changed(old: Settings, new: Settings) -> list[str]:
    found = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    return ["broker.sys_read" if name == "broker" else name for name in found]


async def reload(service: Service, old: Settings, new: Settings) -> list[str]:
    """Take new settings over; what has changed. Schemas, certificates and keys of tokens are read again in any case.

    Raises ReloadError, and nothing has changed; or AclError, where all is taken over but a broker outside may not enforce it yet.
    """
    stuck = list(fixed(old, new))
    if stuck:
        raise ReloadError(
            f"{', '.join(stuck)} cannot change while the gateway runs: restart it, or put the old value back;"
            " nothing has been taken over"
        )
    try:
        catalogue = await asyncio.to_thread(Catalogue.load, folder("schemas"), *new.schemas)
        rights = rights_of(new, catalogue, service.served)
        take_files = service.reread()
    except (CatalogueError, LinkError) as error:
        raise ReloadError(f"{error}; nothing has been taken over") from error
    engine = service.engine
    bound: dict[DataObject, Namespace | None] = {}
    for looked, obj in enumerate(list(engine.objects), 1):
        if obj.schema is not None and catalogue.find(obj.schema.url) is None:
            raise ReloadError(
                f"the schema {obj.schema.url} is gone, and {obj.url} has it: bring it back, or delete its objects first;"
                " nothing has been taken over"
            )
        bound[obj] = rights.namespace_of(obj.topic)
        if not looked % SLICE:
            await asyncio.sleep(0)

    def act(effects: Effects, now: float) -> None:
        mine = service.rights
        listening = service.listening()
        before = {client: mine.permissions(client) for client in listening}
        mine.replace(rights)
        engine.catalogue = catalogue
        for obj in engine.objects:
            space = bound[obj] if obj in bound else rights.namespace_of(obj.topic)
            if obj.schema is not None:
                obj.schema = catalogue.find(obj.schema.url) or obj.schema
            was = obj.namespace
            if was is None or space is None or was.observe != space.observe or was.public != space.public:
                effects.opened.append(obj)
            engine.objects.settle(obj, space)
        engine.rewatch(now)
        engine.limit(engine_limits(new))
        service.announce_interval = new.timing.announce_interval
        service.patterns = patterns_of(new)
        effects.everyone = True
        effects.lost.update(client for client in listening if mine.permissions(client).lost(before[client]))

    take_files()
    await service.change(act)
    logging.getLogger().setLevel(new.log.level.upper())
    return _changed(old, new)
