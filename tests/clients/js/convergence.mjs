// Observers of tests/soak/convergence.py in Node.js: they look at everything they are told, and tell at the end what they hold.

import { createInterface } from "node:readline";
import { connect } from "ctxt-client";

const [port, count, prefix] = [process.argv[2], Number(process.argv[3]), process.argv[4]];
const KNOWN = 1_000_000_007;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

let stop;
const stopped = new Promise((resolve) => (stop = resolve));

async function again(act) {
  for (;;) {
    try {
      return await act();
    } catch {
      await pause(0.5);
    }
  }
}

async function witness(name) {
  const [held, wrong] = [new Map(), []];
  let events = 0;
  const see = ({ type, url, copy }) => {
    events++;
    if (type === "deleted") wrong.push(`${url} was deleted, which nobody did`);
    if (type !== "created" && type !== "changed") return;
    const { count, check } = copy.data.values;
    if (check.value !== Number((BigInt(count.value) * 48271n) % BigInt(KNOWN)))
      wrong.push(`${url} at ${copy.epoch}, ${copy.version} is a mixture: ${JSON.stringify(copy.data)}`);
    const [before, now] = [held.get(url), [copy.epoch, copy.version, count.value]];
    if (before && (now[0] < before[0] || (now[0] === before[0] && now[1] < before[1]) || now[2] < before[2]))
      wrong.push(`${url} went from ${before} back to ${now}`);
    held.set(url, now);
  };
  const client = await again(() =>
    connect(`mqtt://127.0.0.1:${port}`, { username: name, password: "x", reconnectPeriod: 200, timeout: 4_000 }),
  );
  let complete = false;
  client.on("complete", () => (complete = true));
  client.on("disconnect", () => (complete = false));
  const observer = await again(() => client.observe(`${prefix}**`));
  complete = true;
  for (const copy of observer) see({ type: "created", url: copy.url, copy });
  observer.on("*", see);
  const goal = JSON.parse(await stopped);
  const there = () => [...observer].every(({ url, epoch, version }) => goal[url]?.[0] === epoch && goal[url][1] === version);
  for (let tries = 0; tries < 600; tries++) {
    if (complete && client.connected && observer.size === Object.keys(goal).length && there()) break;
    await pause(0.1);
  }
  const state = {};
  for (const { url, epoch, version, data } of observer) state[url] = [epoch, version, data];
  const found = { state, in_sync: complete, wrong: wrong.slice(0, 20), events };
  await client.close();
  return [name, found];
}

const lines = createInterface({ input: process.stdin });
lines.once("line", stop);
const all = await Promise.all(Array.from({ length: count }, (_, n) => witness(`node${n}`)));
console.log(JSON.stringify(Object.fromEntries(all)));
lines.close();
process.stdin.destroy();
