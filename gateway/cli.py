"""The command line as it is declared: names, options, help. What the commands do is in gateway/commands/."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer

import gateway
from gateway.commands.outcome import CommandError, Exit, go
from gateway.errors import CtxtError

EXIT_CODES = """Exit codes: 0 done · 1 failed or refused · 2 wrong usage · 3 not found · 4 not allowed · 5 no connection or no
answer · 6 invalid · 74 input or output failed · 78 the settings cannot be used · 130 interrupted"""

_LOOK: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

app = typer.Typer(
    name="ctxt", help="An MQTT gateway for context data: every object has one writer, every observer is in sync.",
    epilog=EXIT_CODES.replace("\n", " "), **_LOOK,
)  # fmt: skip
client_app = typer.Typer(help="Who may connect: add, list and remove clients. Works while the gateway runs.", **_LOOK)
schema_app = typer.Typer(help="The catalogue: list, show and check JSON Schemas.", **_LOOK)
adapter_app = typer.Typer(help="Devices' dialects: what they make of a message, what devices say.", **_LOOK)
config_app = typer.Typer(help="The settings: check them, show what is in effect, write a first file.", **_LOOK)
tls_app = typer.Typer(help="Certificates: an authority of your own, what it signs, until when it is good.", **_LOOK)
broker_app = typer.Typer(help="The broker inside, while it runs: who is connected, who hears what.", **_LOOK)
acl_app = typer.Typer(help="Who may read and write what: explain it, grant it, try it.", **_LOOK)
app.add_typer(client_app, name="client", rich_help_panel="Gateway")
app.add_typer(acl_app, name="acl", rich_help_panel="Gateway")
app.add_typer(tls_app, name="tls", rich_help_panel="Gateway")
app.add_typer(broker_app, name="broker", rich_help_panel="Gateway")
app.add_typer(schema_app, name="schema", rich_help_panel="Gateway")
app.add_typer(adapter_app, name="adapter", rich_help_panel="Gateway")
app.add_typer(config_app, name="config", rich_help_panel="Gateway")


class Status(StrEnum):
    """What an object's status can be."""

    LIVE = "live"
    STALE = "stale"
    DISCONNECTED = "disconnected"


# typer evaluates these at run time; `X | None` in an Annotated alias reads the same to it, Optional is what all versions take.
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045 - as above
    typer.Option(
        "--config", "-c", envvar="CTXT_CONFIG", metavar="FILE", dir_okay=False, show_default=False,
        help="Settings file. Left out: gateway.toml here, else /etc/ctxt-gateway/gateway.toml, else the defaults.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
JsonLines = Annotated[bool, typer.Option("--json", help="JSON lines, for programs.")]
Connect = Annotated[
    str,
    typer.Option(
        "--connect", envvar="CTXT_CONNECT", metavar="URL",
        help="Where, and as whom: mqtt://NAME@host:port (or mqtts, ws, wss); a path is the topic prefix. "
        "The password stands behind the name (NAME:PASSWORD), or in CTXT_PASSWORD, where no list of processes shows it.",
    ),
]  # fmt: skip
Patience = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="How long to wait for the gateway's answers."),
]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of making one.")
]
ClientName = Annotated[str, typer.Argument(metavar="NAME", help="The client's name: 1 to 64 of A-Z a-z 0-9 _ -.")]
ObjectUrl = Annotated[
    str, typer.Argument(metavar="URL", help="An object's URL, such as ctxt://home.local/room/climate.")
]


class Policy(StrEnum):
    """What happens to who asks to observe an object."""

    AUTO = "auto"
    ASK = "ask"
    CLOSED = "closed"


PolicyOption = Annotated[
    Optional[Policy],  # noqa: UP045 - as above
    typer.Option("--policy", help="Who asks to observe it is admitted at once, its Reporter is asked, or refused."),
]
Wait = Annotated[
    Optional[float],  # noqa: UP045 - as above
    typer.Option("--wait", metavar="SECONDS", min=0.1, max=604_800, help="Wait so long for the decision."),
]
Expires = Annotated[
    Optional[str],  # noqa: UP045 - as above
    typer.Option(
        "--expires",
        metavar="WHEN",
        help="After 90m, 12h, 7d, or at a time like 2026-12-31T18:00:00Z.",
        show_default=False,
    ),
]
ItemId = Annotated[str, typer.Argument(metavar="ID", help="As `ctxt pending` lists it.")]

LOCAL = "mqtt://127.0.0.1:1883"

_Function = TypeVar("_Function", bound=Callable[..., None])


def _command(
    into: typer.Typer, name: str | None = None, *, panel: str | None = None
) -> Callable[[_Function], _Function]:
    """Declare a command; its help is the function's docstring, and the lines below `For example:` are kept as they are."""

    def declare(function: _Function) -> _Function:
        text = inspect.cleandoc(function.__doc__ or "").replace("\nFor example:", "\n\b\nFor example:")
        into.command(name, help=text, rich_help_panel=panel)(function)
        return function

    return declare


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"ctxt-gateway {gateway.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def _target(url: str) -> Any:
    from gateway.commands.connection import target_of
    from gateway.commands.terminal import environment

    return target_of(url, environment())


# ---- the gateway -------------------------------------------------------------------------------------------------------


@_command(app, panel="Gateway")
def run(config: ConfigFile = None) -> None:
    """Run the gateway, with its broker inside, until it is told to stop.

    It prints one line when it is ready. SIGTERM and Ctrl-C stop it cleanly. The log goes to standard error. It ends with 78 when settings or schemas cannot be used (starting again would not help), with 74 when the state folder fails or the port is taken.

    For example:
      ctxt run
      ctxt run --config /etc/ctxt-gateway/gateway.toml
      CTXT_BROKER__URL=embedded://127.0.0.1:2883 ctxt run
    """
    from gateway.commands import run as command

    command.run(config)


@_command(app, panel="Gateway")
def reload(json: Json = False, config: ConfigFile = None) -> None:
    """Have the running gateway read its settings and schemas again, as SIGHUP does.

    All of it is taken over, or nothing: with 78 it is refused, and the gateway goes on as before. Nobody is disconnected.

    For example:
      ctxt reload
      ctxt reload --json
    """
    from gateway.commands import running

    running.reload(config, json=json)


@_command(app, panel="Gateway")
def demo(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the demo's broker; 0 takes a free one.")
    ] = 1883,
    duration: Annotated[
        Optional[float],  # noqa: UP045 - as above
        typer.Option(
            "--duration", metavar="SECONDS", min=0.1, show_default=False, help="End by itself after this time."
        ),
    ] = None,
) -> None:
    """Show it: a gateway and a small house of simulated sensors, live.

    The sensors connect as real MQTT clients, the table is a real Observer. Below it are lines to try in another terminal. Everything is in a temporary folder that is removed at the end; only this machine can connect.

    For example:
      ctxt demo
      ctxt demo --port 2883 --duration 60
    """
    from gateway.commands import demo as command

    command.run(port, duration)


# ---- objects -----------------------------------------------------------------------------------------------------------


@_command(app, panel="Objects")
def report(
    url: ObjectUrl,
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Argument(
            metavar="KEY=VALUE",
            show_default=False,
            help="temperature=21.5, temperature=21.5:Cel (with unit), temperature=null (remove), /any/member=value.",
        ),
    ] = None,
    merge: Annotated[
        Optional[str], typer.Option("--merge", metavar="JSON", help="A merge patch (RFC 7396), as it is.")  # noqa: UP045
    ] = None,
    patch: Annotated[
        Optional[str], typer.Option("--patch", metavar="JSON", help="A JSON Patch (RFC 6902), as it is.")  # noqa: UP045
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="One report a line from standard input: JSON, or key=value.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say so when it is accepted.")] = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Report on an object: change what it says, or bring it to life.

    You become its Reporter with the first report, where the namespace allows it. The command ends when the gateway has stored the report, or tells why it is refused.

    For example:
      ctxt report ctxt://home.local/room/climate temperature=21.5:Cel humidity=48:%RH
      ctxt report ctxt://home.local/room/climate /values/temperature/value=21.7
      ctxt report ctxt://home.local/room/climate --merge '{"values":{"temperature":{"value":21.5}}}'
      ctxt report ctxt://home.local/room/climate --patch '[{"op":"remove","path":"/values/humidity"}]'
      sensor-script | ctxt report ctxt://home.local/room/climate --stdin
    """  # fmt: skip
    from gateway.commands import objects

    said = objects.Said(tuple(assignments or ()), merge, patch, stdin)
    go(objects.report(_target(connect), url, said, patience=timeout, verbose=verbose))


@_command(app, panel="Objects")
def get(
    url: ObjectUrl,
    data: Annotated[bool, typer.Option("--data", help="Only the object's data.")] = False,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Print one object as it is now.

    Without a user name the retained snapshot is read, where the settings let anybody.

    For example:
      ctxt get ctxt://home.local/room/climate
      ctxt get ctxt://home.local/room/climate --data
      ctxt get ctxt://home.local/room/climate --json | jq .version
    """
    from gateway.commands import objects

    go(objects.get(_target(connect), url, patience=timeout, data=data, json=json))


@_command(app, "discover", panel="Objects")
@_command(app, "ls", panel="Objects")
def list_objects(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only objects at or below this URL.", show_default=False)
    ] = "",
    json: Json = False,
    mine: Annotated[bool, typer.Option("--mine", help="Only objects that you report.")] = False,
    schema: Annotated[
        Optional[str], typer.Option("--schema", metavar="NAME", help="Only objects of this schema: a name or a URL.")  # noqa: UP045
    ] = None,
    status: Annotated[Optional[Status], typer.Option("--status", help="Only objects of this status.")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Option("--name", help="Only objects of this name.")] = None,  # noqa: UP045
    tag: Annotated[Optional[str], typer.Option("--tag", help="Only objects with this tag.")] = None,  # noqa: UP045
    resource: Annotated[Optional[str], typer.Option("--resource", help="Only objects with this resource.")] = None,  # noqa: UP045
    reporter: Annotated[Optional[str], typer.Option("--reporter", metavar="CLIENT", help="Only this client's.")] = None,  # noqa: UP045
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """List the objects that you may see.

    The list is checked against the gateway's digest, so it is complete. Ages are shown for up to 1,000 objects.

    For example:
      ctxt ls
      ctxt ls ctxt://home.local/kitchen/ --status disconnected
      ctxt ls --mine --schema Context --json
      ctxt discover --tag kitchen --reporter room-sensor
    """
    from gateway.commands import objects

    wanted = objects.Wanted(
        prefix, mine, schema, status.value if status is not None else None, name, tag, resource, reporter
    )
    go(objects.show_all(_target(connect), wanted, patience=timeout, json=json))


@_command(app, panel="Objects")
def observe(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="URL-OR-PREFIX",
            help="An object's URL (it and its children), or a prefix that ends in / or ** (all below).",
        ),
    ],
    json: JsonLines = False,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now, and leave.")] = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Follow objects and print each change as it comes.

    It keeps a copy in sync by the Observer rule, heals gaps and reconnects by itself. Ctrl-C ends it.

    For example:
      ctxt observe ctxt://home.local/room/climate
      ctxt observe 'ctxt://home.local/**'
      ctxt observe ctxt://home.local/ --json | jq -c .data
      ctxt observe ctxt://home.local/ --once
    """
    from gateway.commands import observe as command

    go(command.observe(_target(connect), targets, patience=timeout, json=json, once=once))


@_command(app, panel="Objects")
def create(
    url: Annotated[
        Optional[str], typer.Argument(metavar="URL", help="The object's URL.", show_default=False)  # noqa: UP045
    ] = None,
    scheme: Annotated[
        Optional[str], typer.Option("--scheme", help="The scheme of a URL that the gateway makes.")  # noqa: UP045
    ] = None,
    authority: Annotated[Optional[str], typer.Option("--authority", help="Its authority.")] = None,  # noqa: UP045
    parent: Annotated[
        Optional[str], typer.Option("--parent", metavar="URL", help="The parent of a child whose id the gateway makes.")  # noqa: UP045
    ] = None,
    collection: Annotated[
        Optional[str], typer.Option("--collection", metavar="NAME", help="The parent's collection that it goes into.")  # noqa: UP045
    ] = None,
    value: Annotated[
        Optional[str], typer.Option("--value", metavar="JSON", help="Its first data; - reads standard input.")  # noqa: UP045
    ] = None,
    schema: Annotated[Optional[str], typer.Option("--schema", metavar="NAME", help="A name or a URL.")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Option("--name", help="What people call it.")] = None,  # noqa: UP045
    description: Annotated[Optional[str], typer.Option("--description", help="What it is.")] = None,  # noqa: UP045
    tag: Annotated[Optional[list[str]], typer.Option("--tag", help="What it is found by; several times.")] = None,  # noqa: UP045
    resource: Annotated[
        Optional[list[str]], typer.Option("--resource", help="What it is about; several times.")  # noqa: UP045
    ] = None,
    observer: Annotated[
        Optional[list[str]], typer.Option("--observer", metavar="CLIENT", help="Who is invited; several times.")  # noqa: UP045
    ] = None,
    expires: Expires = None,
    public: Annotated[bool, typer.Option("--public", help="Every client with a name may observe it.")] = False,
    policy: PolicyOption = None,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Create an object, or a child of one, and print its URL.

    Whoever reports on a URL that does not exist creates it as well; this says more of it from the start.

    For example:
      ctxt create ctxt://home.local/ana/room --value '{"values":{}}' --tag quiet --observer rui
      ctxt create --scheme comm --authority home.local --schema Communication --value '{"status":"open"}'
      ctxt create --parent comm://home.local/chat --collection messages --value '{"type":"chat","content":"hello"}'
    """
    from gateway.commands import sharing

    place = sharing.Place(url, scheme, authority, parent, collection)
    facts = {
        "schema": schema, "name": name, "description": description, "tags": tag, "resources": resource,
        "observers": observer, "public": public, "policy": policy.value if policy is not None else None,
    }  # fmt: skip
    go(sharing.create(_target(connect), place, value, expires, facts, patience=timeout, json=json))


@_command(app, panel="Objects")
def update(
    url: ObjectUrl,
    merge: Annotated[
        str | None,
        typer.Option("--merge", metavar="JSON", help="A merge patch of its data; - reads standard input."),
    ] = None,
    patch: Annotated[
        Optional[str], typer.Option("--patch", metavar="JSON", help="A JSON Patch of its data; - reads standard input.")  # noqa: UP045
    ] = None,
    name: Annotated[Optional[str], typer.Option("--name", help="What people call it.")] = None,  # noqa: UP045
    description: Annotated[Optional[str], typer.Option("--description", help="What it is; empty: nothing.")] = None,  # noqa: UP045
    tag: Annotated[Optional[list[str]], typer.Option("--tag", help="Its tags from now on; several times.")] = None,  # noqa: UP045
    resource: Annotated[
        Optional[list[str]], typer.Option("--resource", help="Its resources from now on; several times.")  # noqa: UP045
    ] = None,
    public: Annotated[
        Optional[bool], typer.Option("--public/--no-public", help="Whether every client with a name may observe it.")  # noqa: UP045
    ] = None,
    policy: PolicyOption = None,
    version: Annotated[
        Optional[int], typer.Option("--version", min=0, help="Only if its data is still what it was at this version.")  # noqa: UP045
    ] = None,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Change an object of yours: its data, or what it says of itself.

    For example:
      ctxt update ctxt://home.local/ana/room --merge '{"values":{"t":{"value":21}}}' --version 7
      ctxt update ctxt://home.local/ana/room --tag quiet --tag upstairs
      ctxt update ctxt://home.local/ana/room --policy auto
    """
    from gateway.commands import sharing

    said = {"name": name, "tags": tag, "resources": resource, "public": public}
    meta: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if policy is not None:
        meta["policy"] = policy.value
    if description is not None:
        meta["description"] = description or None
    changes = {"merge": merge, "patch": patch}
    go(sharing.update(_target(connect), url, changes, meta, version, patience=timeout, json=json))


@_command(app, panel="Objects")
def delete(url: ObjectUrl, connect: Connect = LOCAL, timeout: Patience = 10.0) -> None:
    """Delete an object of yours, and its children.

    Observers are told. Its URL stays closed until the tombstone is gone (tombstone_ttl, 24 h).

    For example:
      ctxt delete ctxt://home.local/room/climate
    """
    from gateway.commands import objects

    go(objects.delete(_target(connect), url, patience=timeout))


@_command(app, panel="Objects")
def children(
    url: ObjectUrl,
    collection: Annotated[
        Optional[str], typer.Argument(metavar="COLLECTION", help="Only those in this one.", show_default=False)  # noqa: UP045
    ] = None,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """List the children of an object.

    For example:
      ctxt children comm://home.local/chat
      ctxt children comm://home.local/chat messages --json | jq -r '.[].data.content'
    """
    from gateway.commands import sharing

    go(sharing.children(_target(connect), url, collection, patience=timeout, json=json))


# ---- sharing -----------------------------------------------------------------------------------------------------------


@_command(app, panel="Sharing")
def subscribe(
    url: ObjectUrl, wait: Wait = None, json: Json = False, connect: Connect = LOCAL, timeout: Patience = 10.0
) -> None:
    """Ask to observe an object.

    Where that is not open to you its Reporter decides, or the object's policy.

    For example:
      ctxt subscribe comm://home.local/chat
      ctxt subscribe comm://home.local/chat --wait 60
    """
    from gateway.commands import sharing

    go(sharing.subscribe(_target(connect), url, wait, patience=timeout, json=json))


@_command(app, panel="Sharing")
def unsubscribe(url: ObjectUrl, json: Json = False, connect: Connect = LOCAL, timeout: Patience = 10.0) -> None:
    """Give back what you were granted, and withdraw what you asked for.

    For example:
      ctxt unsubscribe comm://home.local/chat
    """
    from gateway.commands import sharing

    go(sharing.unsubscribe(_target(connect), url, None, patience=timeout, json=json))


@_command(app, panel="Sharing")
def invite(
    url: ObjectUrl,
    clients: Annotated[list[str], typer.Argument(metavar="CLIENT…", help="Who is invited.")],
    expires: Expires = None,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Let clients observe an object of yours, and tell them.

    Its children with it. What they were granted may end by itself.

    For example:
      ctxt invite comm://home.local/chat rui eva
      ctxt invite comm://home.local/chat guest --expires 7d
    """
    from gateway.commands import sharing

    go(sharing.invite(_target(connect), url, clients, expires, patience=timeout, json=json))


@_command(app, panel="Sharing")
def revoke(
    url: ObjectUrl, client: Client, json: Json = False, connect: Connect = LOCAL, timeout: Patience = 10.0
) -> None:
    """Take a grant back that you gave a client.

    When this returns the broker delivers nothing more of the object to it, whatever it has subscribed to.

    For example:
      ctxt revoke comm://home.local/chat guest
    """
    from gateway.commands import sharing

    go(sharing.unsubscribe(_target(connect), url, client, patience=timeout, json=json))


@_command(app, panel="Sharing")
def pending(json: Json = False, connect: Connect = LOCAL, timeout: Patience = 10.0) -> None:
    """List what waits for your decision.

    Who wants to observe objects of yours, who invites you, what is offered to you, and actions that you have not answered.

    For example:
      ctxt pending
      ctxt pending --json | jq -r '.[].id'
    """
    from gateway.commands import sharing

    go(sharing.pending(_target(connect), patience=timeout, json=json))


@_command(app, panel="Sharing")
def accept(
    item: ItemId, expires: Expires = None, json: Json = False, connect: Connect = LOCAL, timeout: Patience = 10.0
) -> None:
    """Agree to what waits: let somebody observe, take part, take an object over.

    For example:
      ctxt accept 01JGFJK4V5Q8ZT3W2M6N7P9R1S
      ctxt accept 01JGFJK4V5Q8ZT3W2M6N7P9R1S --expires 12h
    """
    from gateway.commands import sharing

    more = {} if expires is None else {"expires": sharing.rfc3339(expires)}
    go(sharing.decide(_target(connect), "accept", item, more, patience=timeout, json=json))


@_command(app, panel="Sharing")
def reject(
    item: ItemId,
    description: Annotated[Optional[str], typer.Option("--description", help="Why, for whoever asked.")] = None,  # noqa: UP045
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Do not agree to what waits. An invitation's grant is given back.

    For example:
      ctxt reject 01JGFJK4V5Q8ZT3W2M6N7P9R1S --description 'for the family only'
    """
    from gateway.commands import sharing

    more = {} if description is None else {"description": description}
    go(sharing.decide(_target(connect), "reject", item, more, patience=timeout, json=json))


@_command(app, panel="Sharing")
def delegate(
    url: ObjectUrl,
    client: Client,
    wait: Wait = None,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Offer an object of yours to another client.

    When that client accepts it is the Reporter; until then it is you.

    For example:
      ctxt delegate comm://home.local/chat rui
      ctxt delegate comm://home.local/chat rui --wait 600
    """
    from gateway.commands import sharing

    go(sharing.delegate(_target(connect), url, client, wait, patience=timeout, json=json))


@_command(app, panel="Sharing")
def execute(
    url: ObjectUrl,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="What is to be done.")],
    params: Annotated[
        Optional[str], typer.Option("--params", metavar="JSON", help="With what, by name; - reads standard input.")  # noqa: UP045
    ] = None,
    idempotent: Annotated[bool, typer.Option("--idempotent", help="It does no harm to do it twice.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.1, max=300, help="How long the Reporter may take.")
    ] = 10.0,
    json: Json = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
) -> None:
    """Ask an object's Reporter to act, and print its answer.

    For example:
      ctxt execute ctxt://home.local/hall/lamp on
      ctxt execute ctxt://home.local/hall/lamp dim --params '{"level":40}' --idempotent --wait 5
    """
    from gateway.commands import sharing

    wish = sharing.Wish(method, params, idempotent, wait)
    go(sharing.execute(_target(connect), url, wish, patience=timeout, json=json))


# ---- clients -----------------------------------------------------------------------------------------------------------


@_command(client_app, "add")
def client_add(name: ClientName, password_stdin: FromStdin = False, config: ConfigFile = None) -> None:
    """Let a client connect. Its password is made and shown once, alone on standard output.

    For example:
      ctxt client add room-sensor
      PASSWORD=$(ctxt client add room-sensor)
      ctxt client add room-sensor --password-stdin < password.txt
    """
    from gateway.commands import clients

    clients.add(config, name, from_stdin=password_stdin)


@_command(client_app, "ls")
def client_ls(json: Json = False, config: ConfigFile = None) -> None:
    """List the clients.

    For example:
      ctxt client ls
      ctxt client ls --json
    """
    from gateway.commands import clients

    clients.show(config, json=json)


@_command(client_app, "rm")
def client_rm(name: ClientName, config: ConfigFile = None) -> None:
    """Remove a client. Where it is connected it is disconnected; its objects stay.

    For example:
      ctxt client rm room-sensor
    """
    from gateway.commands import clients

    clients.remove(config, name)


@_command(client_app, "passwd")
def client_passwd(name: ClientName, password_stdin: FromStdin = False, config: ConfigFile = None) -> None:
    """Give a client another password, made and shown once.

    For example:
      ctxt client passwd room-sensor
      ctxt client passwd room-sensor --password-stdin < password.txt
    """
    from gateway.commands import clients

    clients.set_password(config, name, from_stdin=password_stdin)


@_command(client_app, "token")
def client_token(
    name: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Argument(metavar="NAME", help="The client that the token names.", show_default=False),
    ] = None,
    groups: Annotated[
        str, typer.Option("--groups", metavar="NAME,…", help="Groups it belongs to as long as the token is good.")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="How long the token is good: 90s, 5m, 24h, 30d.")
    ] = "30d",
    check: Annotated[
        bool, typer.Option("--check", help="Read a token from standard input and say whether the gateway takes it.")
    ] = False,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Make a token that a client sends as its password, with the key of [tokens] key_file. Or look at one.

    It is shown once, alone on standard output. A token cannot be taken back: disable the client, or make another key.

    For example:
      ctxt client token room-sensor --expires 30d
      TOKEN=$(ctxt client token panel --groups kitchen,attic)
      ctxt client token --check < token.txt
    """
    from gateway.commands import tokens

    if check:
        tokens.check(config, json=json)
    elif name is None:
        raise typer.BadParameter("name the client that the token is for, or look at one with --check")
    else:
        tokens.mint(config, name, groups, expires)


@_command(client_app, "disable")
def client_disable(name: ClientName, config: ConfigFile = None) -> None:
    """Refuse a client until it is enabled again. Its password is kept.

    For example:
      ctxt client disable room-sensor
    """
    from gateway.commands import clients

    clients.set_disabled(config, name, disabled=True)


@_command(client_app, "enable")
def client_enable(name: ClientName, config: ConfigFile = None) -> None:
    """Admit a disabled client again.

    For example:
      ctxt client enable room-sensor
    """
    from gateway.commands import clients

    clients.set_disabled(config, name, disabled=False)


# ---- certificates ------------------------------------------------------------------------------------------------------

TlsFolder = Annotated[
    Optional[Path],  # noqa: UP045 - as above
    typer.Option(
        "--folder", metavar="FOLDER", file_okay=False, show_default=False,
        help="Where they are. Left out: tls below the state folder.",
    ),
]  # fmt: skip
Days = Annotated[
    Optional[int],  # noqa: UP045 - as above
    typer.Option(
        "--days", metavar="N", min=1, max=3650, show_default=False, help="How long it is good. Left out: 397 days."
    ),
]
RenewedDays = Annotated[
    Optional[int],  # noqa: UP045 - as above
    typer.Option(
        "--days", metavar="N", min=1, max=3650, show_default=False,
        help="How long it is good. Left out: as long as the one before.",
    ),
]  # fmt: skip
CertificateName = Annotated[
    str, typer.Argument(metavar="NAME", help="The client's name, or what a server's files are called.")
]


@_command(tls_app, "init")
def tls_init(
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME_OR_ADDRESS...", help="Host names and IP addresses that clients reach the gateway by."
        ),
    ],
    folder: TlsFolder = None,
    days: Days = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the authority and the certificate that are there.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Make an authority of your own and the gateway's certificate, and print the listener's settings.

    For example:
      ctxt tls init gateway.home.local 192.168.1.10
      ctxt tls init gateway.home.local '*.home.local' --days 90
    """
    from gateway.commands import tls

    tls.init(config, addresses, folder=folder, days=days, force=force)


@_command(tls_app, "issue")
def tls_issue(
    name: CertificateName,
    server: Annotated[bool, typer.Option("--server/--client", help="For another server, or for a client.")] = False,
    address: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(
            "--address",
            metavar="NAME_OR_ADDRESS",
            show_default=False,
            help="Host name or IP address of a server; may be given several times.",
        ),
    ] = None,
    folder: TlsFolder = None,
    days: Days = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a certificate and its key.")] = False,
    config: ConfigFile = None,
) -> None:
    """Make a key and a certificate: for a client, whose name is in it, or for another server.

    Where the two files are goes to standard output.

    For example:
      ctxt tls issue room-sensor
      ctxt tls issue broker --server --address broker.home.local --address 192.168.1.11
    """  # fmt: skip
    from gateway.commands import tls

    tls.issue(config, name, address or [], server=server, folder=folder, days=days, force=force)


@_command(tls_app, "ls")
def tls_ls(folder: TlsFolder = None, json: Json = False, config: ConfigFile = None) -> None:
    """List the certificates: what for, and until when they are good.

    For example:
      ctxt tls ls
      ctxt tls ls --json
    """
    from gateway.commands import tls

    tls.show(config, folder=folder, json=json)


@_command(tls_app, "renew")
def tls_renew(
    name: CertificateName,
    server: Annotated[
        Optional[bool],  # noqa: UP045 - as above
        typer.Option(
            "--server/--client", help="Which one, where a server and a client have that name.", show_default=False
        ),
    ] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="With another key, too.")] = False,
    folder: TlsFolder = None,
    days: RenewedDays = None,
    config: ConfigFile = None,
) -> None:
    """Make a certificate once more, good from now on, with the same name, addresses and key.

    For example:
      ctxt tls renew gateway
      ctxt tls renew room-sensor --new-key
    """
    from gateway.commands import tls

    tls.renew(config, name, server=server, folder=folder, days=days, new_key=new_key)


# ---- rights ------------------------------------------------------------------------------------------------------------

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="URL of an object, like ctxt://home.local/room/temperature.", show_default=False
    ),
]
Client = Annotated[str, typer.Argument(metavar="CLIENT", help="Name of a client.", show_default=False)]


class Action(StrEnum):
    """What a client may be allowed."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


@_command(acl_app, "explain")
def acl_explain(
    client: Client,
    action: Annotated[Action, typer.Argument(help="What it wants to do.", show_default=False)],
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="MQTT topic, or a filter for `subscribe`.", show_default=False)
    ],
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Say whether a client may, and which rule decides. Exit code 4: it may not.

    Asks the running gateway, and where the broker outside can be asked shows its answer beside.

    For example:
      ctxt acl explain dashboard receive snapshot/ctxt/home.local/room/temperature
      ctxt acl explain kitchen publish report/kitchen/ctxt/home.local/kitchen/oven
    """
    from gateway.commands import acl

    acl.explain(config, client, action.value, topic, json=json)


@_command(acl_app, "grants")
def acl_grants(
    client: Annotated[Optional[str], typer.Option("--client", metavar="NAME", help="Only this client's.")] = None,  # noqa: UP045
    url: Annotated[Optional[str], typer.Option("--url", metavar="URL", help="Only this object's.")] = None,  # noqa: UP045
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """List which clients may observe which objects beside those whom the namespaces list.

    For example:
      ctxt acl grants
      ctxt acl grants --client dashboard --json
    """
    from gateway.commands import acl

    acl.grants(config, client, url, json=json)


@_command(acl_app, "grant")
def acl_grant(
    client: Client,
    url: Url,
    expires: Expires = None,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Let a client observe one object and its children. When this returns the broker lets it.

    For example:
      ctxt acl grant dashboard ctxt://home.local/room/temperature
      ctxt acl grant guest ctxt://home.local/room/temperature --expires 7d
    """
    from gateway.commands import acl

    acl.grant(config, client, url, expires, json=json)


@_command(acl_app, "revoke")
def acl_revoke(client: Client, url: Url, json: Json = False, config: ConfigFile = None) -> None:
    """Take a grant back. When this returns the client gets nothing more of the object, whatever it has subscribed to.

    For example:
      ctxt acl revoke guest ctxt://home.local/room/temperature
    """
    from gateway.commands import acl

    acl.revoke(config, client, url, json=json)


@_command(acl_app, "assign")
def acl_assign(url: Url, client: Client, json: Json = False, config: ConfigFile = None) -> None:
    """Give an object another Reporter: a sensor was replaced. The former one's next report is refused.

    For example:
      ctxt acl assign ctxt://home.local/room/temperature room-sensor-2
    """
    from gateway.commands import acl

    acl.assign(config, url, client, json=json)


@_command(acl_app, "test")
def acl_test(
    only: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Argument(metavar="[ATTACK]...", help="Only these; all without.", show_default=False),
    ] = None,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Attack the running gateway and its broker, and say what got through. Exit code 1: something did.

    Makes three clients and an object that is nobody else's, and takes them away again; nothing else is touched. What comes of an
    attack is judged by what is delivered.

    For example:
      ctxt acl test
      ctxt acl test "live after revocation" --json
    """
    from gateway.commands import attacks

    attacks.test(config, only or (), json=json)


class Broker(StrEnum):
    """A broker outside whose configuration can be written."""

    MOSQUITTO = "mosquitto"


@_command(acl_app, "install")
def acl_install(
    _broker: Annotated[Broker, typer.Argument(metavar="BROKER", help="mosquitto.", show_default=False)],
    folder: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option("--folder", metavar="DIR", help="mosquitto's folder, if not /etc/mosquitto.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the files, and write nothing.")] = False,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Write the configuration with which a broker outside goes by this gateway's rights, try it out, and say what to restart.

    For example:
      sudo ctxt acl install mosquitto --config /etc/ctxt-gateway/gateway.toml
      ctxt acl install mosquitto --print
    """
    from gateway.commands import install

    install.mosquitto(config, folder, show=show, json=json)


# ---- the broker inside -------------------------------------------------------------------------------------------------


@_command(broker_app, "clients")
def broker_clients(json: Json = False, config: ConfigFile = None) -> None:
    """List who is connected, and who is away with a session that is kept.

    For example:
      ctxt broker clients
      ctxt broker clients --json | jq '.[] | select(.queued > 0)'
    """
    from gateway.commands import broker

    broker.clients(config, json=json)


@_command(broker_app, "subscriptions")
def broker_subscriptions(
    name: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Argument(metavar="NAME", help="Only those of this client.", show_default=False),
    ] = None,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """List the subscriptions of all clients, or of one.

    For example:
      ctxt broker subscriptions
      ctxt broker subscriptions dashboard --json
    """
    from gateway.commands import broker

    broker.subscriptions(config, name, json=json)


@_command(broker_app, "counters")
def broker_counters(json: Json = False, config: ConfigFile = None) -> None:
    """List what the gateway has counted since its start: messages, bytes, refusals, what it dropped, what it holds.

    For example:
      ctxt broker counters
      ctxt broker counters --json | jq '.[] | select(.name == "ctxt_broker_dropped_total").samples'
    """
    from gateway.commands import broker

    broker.counters(config, json=json)


@_command(broker_app, "kick")
def broker_kick(
    name: ClientName,
    client_id: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option("--client-id", metavar="ID", help="Only the connection with this client id.", show_default=False),
    ] = None,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Disconnect a client. It may come back; `ctxt client disable` keeps it out.

    For example:
      ctxt broker kick dashboard
      ctxt broker kick dashboard --client-id panel-2
    """
    from gateway.commands import broker

    broker.kick(config, name, client_id, json=json)


# ---- schemas -----------------------------------------------------------------------------------------------------------


@_command(schema_app, "ls")
def schema_ls(json: Json = False, config: ConfigFile = None) -> None:
    """List the catalogue's schemas.

    For example:
      ctxt schema ls
      ctxt schema ls --json
    """
    from gateway.commands import schemas

    schemas.show_all(config, json=json)


@_command(schema_app, "show")
def schema_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A schema's name or catalogue URL.")],
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Print one schema.

    For example:
      ctxt schema show Context
      ctxt schema show Context --json
    """
    from gateway.commands import schemas

    schemas.show(config, name, json=json)


@_command(schema_app, "check")
def schema_check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Schema files of your own.")],
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Check schema files as they would be beside the catalogue's.

    For example:
      ctxt schema check Tide.json
      ctxt schema check schemas/*.json --json
    """
    from gateway.commands import schemas

    schemas.check(config, files, json=json)


# ---- adapters ----------------------------------------------------------------------------------------------------------


@_command(adapter_app, "ls")
def adapter_ls(json: Json = False, config: ConfigFile = None) -> None:
    """List the dialects that there are, and which of them the settings use.

    For example:
      ctxt adapter ls
      ctxt adapter ls --json
    """
    from gateway.commands import adapters

    adapters.show_all(config, json=json)


@_command(adapter_app, "show")
def adapter_show(
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="An adapter's type, as `ctxt adapter ls` lists it.")],
    json: Json = False,
) -> None:
    """Show an adapter's options, what its devices can be asked to do, and an example of its settings.

    For example:
      ctxt adapter show tasmota
      ctxt adapter show tasmota --json
    """
    from gateway.commands import adapters

    adapters.show(kind, json=json)


@_command(adapter_app, "try")
def adapter_try(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An adapter of the settings, or a type with its defaults.")
    ],
    topic: Annotated[Optional[str], typer.Option("--topic", "-t", metavar="TOPIC", help="The message's topic.")] = None,  # noqa: UP045 - as above
    payload: Annotated[Optional[str], typer.Option("--payload", "-m", help="The message.")] = None,  # noqa: UP045 - as above
    file: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option("--payload-file", metavar="FILE", help="The message's bytes; - is standard input."),
    ] = None,
    capture: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option("--capture", metavar="FILE", help="Messages that `ctxt adapter record` wrote; they come first."),
    ] = None,
    retained: Annotated[bool, typer.Option("--retained", help="As if the broker had kept the message.")] = False,
    json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Print the objects that a device's message makes. No broker and no gateway is needed.

    For example:
      ctxt adapter try tasmota -t tele/plug/SENSOR -m '{"ENERGY": {"Power": 12, "Voltage": 231}}'
      ctxt adapter try tasmota --capture plug.json --json
    """
    from gateway.commands import adapters

    adapters.try_out(config, adapters.Tried(name, topic, payload, file, capture, retained), json=json)


Span = Annotated[
    Optional[float],  # noqa: UP045 - as above
    typer.Option("--for", metavar="SECONDS", min=0.1, max=31_536_000, help="How long. Left out: until Ctrl-C."),
]


@_command(adapter_app, "record")
def adapter_record(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to write.")],
    name: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(
            "--adapter", metavar="NAME", help="Record what this adapter listens to, and the objects it makes."
        ),
    ] = None,
    filters: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option("--filter", metavar="FILTER", help="Record these topics; can be given several times."),
    ] = None,
    span: Span = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1_000_000, help="Messages at most.")] = 100_000,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    connect: Connect = LOCAL,
    timeout: Patience = 10.0,
    config: ConfigFile = None,
) -> None:
    """Write what devices say to a file: for `ctxt adapter try`, for tests of an adapter, for a report of what goes wrong.

    For example:
      ctxt adapter record plug.json --adapter tasmota --for 60
      ctxt adapter record all.json --filter 'zigbee2mqtt/#' --connect mqtt://ana@broker.local
    """
    from gateway.commands import adapters

    wanted = adapters.Recording(file, name, filters or (), span, most, force)
    adapters.record(config, _target(connect), wanted, timeout)


@_command(adapter_app, "watch")
def adapter_watch(
    span: Span = None,
    connect: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(
            "--connect",
            metavar="URL",
            help="A broker outside, as for other commands. Left out: the broker inside the gateway that runs here.",
        ),
    ] = None,
    timeout: Patience = 10.0,
    json: JsonLines = False,
    config: ConfigFile = None,
) -> None:
    """Tell which devices talk and match no adapter of the settings, each topic once, with the adapter that may fit.

    The broker inside also tells which of them it has refused, for want of an adapter or a topic rule.

    For example:
      ctxt adapter watch
      ctxt adapter watch --for 60 --json --connect mqtt://ana@broker.local
    """  # fmt: skip
    from gateway.commands import adapters

    adapters.watch(config, None if connect is None else _target(connect), span, timeout, json=json)


# ---- settings ----------------------------------------------------------------------------------------------------------


@_command(config_app, "check")
def config_check(json: Json = False, config: ConfigFile = None) -> None:
    """Say what is wrong with the settings, and what is most likely not meant.

    For example:
      ctxt config check
      ctxt config check --config gateway.toml --json
    """
    from gateway.commands import config as command

    command.check(config, json=json)


@_command(config_app, "show")
def config_show(json: Json = False, config: ConfigFile = None) -> None:
    """Print the settings in effect: file, environment and defaults together.

    For example:
      ctxt config show
      ctxt config show --json
    """
    from gateway.commands import config as command

    command.show(config, json=json)


@_command(config_app, "init")
def config_init(
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to write.")] = Path(
        "gateway.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the default settings, with every setting explained.

    For example:
      ctxt config init
      sudo ctxt config init /etc/ctxt-gateway/gateway.toml
    """
    from gateway.commands import config as command

    command.init(file, force=force)


@_command(config_app, "path")
def config_path() -> None:
    """Print the folder of the files that come with the gateway: for systemd, for mosquitto.

    For example:
      cp "$(ctxt config path)/ctxt-gateway.service" /etc/systemd/system/
      cp "$(ctxt config path)/mosquitto/ctxt.conf" /etc/mosquitto/conf.d/
    """
    from gateway.commands import config as command

    command.path()


# ---- the entry point ---------------------------------------------------------------------------------------------------


def main() -> None:
    """The command `ctxt`: an error of ours ends as one sentence on standard error and an exit code, never as a traceback."""
    try:
        app()
    except CtxtError as error:
        from gateway.commands.terminal import write_error

        # What a command has said already, and an interruption, need no words.
        if str(error) and not (isinstance(error, CommandError) and error.code == Exit.INTERRUPTED):
            write_error(str(error))
        sys.exit(error.code if isinstance(error, CommandError) else Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    main()
