/**
 * Observers and Reporters of a ctxt-gateway, in web pages and in Node.js, over mqtt.js 5. docs/client-js.md says how to use it,
 * client.d.ts what there is; the rules are those of docs/protocol.md.
 *
 * Numbers: JavaScript has one type of them. 1 and 1.0 are the same here, and so no change, though the gateway tells them apart;
 * integers beyond 2^53 lose their last digits, as in every JSON.parse. 0 and -0 differ, and so do 1 and true.
 *
 * What is handed out (copies and their data) is frozen: whoever wants to change some of it makes a copy, as with structuredClone.
 */

import mqtt from "mqtt";

const HEAL = 3; // seconds that a gap may wait for a snapshot that covers it; up to one more of jitter is added
const ASK_AGAIN = 60; // the longest wait (seconds) between two requests for one object
const PENDING_DELTAS = 256; // kept for one object in a gap, and PENDING_OBJECTS times as many for all
const PENDING_OBJECTS = 64;
const READ_AT_ONCE = 100; // objects that one `read` may name
const MAX_GATEWAYS = 1_000;
const MAX_PATTERNS = 10_000;
const MAX_NESTED = 1_024; // levels of a payload
const MAX_OPERATIONS = 1_000; // of one JSON Patch
const MAX_COPIED = 1 << 20; // bytes of JSON that the `copy` operations of one patch may add
const MAX_DEPTH = 128; // levels of a patched document

const COMPARE_EVERY = 300;
const RETRY = 2; // seconds until copies that were not complete are compared again: twice as long each time,
const LONGEST_RETRY = 30; // but no longer than this
const QUIET = 0.25; // seconds without a retained snapshot, after which they have all come
const LONGEST_PAUSE = 30_000; // milliseconds between two attempts to connect
const QUEUE = 10_000; // events that wait for whoever iterates, and reports and requests on their way

const CHILDREN = "/children/";
const UNKNOWN = "unknown";
const NOTHING = Object.freeze({});
const START = Object.freeze({ epoch: 0, version: 0 });

/** Something that did not work. `code` follows HTTP: the gateway's own, 401 not admitted, 503 no connection, 504 no answer in time. */
export class CtxtError extends Error {
  constructor(code, description, place) {
    super(description);
    this.name = "CtxtError";
    this.code = code;
    this.description = description;
    if (place !== undefined) this.place = place;
  }
}

// ---- values ------------------------------------------------------------------------------------------------------------

const has = Object.hasOwn;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const member = (object, key) => (has(object, key) ? object[key] : undefined);

/** Set a member, whatever it is called: plain assignment to `__proto__` would set the prototype. */
function put(object, key, value) {
  if (key === "__proto__") Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
  else object[key] = value;
}

/** Freeze a value. What is frozen already is not looked into, so that a change costs no more than what it made. */
function freeze(value, depth = 0) {
  if (typeof value !== "object" || value === null || Object.isFrozen(value)) return value;
  if (depth >= MAX_NESTED) throw new RangeError(`nested deeper than ${MAX_NESTED} levels`);
  for (const key of Object.keys(value)) freeze(value[key], depth + 1);
  return Object.freeze(value);
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The frozen JSON value of a payload. Throws for anything else. */
const parse = (payload) => freeze(JSON.parse(typeof payload === "string" ? payload : decoder.decode(payload)));

/** Whether two JSON values are the same; the order of keys does not count. */
export function same(a, b) {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Array.isArray(a)) return Array.isArray(b) && a.length === b.length && a.every((part, i) => same(part, b[i]));
  if (Array.isArray(b)) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => has(b, key) && same(a[key], b[key]));
}

/** `target` with an RFC 7396 merge patch applied; `target` itself where that changes nothing. Neither is changed. */
export function merge(target, patch) {
  if (!isObject(patch)) return same(target, patch) ? target : patch;
  if (!isObject(target)) return withoutNulls(patch);
  let result = null;
  for (const key of Object.keys(patch)) {
    let value = patch[key];
    const there = has(target, key);
    if (value === null) {
      if (there) delete (result ??= { ...target })[key];
      continue;
    }
    if (isObject(value)) value = there && isObject(target[key]) ? merge(target[key], value) : withoutNulls(value);
    if (there && same(target[key], value)) continue;
    put((result ??= { ...target }), key, value);
  }
  return result ?? target;
}

function withoutNulls(patch) {
  const result = {};
  for (const key of Object.keys(patch)) {
    const value = patch[key];
    if (value !== null) put(result, key, isObject(value) ? withoutNulls(value) : value);
  }
  return result;
}

const escaped = (key) => key.replaceAll("~", "~0").replaceAll("/", "~1");

/** JSON pointers of the members in which two objects differ, as deep as objects go; an array counts as a whole. */
export function changedPaths(old, now, place = "", found = []) {
  for (const key of Object.keys(now)) {
    const there = has(old, key);
    if (there && old[key] === now[key] && now[key] !== 0) continue;
    const path = `${place}/${escaped(key)}`;
    if (there && isObject(old[key]) && isObject(now[key])) changedPaths(old[key], now[key], path, found);
    else if (!there || !same(old[key], now[key])) found.push(path);
  }
  for (const key of Object.keys(old)) if (!has(now, key)) found.push(`${place}/${escaped(key)}`);
  return found;
}

// ---- JSON Patch --------------------------------------------------------------------------------------------------------

const pointer = (tokens) => tokens.map((token) => "/" + escaped(token)).join("");
const refuse = (place, reason) => {
  throw new CtxtError(409, `${place || "the document"}: ${reason}`, place);
};

function tokensOf(raw, key) {
  const text = member(raw, key);
  if (typeof text !== "string") refuse("", `an operation's \`${key}\` is no text: write a JSON pointer`);
  if (text === "") return [];
  if (text[0] !== "/" || /~(?![01])/.test(text)) refuse("", `${text.slice(0, 200)} is no JSON pointer`);
  return text.slice(1).split("/").map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function indexOf(token, length, place) {
  if (token === "-") refuse(place, "`-` names the element after the last, which only `add` can do");
  if (!/^(?:0|[1-9][0-9]{0,8})$/.test(token)) refuse(place, "this is no array index: write digits without a leading zero");
  if (Number(token) >= length) refuse(place, `the array ends before element ${token}: read the object again`);
  return Number(token);
}

/** The part of `container` that the last of `tokens` names. */
function partOf(container, tokens) {
  const token = tokens.at(-1);
  if (Array.isArray(container)) return container[indexOf(token, container.length, pointer(tokens))];
  if (!isObject(container) || !has(container, token)) refuse(pointer(tokens), "there is nothing here: read the object again");
  return container[token];
}

function depthOf(value, limit) {
  let level = [value];
  for (let depth = 0; ; depth++) {
    const below = level.filter((part) => typeof part === "object" && part !== null);
    if (!below.length || depth > limit) return depth;
    level = below.flatMap((part) => Object.values(part));
  }
}

/** A document while operations are applied to it: containers made here are changed in place, all others are copied first. */
class Draft {
  #own = new Set();
  #budget = MAX_COPIED;
  deeper = false;

  constructor(root) {
    this.root = root;
  }

  get(tokens) {
    let found = this.root;
    for (let i = 1; i <= tokens.length; i++) found = partOf(found, tokens.slice(0, i));
    return found;
  }

  #writable(container) {
    if (this.#own.has(container)) return container;
    const made = Array.isArray(container) ? container.slice() : { ...container };
    this.#own.add(made);
    return made;
  }

  #parent(tokens) {
    const above = this.get(tokens.slice(0, -1));
    if (typeof above !== "object" || above === null)
      refuse(pointer(tokens), "there is no object or array to hold it: add that first");
    let here = (this.root = this.#writable(this.root));
    for (const token of tokens.slice(0, -1)) {
      const made = this.#writable(here[token]);
      put(here, token, made);
      here = made;
    }
    return here;
  }

  #whole(value) {
    if (!isObject(value)) refuse("", "the whole document can only be replaced by an object");
    this.root = value;
  }

  add(tokens, value) {
    this.deeper ||= typeof value === "object" && value !== null;
    if (!tokens.length) return this.#whole(value);
    const parent = this.#parent(tokens);
    const token = tokens.at(-1);
    if (!Array.isArray(parent)) put(parent, token, value);
    else if (token === "-") parent.push(value);
    else parent.splice(indexOf(token, parent.length + 1, pointer(tokens)), 0, value);
  }

  replace(tokens, value) {
    this.deeper ||= typeof value === "object" && value !== null;
    if (!tokens.length) return this.#whole(value);
    this.get(tokens);
    put(this.#parent(tokens), tokens.at(-1), value);
  }

  remove(tokens) {
    if (!tokens.length) refuse("", "the whole document cannot be removed: delete the object instead");
    const value = this.get(tokens);
    const parent = this.#parent(tokens);
    if (Array.isArray(parent)) parent.splice(Number(tokens.at(-1)), 1);
    else delete parent[tokens.at(-1)];
    return value;
  }

  move(source, tokens) {
    if (source.length <= tokens.length && source.every((token, i) => token === tokens[i])) {
      if (source.length === tokens.length) return void this.get(source);
      refuse(pointer(tokens), "a value cannot be moved into itself");
    }
    this.add(tokens, this.remove(source));
  }

  copy(source, tokens) {
    const value = this.get(source);
    this.#spend(value);
    if (this.#budget < 0) refuse(pointer(tokens), "the patch copies too much: send the values instead");
    // It is now in two places: nothing below it may be changed in place any more.
    if (typeof value === "object") this.#own.clear();
    this.add(tokens, value);
  }

  #spend(value) {
    const todo = [value];
    while (todo.length && this.#budget >= 0) {
      const part = todo.pop();
      this.#budget -= typeof part === "string" ? 2 + part.length : 1;
      if (typeof part !== "object" || part === null) continue;
      for (const key of Object.keys(part)) {
        this.#budget -= Array.isArray(part) ? 1 : 4 + key.length;
        todo.push(part[key]);
      }
    }
  }

  test(tokens, value) {
    if (!same(this.get(tokens), value))
      refuse(pointer(tokens), "the value is not the one that `test` expects: read the object again");
  }
}

/**
 * `target` with an RFC 6902 patch applied, whole or not at all; `target` itself where that changes nothing. Neither is changed.
 * Throws CtxtError (409) for what does not apply; `place` is a JSON pointer into the document.
 */
export function applyPatch(target, operations) {
  if (!Array.isArray(operations) || operations.length > MAX_OPERATIONS)
    refuse("", `a patch is an array of at most ${MAX_OPERATIONS} operations`);
  const draft = new Draft(target);
  for (const raw of operations) {
    if (!isObject(raw)) refuse("", "an operation is an object with `op` and `path`");
    const op = member(raw, "op");
    if (!["add", "remove", "replace", "move", "copy", "test"].includes(op)) refuse("", "an operation's `op` is unknown");
    const path = tokensOf(raw, "path");
    if (op === "remove") draft.remove(path);
    else if (op === "move" || op === "copy") draft[op](tokensOf(raw, "from"), path);
    else if (!has(raw, "value")) refuse("", "an operation has no `value`: add it");
    else draft[op](path, raw.value);
  }
  const depth = draft.deeper ? depthOf(draft.root, MAX_DEPTH) : 0;
  if (depth > MAX_DEPTH && depthOf(draft.root, Infinity) > depthOf(target, Infinity))
    refuse("", `the result would be nested deeper than ${MAX_DEPTH} levels: flatten it`);
  return same(draft.root, target) ? target : draft.root;
}

// ---- names -------------------------------------------------------------------------------------------------------------

const CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** A new ULID: sorts by time, cannot be guessed. */
export function ulid(now = Date.now()) {
  let text = "";
  for (let i = 9, time = now; i >= 0; i--, time = Math.floor(time / 32)) text = CROCKFORD[time % 32] + text;
  for (const byte of globalThis.crypto.getRandomValues(new Uint8Array(16))) text += CROCKFORD[byte % 32];
  return text;
}

const below = (topic) => topic.replace("://", "/");

/** The URL of an object topic. */
export const urlOf = (topic) => topic.replace("/", "://");

/** The topic of an object URL, in normal form. Throws CtxtError (400) for what is no URL. */
export const topicOf = (url) => below(normal(url, true));

/** A URL in its one spelling; not `whole`: a URL that may end before the object's name does. */
function normal(url, whole) {
  const wrong = (hint) => new CtxtError(400, `${String(url).slice(0, 200)} is no object URL: ${hint}`);
  const [, scheme, authority, path] = /^([a-z][a-z0-9.-]*):\/\/([^/?#]*)(?:\/([^?#]*))?$/i.exec(url) ?? [];
  if (scheme === undefined) throw wrong("write scheme://authority/path, like ctxt://home.local/room/temperature");
  if (whole && (!authority || !path)) throw wrong(authority ? "it has no path" : "it has no authority");
  const segments = (path ?? "").split("/").map((segment) => {
    if (whole && ["", ".", ".."].includes(segment)) throw wrong("a segment of its path is empty, `.` or `..`");
    try {
      // These stay as they are, and encodeURIComponent does not know so.
      const text = encodeURIComponent(decodeURIComponent(segment).normalize("NFC"));
      return text.replace(/%(?:24|26|2C|3A|3B|3D|40)/g, decodeURIComponent);
    } catch {
      throw wrong("a `%` in it is not followed by two digits of UTF-8; write %25 for the character itself");
    }
  });
  return `${scheme}://${authority}`.toLowerCase() + (path === undefined ? "" : "/" + segments.join("/"));
}

function authorityOf(topic) {
  const [scheme, authority] = topic.split("/", 2);
  if (authority === undefined) throw new TypeError("an object topic has a scheme and an authority");
  return `${scheme}/${authority}`;
}

function parentOf(topic) {
  const at = topic.indexOf(CHILDREN);
  return at < 0 ? null : topic.slice(0, at);
}

/** Whether a URL is `prefix` or below it; a prefix that ends in a slash is taken as it is. */
const isBelow = (url, prefix) =>
  url.startsWith(prefix) && (!prefix || prefix.endsWith("/") || url.length === prefix.length || url[prefix.length] === "/");

/** SHA-256 (hex) of a text. The browser's own is there on secure pages only, and panels are often not. */
function sha256(text) {
  const K = [];
  const H = [];
  const root = (prime, power) => Math.floor((prime ** power % 1) * 2 ** 32);
  for (let prime = 2; K.length < 64; prime++) {
    let divisor = 2;
    while (divisor * divisor <= prime && prime % divisor) divisor++;
    if (divisor * divisor <= prime) continue;
    if (H.length < 8) H.push(root(prime, 1 / 2));
    K.push(root(prime, 1 / 3));
  }
  const told = new TextEncoder().encode(text);
  const bytes = new Uint8Array((((told.length + 8) >> 6) + 1) << 6);
  bytes.set(told);
  bytes[told.length] = 0x80;
  const view = new DataView(bytes.buffer);
  view.setUint32(bytes.length - 8, Math.floor(told.length / 2 ** 29));
  view.setUint32(bytes.length - 4, told.length << 3);
  const w = new Int32Array(64);
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  for (let at = 0; at < bytes.length; at += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      w[i] = w[i - 16] + (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) + w[i - 7] + (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = H;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((part, i) => (H[i] = (H[i] + part) | 0));
  }
  return H.map((part) => (part >>> 0).toString(16).padStart(8, "0")).join("");
}

const digestOf = (urls) => sha256(urls.sort().map((url) => url + "\n").join(""));

// ---- the Observer rule -------------------------------------------------------------------------------------------------

const newer = (a, b) => a.epoch > b.epoch || (a.epoch === b.epoch && a.version > b.version);

function number(value, key) {
  const found = member(value, key);
  if (!Number.isSafeInteger(found) || found < 0) throw new TypeError(`${key} is no number from 0`);
  return found;
}

function text(value, key) {
  const found = member(value, key);
  if (typeof found !== "string") throw new TypeError(`${key} is no text`);
  return found;
}

function texts(value) {
  if (value === undefined || value === null) return null;
  if (!Array.isArray(value)) throw new TypeError("tags and resources are arrays");
  return value;
}

function copyOf(topic, facts) {
  if (!isObject(facts.data)) throw new TypeError("an object's data is an object");
  const above = parentOf(topic);
  const made = {
    url: urlOf(topic),
    parent: above === null ? null : urlOf(above),
    collection: above === null ? null : topic.slice(above.length + CHILDREN.length).split("/", 1)[0],
    created: null,
    description: null,
    tags: null,
    resources: null,
    deleted: false,
    ...facts,
  };
  freeze(made.data);
  return Object.freeze(made);
}

const tombstone = (topic, epoch, version, modified) =>
  copyOf(topic, { epoch, version, modified, data: NOTHING, status: "", reporter: "", schema: null, name: "", deleted: true });

function copyOfSnapshot(topic, snapshot) {
  const [epoch, version, modified] = [number(snapshot, "epoch"), number(snapshot, "version"), text(snapshot, "modified")];
  if (member(snapshot, "deleted") === true) return tombstone(topic, epoch, version, modified);
  return copyOf(topic, {
    epoch,
    version,
    modified,
    data: snapshot.data,
    status: text(snapshot, "status"),
    reporter: text(snapshot, "reporter"),
    schema: snapshot.schema === null ? null : text(snapshot, "schema"),
    name: text(snapshot, "name"),
    created: text(snapshot, "created"),
    description: member(snapshot, "description") ?? null,
    tags: texts(member(snapshot, "tags")),
    resources: texts(member(snapshot, "resources")),
  });
}

/** What a delta makes of the version before it. Throws where it does not fit. */
function applied(copy, topic, delta) {
  const { epoch, version } = delta;
  const modified = text(delta, "modified");
  if (member(delta, "deleted") === true) return tombstone(topic, epoch, version, modified);
  let from = copy;
  let data;
  if (member(delta, "created") === true) {
    data = member(delta, "value");
    const schema = delta.schema === null ? null : text(delta, "schema");
    from = { created: modified, schema, name: topic.slice(topic.lastIndexOf("/") + 1), status: "live", reporter: text(delta, "reporter") };
  } else if (copy === null || copy.deleted) throw new TypeError("there is nothing that this delta could change");
  else if (has(delta, "value")) data = delta.value;
  else if (has(delta, "merge")) data = merge(copy.data, delta.merge);
  else if (has(delta, "patch")) data = applyPatch(copy.data, delta.patch);
  else data = copy.data;
  const meta = has(delta, "meta") ? delta.meta : NOTHING;
  if (!isObject(meta)) throw new TypeError("a delta's meta is an object");
  const said = (value, key) => (has(value, key) ? value[key] : (from[key] ?? null));
  return copyOf(topic, {
    epoch,
    version,
    modified,
    data,
    status: said(delta, "status"),
    reporter: said(delta, "reporter"),
    schema: said(meta, "schema"),
    name: said(meta, "name"),
    created: from.created,
    description: said(meta, "description"),
    tags: texts(said(meta, "tags")),
    resources: texts(said(meta, "resources")),
  });
}

const described = (copy) => [copy.schema, copy.name, copy.description, copy.tags, copy.resources];

/** Whether a gateway's pattern matches, level by level: `*` is one level, `**` the rest. */
function patternOf(pattern) {
  const levels = below(pattern.replaceAll("{client}", "*")).split("/");
  if (pattern === "**") return () => true;
  const rest = levels.at(-1) === "**";
  if (rest) levels.pop();
  if (!pattern.includes("://") || levels.includes("**") || levels.includes("")) throw new TypeError("this is no pattern");
  const literal = levels.map((level) => (level === "*" ? null : level.replaceAll("%2A", "*")));
  return (topic) => {
    const parts = topic.split("/");
    return (
      (rest ? parts.length > levels.length : parts.length === levels.length) &&
      literal.every((level, i) => level === null || level === parts[i])
    );
  };
}

/** What is known of one object topic. */
class Entry {
  copy = null;
  seen = START; // the newest position that any message has spoken of
  doubt = false; // whether the copy may not be what the gateway holds although no newer position is known
  pending = new Map();
  due = 0;
  asked = 0;
  heard = 0;

  get inGap() {
    return this.doubt || this.copy === null || newer(this.seen, this.copy);
  }
}

/** The Observer rule as a state machine: the copies of one Observer. Does no I/O; times are seconds that never go back. */
export class Replica {
  #jitter;
  #heads;
  #entries = new Map();
  #children = new Map();
  #gaps = new Map();
  #pending = 0;
  #floors = new Map();
  #gateways = new Map();
  /** Messages that could not be understood; what they may have meant is found out as a gap. */
  ignored = 0;

  constructor({ jitter = Math.random, prefix = "" } = {}) {
    this.#jitter = jitter;
    const head = prefix ? prefix + "/" : "";
    this.#heads = ["snapshot", "delta", "gateway"].map((verb) => `${head}${verb}/`);
  }

  // ---- what is held

  get(url) {
    const copy = this.#entries.get(below(url))?.copy;
    return copy && !copy.deleted ? copy : null;
  }

  *[Symbol.iterator]() {
    for (const { copy } of this.#entries.values()) if (copy && !copy.deleted) yield copy;
  }

  get size() {
    let size = 0;
    for (const _ of this) size++;
    return size;
  }

  /** The URLs of objects whose copy is missing or behind. */
  get gaps() {
    return [...this.#gaps.keys()].map(urlOf);
  }

  /** When something was last heard of an object (seconds); null where nothing is known of it. */
  heard(url) {
    return this.#entries.get(below(url))?.heard ?? null;
  }

  status(url) {
    const copy = this.get(url);
    if (copy === null) return null;
    const topic = below(url);
    const serving = [...this.#gateways.values()].filter(({ patterns }) => patterns.some((matches) => matches(topic)));
    return !serving.length || serving.some(({ online }) => online) ? copy.status : UNKNOWN;
  }

  /** SHA-256 (hex) over the sorted URLs held at and below a URL, as `discover` makes it. */
  digest(prefix = "") {
    return digestOf([...this].map((copy) => copy.url).filter((url) => isBelow(url, prefix)));
  }

  // ---- what arrives

  /** Take in one message (payload: bytes or text); other topics than snapshots, deltas and gateways are none of its business. */
  feed(topic, payload, now) {
    const at = this.#heads.findIndex((head) => topic.startsWith(head));
    if (at < 0) return [];
    const about = topic.slice(this.#heads[at].length);
    try {
      if (at === 1) return this.#delta(about, parse(payload), now);
      if (at === 2) return this.#announced(about, payload);
      return payload.length ? this.take(parse(payload), now, about) : this.#cleared(about, now);
    } catch {
      // A gateway sends nothing of the kind; the next delta will show what was missed.
      this.ignored++;
      return [];
    }
  }

  /** Take in a snapshot or tombstone: a retained message, or an answer to `read`. Throws for something else. */
  take(snapshot, now, topic = below(text(snapshot, "url"))) {
    authorityOf(topic);
    const copy = copyOfSnapshot(topic, snapshot);
    const events = [];
    let entry = this.#entries.get(topic);
    if (this.#isBuried(copy, topic) && (!entry?.copy || entry.copy.deleted)) return events;
    if (entry === undefined) entry = this.#enter(topic);
    else if (entry.copy && newer(entry.copy, copy)) return events;
    entry.doubt = false;
    this.#put(entry, topic, copy, now, events);
    this.#goOn(entry, topic, now, events);
    return events;
  }

  /** A `read` was answered with 404, 410 or 403: the object is not there, or not for this Observer any more. */
  gone(url) {
    const events = [];
    const topic = below(url);
    const entry = this.#entries.get(topic);
    if (entry !== undefined) this.#forget(topic, entry, events);
    return events;
  }

  /** Forget, without a word, whatever is not wanted any more: nothing is subscribed to that would keep it in sync. */
  keep(wanted) {
    for (const [topic, entry] of [...this.#entries]) if (!wanted(urlOf(topic))) this.#forget(topic, entry, []);
  }

  #delta(topic, delta, now) {
    const events = [];
    const at = { epoch: number(delta, "epoch"), version: number(delta, "version") };
    const floor = this.#floors.get(authorityOf(topic)) ?? START;
    const entry = this.#entries.get(topic) ?? this.#enter(topic);
    const { copy } = entry;
    if (copy && !newer(at, copy)) return events;
    let fits;
    if (member(delta, "deleted") === true) {
      // What is deleted is deleted, whatever was missed before.
      fits = true;
      entry.doubt = false;
    } else if (copy === null) {
      // A creation says it all; but one that is not above what was forgotten may be an old message.
      fits = member(delta, "created") === true && (at.epoch > floor.epoch || at.version > floor.version);
    } else fits = at.epoch === copy.epoch && at.version === copy.version + 1 && !entry.doubt;
    if (newer(at, entry.seen)) entry.seen = at;
    entry.heard = now;
    if (!fits || !this.#apply(entry, topic, delta, now, events)) this.#keep(entry, at, delta);
    this.#goOn(entry, topic, now, events);
    return events;
  }

  /** Apply what was kept as far as it joins on, and note whether there is a gap. */
  #goOn(entry, topic, now, events) {
    while (entry.pending.size && entry.copy && !entry.doubt) {
      const next = entry.pending.get(`${entry.copy.epoch} ${entry.copy.version + 1}`);
      if (next === undefined || !this.#apply(entry, topic, next, now, events)) break;
    }
    if (entry.pending.size && entry.copy)
      for (const [key, delta] of entry.pending)
        if (!newer(delta, entry.copy)) {
          entry.pending.delete(key);
          this.#pending--;
        }
    if (entry.inGap) {
      if (this.#gaps.has(topic)) return;
      this.#gaps.set(topic, entry);
      entry.asked = 0;
      entry.due = now + HEAL + this.#jitter();
      events.push({ type: "gap", url: urlOf(topic) });
    } else if (this.#gaps.delete(topic)) events.push({ type: "healed", url: urlOf(topic) });
  }

  /** Keep a delta that cannot be applied yet; past the bound none is kept, and a snapshot has to cover them. */
  #keep(entry, at, delta) {
    const key = `${at.epoch} ${at.version}`;
    if (entry.pending.has(key)) return;
    if (entry.pending.size >= PENDING_DELTAS || this.#pending >= PENDING_DELTAS * PENDING_OBJECTS) {
      this.#clear(entry);
      return;
    }
    entry.pending.set(key, delta);
    this.#pending++;
  }

  #clear(entry) {
    this.#pending -= entry.pending.size;
    entry.pending.clear();
  }

  /** Put the next version in place; false (and doubt) where the delta does not apply to what is held. */
  #apply(entry, topic, delta, now, events) {
    let copy;
    try {
      copy = applied(entry.copy, topic, delta);
    } catch {
      entry.doubt = true;
      return false;
    }
    this.#put(entry, topic, copy, now, events);
    return true;
  }

  /** Hold another copy, and say what that changes. */
  #put(entry, topic, copy, now, events) {
    const before = entry.copy;
    const { url, parent } = copy;
    entry.copy = copy;
    if (newer(copy, entry.seen)) entry.seen = copy;
    entry.heard = now;
    if (before === null || before.deleted) {
      if (!copy.deleted) events.push({ type: "created", url, parent, copy, before: null });
      return;
    }
    if (copy.deleted) {
      for (const child of [...(this.#children.get(topic) ?? [])].sort()) this.#dropWithParent(child, copy, now, events);
      events.push({ type: "deleted", url, parent, copy: null, before });
      return;
    }
    const paths = changedPaths(before.data, copy.data);
    if (paths.length || !same(described(copy), described(before)))
      events.push({ type: "changed", url, parent, copy, before, paths });
    if (copy.reporter !== before.reporter) events.push({ type: "delegated", url, parent, copy, before });
    if (copy.status !== before.status) events.push({ type: "status", url, parent, copy, before });
  }

  // ---- children, and what has gone

  /** A child goes with its parent, whether its own deletion has been heard of or not. */
  #dropWithParent(topic, parent, now, events) {
    const entry = this.#entries.get(topic);
    const { copy } = entry;
    if (copy === null) return this.#forget(topic, entry, events);
    if (!copy.deleted) {
      events.push({ type: "deleted", url: copy.url, parent: copy.parent, copy: null, before: copy });
      entry.copy = Object.freeze({
        ...copy,
        epoch: Math.max(copy.epoch, parent.epoch),
        data: NOTHING,
        deleted: true,
        modified: parent.modified,
      });
    }
    this.#clear(entry);
    entry.doubt = false;
    entry.seen = entry.copy;
    entry.heard = now;
    if (this.#gaps.delete(topic)) events.push({ type: "healed", url: urlOf(topic) });
  }

  /** Whether a child's snapshot is from before its parent's deletion. */
  #isBuried(copy, topic) {
    const parent = parentOf(topic);
    const above = parent === null ? null : this.#entries.get(parent)?.copy;
    if (copy.deleted || !above?.deleted) return false;
    return copy.epoch < above.epoch || (copy.epoch === above.epoch && copy.modified <= above.modified);
  }

  /** An empty snapshot: a tombstone has been purged. */
  #cleared(topic, now) {
    const events = [];
    const entry = this.#entries.get(topic);
    if (entry === undefined) return events;
    if (entry.copy === null || entry.copy.deleted) {
      this.#forget(topic, entry, events);
      return events;
    }
    // Its deletion was missed, or this message is an old one: only asking tells.
    entry.doubt = true;
    this.#goOn(entry, topic, now, events);
    return events;
  }

  #enter(topic) {
    const entry = new Entry();
    this.#entries.set(topic, entry);
    const parent = parentOf(topic);
    if (parent !== null) {
      if (!this.#children.has(parent)) this.#children.set(parent, new Set());
      this.#children.get(parent).add(topic);
    }
    return entry;
  }

  /** Hold nothing of an object any more, but that what comes after it below its authority has greater versions. */
  #forget(topic, entry, events) {
    const { copy } = entry;
    if (copy && !copy.deleted) events.push({ type: "deleted", url: copy.url, parent: copy.parent, copy: null, before: copy });
    const authority = authorityOf(topic);
    const floor = this.#floors.get(authority) ?? START;
    if (newer(entry.seen, floor)) this.#floors.set(authority, { epoch: entry.seen.epoch, version: entry.seen.version });
    this.#clear(entry);
    this.#entries.delete(topic);
    if (this.#gaps.delete(topic)) events.push({ type: "healed", url: urlOf(topic) });
    const siblings = this.#children.get(parentOf(topic));
    siblings?.delete(topic);
    if (siblings?.size === 0) this.#children.delete(parentOf(topic));
  }

  // ---- gateways

  #announced(gateway, payload) {
    const before = this.#gateways.get(gateway);
    if (!payload.length) {
      this.#gateways.delete(gateway);
      return before?.online ? [{ type: "gateway", gateway, online: false }] : [];
    }
    const value = parse(payload);
    const [online, epoch] = [text(value, "status") === "online", number(value, "epoch")];
    if (before && epoch < before.epoch) return [];
    if (!before && this.#gateways.size >= MAX_GATEWAYS) {
      this.ignored++;
      return [];
    }
    const patterns = [];
    for (const pattern of value.patterns.slice(0, MAX_PATTERNS))
      try {
        patterns.push(patternOf(pattern));
      } catch {
        this.ignored++;
      }
    this.#gateways.set(gateway, { online, epoch, patterns });
    return before?.online === online ? [] : [{ type: "gateway", gateway, online }];
  }

  // ---- what to do

  /** URLs whose gap has waited long enough: subscribe to their snapshots again. Each is named once per gap. */
  wantResubscribe(now) {
    const due = [...this.#gaps].filter(([, entry]) => !entry.asked && entry.due <= now);
    return due.map(([topic, entry]) => this.#ask(topic, entry, now));
  }

  /** URLs to ask for in one `read`, since subscribing again has not helped; named again, ever more rarely, until it has. */
  wantRead(now, limit = READ_AT_ONCE) {
    const due = [...this.#gaps].filter(([, entry]) => entry.asked && entry.due <= now);
    return due.slice(0, limit).map(([topic, entry]) => this.#ask(topic, entry, now));
  }

  #ask(topic, entry, now) {
    entry.due = now + Math.min(HEAL * 2 ** Math.min(entry.asked, 10), ASK_AGAIN) + this.#jitter();
    entry.asked++;
    return urlOf(topic);
  }

  /** When `wantResubscribe` or `wantRead` will have something to say, if nothing else happens; null: never. */
  nextDue() {
    let due = null;
    for (const entry of this.#gaps.values()) if (due === null || entry.due < due) due = entry.due;
    return due;
  }

  /**
   * Compare with all pages of a `discover` for `prefix`, whose first was asked for at `asked`: what is not listed is gone, unless
   * something was heard of it since then; what is missing, older, or in a gap is to be read.
   */
  compare(pages, asked, prefix = "") {
    const listed = new Map();
    for (const page of pages)
      for (const each of page.objects)
        listed.set(text(each, "url"), { epoch: number(each, "epoch"), version: number(each, "version") });
    const { digest, total } = pages.at(-1);
    const consistent = digestOf([...listed.keys()]) === digest && total === listed.size;
    const events = [];
    if (consistent)
      for (const [topic, entry] of [...this.#entries]) {
        const url = urlOf(topic);
        if (!listed.has(url) && entry.heard <= asked && isBelow(url, prefix)) this.#forget(topic, entry, events);
      }
    const read = [];
    for (const [url, at] of listed) {
      const held = this.#entries.get(below(url));
      if (!held?.copy || held.inGap || newer(at, held.copy)) read.push(url);
    }
    return { consistent, complete: consistent && !read.length && this.digest(prefix) === digest, events, read };
  }
}

// ---- what an Observer is about -----------------------------------------------------------------------------------------

const FIELDS = ["scheme", "authority", "prefix", "schema", "name", "tag", "resource", "reporter", "status", "mine"];

/** What `observe` was asked for: MQTT filters of object topics, the prefix that `discover` takes, and which copies belong. */
function scopeOf(where, client) {
  if (typeof where === "string" && !/[/*]$/.test(where)) {
    const url = normal(where, true);
    const topic = below(url);
    const filters = url.includes(CHILDREN) ? [topic] : [topic, `${topic}${CHILDREN}#`];
    return { key: `= ${url}`, single: url, prefix: url, filters, holds: (it) => it === url || it.startsWith(url + CHILDREN) };
  }
  if (typeof where === "string") {
    const bare = where.replace(/\*+$/, "");
    return scopeBelow(bare === "/" ? "" : bare);
  }
  if (!isObject(where)) throw new CtxtError(400, "observe() takes a URL, a prefix that ends in / or *, or a query object");
  for (const key of Object.keys(where))
    if (!FIELDS.includes(key)) throw new CtxtError(400, `a query has no ${key}: it has ${FIELDS.join(", ")}`);
  const { scheme, authority, prefix, schema, tag, resource, mine } = where;
  if (mine && !client) throw new CtxtError(403, "`mine` needs a name: give username and password to connect()");
  const narrowest = prefix ?? (scheme ? `${scheme}://${authority ? authority + "/" : ""}` : "");
  const test = (copy) =>
    ["name", "reporter", "status"].every((key) => where[key] === undefined || copy[key] === where[key]) &&
    (scheme === undefined || copy.url.startsWith(scheme + "://")) &&
    (authority === undefined || copy.url.split("/", 3)[2] === authority) &&
    (schema === undefined || copy.schema === schema || copy.schema?.split("/").at(-1) === schema) &&
    (tag === undefined || (copy.tags ?? []).includes(tag)) &&
    (resource === undefined || (copy.resources ?? []).includes(resource)) &&
    (!mine || copy.reporter === client);
  return { ...scopeBelow(narrowest), test };
}

function scopeBelow(bare) {
  const prefix = /^[a-z][a-z0-9.-]*:\/\/$/i.test(bare) ? bare.toLowerCase() : bare && normal(bare, false);
  const stem = below(prefix).replace(/\/$/, "");
  return { key: `/ ${prefix}`, prefix, filters: [stem ? `${stem}/#` : "#"], holds: (url) => isBelow(url, prefix) };
}

// ---- listeners and queues ----------------------------------------------------------------------------------------------

/** Functions by the type of event that they want, "*" for all. One that throws is the page's error, not ours. */
class Listeners {
  #by = new Map();

  on(type, listener) {
    if (!this.#by.has(type)) this.#by.set(type, new Set());
    // A wrapper: the same function given twice is heard twice, and taken away once.
    const entry = { listener };
    this.#by.get(type).add(entry);
    return () => void this.#by.get(type)?.delete(entry);
  }

  tell(type, ...told) {
    for (const key of [type, "*"])
      for (const { listener } of [...(this.#by.get(key) ?? [])])
        try {
          listener(...told);
        } catch (error) {
          queueMicrotask(() => {
            throw error;
          });
        }
  }

  clear() {
    this.#by.clear();
  }
}

/** Events that wait for one `for await`; beyond the bound the oldest are dropped, and counted in an event of their own. */
class Queue {
  #events = [];
  #at = 0;
  #missed = 0;
  #waiting = [];
  #end = null;
  #left;

  constructor(left) {
    this.#left = left;
  }

  push(event) {
    if (this.#end) return;
    const waiting = this.#waiting.shift();
    if (waiting) return waiting.resolve({ value: event, done: false });
    this.#events.push(event);
    if (this.#events.length - this.#at > QUEUE) {
      this.#missed++;
      this.#drop();
    }
  }

  #drop() {
    this.#events[this.#at++] = undefined;
    if (this.#at <= QUEUE) return;
    this.#events.splice(0, this.#at);
    this.#at = 0;
  }

  next() {
    const count = this.#missed;
    this.#missed = 0;
    if (count) return Promise.resolve({ value: { type: "missed", count }, done: false });
    if (this.#at < this.#events.length) {
      const value = this.#events[this.#at];
      this.#drop();
      return Promise.resolve({ value, done: false });
    }
    if (!this.#end) return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
    const { error } = this.#end;
    this.#end = { error: null };
    return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
  }

  /** No more comes: whoever waits is told, with the error if there is one. */
  end(error = null) {
    if (this.#end) return;
    this.#end = { error: this.#waiting.length ? null : error };
    for (const { resolve, reject } of this.#waiting) error ? reject(error) : resolve({ value: undefined, done: true });
    this.#waiting = [];
  }

  return() {
    this.end();
    this.#events = [];
    this.#at = this.#missed = 0;
    this.#left(this);
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

const TELL = Symbol("tell");
const END = Symbol("end");
const LOOK = Symbol("look");

/** Copies of what `observe` was asked for, always in sync or known not to be. */
export class Observer {
  #scope;
  #link;
  #members = new Set();
  #queues = new Set();
  #listeners = new Listeners();
  #waiting = new Set();
  #closed = false;

  constructor(scope, link) {
    this.#scope = scope;
    this.#link = link;
    for (const copy of link.replica) if (this.#holds(copy)) this.#members.add(copy.url);
  }

  #holds(copy) {
    return copy !== null && this.#scope.holds(copy.url) && (this.#scope.test === undefined || this.#scope.test(copy));
  }

  /** The copy of the one object; null where there is none, or it is about more than one. */
  get copy() {
    return this.#scope.single === undefined ? null : this.get(this.#scope.single);
  }

  get url() {
    return this.#scope.single ?? null;
  }

  get data() {
    return this.copy?.data ?? null;
  }

  get version() {
    return this.copy?.version ?? null;
  }

  get epoch() {
    return this.copy?.epoch ?? null;
  }

  get reporter() {
    return this.copy?.reporter ?? null;
  }

  get name() {
    return this.copy?.name ?? null;
  }

  get schema() {
    return this.copy?.schema ?? null;
  }

  get status() {
    return this.url === null ? null : this.statusOf(this.url);
  }

  /** The status to show of one object: `unknown` while not connected, or while its gateway is offline; null: it is not there. */
  statusOf(url) {
    if (this.get(url) === null) return null;
    return this.#link.online() && !this.#closed ? this.#link.replica.status(url) : UNKNOWN;
  }

  get(url) {
    return this.#members.has(url) ? this.#link.replica.get(url) : null;
  }

  *[Symbol.iterator]() {
    for (const url of [...this.#members]) {
      const copy = this.get(url);
      if (copy !== null) yield copy;
    }
  }

  get size() {
    return this.#members.size;
  }

  /** The children, of one collection where it is named, by their URLs. */
  children(collection) {
    const wanted = (copy) => copy.parent !== null && (collection === undefined || copy.collection === collection);
    return [...this].filter(wanted).sort((a, b) => (a.url < b.url ? -1 : 1));
  }

  /** Events from now on, for one `for await`; at most 10,000 wait, and `missed` says how many more there were. */
  changes() {
    const queue = new Queue((it) => this.#queues.delete(it));
    if (this.#closed) queue.end();
    else this.#queues.add(queue);
    return queue;
  }

  on(type, listener) {
    return this.#listeners.on(type, listener);
  }

  /** The first truthy value of `predicate(observer)`, looked at now and after each event. */
  waitFor(predicate, { timeout = this.#link.timeout } = {}) {
    return new Promise((resolve, reject) => {
      const done = (settle, value) => {
        clearTimeout(timer);
        this.#waiting.delete(look);
        settle(value);
      };
      const look = (error) => {
        if (error) return done(reject, error);
        try {
          const found = predicate(this);
          if (found) done(resolve, found);
        } catch (thrown) {
          done(reject, thrown);
        }
      };
      const late = () => done(reject, new CtxtError(504, `what was waited for did not come within ${timeout / 1000} s`));
      const timer = setTimeout(late, timeout);
      this.#waiting.add(look);
      look(this.#closed ? gone() : undefined);
    });
  }

  /** Add a child to the one object: its snapshot. */
  async addChild(collection, data) {
    return this.#link.request("create", { parent: this.#one(), collection, value: data });
  }

  /** Ask the Reporter of the one object to act: what it answers. `timeout` (milliseconds) is what the Reporter has for it. */
  async execute(method, params, { timeout = this.#link.timeout, idempotent } = {}) {
    const body = { resource: this.#one(), method, params, idempotent, timeout: Math.min(timeout / 1000, 300) };
    // The gateway itself answers when the time is over: it is given the time to say so.
    return this.#link.request("execute", body, { timeout: timeout + this.#link.timeout });
  }

  #one() {
    if (this.url === null) throw new CtxtError(400, "this Observer is about more than one object: observe one by its URL");
    return this.url;
  }

  close() {
    return this.#link.close(this);
  }

  [LOOK]() {
    for (const look of [...this.#waiting]) look();
  }

  [TELL](event) {
    const { type, url, copy, before } = event;
    if (type === "gateway") return this.#pass(event);
    if (!this.#scope.holds(url)) return;
    if (copy === undefined) return this.#pass(event);
    const [was, is] = [this.#members.has(url), this.#holds(copy)];
    if (is) this.#members.add(url);
    else this.#members.delete(url);
    // What begins or ceases to match a query comes and goes, for those who asked for it.
    if (was && is && this.#holds(before)) this.#pass(event);
    else if (is && !was) this.#pass({ type: "created", url, parent: event.parent, copy, before: null });
    else if (was && !is) this.#pass({ type: "deleted", url, parent: event.parent, copy: null, before });
  }

  #pass(event) {
    const told = Object.freeze(event);
    for (const queue of this.#queues) queue.push(told);
    this.#listeners.tell(told.type, told);
    this[LOOK]();
  }

  [END](error) {
    this.#closed = true;
    for (const queue of this.#queues) queue.end(error);
    for (const look of [...this.#waiting]) look(error ?? gone());
    this.#queues.clear();
    this.#listeners.clear();
  }
}

// ---- the connection ----------------------------------------------------------------------------------------------------

function broker(url, options) {
  try {
    return mqtt.connect(url, options);
  } catch (error) {
    throw new CtxtError(400, `${url} is no URL of a listener (${error.message}): write ws://host:port/mqtt`);
  }
}

const gone = () => new CtxtError(503, "this was closed");
const seconds = () => performance.now() / 1000;
const pause = (time) => new Promise((resolve) => setTimeout(resolve, 1000 * time));

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}

/** Like a promise, but not for longer than this. */
function within(promise, milliseconds, late) {
  let timer;
  const over = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new CtxtError(504, late)), Math.max(0, milliseconds));
  });
  return Promise.race([promise, over]).finally(() => clearTimeout(timer));
}

const CODES = new Map([[0x87, 403], [0x90, 404], [0x83, 409], [0x97, 429], [0x99, 422]]);

/** What the PUBACK of a refused report says: `422 /values/…: text` where the gateway gave its reason. */
function refusalOf(error, packet) {
  const told = packet?.properties?.reasonString ?? "";
  const [, code, place, rest] = /^(\d{3}) (?:(\/.*?): )?(.*)$/s.exec(told) ?? [];
  if (code === undefined) return new CtxtError(CODES.get(error.code) ?? (error.code >= 0x80 ? 400 : 503), told || error.message);
  return new CtxtError(Number(code), place === undefined ? rest : `${place}: ${rest}`, place);
}

/** A connection to a gateway that comes back by itself, and what it observes. `connect` makes one. */
export class Client {
  #where;
  #name;
  #head;
  #timeout;
  #mqtt;
  #answers;
  #replica;
  #observers = new Set();
  #filters = new Map(); // of object topics, and how many Observers want each
  #scopes = [];
  #subscribed = new Set();
  #refused = new Set();
  #extra = new Set();
  #chain = Promise.resolve();
  #asked = new Map();
  #waiting = []; // reports that the gateway's receive maximum lets not yet go
  #flying = 0;
  #sent = new Set();
  #window = 65_535;
  #listeners = new Listeners();
  #up = deferred();
  #linked = false;
  #begun = false;
  #leaving = false;
  #closed = null;
  #session = 0;
  #pause;
  #problem = "";
  #timer;
  #busy = false;
  #compareAt = Infinity;
  #retry = RETRY;
  #lastRetained = 0;
  #lastGateway = 0;

  constructor(url, { username, password, prefix = "", timeout = 10_000, name = username, ...options } = {}) {
    this.#where = String(url).replace(/\/\/[^/]*@/, "//");
    this.#name = name;
    this.#head = prefix ? prefix + "/" : "";
    this.#timeout = timeout;
    this.#answers = `inbox/${name}/${ulid()}`;
    this.#replica = new Replica({ prefix });
    this.#pause = options.reconnectPeriod ?? 500;
    this.#mqtt = broker(url, {
      clientId: `ctxt-${ulid()}`,
      connectTimeout: timeout,
      ...options,
      ...(username === undefined ? {} : { username }),
      ...(password === undefined ? {} : { password }),
      protocolVersion: 5,
      clean: true,
      reconnectPeriod: this.#pause,
      reconnectOnConnackError: true,
      resubscribe: false,
      queueQoSZero: false,
    });
    this.#mqtt.on("connect", (packet) => this.#connected(packet));
    this.#mqtt.on("message", (topic, payload) => this.#heard(topic, payload));
    this.#mqtt.on("close", () => this.#disconnected());
    this.#mqtt.on("error", (error) => this.#failed(error));
    this.#mqtt.on("disconnect", ({ reasonCode, properties }) => {
      this.#problem = properties?.reasonString ?? `reason ${reasonCode}`;
    });
  }

  static async open(url, options) {
    const client = new Client(url, options);
    try {
      await within(client.#up.promise, client.#timeout, `${client.#where} did not answer within ${client.#timeout / 1000} s`);
    } catch (error) {
      await client.#end(error, true);
      throw error;
    }
    return client;
  }

  get connected() {
    return this.#linked;
  }

  get name() {
    return this.#name ?? null;
  }

  get replica() {
    return this.#replica;
  }

  on(type, listener) {
    return this.#listeners.on(type, listener);
  }

  // ---- coming and going

  async #connected(packet) {
    const session = ++this.#session;
    this.#linked = true;
    this.#window = packet?.properties?.receiveMaximum ?? 65_535;
    try {
      if (this.#name !== undefined) {
        const refused = await this.#subscribe([`inbox/${this.#name}`, this.#answers]);
        if (refused.length) return this.#end(new CtxtError(403, `${this.#where} does not let ${this.#name} read its inbox`), true);
      }
      await this.#settle();
    } catch {
      return; // the connection was lost meanwhile: the next one does it all again
    }
    if (session !== this.#session || !this.#linked || this.#closed) return;
    this.#begun = true;
    this.#problem = "";
    this.#mqtt.options.reconnectPeriod = this.#pause * (0.5 + Math.random() / 2);
    this.#up.resolve();
    this.#listeners.tell("connect", { type: "connect" });
    for (const observer of this.#observers) observer[LOOK]();
    this.#next();
    this.#retry = RETRY;
    this.#compareAt = this.#observers.size ? seconds() : seconds() + COMPARE_EVERY;
    this.#schedule();
  }

  #disconnected() {
    if (!this.#begun) return void this.#end(this.#unreachable(), true);
    const { options } = this.#mqtt;
    // mqtt.js has set its timer already: this is the pause after the next attempt.
    options.reconnectPeriod = Math.min(2 * options.reconnectPeriod, LONGEST_PAUSE) * (0.75 + Math.random() / 2);
    if (!this.#linked) return;
    this.#linked = false;
    this.#session++;
    this.#up = deferred();
    this.#subscribed.clear();
    this.#extra.clear();
    clearTimeout(this.#timer);
    const lost = new CtxtError(503, `the connection to ${this.#where} was lost`);
    for (const asked of this.#asked.values()) asked.reject(lost);
    this.#listeners.tell("disconnect", { type: "disconnect", description: this.#problem || lost.description });
    for (const observer of this.#observers) observer[LOOK]();
  }

  #unreachable() {
    // A browser does not say why.
    const nobody = ["", "ECONNREFUSED", "WebSocket error"].includes(this.#problem);
    const what = nobody ? `nobody listens on ${this.#where}` : `cannot connect to ${this.#where} (${this.#problem})`;
    return new CtxtError(503, `${what}: is the gateway running, and is this the URL of one of its listeners?`);
  }

  #failed(error) {
    const { code } = error;
    this.#problem = typeof code === "string" ? code : error.message;
    if (typeof code !== "number") return;
    // A CONNACK. What another log-in would not change either ends it, but a gateway that is busy or stops is another matter.
    const admitted = ![0x84, 0x85, 0x86, 0x87, 0x8a, 0x8c].includes(code);
    if (this.#begun && admitted) return;
    const who =
      this.#name === undefined
        ? "admits nobody without a name: give username and password"
        : `does not admit '${this.#name}' with this password: \`ctxt client passwd ${this.#name}\` gives another one`;
    const refused = admitted ? `refuses the connection: ${error.message}; try again later` : who;
    this.#end(new CtxtError(admitted ? 503 : 401, `${this.#where} ${refused}`), true);
  }

  /** Leave, and tell all who wait. Nothing is left behind: no timer, no socket. */
  async #end(error, force) {
    if (this.#closed) return this.#closed;
    const ended = new Promise((resolve) => this.#mqtt.end(force || !this.#linked, {}, () => resolve()));
    // It waits for acknowledgements, which a connection that is lost just now never brings.
    this.#closed = within(ended, 1_000, "").catch(() => void this.#mqtt.stream.destroy());
    this.#linked = false;
    this.#session++;
    clearTimeout(this.#timer);
    this.#up.reject(error);
    for (const observer of this.#observers) observer[END](this.#leaving ? null : error);
    this.#observers.clear();
    for (const asked of this.#asked.values()) asked.reject(error);
    for (const report of this.#waiting.splice(0)) report.reject(error);
    for (const reject of this.#sent) reject(error);
    if (this.#begun && !this.#leaving) this.#listeners.tell("error", error);
    this.#listeners.tell("close", { type: "close" });
    this.#listeners.clear();
    return this.#closed;
  }

  /** End all Observers and the connection. Reports that were not acknowledged until now are rejected. */
  close() {
    this.#leaving = true;
    return this.#end(gone(), this.#flying > 0);
  }

  async #online(deadline) {
    if (this.#closed) throw gone();
    await within(this.#up.promise, deadline - performance.now(), `${this.#where} is not connected`);
  }

  // ---- subscriptions

  /** Subscribe at QoS 1, all in one SUBSCRIBE: the filters that were refused. Rejects when the connection is lost. */
  #subscribe(filters) {
    return new Promise((resolve, reject) => {
      const topics = filters.map((filter) => this.#head + filter);
      this.#mqtt.subscribe(topics, { qos: 1 }, (error, _asked, packet) => {
        const granted = packet?.granted;
        if (granted?.length === filters.length) resolve(filters.filter((_, i) => granted[i] >= 0x80));
        else reject(error ?? new Error("no answer"));
      });
    });
  }

  #unsubscribe(filters) {
    return new Promise((resolve) => this.#mqtt.unsubscribe(filters.map((filter) => this.#head + filter), () => resolve()));
  }

  /** Bring what is subscribed to in line with what is wanted, one change after the other. */
  #settle() {
    const step = async () => {
      if (!this.#linked || this.#closed) return;
      const session = this.#session;
      const wanted = [...this.#filters.keys()].filter((filter) => !this.#subscribed.has(filter));
      const left = [...this.#subscribed].filter((filter) => !this.#filters.has(filter));
      if (wanted.length) {
        // Snapshots and deltas of one scope in one SUBSCRIBE, as the rule says.
        const refused = await this.#subscribe(["gateway/+", ...wanted.flatMap((each) => [`delta/${each}`, `snapshot/${each}`])]);
        if (session !== this.#session) return;
        for (const filter of wanted) {
          this.#subscribed.add(filter);
          if (refused.includes(`delta/${filter}`) || refused.includes(`snapshot/${filter}`)) this.#refused.add(filter);
          else this.#refused.delete(filter);
        }
      }
      if (left.length) {
        await this.#unsubscribe(left.flatMap((each) => [`delta/${each}`, `snapshot/${each}`]));
        for (const filter of left) this.#subscribed.delete(filter);
      }
    };
    const done = this.#chain.then(step);
    this.#chain = done.catch(() => {});
    return done;
  }

  #want(scope) {
    for (const filter of scope.filters) this.#filters.set(filter, (this.#filters.get(filter) ?? 0) + 1);
    this.#scopes.push(scope);
  }

  /** Give a scope back: what nobody wants any more is unsubscribed, and its copies go. */
  async #release(scope) {
    for (const filter of scope.filters) {
      const count = this.#filters.get(filter) - 1;
      if (count) this.#filters.set(filter, count);
      else this.#filters.delete(filter);
    }
    this.#scopes.splice(this.#scopes.indexOf(scope), 1);
    await this.#settle().catch(() => {});
    this.#replica.keep((url) => this.#scopes.some((each) => each.holds(url)));
  }

  // ---- observing

  async observe(where, { timeout = this.#timeout } = {}) {
    if (this.#closed) throw gone();
    const scope = scopeOf(where, this.#name);
    const deadline = performance.now() + timeout;
    this.#want(scope);
    try {
      const late = `${scope.single ?? (scope.prefix || "everything")} could not be read within ${timeout / 1000} s`;
      await within(this.#begin(scope, deadline), timeout, late);
    } catch (error) {
      this.#release(scope);
      throw error;
    }
    const observer = new Observer(scope, {
      replica: this.#replica,
      timeout: this.#timeout,
      online: () => this.#linked,
      request: (type, body, options) => this.request(type, body, options),
      close: async (it) => {
        if (!this.#observers.delete(it)) return;
        it[END](null);
        await this.#release(scope);
      },
    });
    this.#observers.add(observer);
    this.#schedule();
    return observer;
  }

  /** Subscribe, and have the copies proven complete; again where the connection is lost meanwhile. */
  async #begin(scope, deadline) {
    for (let proven = false; !proven; ) {
      try {
        await this.#online(deadline);
        await this.#settle();
        proven = await this.#prove(scope, deadline);
      } catch (error) {
        if (this.#closed || (error instanceof CtxtError && error.code !== 503)) throw error;
      }
      if (!proven) await pause(0.05);
      if (!proven && performance.now() > deadline) throw new CtxtError(504, "objects come and go too fast: try again");
    }
    if (scope.filters.some((filter) => this.#refused.has(filter)))
      throw new CtxtError(403, `${this.#name ?? "a client without a name"} may not observe ${scope.single ?? scope.prefix}`);
    if (this.#compareAt === Infinity) this.#compareAt = seconds() + this.#period(COMPARE_EVERY);
  }

  #period(time) {
    return time * (0.9 + 0.2 * Math.random());
  }

  /** Whether the copies of a scope are what the gateway holds now. Rejects with the gateway's code where it is not for us. */
  async #prove(scope, deadline) {
    if (this.#name === undefined) return this.#proveUnnamed(scope);
    return scope.single === undefined ? this.#proveBelow(scope, deadline) : this.#proveOne(scope, deadline);
  }

  /** Without a name there is no inbox to be answered in: the retained snapshots are all there is. */
  async #proveUnnamed(scope) {
    const asked = seconds();
    await this.#subscribe(["gateway/+"]);
    while (seconds() - asked < HEAL) {
      // Its announcement is behind the snapshots that were asked for before.
      if (this.#lastGateway > asked && seconds() - Math.max(this.#lastRetained, this.#lastGateway) > QUIET) break;
      await pause(0.05);
    }
    if (scope.single !== undefined && this.#replica.get(scope.single) === null)
      throw new CtxtError(404, `${scope.single}: the object does not exist, or may not be read without a name`);
    return true;
  }

  async #proveOne(scope, deadline) {
    const asked = seconds();
    const answered = new Set();
    const body = { resource: scope.single, children: true };
    for (let page; page === undefined || page.next !== undefined; ) {
      if (page !== undefined) body.after = page.next;
      page = await this.#ask("read", body, deadline);
      const refused = page.refused?.find(({ url }) => url === scope.single);
      if (refused) throw new CtxtError(refused.code, `${refused.url}: ${refused.description}`);
      for (const snapshot of page.snapshots) {
        answered.add(snapshot.url);
        this.#tell(this.#replica.take(snapshot, seconds()));
      }
    }
    const held = [...this.#replica].filter(({ url }) => scope.holds(url) && !answered.has(url));
    for (const { url } of held) if (this.#replica.heard(url) <= asked) this.#tell(this.#replica.gone(url));
    return true;
  }

  async #proveBelow(scope, deadline) {
    const asked = seconds();
    const pages = [];
    const body = scope.prefix ? { prefix: scope.prefix } : {};
    do {
      pages.push(await this.#ask("discover", body, deadline));
      body.after = pages.at(-1).next;
    } while (body.after !== undefined);
    let found = this.#compare(pages, asked, scope);
    // Retained snapshots may still be on their way: they cost less than reading.
    while (found.read.length && seconds() - Math.max(asked, this.#lastRetained) < QUIET) {
      await pause(0.05);
      found = this.#compare(pages, asked, scope);
    }
    if (found.read.length) {
      for (let i = 0; i < found.read.length; i += READ_AT_ONCE)
        await this.#read(found.read.slice(i, i + READ_AT_ONCE), deadline);
      // Held against the same list: a newer one would name values that have changed since, again and again.
      found = this.#compare(pages, asked, scope);
    }
    return found.complete;
  }

  #compare(pages, asked, scope) {
    const found = this.#replica.compare(pages, asked, scope.prefix);
    this.#tell(found.events);
    return found;
  }

  /** Take all pages of a `read` into the replica. */
  async #read(resources, deadline) {
    const body = { resources };
    do {
      const page = await this.#ask("read", body, deadline);
      for (const snapshot of page.snapshots) this.#tell(this.#replica.take(snapshot, seconds()));
      for (const { url, code } of page.refused ?? [])
        if ([403, 404, 410].includes(code)) this.#tell(this.#replica.gone(url));
      body.after = page.next;
    } while (body.after !== undefined);
  }

  // ---- keeping in sync

  #schedule() {
    clearTimeout(this.#timer);
    if (!this.#linked || this.#closed || this.#busy || !this.#observers.size) return;
    const due = Math.min(this.#replica.nextDue() ?? Infinity, this.#compareAt);
    if (due < Infinity) this.#timer = setTimeout(() => this.#tend(), Math.max(0, 1000 * (due - seconds())));
  }

  /** Do what is due: subscribe again, read, compare. */
  async #tend() {
    this.#busy = true;
    try {
      await this.#heal(seconds());
      if (seconds() >= this.#compareAt) {
        this.#compareAt = seconds() + this.#period(this.#retry);
        this.#retry = Math.min(2 * this.#retry, LONGEST_RETRY);
        const scopes = new Map(this.#scopes.map((scope) => [scope.key, scope]));
        let complete = true;
        for (const scope of scopes.values()) complete = (await this.#proveAgain(scope)) && complete;
        if (complete) {
          this.#compareAt = seconds() + this.#period(COMPARE_EVERY);
          this.#retry = RETRY;
          this.#listeners.tell("complete", { type: "complete" });
        }
      }
    } catch {
      // The connection was lost, or the gateway did not answer: it is done again, when there is one or in a while.
    } finally {
      this.#busy = false;
      this.#schedule();
    }
  }

  async #heal(now) {
    let topics = this.#replica.wantResubscribe(now).map(below);
    const urls = this.#replica.wantRead(now);
    if (this.#name === undefined) topics = topics.concat(urls.map(below));
    else if (urls.length) await this.#read(urls, performance.now() + this.#timeout);
    if (!topics.length) return;
    for (const topic of topics) if (!this.#filters.has(topic)) this.#extra.add(topic);
    await this.#subscribe(topics.map((topic) => `snapshot/${topic}`));
  }

  async #proveAgain(scope) {
    try {
      return await this.#prove(scope, performance.now() + this.#timeout);
    } catch (error) {
      if (!(error instanceof CtxtError) || ![403, 404, 410].includes(error.code)) throw error;
      // It has gone, or is not for us any more.
      for (const { url } of [...this.#replica]) if (scope.holds(url)) this.#tell(this.#replica.gone(url));
      return true;
    }
  }

  // ---- what arrives

  #heard(topic, payload) {
    if (!topic.startsWith(this.#head)) return;
    const rest = topic.slice(this.#head.length);
    if (rest === this.#answers) return this.#answered(payload);
    if (rest === `inbox/${this.#name}`) return this.#inbox(payload);
    const now = seconds();
    if (rest.startsWith("snapshot/")) this.#lastRetained = now;
    else if (rest.startsWith("gateway/")) this.#lastGateway = now;
    this.#tell(this.#replica.feed(topic, payload, now));
  }

  #tell(events) {
    let gaps = false;
    for (const event of events) {
      const { type, url } = event;
      if (type === "gap") gaps = true;
      if (type === "healed" && this.#extra.delete(below(url)) && !this.#filters.has(below(url)))
        this.#unsubscribe([`snapshot/${below(url)}`]);
      for (const observer of [...this.#observers]) observer[TELL](event);
      if (type === "gap" || type === "healed" || type === "gateway") this.#listeners.tell(type, event);
    }
    if (gaps) this.#schedule();
  }

  #answered(payload) {
    try {
      const answer = parse(payload);
      this.#asked.get(answer.id)?.take(answer);
    } catch {
      this.#replica.ignored++;
    }
  }

  #inbox(payload) {
    let message;
    try {
      message = parse(payload);
      if (typeof member(message, "type") !== "string") throw new TypeError("a message has a type");
    } catch {
      this.#replica.ignored++;
      return;
    }
    // What we tell under these names is ours.
    const own = ["connect", "disconnect", "error", "close", "complete", "gap", "healed", "gateway", "response", "*"];
    if (!own.includes(message.type)) this.#listeners.tell(message.type, message);
  }

  // ---- asking and reporting

  /**
   * Ask the gateway: the body of its answer. `timeout` (milliseconds) is for the first answer; where that is 202, somebody has to
   * decide, and with `decision` (milliseconds) the decision is waited for as well. Sent at most once, so never by surprise twice.
   */
  async request(type, body = {}, { timeout = this.#timeout, decision } = {}) {
    if (this.#name === undefined)
      throw new CtxtError(403, `\`${type}\` needs a name: give username and password to connect()`);
    if (this.#asked.size >= QUEUE) throw new CtxtError(429, "too many requests are on their way: wait for their answers");
    const deadline = performance.now() + timeout;
    await this.#online(deadline);
    const answer = await this.#exchange(type, body, deadline, decision);
    if (answer.code >= 400 || typeof answer.code !== "number")
      throw new CtxtError(answer.code ?? 500, String(answer.description ?? "refused"), answer.place);
    return answer.body;
  }

  async #ask(type, body, deadline) {
    const found = await this.request(type, body, { timeout: Math.max(1, deadline - performance.now()) });
    if (!isObject(found)) throw new CtxtError(500, `\`${type}\` was answered with nonsense`);
    return found;
  }

  #exchange(type, body, deadline, decision) {
    const id = ulid();
    return new Promise((resolve, reject) => {
      let timer;
      const done = (settle, value) => {
        clearTimeout(timer);
        this.#asked.delete(id);
        settle(value);
      };
      const wait = (milliseconds) => {
        const late = new CtxtError(504, `${this.#where} did not answer \`${type}\` in time`);
        timer = setTimeout(() => done(reject, late), Math.max(0, milliseconds));
      };
      wait(deadline - performance.now());
      this.#asked.set(id, {
        reject: (error) => done(reject, error),
        take: (answer) => {
          if (answer.code !== 202 || decision === undefined) return done(resolve, answer);
          clearTimeout(timer);
          wait(decision);
          decision = undefined;
        },
      });
      const properties = { responseTopic: this.#head + this.#answers, correlationData: id };
      const sent = (error) => error && done(reject, new CtxtError(503, `the connection to ${this.#where} was lost`));
      this.#mqtt.publish(`${this.#head}request/${this.#name}`, JSON.stringify({ id, type, body }), { qos: 0, properties }, sent);
    });
  }

  /**
   * Report a change: an object is a merge patch, an array a JSON Patch. Resolves when the gateway has stored it, over a reconnect
   * too (its `id` sees to it that it is applied once); rejects with CtxtError where it is refused.
   */
  async report(url, change, { id = ulid() } = {}) {
    if (typeof change !== "object" || change === null)
      throw new CtxtError(400, "a report is an object (a merge patch) or an array (a JSON Patch)");
    if (this.#closed) throw gone();
    if (this.#waiting.length >= QUEUE) throw new CtxtError(429, "too many reports are on their way: wait for some of them");
    const topic = `${this.#head}report/${this.#name ?? "anonymous"}/${topicOf(url)}`;
    const payload = JSON.stringify(change);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ topic, payload, id, resolve, reject });
      this.#next();
    });
  }

  /** Send what waits, as far as the gateway's receive maximum goes. */
  #next() {
    while (this.#linked && this.#begun && this.#flying < this.#window && this.#waiting.length) {
      const { topic, payload, id, resolve, reject } = this.#waiting.shift();
      this.#flying++;
      this.#sent.add(reject);
      const properties = { userProperties: { id } };
      this.#mqtt.publish(topic, payload, { qos: 1, properties }, (error, packet) => {
        this.#flying--;
        this.#sent.delete(reject);
        if (error) reject(this.#closed ? gone() : refusalOf(error, packet));
        else resolve();
        this.#next();
      });
    }
  }
}

/** Connect to a gateway. Rejects with CtxtError where nobody listens, the password is wrong, or no answer comes in time. */
export const connect = (url, options) => Client.open(url, options);
