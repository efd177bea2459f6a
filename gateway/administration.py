"""What the administrator does to the running gateway: grants, other Reporters, rights asked about, settings read again.

`ctxt` asks for it through `gateway/control.py`; each answer is given when the change is stored and the broker decides by it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gateway.acl.plugin import AclError
from gateway.credentials import valid_client
from gateway.effects import Refused
from gateway.engine import PROBES
from gateway.errors import CtxtError
from gateway.explain import why
from gateway.messages import rfc3339
from gateway.reload import reload
from gateway.rights import ACTIONS, ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.effects import Effects
    from gateway.objects import DataObject
    from gateway.service import Service
    from gateway.settings import Settings

_log = logging.getLogger("gateway")


class AdministrationError(CtxtError):
    """What was asked for is refused, and nothing has changed. `code` follows HTTP."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Administration:
    """One per gateway."""

    def __init__(self, service: Service, settings: Settings, load: Callable[[], Settings]) -> None:
        """`load` reads the settings again, and raises SettingsError."""
        self._service = service
        self._settings = settings
        self._load = load
        self._reloading = False
        self.verbs: dict[str, Callable[[dict[str, Any]], Awaitable[list[dict[str, Any]]]]] = {
            "grant": self._grant,
            "revoke": self._revoke,
            "grants": self._grants,
            "assign": self._assign,
            "explain": self._explain,
            "reload": self._reload,
            "look": self._look,
            "probe": self._probe,
        }

    async def answer(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The items of the answer. Raises CtxtError with a sentence, AdministrationError where the request is at fault."""
        try:
            return await self.verbs[request["do"]](request)
        except AclError as error:
            raise AdministrationError(
                504, f"it is stored, but the broker may not decide by it yet, and the gateway goes on trying: {error}"
            ) from error

    # ---- grants and Reporters ------------------------------------------------------------------------------------------

    async def _grant(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client = _client(request)
        until = request.get("until", 0)
        if isinstance(until, bool) or not isinstance(until, int | float) or not 0 <= until < 1e11:
            raise AdministrationError(400, "until is a time in Unix seconds, or 0")

        def act(effects: Effects, now: float) -> DataObject | Refused:
            obj = self._found(request)
            if isinstance(obj, Refused):
                return obj
            if until and until <= now:
                return Refused(400, obj.url, "the grant would have ended already")
            return self._service.engine.grant(effects, obj, client, float(until)) or obj

        obj = _done(await self._service.change(act))
        return [_grant(obj, client)]

    async def _revoke(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client = _client(request)

        def act(effects: Effects, _now: float) -> DataObject | Refused:
            obj = self._found(request)
            if isinstance(obj, Refused):
                return obj
            if not self._service.engine.revoke(effects, obj, client):
                return Refused(
                    404, obj.url, f"{client!r} has no grant for it: `ctxt grants` lists those that there are"
                )
            return obj

        obj = _done(await self._service.change(act))
        still = self._service.rights.may_observe(client, obj.topic)
        return [{"url": obj.url, "client": client, "observes": still}]

    async def _grants(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client, url = request.get("client"), request.get("url")
        found: Iterator[DataObject] | list[DataObject] = iter(self._service.engine.objects)
        if url is not None:
            found = [_done(self._found(request))]
        return [
            _grant(obj, name)
            for obj in found
            if obj.grants and not obj.deleted
            for name in sorted(obj.grants)
            if client in (None, name)
        ]

    async def _assign(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client = _client(request)

        def act(effects: Effects, now: float) -> tuple[DataObject, str] | Refused:
            obj = self._found(request)
            if isinstance(obj, Refused):
                return obj
            former = obj.reporter
            return self._service.engine.hand_over(effects, obj, client, now) or (obj, former)

        obj, former = _done(await self._service.change(act))
        return [{"url": obj.url, "reporter": obj.reporter, "former": former, "version": obj.version}]

    def _found(self, request: dict[str, Any]) -> DataObject | Refused:
        url = request.get("url")
        if not isinstance(url, str):
            raise AdministrationError(400, "url is the URL of an object")
        return self._service.engine.find(url)

    # ---- rights --------------------------------------------------------------------------------------------------------

    async def _explain(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        client, action, topic = request.get("client"), request.get("action"), request.get("topic")
        if not isinstance(client, str) or action not in ACTIONS or not isinstance(topic, str) or len(topic) > 2_048:
            raise AdministrationError(400, f"explain takes a client, an action ({', '.join(ACTIONS)}) and a topic")
        may, reason = why(self._service.rights, client, action, topic)
        item: dict[str, Any] = {"client": client, "action": action, "topic": topic, "may": may, "why": reason}
        asked = await self._service.ask_broker(client, action, topic)
        if asked is not None:
            item["broker"] = asked
        return [item]

    async def _look(self, _request: dict[str, Any]) -> list[dict[str, Any]]:
        await self._service.look()
        return []

    async def _probe(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """An object of a client to be attacked; without a client, whatever is left of such is deleted."""
        engine = self._service.engine
        if "client" not in request:

            def clear(effects: Effects, now: float) -> list[str]:
                found = [
                    obj for obj in engine.objects.matching(f"ctxt/{PROBES}/#") if obj is not None and not obj.deleted
                ]
                for obj in found:
                    engine.delete(effects, obj, now)
                return [obj.url for obj in found]

            return [{"url": url} for url in await self._service.change(clear)]
        client = _client(request)
        obj = _done(await self._service.change(lambda effects, now: engine.probe(effects, client, now)))
        return [{"url": obj.url, "topic": obj.topic, "version": obj.version}]

    # ---- settings ------------------------------------------------------------------------------------------------------

    async def _reload(self, _request: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"changed": each} for each in await self.reload()]

    async def reload(self) -> list[str]:
        """Read settings and schemas again; what has changed. Raises SettingsError, ReloadError (nothing has then), AclError."""
        if self._reloading:
            raise AdministrationError(409, "the settings are being read already: try again")
        self._reloading = True
        try:
            new = self._load()
            changed = await reload(self._service, self._settings, new)
        finally:
            self._reloading = False
        self._settings = new
        _log.info("settings and schemas read again: %s", ", ".join(changed) or "no setting has changed")
        return changed


def _client(request: dict[str, Any]) -> str:
    client = request.get("client")
    if not isinstance(client, str) or not valid_client(client) or client == ANONYMOUS:
        raise AdministrationError(400, "client is a client's name: 1 to 64 of A-Z a-z 0-9 _ -, and not a reserved one")
    return client


def _done(result: Any) -> Any:
    if isinstance(result, Refused):
        raise AdministrationError(result.code, f"{result.url}: {result.text}")
    return result


def _grant(obj: DataObject, client: str) -> dict[str, Any]:
    until = (obj.grants or {}).get(client, 0.0)
    return {
        "url": obj.url,
        "client": client,
        "reporter": obj.reporter,
        "expires": rfc3339(int(until * 1000)) if until else None,
    }
