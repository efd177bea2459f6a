"""An edge node of pysparkplug, in an interpreter of its own: it takes PORT, USER and PASSWORD, and does what DCMD says."""

import sys
import threading

from pysparkplug import Client, DataType, Device, EdgeNode, Metric, get_current_timestamp

port, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def metric(name: str, datatype: DataType, value: object) -> Metric:
    """A metric of now."""
    return Metric(timestamp=get_current_timestamp(), name=name, datatype=datatype, value=value)


def commanded(node: EdgeNode, message: object) -> None:
    """Do it, and tell it; not on the thread that reads."""
    payload = message.payload  # type: ignore[attr-defined]
    done = [metric(each.name, each.datatype, each.value) for each in payload.metrics]
    threading.Thread(target=node.update_device, args=("Pibrella", done)).start()


node = EdgeNode(
    "Plant 1",
    "Raspberry Pi",
    [metric("Supply Voltage", DataType.FLOAT, 12.3)],
    Client(username=user, password=password),
)
node.register(
    Device("Pibrella", [metric("Outputs/LED", DataType.BOOLEAN, False), metric("level", DataType.INT16, -5)], commanded)
)
node.connect("127.0.0.1", port=port)
sys.stdin.readline()
