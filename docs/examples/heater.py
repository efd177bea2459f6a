"""A heater does what it is asked to: the Reporter of an object with the actions `on` and `off`.

CTXT_CONNECT=mqtt://heater@192.168.1.10 CTXT_PASSWORD=… python heater.py
"""

import asyncio
import os

from gateway.client import Action, RefusedError, connect
from gateway.client.quantities import quantity


async def main() -> None:
    async with connect(os.environ.get("CTXT_CONNECT", "mqtt://heater@127.0.0.1")) as client:
        heater = await client.create(f"ctxt://home.local/{client.name}/valve", data=quantity("open", value=False))

        async def act(action: Action) -> dict[str, bool]:
            if action.method not in ("on", "off"):
                raise RefusedError(404, f"a heater cannot {action.method!r}: `on` and `off` are all")
            await heater.update(quantity("open", value=action.method == "on"))
            print(action.client, action.method, flush=True)
            return {"open": action.method == "on"}

        heater.on_action(act)
        await asyncio.Event().wait()


asyncio.run(main())
