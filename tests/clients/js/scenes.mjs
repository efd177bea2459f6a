// What the client does at a real gateway, the same in Node.js and in a browser. Each scene throws where something is wrong.

import { CtxtError, connect } from "ctxt-client";

function same(found, wanted, where) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${where}: ${a} is not ${b}`);
}

const reading = (value) => ({ values: { temperature: { value, unit: "Cel" } } });
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    if (error instanceof CtxtError) return error;
    throw error;
  }
  throw new Error("this was not refused");
}

/** Clients of these names for as long as `act` lasts. */
async function clients({ url, password, prefix }, names, act) {
  const made = [];
  try {
    for (const username of names)
      made.push(await connect(url, { username, password: username && password, prefix, reconnectPeriod: 100 }));
    return await act(...made);
  } finally {
    for (const client of made) await client.close();
  }
}

async function one(env) {
  const url = `ctxt://home.local/sensor/${env.place}/one`;
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await sensor.report(url, reading(20));
    const observer = await dash.observe(url.replace("home", "Home"));
    const { version, reporter, status, name } = observer;
    same([observer.url, version, reporter, status, name, observer.size], [url, 1, "sensor", "live", "one", 1], "the copy");
    same(observer.data, reading(20), "data");
    same(observer.schema.split("/").at(-1), "Context", "schema");
    same([observer.copy === observer.get(url), [...observer].length], [true, 1], "get and iterate");
    let thrown = 0;
    for (const write of [() => (observer.data.values.temperature.value = 1), () => (observer.copy.data = {})])
      try {
        write();
      } catch {
        thrown++;
      }
    same([thrown, observer.data], [2, reading(20)], "data is not the page's to change");

    const seen = [];
    const off = observer.on("changed", ({ paths, copy }) => seen.push([paths, copy.version]));
    const changes = observer.changes();
    const warm = observer.waitFor(({ data }) => data.values.temperature.value > 21 && "warm");
    await sensor.report(url, reading(21));
    await sensor.report(url, [{ op: "replace", path: "/values/temperature/value", value: 22 }]);
    same(await warm, "warm", "waitFor");
    off();
    await sensor.report(url, { values: { humidity: { value: 40 } } });
    await observer.waitFor(({ version }) => version === 4);
    same(seen, [[["/values/temperature/value"], 2], [["/values/temperature/value"], 3]], "on");
    const told = [];
    for await (const { type, url: about, parent, paths, before, copy } of changes) {
      told.push([type, about, parent, paths, before.version, copy.version]);
      if (told.length === 3) break;
    }
    same(told.at(-1), ["changed", url, null, ["/values/humidity"], 3, 4], "changes");
    same(observer.data, { values: { temperature: { value: 22, unit: "Cel" }, humidity: { value: 40 } } }, "data at last");

    const late = await refused(observer.waitFor(() => false, { timeout: 20 }));
    same(late.code, 504, "waitFor in vain");
    await sensor.request("delete", { resource: url });
    await observer.waitFor(({ copy }) => copy === null);
    same([observer.data, observer.version, observer.status, observer.size], [null, null, null, 0], "deleted");
    same((await refused(dash.observe(url))).code, 410, "observe what is deleted");
    const missing = await refused(dash.observe("ctxt://home.local/dash/nothing"));
    same([missing.code, missing.description.includes("ctxt://home.local/dash/nothing")], [404, true], "observe nothing");
    same((await refused(dash.observe("ctxt://closed.local/sensor/x"))).code, 403, "observe what is closed");
    await observer.close();
    same((await refused(observer.waitFor(() => true))).code, 503, "closed");
  });
}

async function many(env) {
  const base = `ctxt://home.local/sensor/${env.place}/many/`;
  const meta = (url, said) => ({ resource: url, meta: said });
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await Promise.all(Array.from({ length: 250 }, (_, i) => sensor.report(base + i, reading(i))));
    await sensor.request("update", meta(base + 7, { tags: ["kitchen"], name: "seven" }));
    const [tree, star, tagged, mine, named] = await Promise.all([
      dash.observe(base),
      dash.observe(base + "*"),
      dash.observe({ prefix: base.slice(0, -1), tag: "kitchen" }),
      dash.observe({ scheme: "ctxt", authority: "home.local", mine: true }),
      dash.observe({ prefix: base, schema: "Context", reporter: "sensor", status: "live", name: "seven" }),
    ]);
    same([tree.size, star.size, tagged.size, mine.size, named.size], [250, 250, 1, 0, 1], "sizes");
    same([...tagged][0].url, base + 7, "tagged");
    same([tree.url, tree.copy, tree.get(base + 3).data.values.temperature.value], [null, null, 3], "a subtree");
    const told = [];
    tagged.on("*", ({ type, url }) => told.push([type, url]));
    await sensor.request("update", meta(base + 8, { tags: ["kitchen", "x"] }));
    await sensor.report(base + 8, reading(80));
    await sensor.report(base + 9, reading(90));
    await sensor.request("update", meta(base + 8, { tags: null }));
    await sensor.request("delete", { resource: base + 7 });
    await tagged.waitFor(({ size }) => size === 0);
    const eight = base + 8;
    same(told, [["created", eight], ["changed", eight], ["deleted", eight], ["deleted", base + 7]], "a query's events");
    await tree.waitFor(({ size }) => size === 249);
    same(tree.get(base + 9).data, reading(90), "the rest went on");

    // Subscriptions are shared: what one gives back the other keeps.
    await star.close();
    await sensor.report(base + 1, reading(-1));
    await tree.waitFor((it) => it.get(base + 1).data.values.temperature.value === -1);
    for (const each of [tree, tagged, mine, named]) await each.close();
    await sensor.report(base + 1, reading(-2));
    await dash.request("discover", { prefix: base });
    same([dash.replica.size, dash.replica.gaps.length], [0, 0], "nothing is kept for nobody");
    const again = await dash.observe("**");
    same(again.size >= 249, true, "everything");
    same((await refused(dash.observe({ colour: "red" }))).code, 400, "a query that is none");
  });
}

async function children(env) {
  const chat = `comm://home.local/sensor/${env.place}/chat`;
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await sensor.request("create", { resource: chat, value: { status: "open" } });
    const observer = await dash.observe(chat);
    const theirs = await sensor.observe(chat);
    const changes = theirs.changes();
    const made = await observer.addChild("messages", { type: "chat", content: "hello" });
    same([made.reporter, made.parent], ["dash", chat], "the snapshot");
    await theirs.waitFor((it) => it.children("messages").length === 1);
    same([theirs.children().length, theirs.children("actions").length, theirs.size], [1, 0, 2], "children");
    const [child] = theirs.children("messages");
    same([child.url, child.collection, child.parent, child.data.content], [made.url, "messages", chat, "hello"], "a child");
    const { value: event } = await changes.next();
    same([event.type, event.url, event.parent], ["created", made.url, chat], "its event");
    same((await refused(observer.addChild("nothing", {}))).code, 404, "no such collection");
    await sensor.request("delete", { resource: chat });
    await observer.waitFor(({ size }) => size === 0);
    const gone = [(await changes.next()).value, (await changes.next()).value];
    same(gone.map(({ type, parent }) => [type, parent]), [["deleted", chat], ["deleted", null]], "children go first");
    await theirs.close();
    same((await changes.next()).done, true, "the end of changes");
  });
}

async function actions(env) {
  const url = `ctxt://home.local/sensor/${env.place}/lamp`;
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await sensor.report(url, reading(1));
    sensor.on("action", async ({ id, method, params }) => {
      if (method === "ignore") return;
      const known = method === "dim";
      const body = known ? { id, code: 200, body: { level: params.level } } : { id, code: 404, description: `no ${method}` };
      await sensor.request("response", body);
    });
    const lamp = await dash.observe(url);
    same(await lamp.execute("dim", { level: 3 }), { level: 3 }, "the Reporter's answer");
    const unknown = await refused(lamp.execute("jump", undefined, { idempotent: true }));
    same([unknown.code, unknown.description], [404, "no jump"], "the Reporter's refusal");
    same((await refused(lamp.execute("ignore", {}, { timeout: 300 }))).code, 504, "no answer");
    const several = await dash.observe("ctxt://home.local/sensor/");
    same((await refused(several.execute("dim"))).code, 400, "of which one?");
  });
}

async function reports(env) {
  const url = `ctxt://home.local/sensor/${env.place}/refused`;
  await clients(env, ["sensor", "mallory"], async (sensor, mallory) => {
    await sensor.report(url, reading(20));
    const rejection = new Promise((resolve) => sensor.on("rejection", resolve));
    const wrong = await refused(sensor.report(url, { values: { temperature: { value: { deep: true } } } }));
    same([wrong.code, wrong.place], [422, "/values/temperature/value"], "breaks the schema");
    same(wrong.description.startsWith("/values/temperature/value: "), true, wrong.description);
    const told = await rejection;
    same([told.code, told.resource, told.description], [422, url, wrong.description], "the inbox says the same");
    const others = await refused(mallory.report(url, reading(99)));
    same([others.code, others.description.includes("sensor")], [403, true], "somebody else's");
    same((await refused(sensor.report(url, [{ op: "remove", path: "/nothing" }]))).code, 409, "does not apply");
    same((await refused(sensor.report(url, 5))).code, 400, "no report");
    same((await refused(sensor.report("nonsense", {}))).code, 400, "no URL");
    same((await refused(sensor.request("nonsense"))).code, 400, "no request");
    same((await sensor.request("read", { resource: url })).data, reading(20), "nothing has changed");
    // The same id again is not applied again.
    await sensor.report(url, [{ op: "add", path: "/values/log", value: { value: 1 } }], { id: `once ${env.place}` });
    await sensor.report(url, reading(21));
    await sensor.report(url, [{ op: "add", path: "/values/log", value: { value: 1 } }], { id: `once ${env.place}` });
    same((await sensor.request("read", { resource: url })).version, 3, "applied once");
    // More than the gateway takes at once wait for their turn.
    await Promise.all(Array.from({ length: 1500 }, (_, i) => sensor.report(url, reading(i))));
    same((await sensor.request("read", { resource: url })).data.values.temperature.value, 1499, "in order");
  });
}

async function connections({ url, nobody, plain, password }) {
  const wrong = await refused(connect(url, { username: "dash", password: "wrong" }));
  same([wrong.code, wrong.message.includes("does not admit 'dash' with this password")], [401, true], wrong.message);
  const nameless = await refused(connect(url));
  same([nameless.code, nameless.message.includes("give username and password")], [401, true], nameless.message);
  const none = await refused(connect(nobody, { username: "dash", password }));
  same([none.code, none.message.includes(`nobody listens on ${nobody}`)], [503, true], none.message);
  const path = await refused(connect(url.replace("/mqtt", "/other"), { username: "dash", password }));
  same(path.code, 503, path.message);
  same((await refused(connect("nonsense", { username: "dash" }))).code, 400, "no URL");
  // A listener that takes connections and says nothing.
  if (typeof document === "undefined") {
    const { createServer } = await import("node:net");
    const sockets = [];
    const silent = createServer((socket) => sockets.push(socket)).listen(0, "127.0.0.1");
    await new Promise((resolve) => silent.on("listening", resolve));
    const late = await refused(connect(`mqtt://127.0.0.1:${silent.address().port}`, { timeout: 100 }));
    same([late.code, late.message.includes("did not answer within 0.1 s")], [504, true], late.message);
    silent.close();
    sockets.forEach((socket) => socket.destroy());
    await (await connect(plain, { username: "dash", password })).close();
  }
  const client = await connect(url, { username: "dash", password });
  same([client.connected, client.name], [true, "dash"], "connected");
  const meanwhile = refused(client.observe("**"));
  await client.close();
  await client.close();
  same((await meanwhile).code, 503, "closed meanwhile");
  same((await refused(client.report("ctxt://home.local/dash/x", {}))).code, 503, "closed before");
}

/** Lose all that a connection brings for the replica and that `lost` names; what is read is not lost. */
function lose({ replica }, lost) {
  const { feed } = replica;
  replica.feed = (topic, ...rest) => (lost(topic) ? [] : feed.call(replica, topic, ...rest));
}

async function heal(env) {
  const url = `ctxt://home.local/sensor/${env.place}/heal`;
  Math.random = () => 0; // no jitter
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await sensor.report(url, reading(1));
    const observer = await dash.observe(url);
    const told = [];
    observer.on("*", ({ type, copy }) => told.push([type, copy?.version ?? null]));
    let deltas = 0;
    lose(dash, (topic) => topic.startsWith("snapshot/") || (topic.startsWith("delta/") && deltas++ === 0));
    await sensor.report(url, reading(2));
    await sensor.report(url, reading(3));
    await observer.waitFor(() => dash.replica.gaps.length);
    same([observer.version, observer.data], [1, reading(1)], "in a gap the copy stays as it was");
    const began = performance.now();
    await observer.waitFor(() => !dash.replica.gaps.length);
    const took = performance.now() - began;
    same([took > 5_500, took < 8_000], [true, true], `${took} ms until it was read`);
    same([observer.version, observer.data], [3, reading(3)], "healed");
    same(told, [["gap", null], ["changed", 3], ["healed", null]], "events");
  });
}

async function reconnect(env) {
  const base = `ctxt://home.local/sensor/${env.place}/again/`;
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    for (let i = 0; i < 20; i++) await sensor.report(base + i, reading(i));
    const [one, tree] = [await dash.observe(base + 3), await dash.observe(base)];
    const { epoch } = one;
    // What goes while nobody listens has gone, though no message ever says so.
    const [missed, other] = [base + 19, await dash.observe(base + 19)];
    lose(dash, (topic) => topic.endsWith("/again/19"));
    await sensor.request("delete", { resource: missed });
    same([tree.size, tree.get(missed) === other.copy], [20, true], "before");
    const told = [];
    for (const type of ["disconnect", "connect", "complete"]) dash.on(type, () => told.push(type));
    const complete = new Promise((resolve) => dash.on("complete", resolve));
    const lost = new Promise((resolve) => dash.on("disconnect", resolve));
    const inVain = refused(dash.request("discover", {}, { timeout: 60_000 }).then(() => pause(9)));
    await env.say("kill");
    await lost;
    same([one.status, one.data], ["unknown", reading(3)], "while nobody is there");
    const waiting = sensor.report(base + 3, reading(33));
    await env.say("start");
    await waiting;
    await complete;
    await one.waitFor(({ data }) => data.values.temperature.value === 33);
    same([one.epoch > epoch, one.status, tree.size], [true, "live", 19], "as before");
    same([tree.get(missed), other.copy], [null, null], "what has gone");
    for (const { url, version, epoch: now, data } of tree) {
      const held = await dash.request("read", { resource: url });
      same([version, now, data], [held.version, held.epoch, held.data], url);
    }
    same(told, ["disconnect", "connect", "complete"], "what the page was told");
    inVain.catch(() => {});
  });
}

async function flood(env) {
  const url = `ctxt://home.local/sensor/${env.place}/flood`;
  await clients(env, ["sensor", "dash"], async (sensor, dash) => {
    await sensor.report(url, reading(-1));
    const observer = await dash.observe(url);
    const changes = observer.changes();
    const total = 10_020;
    for (let i = 0; i < total; i += 5_010)
      await Promise.all(Array.from({ length: 5_010 }, (_, j) => sensor.report(url, reading(i + j))));
    await observer.waitFor(({ data }) => data.values.temperature.value === total - 1);
    const { value: missed } = await changes.next();
    const { value: next } = await changes.next();
    same([missed, next.copy.data], [{ type: "missed", count: 20 }, reading(20)], "the oldest are dropped, and counted");
    same(dash.replica.gaps, [], "gaps");
  });
}

async function unnamed(env) {
  const url = `ctxt://open.local/sensor/${env.place}`;
  await clients(env, ["sensor"], async (sensor) => {
    const shut = `ctxt://home.local/sensor/${env.place}/shut`;
    await sensor.report(url, reading(5));
    await sensor.report(shut, reading(6));
    await clients({ ...env, url: env.open }, [undefined], async (anybody) => {
      const [open, all] = [await anybody.observe(url), await anybody.observe("**")];
      same([open.data, all.get(url).data], [reading(5), reading(5)], "what is open to anybody");
      same([403, 404].includes((await refused(anybody.observe(shut))).code), true, "what is not");
      same((await refused(anybody.request("discover"))).code, 403, "no name, no request");
      await sensor.report(url, reading(7));
      await open.waitFor(({ data }) => data.values.temperature.value === 7);
    });
  });
}

export const scenes = { one, many, children, actions, reports, connections, heal, reconnect, flood, unnamed };
