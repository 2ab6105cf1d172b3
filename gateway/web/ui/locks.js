// A worker that has all locks. It asks the gateway for them, filters and sorts them, and gives
// the page only the rows that are in view: ten thousand locks are megabytes of JSON, and the
// page must not stop for them.
import { ask, Refused, signIn, sleep } from "./net.js";
import { kindOf } from "./text.js";

let locks = [];
let cluster = "";
let at = 0; // of the answer that has them
let etag = null;
let version = 0;
let look = { filter: "", kind: "", sort: "name", from: 0, to: 60, groups: false };
let paused = false;
let wake = new AbortController();
let pausing = new AbortController();

onmessage = ({ data }) => {
  if (data.look) {
    look = data.look;
    show();
  }
  if ("auth" in data) {
    signIn(data.auth);
    wake.abort();
  }
  if ("paused" in data && data.paused !== paused) {
    paused = data.paused;
    if (paused) pausing = new AbortController();
    else pausing.abort();
    wake.abort();
  }
};

const textOf = (lock) =>
  (lock.text ??= [lock.name ?? "", lock.encoded, ...[...lock.holders, ...lock.queue].flatMap((c) => [c.client, c.note])].join("\n").toLowerCase());

const ageOf = (lock) => Math.max(-1, ...lock.holders.map((h) => h.for_ms));

let matched = { key: "", list: [] };
function match() {
  const key = [version, look.kind, look.sort, look.filter].join(" ");
  if (matched.key === key) return matched.list;
  const words = look.filter.toLowerCase().split(/\s+/).filter(Boolean);
  let list = locks;
  if (look.kind) list = list.filter((lock) => kindOf(lock) === look.kind);
  if (words.length > 0) list = list.filter((lock) => words.every((word) => textOf(lock).includes(word)));
  if (look.sort === "age") list = list.toSorted((a, b) => ageOf(b) - ageOf(a));
  if (look.sort === "waiting") list = list.toSorted((a, b) => b.waiting - a.waiting);
  matched = { key, list };
  return list;
}

function row(lock) {
  const asked = lock.answered.length + lock.silent.length;
  const most = Math.max(0, ...lock.queue.map((c) => c.voted.length));
  return {
    name: lock.name, encoded: lock.encoded, use: lock.use, holding: lock.holding, waiting: lock.waiting, nodes: asked,
    mayHold: lock.queue.some((c) => c.may_hold),
    votes: lock.holders.length > 0 ? Math.min(...lock.holders.map((h) => h.voted.length)) : most,
    holder: lock.holders[0],
  };
}

let sums = { version: -1 };
function summary() {
  if (sums.version === version) return sums;
  sums = { version, total: locks.length, waiting: 0, free: 0, unknown: 0, split: 0, counts: {}, silent: [], recovering: [] };
  for (const lock of locks) {
    sums.waiting += lock.waiting;
    if (lock.holders.length === 0) lock.queue.some((c) => c.may_hold) ? sums.unknown++ : sums.free++;
    if (lock.queue.some((c) => c.voted.length > 0)) sums.split++;
    const kind = kindOf(lock);
    sums.counts[kind] = (sums.counts[kind] ?? 0) + 1;
  }
  if (locks.length > 0) {
    sums.silent = locks[0].silent;
    sums.recovering = locks[0].recovering;
  }
  return sums;
}

const mostParts = 100;
let grouped = { version: -1, list: [] };
/** What recipes make of locks: one entry for each election, semaphore, group and queue. */
function groups() {
  if (grouped.version === version) return grouped.list;
  const byName = new Map();
  for (const lock of locks) {
    const kind = kindOf(lock);
    if (kind === "lock") continue;
    const key = kind + " " + lock.use.of;
    let group = byName.get(key);
    if (!group) byName.set(key, (group = { kind, of: lock.use.of, parts: [], values: [], count: 0, waiting: 0 }));
    const holder = lock.holders[0];
    const part = { use: lock.use, encoded: lock.encoded, client: holder?.client, note: holder?.note, for_ms: holder?.for_ms, waiting: lock.waiting };
    switch (lock.use.kind) {
      case "leader-value":
      case "member-metadata":
        continue;
      case "semaphore-queue":
        group.waiting = lock.holding + lock.waiting;
        group.queue = lock.encoded;
        continue;
      case "leader":
        group.waiting = lock.waiting;
        break;
    }
    if (!holder && lock.use.kind !== "leader") {
      part.client = undefined;
    }
    group.count++;
    group.parts.push(part);
  }
  const list = [...byName.values()];
  for (const group of list) {
    group.parts.sort((a, b) => (Number(a.use.part) || 0) - (Number(b.use.part) || 0) || (a.use.part ?? "").localeCompare(b.use.part ?? ""));
    group.parts = group.parts.slice(0, mostParts);
  }
  list.sort((a, b) => a.kind.localeCompare(b.kind) || a.of.localeCompare(b.of));
  grouped = { version, list: list.slice(0, 500) };
  return grouped.list;
}

function show() {
  if (at === 0) return;
  const list = match();
  const from = Math.max(0, Math.min(look.from, list.length));
  postMessage({
    view: { cluster, at, version, matching: list.length, from, rows: list.slice(from, look.to).map(row), ...summary(), groups: look.groups ? groups() : null, look },
  });
}

async function follow() {
  for (;;) {
    if (paused) {
      await sleep(2 ** 30, pausing.signal);
      continue;
    }
    wake = new AbortController();
    let pause = 1000;
    try {
      const headers = etag ? { "If-None-Match": etag, Prefer: "wait=5" } : {};
      const answer = await ask("/v1/locks", { headers }, 20000);
      if (answer.status !== 304) {
        at = Date.now();
        ({ locks, cluster } = answer.body);
        etag = answer.etag;
        version++;
      }
      postMessage({ fine: Date.now() });
      show();
      pause = 700 + locks.length / 10; // long lists cost the nodes and the gateway more
    } catch (error) {
      etag = null;
      const status = error instanceof Refused ? error.status : 0;
      postMessage({ failed: { status, text: error.message, sent: error.sent } });
      pause = status === 401 ? 2 ** 30 : status === 403 ? 15000 : 1500;
    }
    await sleep(pause, wake.signal);
  }
}
follow();
