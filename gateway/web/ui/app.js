// The dashboard. State is one object; draw() shows it. Everything that comes from the gateway
// is put into the page as text.
import { Component, h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";
import { storePages } from "./stores.js";
import { ask, readEvents, Refused, signedIn, signIn, sleep } from "./net.js";
import { clock, kindOf, kinds, nameOf, number, several, shortID, shown, span, useText } from "./text.js";

const html = htm.bind(h);

const state = {
  page: "locks", // or lock, groups, events, stores
  lock: null, // the one that is open: {encoded, report, at, error, history, claims, rows}
  view: null, // what the worker says of all locks
  look: { filter: "", kind: "", sort: "name", from: 0, to: 60, groups: false },
  filter: "", // as it is typed; look.filter follows
  user: "", // who signed in
  selected: -1, // by keys; no row is until then
  nodes: null,
  nodesAt: 0,
  gateway: "",
  events: [], // the newest last
  eventsFilter: "",
  eventsPaused: null, // the events that stay in view
  streaming: false,
  seen: 0, // when the gateway last said how the locks stand
  began: Date.now(),
  failed: {}, // by what was asked for: {status, text}
  signIn: null, // {text} while credentials are asked for
  tried: false,
  evict: null, // {encoded, name, claim, busy, error, done}
  mayEvict: true,
  help: false,
};

let drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    render(html`<${App} />`, document.getElementById("app"));
  });
}

// --- what the gateway says

const scripts = globalThis.trustedTypes?.createPolicy("qlock", { createScriptURL: (url) => (url === "/ui/locks.js" ? url : "") });
const worker = new Worker(scripts ? scripts.createScriptURL("/ui/locks.js") : "/ui/locks.js", { type: "module" });

worker.onmessage = ({ data }) => {
  if (data.view) state.view = data.view;
  if (data.fine) {
    state.seen = data.fine;
    delete state.failed.locks;
  }
  if (data.failed) failed("locks", data.failed);
  draw();
};

function look(change) {
  Object.assign(state.look, change);
  worker.postMessage({ look: state.look });
  draw();
}

function failed(what, { status, text, sent }) {
  // Late word of credentials that others have replaced says nothing of those.
  if (status === 401 && sent !== signedIn()) return;
  state.failed[what] = { status, text };
  if (status === 401) state.signIn ??= { text };
  draw();
}

const fault = (error) => ({ status: error instanceof Refused ? error.status : 0, text: error.message, sent: error.sent });

// again ends the pauses of all that follows the gateway: for other credentials, and when the
// page comes back to the front.
let again = new AbortController();
const hidden = () => document.visibilityState === "hidden";
const pauseAfter = (error) => (error.status === 401 ? 2 ** 30 : error.status === 403 ? 15000 : 2000);

async function followNodes() {
  for (;;) {
    let pause = 3000;
    const { signal } = again;
    if (hidden()) {
      await sleep(2 ** 30, signal);
      continue;
    }
    try {
      state.nodes = (await ask("/v1/nodes")).body;
      state.nodesAt = Date.now();
      delete state.failed.nodes;
      draw();
    } catch (error) {
      failed("nodes", fault(error));
      pause = pauseAfter(error);
    }
    await sleep(pause, signal);
  }
}

const mostEvents = 1000;
const chartSeconds = 120;
const mostWaits = 500; // of a second
let lastEvent = "";
let eventKey = 0;
let bins = [];
let stream = new AbortController();

function binNow() {
  const second = Math.floor(Date.now() / 1000);
  let bin = bins.at(-1);
  if (bin?.second !== second) {
    bins.push((bin = { second, acquired: 0, lost: 0, waits: [] }));
    if (bins.length > chartSeconds + 5) bins = bins.slice(-chartSeconds);
  }
  return bin;
}

function hear(kind, data, id) {
  lastEvent = id;
  const event = { key: ++eventKey, at: Date.now(), kind, ...data };
  switch (kind) {
    case "hello":
      state.gateway = data.gateway;
      return draw();
    case "gap":
      event.text = data.dropped < 0 ? "Events were missed: NATS was not connected." : several(data.dropped, "event") + " missed: there were too many at once.";
      break;
    case "reset":
      event.text = data.reason === "draining" ? "The gateway is stopping." : "Events were missed while this page had no connection.";
      break;
    case "acquired": {
      const bin = binNow();
      bin.acquired++;
      if (bin.waits.length < mostWaits) bin.waits.push(data.waited_ms);
      break;
    }
    case "lost":
      binNow().lost++;
  }
  state.events.push(event);
  if (state.events.length > 2 * mostEvents) state.events = state.events.slice(-mostEvents);
  const open = state.lock;
  if (open && (event.encoded === open.encoded || event.encoded === undefined)) remember(open, event);
  draw();
}

async function followEvents() {
  for (let tries = 0; ; tries++) {
    const { signal } = again;
    if (hidden()) {
      await sleep(2 ** 30, signal);
      continue;
    }
    let pause = Math.min(1000 * 2 ** tries, 10000);
    stream = new AbortController();
    try {
      await readEvents("/v1/events", lastEvent, stream.signal, (kind, data, id) => {
        tries = 0;
        state.streaming = true;
        delete state.failed.events;
        hear(kind, data, id);
      });
      pause = 1000;
    } catch (error) {
      failed("events", fault(error));
      if (error.status) pause = pauseAfter(error);
    }
    state.streaming = false;
    draw();
    await sleep(pause, signal);
  }
}

// --- one lock

const mostHistory = 300;

function remember(open, event) {
  open.history.push(event);
  if (open.history.length > mostHistory) open.history.shift();
}

/** Events do not tell who begins to wait, and may be lost: two looks differ in that. */
function compare(open, report) {
  const claims = new Map();
  for (const c of [...report.holders, ...report.queue]) claims.set(c.claim, c);
  if (open.claims) {
    const note = (claim, text) => remember(open, { key: ++eventKey, at: Date.now(), kind: "seen", client: claim.client, text });
    for (const [id, c] of claims) {
      const before = open.claims.get(id);
      if (!before && !c.held) note(c, "waits");
      if (c.evicted && !before?.evicted) note(c, "is to be evicted");
    }
    const acquired = (c) => open.history.some((e) => e.kind === "acquired" && e.client === c.client && Date.now() - e.at < 5000);
    for (const [id, c] of open.claims) if (!claims.has(id) && !c.held && !acquired(c)) note(c, "does not wait any more");
  }
  open.claims = claims;
}

async function followLock(open) {
  while (state.lock === open) {
    let pause = 1000;
    const { signal } = again;
    if (hidden()) {
      await sleep(2 ** 30, signal);
      continue;
    }
    try {
      const { body } = await ask("/v1/lock?encoded=" + encodeURIComponent(open.encoded));
      open.at = Date.now();
      open.error = null;
      compare(open, body);
      open.report = body;
      pause = 1000 + body.waiting;
    } catch (error) {
      open.error = fault(error);
      pause = pauseAfter(error);
      if (error.status === 401) failed("locks", open.error);
    }
    draw();
    await sleep(pause, signal);
  }
}

function openLock(encoded) {
  if (state.lock?.encoded === encoded) return;
  const history = state.events.filter((e) => e.encoded === encoded).slice(-mostHistory);
  state.lock = { encoded, report: null, at: 0, error: null, history, claims: null, rows: 50 };
  followLock(state.lock);
}

// --- eviction

async function evict(reason) {
  const e = state.evict;
  Object.assign(e, { busy: true, error: "" });
  draw();
  try {
    const body = JSON.stringify({ encoded: e.encoded, claim: e.claim.claim, reason });
    const answer = await ask("/v1/evict", { method: "POST", body }, 30000);
    e.done = answer.body.gone
      ? "Evicted: the nodes do not have the claim any more."
      : "Its client was told. Its lease is not extended any more, so the lock is free when that has expired at the latest.";
  } catch (error) {
    e.error = error.message;
    if (error.status === 403) state.mayEvict = false;
  }
  e.busy = false;
  again.abort();
  again = new AbortController();
  draw();
}

const whyNot = () =>
  !state.mayEvict ? "Not permitted: NATS does not let this user evict." : stale() ? "Not possible while this page is stale." : "";

function askToEvict(lock, claim) {
  if (whyNot()) return;
  state.evict = { encoded: lock.encoded, name: nameOf(lock), claim, busy: false, error: "", done: "" };
  draw();
}

// --- pages

const hrefOf = (encoded) => "#/lock/" + encodeURIComponent(encoded);
// The page follows at once: hashchange comes later, perhaps after the next key.
function go(hash) {
  location.hash = hash;
  route();
}
const stores = storePages({ html, draw, fault, failed, hidden, pauseAfter, hrefOf, signal: () => again.signal });

function route() {
  const [, page, rest] = /^#\/(\w*)\/?(.*)$/.exec(location.hash) ?? [];
  state.page = ["lock", "groups", "events", "stores"].includes(page) ? page : "locks";
  state.lock = state.page === "lock" ? state.lock : null;
  if (state.page === "lock") {
    try {
      openLock(decodeURIComponent(rest));
    } catch {
      return go("#/");
    }
  }
  if (state.page === "stores") {
    try {
      stores.route(rest);
    } catch {
      return go("#/stores");
    }
  } else stores.close();
  look({ groups: state.page === "groups" });
}

function stale() {
  if (state.failed.locks && state.failed.locks.status !== 403) return true;
  return state.seen ? Date.now() - state.seen > 12000 : Date.now() - state.began > 5000;
}

/** The moment up to which durations count: those of a stale page stand still. */
const now = () => (stale() && state.seen ? state.seen : Date.now());

function Status() {
  const failure = state.failed.locks;
  let mark = "live", text = "live";
  if (state.signIn) [mark, text] = ["warn", "signed out"];
  else if (failure?.status === 403) [mark, text] = ["warn", "no list"];
  else if (stale()) [mark, text] = ["bad", state.seen ? "stale: " + span(Date.now() - state.seen) + " old" : "no answer"];
  else if (!state.seen) [mark, text] = ["warn", "connecting"];
  else if (!state.streaming) [mark, text] = ["warn", "live, without events"];
  return html`<span class="status ${mark}" role="status"><i aria-hidden="true"></i>${text}</span>`;
}

function Header() {
  const link = (page, hash, text) =>
    html`<a href=${hash} aria-current=${state.page === page || (page === "locks" && state.page === "lock") ? "page" : undefined}>${text}</a>`;
  return html`<header>
    <h1>qlock <small><bdi>${shown(state.nodes?.cluster ?? state.view?.cluster ?? "")}</bdi></small></h1>
    <nav aria-label="Pages">
      ${link("locks", "#/", "Locks")}${link("groups", "#/groups", "Elections, groups")}${link("events", "#/events", "Events")}${link("stores", "#/stores", "Stores")}
      <a href="/docs">API</a>
    </nav>
    <${Status} />
    <button class="quiet" title="Keys (?)" aria-label="Keys" onClick=${() => ((state.help = true), draw())}>?</button>
  </header>`;
}

function Banner() {
  const failure = state.failed.locks;
  if (failure?.status === 403)
    return html`<p class="banner warn" role="alert">This user may not list locks. ${shown(failure.text)}</p>`;
  if (!stale()) return null;
  const what = state.seen ? "This page is stale: it shows what was known " + span(Date.now() - state.seen) + " ago. " : "There is nothing to show yet. ";
  return html`<p class="banner bad" role="alert">${what}${failure ? sentence(shown(failure.text)) + " " : ""}It tries again by itself.</p>`;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function Nodes() {
  const list = state.nodes;
  const failure = state.failed.nodes;
  if (!list && !failure) return html`<section class="nodes" aria-label="Nodes"><p class="faint">Asking the nodes…</p></section>`;
  const findings = list?.findings ?? [];
  const wrong = findings.filter((f) => f.grade !== "ok");
  const voting = (names) => `${list.nodes.filter((n) => n.votes && names.includes(n.name)).length} of ${names.length}`;
  return html`<section class="nodes" aria-label="Nodes">
    ${list && html`<ul class="cards">${list.nodes.map((n, i) => html`<${NodeCard} key=${n.name + i} node=${n} />`)}
      <li class="card faint">${voting(list.node_names)} vote.<br />A writer needs ${list.votes_for_a_writer}, a reader ${list.votes_for_a_reader}.
        ${list.change && html`<br />The list changes to ${shown(list.change.node_names.join(" "))}: ${voting(list.change.node_names)} vote, and both lists have to.`}</li></ul>`}
    ${failure && (failure.status > 0 || !stale()) && html`<p class="finding problem"><b>problem</b> ${shown(failure.text)}</p>`}
    ${wrong.map((f) => html`<p class="finding ${f.grade}"><b>${f.grade}</b> <span>${shown(f.text)}${f.help && html`<small>${shown(f.help)}</small>`}</span></p>`)}
  </section>`;
}

function NodeCard({ node: n }) {
  const mark = n.votes ? "live" : n.state === "recovering" && !n.conflict ? "warn" : "bad";
  let text = n.conflict || n.state;
  if (n.state === "recovering" && n.recovering_ms) text += ", " + span(n.recovering_ms) + " left";
  return html`<li class="card" title=${n.version ? "version " + shown(n.version) : ""}>
    <span class="status ${mark}"><i aria-hidden="true"></i><b><bdi>${shown(n.name)}</bdi></b></span> <span>${shown(text)}</span><br />
    <small>${n.reachable ? html`${span(n.round_trip_ms ?? 0)} away · ${several(n.claims, "claim")}` : "does not answer"}</small>
  </li>`;
}

// --- charts

function quantile(list, q) {
  if (list.length === 0) return 0;
  const sorted = list.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

function Charts() {
  const now = Math.floor(Date.now() / 1000) - 1; // the last second that is complete
  const by = new Map(bins.map((b) => [b.second, b]));
  const rates = [], losses = [], waits = [];
  for (let s = now - chartSeconds + 1; s <= now; s++) {
    const bin = by.get(s);
    rates.push(bin?.acquired ?? 0);
    losses.push(bin?.lost ?? 0);
    waits.push(bin && bin.waits.length > 0 ? quantile(bin.waits, 0.95) : null);
  }
  const recent = rates.slice(-10).reduce((a, b) => a + b, 0) / 10;
  const lost = losses.reduce((a, b) => a + b, 0);
  const last = quantile(bins.filter((b) => b.second > now - 10).flatMap((b) => b.waits), 0.95);
  const any = waits.slice(-10).some((w) => w !== null);
  return html`<section class="charts" aria-label="Charts">
    <${Chart} title="Acquired per second" value=${recent < 10 ? recent.toFixed(1) : number(Math.round(recent))} values=${rates} format=${number} marks=${losses}
      note=${lost > 0 ? several(lost, "lock") + " lost" : ""} />
    <${Chart} title="95 % wait up to" value=${any ? span(last) : "–"} values=${waits} format=${span} note="" />
  </section>`;
}

function Chart({ title, value, values, format, marks, note }) {
  const width = 240, height = 44;
  const most = Math.max(1, ...values.map((v) => v ?? 0));
  const x = (i) => ((i + 0.5) * width) / values.length;
  const bar = width / values.length;
  return html`<figure>
    <figcaption>${title} <b>${value}</b> <small class="lost">${note}</small></figcaption>
    <svg viewBox="0 0 ${width} ${height}" preserveAspectRatio="none" role="img" aria-label="${title}, the last two minutes: now ${value}, at most ${format(most)}">
      <line class="axis" x1="0" x2=${width} y1=${height - 0.5} y2=${height - 0.5} />
      ${values.map((v, i) => v > 0 && html`<rect key=${i} x=${x(i) - bar / 2} width=${bar * 0.8} y=${height - (v / most) * (height - 4)} height=${(v / most) * (height - 4)} />`)}
      ${marks?.map((v, i) => v > 0 && html`<rect key=${"m" + i} class="mark" x=${x(i) - bar / 2} width=${bar} y="0" height=${height} />`)}
    </svg>
    <small class="scale">up to ${format(most)} · 2 minutes</small>
  </figure>`;
}

// --- the list of locks

const narrow = matchMedia("(max-width: 48rem)");
narrow.addEventListener("change", draw);
const rowHeight = () => (narrow.matches ? 58 : 34);

class List extends Component {
  componentDidMount() {
    list = this;
    this.watch = new ResizeObserver(() => this.scrolled());
    this.watch.observe(this.box);
    this.box.scrollTop = this.constructor.top;
    this.scrolled();
  }
  componentWillUnmount() {
    this.watch.disconnect();
    list = null;
  }
  scrolled() {
    const { scrollTop, clientHeight } = this.box;
    this.constructor.top = scrollTop;
    const first = Math.floor(scrollTop / rowHeight()), count = Math.ceil(clientHeight / rowHeight());
    const { from, to } = state.look;
    // Rows around those in view are there already, so that scrolling does not wait for the worker.
    if (first < from + (from > 0 ? 10 : 0) || first + count > to - 10) look({ from: Math.max(0, first - 40), to: first + count + 40 });
  }
  select(index) {
    const most = (state.view?.matching ?? 0) - 1;
    state.selected = Math.max(0, Math.min(index, most));
    const top = state.selected * rowHeight(), box = this.box;
    const head = narrow.matches ? 0 : 32;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + rowHeight() + head > box.scrollTop + box.clientHeight) box.scrollTop = top + rowHeight() + head - box.clientHeight;
    draw();
  }
  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / rowHeight()) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (event.key in steps) this.select(state.selected + steps[event.key]);
    else if (event.key === "Enter") {
      const row = state.view?.rows[state.selected - state.view.from];
      if (row) go(hrefOf(row.encoded));
    } else return false;
    event.preventDefault();
    return true;
  }
  render() {
    const { view } = state;
    const height = rowHeight();
    const sortable = (sort, text) =>
      html`<button role="columnheader" aria-sort=${state.look.sort === sort ? (sort === "name" ? "ascending" : "descending") : "none"} onClick=${() => look({ sort })}>${text}</button>`;
    return html`<div ref=${(box) => (this.box = box)} class="list" role="grid" tabindex="0" aria-label="Locks" aria-rowcount=${view?.matching ?? -1}
        aria-activedescendant=${state.selected < 0 ? undefined : "row" + state.selected} onScroll=${() => this.scrolled()} onKeyDown=${(e) => this.key(e)}>
      <div class="row head" role="row">
        ${sortable("name", "Lock")}<span role="columnheader">Mode</span><span role="columnheader">Holder</span>
        ${sortable("age", "Held for")}${sortable("waiting", "Waiting")}<span role="columnheader">Votes</span><span role="columnheader">Note</span>
      </div>
      <div class="all" style=${{ height: (view?.matching ?? 0) * height + "px" }}>
        ${view?.rows.map((row, i) => html`<${Row} key=${row.encoded} row=${row} index=${view.from + i} top=${(view.from + i) * height} at=${view.at} />`)}
      </div>
    </div>`;
  }
}
List.top = 0;
let list = null;

function Row({ row, index, top, at }) {
  const holder = row.holder;
  const who = holder
    ? html`<bdi>${shown(holder.client)}</bdi>${row.holding > 1 ? " and " + (row.holding - 1) + " more" : ""}${flags(holder)}`
    : html`<em>${row.mayHold ? "not known" : "nobody"}</em>`;
  return html`<div class="row ${index === state.selected ? "selected" : ""}" role="row" id=${"row" + index} aria-rowindex=${index + 2}
      style=${{ transform: "translateY(" + top + "px)" }} onClick=${(e) => e.target.tagName !== "A" && go(hrefOf(row.encoded))}>
    <span role="gridcell" class="name"><a href=${hrefOf(row.encoded)} tabindex="-1"><bdi>${nameOf(row)}</bdi></a>${row.use && html` <span class="badge">${useText(row.use)}</span>`}</span>
    <span role="gridcell" class="mode">${holder?.mode}</span>
    <span role="gridcell" class="holder">${who}</span>
    <span role="gridcell" class="for">${holder && span(holder.for_ms + now() - at)}</span>
    <span role="gridcell" class="waiting">${row.waiting > 0 ? number(row.waiting) : ""}</span>
    <span role="gridcell" class="votes ${row.votes < row.nodes ? "few" : ""}">${row.votes}/${row.nodes}</span>
    <span role="gridcell" class="note"><bdi>${holder && shown(holder.note)}</bdi></span>
  </div>`;
}

const flags = (claim) => [
  claim.evicted && html` <span class="badge bad">evicted</span>`,
  claim.kept && html` <span class="badge" title="Its client passes it on among its goroutines, or retains it.">kept</span>`,
  !claim.held && claim.may_hold && html` <span class="badge warn">may hold it</span>`,
];

let filterTimer;
function Locks() {
  const { view } = state;
  const counts = view?.counts ?? {};
  const chip = (kind, text, n) =>
    html`<button aria-pressed=${state.look.kind === kind} onClick=${() => ((List.top = 0), (state.selected = -1), list && (list.box.scrollTop = 0), look({ kind, from: 0, to: 60 }))}>${text} <small>${number(n)}</small></button>`;
  const present = Object.keys(kinds).filter((k) => counts[k]);
  return html`<section class="locks" aria-label="Locks">
    <div class="tools">
      <input id="filter" type="search" placeholder="Filter by name, client or note ( / )" aria-label="Filter" autocomplete="off" spellcheck=${false} value=${state.filter}
        onInput=${(e) => {
          const filter = (state.filter = e.target.value);
          clearTimeout(filterTimer);
          filterTimer = setTimeout(() => {
            state.selected = -1;
            if (list) list.box.scrollTop = 0;
            look({ filter, from: 0, to: 60 });
          }, 60);
        }} />
      ${present.length > 1 && html`<span class="chips" role="group" aria-label="Kinds">${chip("", "All", view.total)}${present.map((k) => chip(k, kinds[k], counts[k]))}</span>`}
    </div>
    <${Sums} />
    ${view?.total === 0 ? html`<p class="empty">No locks are held or waited for.</p>` : view && view.matching === 0 ? html`<p class="empty">No lock matches.</p>` : null}
    <${List} />
  </section>`;
}

function Sums() {
  const { view } = state;
  if (!view) return html`<p class="sums faint">Asking for the locks…</p>`;
  const parts = [several(view.total, "lock"), view.waiting === 0 ? "nobody waits" : several(view.waiting, "claim") + (view.waiting === 1 ? " waits" : " wait")];
  if (view.matching !== view.total) parts.unshift(number(view.matching) + " shown of");
  if (view.free > 0) parts.push("not held: " + number(view.free));
  if (view.unknown > 0) parts.push("unknown whether held: " + number(view.unknown));
  if (view.split > 0) parts.push("the nodes disagree on " + number(view.split));
  const text = parts.join(", ").replace("shown of, ", "shown of ");
  return html`<p class="sums">${text}.
    ${view.silent.length > 0 && html` <span class="few">No answer from ${shown(view.silent.join(", "))}: what only ${view.silent.length === 1 ? "it" : "they"} would report is missing.</span>`}
    ${view.recovering.length > 0 && html` <span class="few">${shown(view.recovering.join(", "))} ${view.recovering.length === 1 ? "gives" : "give"} no votes yet: what ${view.recovering.length === 1 ? "it" : "they"} may have forgotten is missing.</span>`}
  </p>`;
}

// --- one lock

function Lock() {
  const open = state.lock;
  if (!open) return null;
  const r = open.report;
  const title = r ? nameOf(r) : shown(open.encoded);
  return html`<section class="one" aria-label="One lock">
    <p><a href="#/">‹ all locks</a></p>
    <h2><bdi>${title}</bdi> ${r?.use && html`<span class="badge">${useText(r.use)}</span>`}</h2>
    ${r && title !== r.encoded && html`<p class="faint">in subjects: <code>${r.encoded}</code></p>`}
    ${open.error && html`<p class="banner ${open.error.status === 403 ? "warn" : "bad"}" role="alert">${open.at ? "Last known " + span(Date.now() - open.at) + " ago. " : ""}${sentence(shown(open.error.text))}</p>`}
    ${r && html`<${Holders} open=${open} /><${Queue} open=${open} /><${Votes} report=${r} />`}
    <${History} open=${open} />
  </section>`;
}

function EvictButton({ report, claim }) {
  const why = claim.evicted ? "It is to be evicted already." : whyNot();
  return html`<button class="evict" disabled=${why !== ""} title=${why || "End this claim (e)"} onClick=${() => askToEvict(report, claim)}>Evict…</button>`;
}

function Holders({ open }) {
  const { report: r, at } = open;
  const nodes = r.answered.length + r.silent.length;
  const gone = now() - at;
  const why = whyNot();
  return html`<h3>${r.holding > 1 ? several(r.holding, "holder") : "Holder"}</h3>
    ${r.holders.length === 0 &&
    html`<p class="few">${r.queue.some((c) => c.may_hold) ? "Unknown whether it is held: too few nodes answer." : r.queue.length === 0 ? (r.silent.length === 0 ? "It has no holder and no waiters." : "No node that answered knows of a holder or a waiter.") : "It has no holder: no claim has enough votes."}</p>`}
    ${r.holders.slice(0, open.rows).map(
      (c) => html`<dl key=${c.claim} class="claim">
        <div><dt>Client</dt><dd><bdi>${shown(c.client)}</bdi>${flags(c)}</dd></div>
        <div><dt>Note</dt><dd><bdi>${shown(c.note) || "–"}</bdi></dd></div>
        <div><dt>Mode</dt><dd>${c.mode}</dd></div>
        <div><dt>Held for</dt><dd>${span(c.for_ms + gone)}</dd></div>
        <div><dt>Token</dt><dd>${c.token}</dd></div>
        <div><dt>Lease left</dt><dd>${span((c.lease_left_ms ?? 0) - gone)}, ${c.evicted ? "not extended any more" : "extended while the client lives"}</dd></div>
        <div><dt>Votes</dt><dd class=${c.voted.length < nodes ? "few" : ""}>${c.voted.length} of ${nodes}</dd></div>
        <div><dt>Claim</dt><dd><code>${shortID(c.claim)}</code></dd></div>
        <div class="act"><${EvictButton} report=${r} claim=${c} /></div>
      </dl>`,
    )}
    ${why && r.holders.length > 0 && html`<p class="faint">${why}</p>`}
    ${more(open, r.holders.length)}`;
}

const more = (open, n) =>
  n > open.rows && html`<p><button onClick=${() => ((open.rows += 200), draw())}>Show more of ${number(n)}</button></p>`;

function Queue({ open }) {
  const { report: r, at } = open;
  if (r.queue.length === 0) return html`<h3>Queue</h3><p class="faint">Nobody waits.</p>`;
  const gone = now() - at;
  const nodes = r.answered.length + r.silent.length;
  return html`<h3>Queue <small>${number(r.waiting)}, the next one first</small></h3>
    <div class="wide"><table>
      <thead><tr><th class="n">#</th><th>Client</th><th>Mode</th><th>Waits for</th><th>Votes</th><th>Claim</th><th>Note</th><th></th></tr></thead>
      <tbody>${r.queue.slice(0, open.rows).map(
        (c, i) => html`<tr key=${c.claim}><td class="n">${i + 1}</td><td><bdi>${shown(c.client)}</bdi>${flags(c)}</td><td>${c.mode}</td><td>${span(c.for_ms + gone)}</td>
          <td class=${c.voted.length > 0 ? "few" : ""}>${c.voted.length}/${nodes}</td><td><code>${shortID(c.claim)}</code></td><td class="note"><bdi>${shown(c.note)}</bdi></td>
          <td><${EvictButton} report=${r} claim=${c} /></td></tr>`,
      )}</tbody>
    </table></div>
    ${more(open, r.queue.length)}`;
}

/** What each node says by itself. */
function Votes({ report: r }) {
  const nodes = [...r.answered, ...r.silent].sort();
  const claims = [...r.holders, ...r.queue];
  const votes = nodes.map((n) => claims.filter((c) => c.voted.includes(n)));
  const silent = (n) => r.silent.includes(n);
  const differ = new Set(nodes.map((n, i) => (silent(n) ? "" : votes[i].map((c) => c.claim).join())).filter((v, i) => !silent(nodes[i]))).size > 1;
  return html`<h3>Votes by node</h3>
    <div class="wide"><table class="votes-by-node">
      <thead><tr><th>Node</th><th>Voted for</th><th>Waiting there</th></tr></thead>
      <tbody>${nodes.map(
        (n, i) => html`<tr key=${n}><td><bdi>${shown(n)}</bdi></td>
          ${silent(n)
            ? html`<td class="few">no answer</td><td></td>`
            : html`<td>${votes[i].length === 0 ? html`<span class="faint">nobody</span>` : votes[i].slice(0, 20).map((c, j) => html`${j > 0 && ", "}<bdi>${shown(c.client)}</bdi> <code>${shortID(c.claim)}</code>`)}${votes[i].length > 20 && " and " + (votes[i].length - 20) + " more"}${r.recovering.includes(n) && html` <span class="badge warn">recovering, gives no votes yet</span>`}</td>
                <td>${number(claims.filter((c) => c.queued.includes(n)).length)}</td>`}</tr>`,
      )}</tbody>
    </table></div>
    ${differ && html`<p class="faint">The nodes disagree. This is normal while a lock changes hands.</p>`}`;
}

function History({ open }) {
  return html`<h3>History <small>since this page was opened</small></h3>
    ${open.history.length === 0 ? html`<p class="faint">Nothing has happened yet.</p>` : html`<ol class="history">${open.history.toReversed().slice(0, 200).map((e) => html`<${Event} key=${e.key} event=${e} />`)}</ol>`}`;
}

// --- events

const eventText = {
  acquired: (e) => html`after ${span(e.waited_ms)}, token ${e.token}${e.votes ? html`, ${e.votes} of ${e.nodes} votes` : ""}`,
  released: (e) => html`held for ${span(e.held_ms ?? 0)}`,
  lost: (e) => html`held for ${span(e.held_ms ?? 0)}${e.evicted_by && html`, evicted by <bdi>${shown(e.evicted_by)}</bdi>`}`,
};

function Event({ event: e, named }) {
  const text = e.text ?? eventText[e.kind]?.(e);
  return html`<li class="event ${e.kind}"><time>${clock(e.at)}</time> <b>${e.kind === "seen" ? "queue" : e.kind}</b>
    <span>${named && e.encoded && html`<a href=${hrefOf(e.encoded)}><bdi>${nameOf(e)}</bdi></a> `}${e.client && html`<bdi>${shown(e.client)}</bdi> `}<span class="faint">${e.mode === "shared" && "shared, "}${text}${e.note && html` · <bdi>${shown(e.note)}</bdi>`}</span></span></li>`;
}

function Events() {
  const all = state.eventsPaused ?? state.events;
  const words = state.eventsFilter.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (e) => {
    const text = [e.kind, e.name ?? "", e.encoded ?? "", e.client ?? "", e.note ?? ""].join("\n").toLowerCase();
    return words.every((w) => text.includes(w));
  };
  const rows = [];
  for (let i = all.length - 1; i >= 0 && rows.length < 200; i--) if (matches(all[i])) rows.push(all[i]);
  const failure = state.failed.events;
  return html`<section class="events" aria-label="Events">
    <div class="tools">
      <input id="filter" type="search" placeholder="Filter by kind, name, client or note ( / )" aria-label="Filter" autocomplete="off" spellcheck=${false} value=${state.eventsFilter} onInput=${(e) => ((state.eventsFilter = e.target.value), draw())} />
      <button aria-pressed=${state.eventsPaused !== null} onClick=${() => ((state.eventsPaused = state.eventsPaused ? null : [...state.events]), draw())}>${state.eventsPaused ? "Go on" : "Pause"}</button>
    </div>
    ${failure && html`<p class="banner warn" role="alert">${sentence(shown(failure.text))} ${failure.status === 403 ? "" : "It tries again by itself."}</p>`}
    <p class="sums">Clients publish events at most once: some may be missing.</p>
    ${rows.length === 0 ? html`<p class="empty">${all.length === 0 ? "Nothing has happened yet." : "No event matches."}</p>` : html`<ol class="history">${rows.map((e) => html`<${Event} key=${e.key} event=${e} named />`)}</ol>`}
  </section>`;
}

// --- elections, semaphores, groups

const plural = { member: "member", partition: "partition", queue: "key", semaphore: "permit" };

function Groups() {
  const { view } = state;
  if (!view?.groups) return html`<section class="groups"><p class="faint">Asking for the locks…</p></section>`;
  if (view.groups.length === 0) return html`<section class="groups"><p class="empty">There are no elections, semaphores, groups, partitions or queues.</p></section>`;
  const gone = now() - view.at;
  return html`<section class="groups" aria-label="Elections, groups">
    ${Object.entries(kinds).map(([kind, title]) => {
      const list = view.groups.filter((g) => g.kind === kind);
      return list.length > 0 && html`<h2>${title}</h2><div class="tiles">${list.map((g, i) => html`<${kind === "election" ? Election : Group} key=${g.of} group=${g} gone=${gone} asks=${i < 20} />`)}</div>`;
    })}
  </section>`;
}

/** An election. The locks have the value with which a leader began; the gateway knows its last one. */
class Election extends Component {
  async componentDidMount() {
    this.ending = new AbortController();
    while (!this.ending.signal.aborted && this.props.asks) {
      try {
        if (!hidden()) this.report = (await ask("/v1/elections/" + encodeURIComponent(this.props.group.of))).body;
      } catch {
        this.report = null; // what the locks say is shown
      }
      draw();
      await sleep(3000, this.ending.signal);
    }
  }
  componentWillUnmount() {
    this.ending.abort();
  }
  render({ group: g, gone }) {
    const p = g.parts[0];
    const title = html`<bdi>${shown(g.of)}</bdi>`;
    const leads = this.report?.leader?.client === p?.client ? this.report?.leader : null;
    const candidates = this.report?.candidates ?? [];
    return html`<article><h3>${p ? html`<a href=${hrefOf(p.encoded)}>${title}</a>` : title}</h3>
      <p>Leader: ${p?.client === undefined ? html`<em>nobody</em>` : html`<bdi>${shown(p.client)}</bdi> <bdi class="value">${shown(leads ? leads.value : p.note)}</bdi> <span class="faint">for ${span(p.for_ms + gone)}</span>`}</p>
      ${candidates.length > 0 && html`<ol>${candidates.slice(0, 20).map((c) => html`<li key=${c.claim}><bdi>${shown(c.client)}</bdi> <bdi class="value">${shown(c.value)}</bdi></li>`)}</ol>`}
      <p class="faint">${g.waiting === 0 ? "Nobody else is a candidate." : several(g.waiting, "candidate") + (g.waiting === 1 ? " waits." : " wait.")}</p></article>`;
  }
}

function Group({ group: g, gone }) {
  const link = (part, text) => html`<a href=${hrefOf(part.encoded)}>${text}</a>`;
  const held = (part) => (part.client === undefined ? html`<em>nobody</em>` : html`<bdi>${shown(part.client)}</bdi>${part.note && html` <bdi class="value">${shown(part.note)}</bdi>`} <span class="faint">for ${span(part.for_ms + gone)}</span>`);
  return html`<article><h3><bdi>${shown(g.of)}</bdi> <small>${several(g.count, plural[g.kind])}${g.kind === "semaphore" ? " held" : ""}</small></h3>
    <ul>${g.parts.map((p) => html`<li key=${p.encoded}>${link(p, html`<bdi>${g.kind === "member" || g.kind === "queue" ? shown(p.use.part) : useText(p.use)}</bdi>`)} ${held(p)}</li>`)}</ul>
    ${g.count > g.parts.length && html`<p class="faint">and ${number(g.count - g.parts.length)} more</p>`}
    ${g.kind === "semaphore" && g.waiting > 0 && html`<p class="faint">${several(g.waiting, "client")} in the ${g.queue ? html`<a href=${hrefOf(g.queue)}>queue</a>` : "queue"}.</p>`}
  </article>`;
}

// --- dialogs

class Dialog extends Component {
  componentDidMount() {
    this.box.showModal();
  }
  render({ title, close, children }) {
    return html`<dialog ref=${(box) => (this.box = box)} aria-label=${title} onClose=${close}><h2>${title}</h2>${children}</dialog>`;
  }
}

/** It has the focus when it appears: in a dialog that is open already, autofocus does nothing. */
class Close extends Component {
  componentDidMount() {
    this.box.focus();
  }
  render() {
    return html`<p class="buttons"><button ref=${(box) => (this.box = box)} onClick=${(e) => e.target.closest("dialog").close()}>Close</button></p>`;
  }
}

function Evict() {
  const e = state.evict;
  const close = () => ((state.evict = null), draw());
  return html`<${Dialog} title=${e.claim.held ? "Evict the holder?" : "Evict a waiter?"} close=${close}>
    <dl class="claim">
      <div><dt>Lock</dt><dd><bdi>${e.name}</bdi></dd></div>
      <div><dt>Client</dt><dd><bdi>${shown(e.claim.client)}</bdi></dd></div>
      <div><dt>Note</dt><dd><bdi>${shown(e.claim.note) || "–"}</bdi></dd></div>
      <div><dt>Claim</dt><dd><code>${shortID(e.claim.claim)}</code></dd></div>
    </dl>
    ${e.done
      ? html`<p role="status">${e.done}</p><${Close} />`
      : html`<form onSubmit=${(ev) => (ev.preventDefault(), e.busy || evict(ev.target.elements.reason.value.trim()))}>
          <p>${e.claim.held ? "Its client is told, and must stop its work under the lock. A client that is cut off keeps the lock until its lease has expired." : "Its client is told, and its call to acquire the lock fails."}</p>
          <label>Reason, for the people who run that client<input name="reason" required maxlength="200" autocomplete="off" autofocus /></label>
          ${e.error && html`<p class="finding problem" role="alert"><b>failed</b> ${shown(e.error)}</p>`}
          <p class="buttons"><button type="button" onClick=${(ev) => ev.target.closest("dialog").close()}>Cancel</button><button class="danger" disabled=${e.busy || !state.mayEvict}>${e.busy ? "Evicting…" : state.mayEvict ? "Evict" : "Not permitted"}</button></p>
        </form>`}
  </${Dialog}>`;
}

function Help() {
  const key = (keys, text) => html`<div><dt>${keys.map((k) => html`<kbd>${k}</kbd> `)}</dt><dd>${text}</dd></div>`;
  return html`<${Dialog} title="Keys" close=${() => ((state.help = false), draw())}>
    <dl class="keys">
      ${key(["1", "2", "3", "4"], "the pages")}${key(["/"], "filter")}${key(["j", "k", "↓", "↑"], "next and previous lock")}
      ${key(["Enter"], "open the lock")}${key(["e"], "evict the holder of the open lock")}${key(["Esc"], "back, or close")}${key(["?"], "this help")}
    </dl>
    <${Close} />
  </${Dialog}>`;
}

class SignIn extends Component {
  componentDidMount() {
    const { user, password } = this.form.elements;
    user.value = state.user;
    (state.user ? password : user).focus();
  }
  submit(event) {
    event.preventDefault();
    const { user, password, token } = this.form.elements;
    state.user = user.value;
    const bytes = new TextEncoder().encode(user.value + ":" + password.value);
    const header = token.value ? "Bearer " + token.value : "Basic " + btoa(String.fromCharCode(...bytes));
    signIn(header);
    worker.postMessage({ auth: header });
    Object.assign(state, { signIn: null, failed: {}, mayEvict: true, tried: true, began: Date.now(), seen: 0 });
    restart();
    draw();
  }
  render() {
    return html`<main class="sign-in"><form ref=${(form) => (this.form = form)} onSubmit=${(e) => this.submit(e)}>
      <h2>Sign in</h2>
      <p>This gateway acts as the NATS user whose credentials a request brings. They stay in the memory of this page.</p>
      <label>User<input name="user" autocomplete="username" /></label>
      <label>Password<input name="password" type="password" autocomplete="current-password" /></label>
      <label>or a token<input name="token" type="password" autocomplete="off" /></label>
      ${state.tried && html`<p class="finding problem" role="alert"><b>refused</b> ${shown(state.signIn.text)}</p>`}
      <p class="buttons"><button class="main">Sign in</button></p>
    </form></main>`;
  }
}

const Page = { locks: Locks, lock: Lock, groups: Groups, events: Events, stores: stores.Stores };

function App() {
  if (state.signIn) return html`<${Header} /><${SignIn} />`;
  return html`<${Header} />
    <main class="${state.page} ${stale() ? "stale" : ""}">
      <${Banner} />
      ${state.page === "locks" && html`<div class="top"><${Nodes} /><${Charts} /></div>`}
      <${Page[state.page]} />
    </main>
    ${state.evict && html`<${Evict} />`}${state.help && html`<${Help} />`}`;
}

// --- keys

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || state.signIn || document.querySelector("dialog")) return;
  const typing = event.target.matches?.("input, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (state.page === "lock") go("#/");
    else if (state.page === "stores") go(stores.parent());
    return;
  }
  if (typing) {
    if (event.target.id === "filter" && list && (event.key === "Enter" || event.key.startsWith("Arrow"))) list.key(event);
    return;
  }
  const pages = { 1: "#/", 2: "#/groups", 3: "#/events", 4: "#/stores" };
  if (event.key in pages) go(pages[event.key]);
  else if (event.key === "?") (state.help = true), draw();
  else if (event.key === "/") {
    document.getElementById("filter")?.focus();
    event.preventDefault();
  } else if (event.key === "e" && state.lock?.report?.holders.length === 1) {
    const { report } = state.lock;
    if (!report.holders[0].evicted) askToEvict(report, report.holders[0]);
    event.preventDefault();
  } else if (list && event.target.closest?.(".list") === null && ["j", "k", "ArrowDown", "ArrowUp", "Enter"].includes(event.key) && !event.target.matches?.("a, button")) list.key(event);
});

// --- begin

function restart() {
  again.abort();
  again = new AbortController();
  stream.abort();
}

// Browsers allow few connections to one server: a page that nobody sees gives its own back. The
// stream is continued where it broke, as far as the gateway remembers.
let hiddenTimer;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (hidden()) {
    hiddenTimer = setTimeout(() => {
      worker.postMessage({ paused: true });
      stream.abort();
    }, 30000);
    return;
  }
  worker.postMessage({ paused: false });
  again.abort();
  again = new AbortController();
  draw();
});

addEventListener("hashchange", route);
route();
followNodes();
followEvents();
setInterval(() => hidden() || draw(), 1000);
