"""A script reports what a CSV file holds: columns time, room, quantity, value, unit; times are RFC 3339.

CTXT_CONNECT=mqtt://bridge@192.168.1.10 CTXT_PASSWORD=… python csv_bridge.py readings.csv
"""

import csv
import os
import sys
from pathlib import Path

from gateway.client import RefusedError
from gateway.client.blocking import connect
from gateway.client.quantities import QuantityError, quantity


def main(path: Path) -> int:
    refused = stored = 0
    with connect(os.environ.get("CTXT_CONNECT", "mqtt://bridge@127.0.0.1")) as client, path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                room = client.reporter(f"ctxt://home.local/{client.name}/{row['room']}")
                room.update(quantity(row["quantity"], float(row["value"]), row["unit"] or None, time=row["time"]))
                stored += 1
            except (RefusedError, QuantityError, ValueError) as error:
                refused += 1
                print(f"{path.name}: {row}: {error}", file=sys.stderr)
    print(f"{stored} readings stored, {refused} refused")
    return 1 if refused else 0


sys.exit(main(Path(sys.argv[1])))
