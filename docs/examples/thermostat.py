"""A thermostat observes a temperature, and asks a heater to go on below 19 Cel and off above 21.

CTXT_CONNECT=mqtt://thermostat@192.168.1.10 CTXT_PASSWORD=… python thermostat.py \
    ctxt://home.local/room-sensor/temperature ctxt://home.local/heater/valve
"""

import asyncio
import os
import sys

from gateway.client import ClientError, connect
from gateway.client.quantities import reading


async def main(room_url: str, heater_url: str) -> None:
    async with (
        connect(os.environ.get("CTXT_CONNECT", "mqtt://thermostat@127.0.0.1")) as client,
        client.observe(room_url) as room,
    ):
        changes = room.changes()
        heats = None
        while True:
            now = reading(room.data, "temperature")
            wanted = heats
            if now is not None and room.status == "live" and isinstance(now.value, int | float):
                wanted = True if now.value < 19 else False if now.value > 21 else heats
            if wanted is not None and wanted != heats:
                try:
                    await client.execute(heater_url, "on" if wanted else "off", timeout=10)
                    heats = wanted
                    print(f"{now.value if now else '?'} Cel: the heater is", "on" if heats else "off", flush=True)
                except ClientError as error:
                    print(f"the heater does not answer: {error}", file=sys.stderr, flush=True)
            await anext(changes)


asyncio.run(main(sys.argv[1], sys.argv[2]))
