// Events, copies and payloads as tests/vectors/observer.json writes them.

const at = ({ epoch, version }) => [epoch, version];

export function told({ type, url, parent, copy, before, paths, gateway, online }) {
  if (type === "gateway") return { type, gateway, online };
  const what = parent ? { type, url, parent } : { type, url };
  if (copy) what.at = at(copy);
  if (type === "created") Object.assign(what, { data: copy.data, status: copy.status });
  if (type === "changed") Object.assign(what, { before: at(before), data: copy.data, paths });
  if (type === "status") Object.assign(what, { status: copy.status, before: before.status });
  if (type === "delegated") Object.assign(what, { reporter: copy.reporter, before: before.reporter });
  if (type === "deleted") what.before = at(before);
  return what;
}

export function shown({ deleted, ...facts }) {
  return Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== null));
}

export function payloadsOf({ payload, versions }) {
  if (versions) {
    const [first, last] = versions;
    return Array.from({ length: last - first + 1 }, (_, i) => JSON.stringify({ ...payload, version: first + i }));
  }
  const bytes = (text, as) => Uint8Array.from(Buffer.from(text, as));
  if (payload === null) return [bytes("")];
  if (Object.keys(payload).join() === "raw") return [bytes(payload.raw)];
  if (Object.keys(payload).join() === "hex") return [bytes(payload.hex, "hex")];
  return [bytes(JSON.stringify(payload))];
}
