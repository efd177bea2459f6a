/** Observers and Reporters of a ctxt-gateway over mqtt.js 5. docs/client-js.md says how to use it. */

import type { IClientOptions } from "mqtt";

export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: Json;
}

/** One object as the gateway held it at (epoch, version). Frozen, its data too. */
export interface Copy<Data = any> {
  readonly url: string;
  /** The URL of the object whose child this is, and the collection that it is in. */
  readonly parent: string | null;
  readonly collection: string | null;
  readonly epoch: number;
  readonly version: number;
  readonly data: Data;
  readonly status: string;
  readonly reporter: string;
  /** The schema's catalogue URL. */
  readonly schema: string | null;
  readonly name: string;
  /** RFC 3339. */
  readonly created: string | null;
  readonly modified: string;
  readonly description: string | null;
  readonly tags: readonly string[] | null;
  readonly resources: readonly string[] | null;
  readonly deleted: boolean;
}

interface About {
  readonly url: string;
  readonly parent: string | null;
}

/** An object is there that was not. */
export interface Created extends About {
  readonly type: "created";
  readonly copy: Copy;
  readonly before: null;
}

/** Data, or what describes it, is another. `paths`: JSON pointers of the members of data that are different, in no order. */
export interface Changed extends About {
  readonly type: "changed";
  readonly copy: Copy;
  readonly before: Copy;
  readonly paths: readonly string[];
}

/** `live`, `stale` or `disconnected` instead of what `before` says; or another Reporter. */
export interface Moved extends About {
  readonly type: "status" | "delegated";
  readonly copy: Copy;
  readonly before: Copy;
}

/** An object has gone, or is not for this client any more. */
export interface Deleted extends About {
  readonly type: "deleted";
  readonly copy: null;
  readonly before: Copy;
}

/** Something about an object was missed (its copy stays as it is), and the copy is in sync again. */
export interface Gap {
  readonly type: "gap" | "healed";
  readonly url: string;
}

/** A gateway has come or gone; while it is away the status of what it serves is unknown. */
export interface GatewayChanged {
  readonly type: "gateway";
  readonly gateway: string;
  readonly online: boolean;
}

/** So many events were dropped because nobody took them: look at the copies. */
export interface Missed {
  readonly type: "missed";
  readonly count: number;
}

export type ReplicaEvent = Created | Changed | Moved | Deleted | Gap | GatewayChanged;
export type Event = ReplicaEvent | Missed;
type Of<E, T> = E extends { type: infer K } ? (T extends "*" | K ? E : never) : never;

/**
 * Something that did not work. `code` follows HTTP: the gateway's own (docs/protocol.md), 400 also for what is no URL or no query, 401 not
 * admitted, 503 no connection or closed, 504 no answer in time. `place` is a JSON pointer into a refused report.
 */
export class CtxtError extends Error {
  constructor(code: number, description: string, place?: string);
  readonly code: number;
  readonly description: string;
  readonly place?: string;
}

export interface Options extends Omit<IClientOptions, "protocolVersion" | "clean" | "resubscribe" | "password"> {
  username?: string;
  password?: string;
  /** The client's name as the gateway knows it, where that is not the user name (certificates, tokens). */
  name?: string;
  /** The gateway's `topic_prefix`. */
  prefix?: string;
  /** Milliseconds for connecting, and for each answer unless said otherwise. */
  timeout?: number;
}

/** What `discover` may be asked for; an object belongs while it matches all of it. */
export interface Query {
  scheme?: string;
  authority?: string;
  prefix?: string;
  /** By catalogue URL or name. */
  schema?: string;
  name?: string;
  tag?: string;
  resource?: string;
  reporter?: string;
  status?: string;
  mine?: boolean;
}

/** Connect with MQTT 5. Rejects with CtxtError where nobody listens, the password is wrong, or no answer comes in time. */
export function connect(url: string, options?: Options): Promise<Client>;

/** What the gateway puts into this client's inbox, other than answers. */
export interface InboxMessage extends JsonObject {
  readonly id: string;
  readonly type: string;
}

export class Client {
  private constructor();
  readonly connected: boolean;
  readonly name: string | null;
  readonly replica: Replica;
  /**
   * Resolves when the copies are proven complete (without a name: when the retained snapshots have come). Rejects with 403, 404 or 410
   * where there is nothing to observe.
   */
  observe<Data = any>(where: string | Query, options?: { timeout?: number }): Promise<Observer<Data>>;
  /**
   * An object is a merge patch, an array a JSON Patch. Resolves when the gateway says that it is stored, over a reconnect too; the `id`
   * sees to it that it is applied once.
   */
  report(url: string, change: object, options?: { id?: string }): Promise<void>;
  /**
   * The body of the gateway's answer. Sent at most once. `decision`: milliseconds to wait for what somebody else decides after a 202;
   * without it that answer is the result.
   */
  request(type: string, body?: object, options?: { timeout?: number; decision?: number }): Promise<any>;
  on(type: "connect" | "complete" | "close", listener: (event: { type: string }) => void): () => void;
  on(type: "disconnect", listener: (event: { type: "disconnect"; description: string }) => void): () => void;
  on(type: "error", listener: (error: CtxtError) => void): () => void;
  on(type: "gap" | "healed", listener: (event: Gap) => void): () => void;
  on(type: "gateway", listener: (event: GatewayChanged) => void): () => void;
  on(
    type: "rejection" | "action" | "subscription" | "invitation" | "delegation" | "revoked",
    listener: (message: InboxMessage) => void,
  ): () => void;
  on(type: "*", listener: (event: any) => void): () => void;
  /** End all Observers and the connection; no timer is left. Reports that were not acknowledged until now are rejected. */
  close(): Promise<void>;
}

export class Observer<Data = any> implements Iterable<Copy<Data>> {
  private constructor();
  /** These are of the one object that was asked for by its URL; null where it is not there, or it is about more than one. */
  readonly url: string | null;
  readonly copy: Copy<Data> | null;
  readonly data: Data | null;
  readonly version: number | null;
  readonly epoch: number | null;
  /** `unknown` while not connected, or while its gateway is offline. */
  readonly status: string | null;
  readonly reporter: string | null;
  readonly name: string | null;
  readonly schema: string | null;
  /** How many copies there are, children included. */
  readonly size: number;
  [Symbol.iterator](): Iterator<Copy<Data>>;
  get(url: string): Copy | null;
  statusOf(url: string): string | null;
  children(collection?: string): Copy[];
  /** Events from now on. At most 10,000 wait; `missed` says how many more there were. */
  changes(): AsyncIterableIterator<Event>;
  on<T extends ReplicaEvent["type"] | "*">(type: T, listener: (event: Of<ReplicaEvent, T>) => void): () => void;
  /** The first truthy value of the predicate, looked at now and after each event. */
  waitFor<T>(predicate: (observer: this) => T, options?: { timeout?: number }): Promise<T>;
  /** The child's snapshot. */
  addChild(collection: string, data: object): Promise<any>;
  /** What the Reporter answers. `timeout`: milliseconds that it has, at most 300,000. */
  execute(method: string, params?: unknown, options?: { timeout?: number; idempotent?: boolean }): Promise<any>;
  close(): Promise<void>;
}

/** The Observer rule (docs/protocol.md) as a state machine without I/O. Times are any clock's seconds that never go back. */
export class Replica implements Iterable<Copy> {
  constructor(options?: { jitter?: () => number; prefix?: string });
  readonly size: number;
  readonly gaps: string[];
  ignored: number;
  get(url: string): Copy | null;
  [Symbol.iterator](): Iterator<Copy>;
  status(url: string): string | null;
  heard(url: string): number | null;
  digest(prefix?: string): string;
  feed(topic: string, payload: Uint8Array | string, now: number): ReplicaEvent[];
  take(snapshot: object, now: number): ReplicaEvent[];
  gone(url: string): ReplicaEvent[];
  keep(wanted: (url: string) => boolean): void;
  wantResubscribe(now: number): string[];
  wantRead(now: number, limit?: number): string[];
  nextDue(): number | null;
  compare(pages: readonly object[], asked: number, prefix?: string): Comparison;
}

export interface Comparison {
  consistent: boolean;
  complete: boolean;
  events: ReplicaEvent[];
  read: string[];
}

/** RFC 7396; the target itself where nothing changes. */
export function merge<T = any>(target: unknown, patch: unknown): T;
/** RFC 6902, whole or not at all; the target itself where nothing changes. Throws CtxtError (409). */
export function applyPatch<T = any>(target: unknown, operations: readonly object[]): T;
export function same(a: unknown, b: unknown): boolean;
export function changedPaths(old: object, now: object): string[];
/** The topic of an object URL in normal form. Throws CtxtError (400). */
export function topicOf(url: string): string;
export function urlOf(topic: string): string;
export function ulid(now?: number): string;
