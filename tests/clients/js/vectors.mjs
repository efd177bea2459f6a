// The shared vectors, played by the client's own code. One JSON line says what failed, what was played, and what was left out.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Replica, applyPatch, merge, same, topicOf, urlOf } from "ctxt-client";
import { payloadsOf, shown, told } from "./written.mjs";

const folder = process.argv[2];
const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const result = { failures: [], played: 0, skipped: [] };

function check(group, vector, act) {
  const note = vector.note ?? JSON.stringify(vector);
  if (vector.numbers) return void result.skipped.push(note);
  result.played++;
  try {
    act();
  } catch (error) {
    result.failures.push({ group, note, detail: error.message });
  }
}

function equal(found, wanted, where = "") {
  if (!same(found, wanted)) throw new Error(`${where} ${JSON.stringify(found)} is not ${JSON.stringify(wanted)}`);
}

function take(replica, step) {
  const now = step.at;
  if (step.want_resubscribe) return { want_resubscribe: replica.wantResubscribe(now) };
  if (step.want_read) return { want_read: replica.wantRead(now) };
  if (step.status) return { status: Object.fromEntries(Object.keys(step.status).map((url) => [url, replica.status(url)])) };
  let events = [];
  const found = {};
  if (step.take) events = replica.take(step.take, now);
  else if (step.gone) events = replica.gone(step.gone);
  else if (step.compare) {
    const { consistent, complete, read, events: gone } = replica.compare(step.compare, step.asked, step.prefix);
    Object.assign(found, { consistent, complete, read });
    events = gone;
  } else for (const payload of payloadsOf(step)) events = events.concat(replica.feed(step.topic, payload, now));
  found.events = events.map(told);
  found.gaps = replica.gaps.sort();
  return found;
}

for (const scene of read("observer.json").scenes)
  check(scene.group, scene, () => {
    const replica = new Replica({ jitter: () => 0.5, prefix: scene.prefix });
    for (const step of scene.steps)
      for (const [key, value] of Object.entries(take(replica, step)))
        equal(value, step[key] ?? [], `at ${step.at} ${step.topic ?? ""}: ${key}`);
    equal([...replica].map(shown).sort((a, b) => (a.url < b.url ? -1 : 1)), scene.copies, "copies");
    equal(replica.ignored, scene.ignored ?? 0, "ignored");
    equal(replica.digest(), scene.digest, "digest");
    equal(replica.size, scene.copies.length, "size");
  });

const patches = read("patches.json");
for (const [group, apply] of [["merge", merge], ["merge_unchanged", merge], ["patch", applyPatch]])
  for (const vector of patches[group])
    check(group, vector, () => {
      const before = JSON.stringify(vector.document);
      let found;
      try {
        found = apply(vector.document, vector.patch);
      } catch (error) {
        if (vector.error === undefined) throw error;
        return equal([error.code, error.place], [409, vector.error.place], "refused at");
      }
      if (vector.error !== undefined) throw new Error(`${JSON.stringify(found)} is no refusal`);
      if (group === "merge_unchanged" && found !== vector.document) throw new Error("it is another value");
      equal(found, group === "merge_unchanged" ? vector.document : vector.result, "result");
      equal(JSON.stringify(vector.document), before, "the document itself");
    });

const { urls, topics } = read("addresses.json");
for (const { text, url, topic } of urls)
  check("addresses", { note: text }, () => equal([topicOf(text), urlOf(topic)], [topic, url], "URL and topic"));
for (const { url, topic } of topics)
  check("addresses", { note: topic }, () => equal([topicOf(url), urlOf(topic)], [topic, url], "URL and topic"));

console.log(JSON.stringify(result));
