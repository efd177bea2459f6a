// Streams as replay.mjs reads them, with bytes of their payloads changed: nothing is thrown, nothing leaks into what all objects share.

import { createInterface } from "node:readline";
import { Replica } from "ctxt-client";

let state = 1;
const dice = (below) => (state = (state * 48_271) % 2_147_483_647) % below;
const spice = Buffer.from('{}[]",:0123456789-.eE\\/tfn _');
let fed = 0;
let ignored = 0;

for await (const line of createInterface({ input: process.stdin })) {
  const replica = new Replica();
  for (const [topic, payload] of JSON.parse(line)) {
    const bytes = Buffer.from(payload);
    for (let i = dice(3); i > 0 && bytes.length; i--) bytes[dice(bytes.length)] = dice(9) ? spice[dice(spice.length)] : dice(256);
    const cut = topic.slice(0, dice(20) ? undefined : dice(topic.length));
    for (const event of replica.feed(cut, bytes, fed++)) JSON.stringify(event);
    replica.wantResubscribe(fed);
    replica.wantRead(fed);
  }
  for (const copy of replica) replica.status(copy.url);
  replica.digest();
  ignored += replica.ignored;
}
const deep = new Replica();
for (const [open, close] of [["[", "]"], ['{"a":', "}"]]) {
  deep.feed("snapshot/ctxt/home.local/room", open.repeat(200_000) + "1" + close.repeat(200_000), 0);
  deep.feed("delta/ctxt/home.local/room", `{"epoch":1,"version":1,"merge":${open.repeat(5_000)}1${close.repeat(5_000)}}`, 0);
}
if (deep.ignored !== 4) throw new Error("this was too deep");
if (Object.keys(Object.prototype).length || {}.polluted !== undefined) throw new Error("the prototype of all objects is another");
console.log(JSON.stringify({ fed, ignored }));
