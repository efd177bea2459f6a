"""`ctxt broker`: who is connected to the broker inside, to what it has subscribed, and sending it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from gateway.commands.outcome import CommandError, Exit
from gateway.commands.running import ask
from gateway.commands.terminal import age, printable, show_table, table, write_json, write_note

if TYPE_CHECKING:
    from pathlib import Path


def clients(given: Path | None, *, json: bool) -> None:
    """List the sessions, connected ones first."""
    found = sorted(
        ask(given, {"do": "clients"}), key=lambda one: (not one["connected"], one["client"], one["client_id"])
    )
    if json:
        write_json(found)
        return
    if not found:
        write_note("nobody is connected")
        return
    made = table(
        *("CLIENT", "CLIENT ID", "FROM", "LISTENER", "MQTT", "FOR", "SUBSCRIPTIONS", "QUEUED"),
        right=("FOR", "SUBSCRIPTIONS", "QUEUED"),
    )
    for one in found:
        made.add_row(
            one["client"],
            Text(printable(one["client_id"])),
            _from(one) if one["connected"] else Text("away", style="yellow"),
            Text(one.get("listener", "")),
            one["protocol"],
            age(one["for"]) if one["connected"] else "",
            f"{one['subscriptions']:,}",
            f"{one['queued']:,}",
        )
    show_table(made)


def _from(one: dict[str, Any]) -> Text:
    address = one["address"]
    if not address:
        return Text("this machine")
    return Text(f"[{address}]:{one['port']}" if ":" in address else f"{address}:{one['port']}")


def subscriptions(given: Path | None, name: str | None, *, json: bool) -> None:
    """List the subscriptions of all clients, or of one."""
    request = {"do": "subscriptions"} | ({"client": name} if name else {})
    found = sorted(ask(given, request), key=lambda one: (one["client"], one["client_id"], one["filter"]))
    if json:
        write_json(found)
        return
    if not found:
        write_note(f"client {name} has no subscriptions" if name else "nobody has subscribed to anything")
        return
    made = table("CLIENT", "CLIENT ID", "FILTER", "QOS", right=("QOS",))
    for one in found:
        made.add_row(one["client"], Text(printable(one["client_id"])), Text(printable(one["filter"])), str(one["qos"]))
    show_table(made)


def counters(given: Path | None, *, json: bool) -> None:
    """List all that is counted since the start, and what there is now."""
    found = ask(given, {"do": "counters"})
    if json:
        write_json(found)
        return
    made = table("NAME", "", "VALUE", right=("VALUE",))
    for one in found:
        samples = one["samples"] if "label" in one else {"": one["value"]}
        for value, number in samples.items():
            made.add_row(
                one["name"], f"{one['label']}={value}" if value else "", f"{number:,.{3 * (number % 1 != 0)}f}"
            )
        if "sum" in one:
            made.add_row(one["name"], "sum", f"{one['sum']:,}")
    show_table(made)


def kick(given: Path | None, name: str, client_id: str | None, *, json: bool) -> None:
    """Disconnect a client. Raises CommandError (3) where it is not connected."""
    request = {"do": "kick", "client": name} | ({"client_id": client_id} if client_id is not None else {})
    found = ask(given, request)
    if json:
        write_json(found)
    if not found:
        under = f" under the client id {client_id!r}" if client_id is not None else ""
        raise CommandError(
            Exit.NOT_FOUND, f"client {name!r} is not connected{under}: `ctxt broker clients` lists those that are"
        )
    if not json:
        count = len(found)
        write_note(
            f"{count} connection{'s' * (count != 1)} of client {name} closed; it may come back:"
            f" `ctxt client disable {name}` keeps it out"
        )
