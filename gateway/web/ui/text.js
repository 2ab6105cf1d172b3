// Texts for people. Whatever clients name reaches the page as a text node; what a reader could
// not see, or what would reorder the text around it, is written as an escape.
const unseen = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u115F\u1160\u3164\uFFA0\u2800]|(?! )\p{Zs}|^ | $|(?<= ) /gu;

export const shown = (text) =>
  String(text).replace(unseen, (c) => "\\u{" + c.codePointAt(0).toString(16).toUpperCase() + "}");

/** The name of a lock. One that is not valid UTF-8 has only its encoded form. */
export const nameOf = (lock) => (lock.name ? shown(lock.name) : lock.encoded);

export const several = (n, what) => number(n) + " " + what + (n === 1 ? "" : "s");

const groups = new Intl.NumberFormat("en");
export const number = (n) => groups.format(n);

const two = (n) => String(n).padStart(2, "0");

/** A duration in milliseconds. */
export function span(ms) {
  if (ms < 0) ms = 0;
  if (ms > 0 && ms < 0.1) return "<0.1 ms";
  if (ms > 0 && ms < 9.95) return ms.toFixed(1) + " ms";
  if (ms < 1000) return Math.round(ms) + " ms";
  if (ms < 9950) return (ms / 1000).toFixed(1) + " s";
  const s = Math.round(ms / 1000);
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " m " + two(s % 60) + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + two(Math.floor(s / 60) % 60) + " m";
  return Math.floor(s / 86400) + " d " + two(Math.floor(s / 3600) % 24) + " h";
}

export function clock(at) {
  const d = new Date(at);
  return two(d.getHours()) + ":" + two(d.getMinutes()) + ":" + two(d.getSeconds());
}

/** The short form of a claim's id that qlock info shows. */
export function shortID(id) {
  const [instance, seq] = id.split("/");
  return shown(instance.slice(0, 8) + (seq === undefined ? "" : "/" + seq));
}

export const kinds = {
  lock: "Locks",
  election: "Elections",
  semaphore: "Semaphores",
  member: "Members",
  partition: "Partitions",
  queue: "Queues",
};

const kindOfUse = {
  leader: "election",
  "leader-value": "election",
  permit: "semaphore",
  "semaphore-queue": "semaphore",
  member: "member",
  "member-metadata": "member",
  partition: "partition",
  "queue-key": "queue",
};

export const kindOf = (lock) => (lock.use ? (kindOfUse[lock.use.kind] ?? "lock") : "lock");

/** The purpose of a lock, in the words of qlock ls. */
export function useText(use) {
  const part = shown(use.part ?? "");
  switch (use.kind) {
    case "leader":
      return "leader";
    case "leader-value":
      return "leader's value";
    case "semaphore-queue":
      return "semaphore, queue";
    case "permit":
      return "permit " + part;
    case "member":
      return "member " + part;
    case "member-metadata":
      return "metadata of " + part;
    case "partition":
      return "partition " + part;
    case "queue-key":
      return "queue, a key";
  }
  return shown(use.kind);
}
