"""A chat: who opens it invites others; each line typed becomes a message, and everybody sees all of them.

python chat.py comm://home.local/ana/lunch --invite rui eva      (as ana)
python chat.py comm://home.local/ana/lunch                       (as rui, with CTXT_CONNECT=mqtt://rui@…)
"""

import argparse
import asyncio
import os
import sys

from gateway.client import Created, connect


async def main(url: str, invited: list[str]) -> None:
    async with connect(os.environ.get("CTXT_CONNECT", "mqtt://ana@127.0.0.1")) as client:
        if invited:
            chat = await client.create(url, schema="Communication", data={"status": "open"})
            await chat.invite(*invited)
        async with client.observe(url) as talk:
            for message in talk.children("messages"):
                print(f"{message.reporter}: {message.data['content']}", flush=True)

            def show(event: object) -> None:
                if isinstance(event, Created) and event.parent is not None and event.copy.reporter != client.name:
                    print(f"{event.copy.reporter}: {event.copy.data['content']}", flush=True)

            talk.on_change(show)
            while line := await asyncio.to_thread(sys.stdin.readline):
                await talk.add_child("messages", {"type": "chat", "content": line.rstrip("\n")})


arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("url")
arguments.add_argument("--invite", nargs="+", default=[], metavar="NAME")
chosen = arguments.parse_args()
asyncio.run(main(chosen.url, chosen.invite))
