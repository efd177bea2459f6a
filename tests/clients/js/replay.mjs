// Streams of messages in, one JSON array a line: [[topic, payload], …]. Out: what JavaScript's Replica tells and holds, likewise.

import { createInterface } from "node:readline";
import { Replica } from "ctxt-client";
import { shown, told } from "./written.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  const replica = new Replica({ jitter: () => 0.5 });
  const events = JSON.parse(line).map(([topic, payload], now) => replica.feed(topic, payload, now).map(told));
  const copies = [...replica].map(shown).sort((a, b) => (a.url < b.url ? -1 : 1));
  const { gaps, ignored } = replica;
  console.log(JSON.stringify({ events, copies, gaps, ignored, digest: replica.digest(), due: replica.nextDue() }));
}
