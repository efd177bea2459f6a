// What TypeScript makes of client.d.ts: compiled, never run. Each expected error is one that has to be there.

import { CtxtError, Replica, applyPatch, connect, merge, topicOf, ulid } from "ctxt-client";
import type { Client, Copy, Event, Observer } from "ctxt-client";

interface Context {
  values: Record<string, { value: number; unit?: string }>;
}

export async function page(): Promise<string> {
  const client: Client = await connect("wss://home.local:9001/mqtt", { username: "panel", password: "x", keepalive: 30 });
  const room: Observer<Context> = await client.observe<Context>("ctxt://home.local/room", { timeout: 5000 });
  const kitchen = await client.observe({ tag: "kitchen", mine: true });
  // @ts-expect-error a query has no colour
  await client.observe({ colour: "red" });
  const value: number | undefined = room.data?.values["temperature"]?.value;
  // @ts-expect-error copies are not to be written to
  room.copy!.version = 5;
  const off: () => void = room.on("changed", ({ paths, before }) => console.log(paths.join(), before.version));
  off();
  room.on("status", ({ copy }) => console.log(copy.status));
  // @ts-expect-error nothing changes in a deletion
  room.on("deleted", ({ paths }) => console.log(paths));
  room.on("*", (event) => console.log(event.type));
  for await (const event of room.changes()) {
    if (event.type === "changed") console.log(event.paths.length, value);
    else if (event.type === "missed") console.log(event.count);
    else if (event.type === "deleted") console.log(event.before.name);
  }
  const warm: string | false = await room.waitFor(({ status }) => status === "live" && "warm");
  const names: string[] = [...kitchen].map((copy: Copy) => copy.name);
  await client.report("ctxt://home.local/room", [{ op: "add", path: "/values/x", value: { value: 1 } }], { id: ulid() });
  // @ts-expect-error a report is no number
  await client.report("ctxt://home.local/room", 5);
  client.on("rejection", ({ id, type }) => console.log(id, type));
  client.on("error", ({ code, place }) => console.log(code, place));
  const events: Event[] = new Replica({ prefix: "site" }).feed("x", new Uint8Array(), 0);
  merge({}, { a: 1 });
  applyPatch({}, []);
  const error = new CtxtError(404, topicOf("ctxt://home.local/room"));
  await client.close();
  return `${String(warm)} ${names.length} ${events.length} ${error.description}`;
}
