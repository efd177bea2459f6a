"""The one writer of one object, on asyncio."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.client import asking
from gateway.client.inbox import Action, SubscriptionRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateway.client.asking import When
    from gateway.client.client import Client, Events
    from gateway.client.reporting import Reporting


class Reporter:
    """Reports one object. `Client.create`, `resume` and `reporter` make it."""

    def __init__(self, client: Client, reporting: Reporting) -> None:
        self._client = client
        self._reporting = reporting

    @property
    def url(self) -> str:
        """The object URL."""
        return self._reporting.url

    @property
    def data(self) -> dict[str, Any]:
        """What this Reporter has said last; not to be mutated (`edit` is for that)."""
        return self._reporting.data

    @property
    def held(self) -> bool:
        """Whether the latest state waits for the connection."""
        return self._reporting.held

    async def update(self, merge: dict[str, Any], *, confirm: bool = False) -> bool:
        """Report a merge patch (RFC 7396): members that are null go, others are set.

        True: stored; False: it waits for the connection (each object's latest state, or all reports with `connect(queue=…)`), and
        readings then carry the time of this call. Beside a broker outside, True means that the broker has it, and a refusal comes
        as a Rejection event; `confirm` waits for the gateway's own word, and nothing waits for a connection then.
        Raises RefusedError (with code and place), NoAnswerError; with `confirm` also NotConnectedError.
        """
        return await self._client._run(self._reporting.report(merge, confirm=confirm))

    async def patch(self, operations: list[dict[str, Any]], *, confirm: bool = False) -> bool:
        """Report a JSON Patch (RFC 6902); as `update`. Raises PatchError for one that does not apply to `data`."""
        return await self._client._run(self._reporting.report(operations, confirm=confirm))

    @asynccontextmanager
    async def edit(self, *, confirm: bool = False) -> AsyncIterator[dict[str, Any]]:
        """`async with room.edit() as data:`: change `data` at will; at the end the smallest patch is reported.

        One edit at a time; what the block raises reports nothing. Raises as `update` does.
        """
        run = self._client._run
        draft = await run(self._reporting.draft())
        try:
            yield draft
        except BaseException:
            self._reporting.abandon()
            raise
        await run(self._reporting.commit(draft, confirm=confirm))

    async def read(self) -> dict[str, Any]:
        """Look at the object as the gateway has it, and go on from there; its data."""
        await self._client._run(self._reporting.read())
        return self.data

    async def describe(self, **meta: Any) -> None:
        """Change what the object says of itself: name, description, tags, resources, public, policy."""
        await self._client._run(asking.describe(self._reporting.core, self.url, meta))

    async def invite(self, *names: str, expires: When = None) -> list[str]:
        """Let clients observe it, until `expires`; the names of those whose inbox was full, who are granted untold."""
        return await self._client._run(asking.invite(self._reporting.core, self.url, names, expires))

    async def revoke(self, name: str) -> None:
        """Take a client's grant back, effective immediately."""
        await self._client._run(asking.revoke(self._reporting.core, self.url, name))

    async def delegate(self, to: str, *, wait: float | None = None, timeout: float | None = None) -> bool:
        """Offer the object to another client, for `timeout` seconds. True: it has accepted within `wait` seconds.

        Without `wait` it returns False at once; after True the former Reporter's reports are 403.
        Raises RefusedError (403 rejected, 408, 409), NoAnswerError when nobody has decided within `wait`.
        """
        return await self._client._run(asking.delegate(self._reporting.core, self.url, to, wait=wait, timeout=timeout))

    async def delete(self) -> None:
        """Delete the object, its children first."""
        await self._client._run(asking.delete(self._reporting.core, self.url))

    async def add_child(
        self, collection: str, data: dict[str, Any] | None = None, *, id: str | None = None
    ) -> Reporter:
        """Add a child; the Reporter of it. Without `id` the gateway makes one."""
        return Reporter(
            self._client,
            await self._client._run(asking.add_child(self._reporting.core, self.url, collection, data, identity=id)),
        )

    def requests(self) -> Events[SubscriptionRequest]:
        """Who asks to observe it, from now on and what waits already: `await client.accept(request)` or `reject`."""
        return self._client._about(self.url, (SubscriptionRequest,))

    def actions(self) -> Events[Action]:
        """What others ask it to do, from now on: `await client.respond(action, body)`."""
        return self._client._about(self.url, (Action,))

    def on_request(self, handler: Callable[[SubscriptionRequest], Any]) -> Callable[[], None]:
        """Let `handler(request)` (a function or a coroutine function) decide who may observe: true accepts, false rejects.

        RefusedError raised in it rejects and says why; after any other exception, which is logged, the request waits on. What is returned
        ends that.
        """
        return self._client._answer_requests(self.url, handler)

    def on_action(self, handler: Callable[[Action], Any]) -> Callable[[], None]:
        """Let `handler(action)` (a function or a coroutine function) do what others ask for; what it returns is the answer's body.

        RefusedError raised in it is the answer; any other exception is logged and answered with 500. What is returned ends that.
        """
        return self._client._answer_actions(self.url, handler)
