"""A Raspberry Pi reports how warm its processor is, every few seconds; what it measures while the network is away is kept on disk.

CTXT_CONNECT=mqtt://room-sensor@192.168.1.10 CTXT_PASSWORD=… python sensor.py
"""

import asyncio
import os
from pathlib import Path

from gateway.client import connect
from gateway.client.quantities import quantity

THERMAL = Path(os.environ.get("THERMAL", "/sys/class/thermal/thermal_zone0/temp"))
EVERY = float(os.environ.get("EVERY", "10"))


async def main() -> None:
    url = os.environ.get("CTXT_CONNECT", "mqtt://room-sensor@127.0.0.1")
    async with connect(url, queue="reports.db", wait=True) as client:
        room = client.reporter(f"ctxt://home.local/{client.name}/processor")
        while True:
            celsius = int(THERMAL.read_text()) / 1000
            stored = await room.update(quantity("temperature", celsius, "Cel"))
            print(f"{celsius} Cel", "stored" if stored else f"kept, {client.held} wait", flush=True)
            await asyncio.sleep(EVERY)


asyncio.run(main())
