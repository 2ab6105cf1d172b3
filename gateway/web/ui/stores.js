// The pages of buckets: their keys and values, and the locks under which they were used. Values
// are what clients have stored: they reach the page as text.
import { ask, sleep } from "./net.js";
import { nameOf, number, several, shown, span } from "./text.js";

const mostHolders = 10; // locks of a bucket whose holders are asked for
const mostText = 20000; // characters of a value that are shown

/** Makes the page. page has what it needs of the rest: html, draw, fault, failed, hidden, signal, pauseAfter, hrefOf. */
export function storePages(page) {
  const { html, draw } = page;
  let open = null; // {bucket, key, got, errors, holders, value, filter, rows}

  const hrefOf = (bucket, key) => "#/stores/" + encodeURIComponent(bucket) + (key === undefined ? "" : "/" + encodeURIComponent(key));
  const pathOf = (bucket) => "/v1/stores/" + encodeURIComponent(bucket);

  async function load(o, what, path, headers = {}) {
    try {
      const answer = await ask(path, { headers });
      if (open === o) o.got[what] = { at: Date.now(), body: answer.body };
      delete o.errors[what];
    } catch (error) {
      o.errors[what] = page.fault(error);
      if (error.status === 401) page.failed("locks", o.errors[what]);
      if (error.status === 404) delete o.got[what];
    }
  }

  async function loadHolders(o) {
    for (const fence of (o.got.report?.body.fences ?? []).slice(0, mostHolders)) {
      try {
        const { body } = await ask("/v1/lock?encoded=" + encodeURIComponent(fence.encoded));
        o.holders.set(fence.encoded, body.holders);
      } catch {
        o.holders.delete(fence.encoded); // it is not known
      }
    }
  }

  async function loadValue(o) {
    const { key } = o;
    if (key === null) return;
    await load(o, "value", pathOf(o.bucket) + "/keys/" + encodeURIComponent(key), { Accept: "application/json" });
    if (o.got.value && o.got.value.body.key !== o.key) delete o.got.value; // another one was opened meanwhile
  }

  async function follow(o) {
    while (open === o) {
      const signal = page.signal();
      if (page.hidden()) {
        await sleep(2 ** 30, signal);
        continue;
      }
      if (o.bucket === null) await load(o, "list", "/v1/stores");
      else await Promise.all([load(o, "report", pathOf(o.bucket)).then(() => loadHolders(o)), load(o, "keys", pathOf(o.bucket) + "/keys"), loadValue(o)]);
      draw();
      const worst = Object.values(o.errors)[0];
      await sleep(worst ? page.pauseAfter(worst) : 2000, signal);
    }
  }

  /** Opens the page of a bucket, of one of its keys, or the list of buckets. */
  function show(bucket, key) {
    if (open?.bucket === bucket) {
      if (open.key === key) return;
      open.key = key;
      delete open.got.value;
      delete open.errors.value;
      const o = open;
      loadValue(o).then(draw);
      return;
    }
    open = { bucket, key, got: {}, errors: {}, holders: new Map(), filter: "", rows: 200 };
    follow(open);
  }

  const close = () => (open = null);

  const bytes = (n) => (n < 1000 ? n + " B" : n < 1e6 ? (n / 1e3).toFixed(1) + " kB" : n < 1e9 ? (n / 1e6).toFixed(1) + " MB" : (n / 1e9).toFixed(1) + " GB");

  const Failure = ({ failure }) => failure && html`<p class="finding problem" role="alert"><b>${failure.status === 403 ? "denied" : "problem"}</b> <span>${shown(failure.text)}</span></p>`;

  function Buckets() {
    const { list } = open.got;
    const buckets = list?.body.buckets ?? [];
    return html`<section class="stores" aria-label="Buckets"><h2>Buckets</h2>
      <${Failure} failure=${open.errors.list} />
      ${!list && !open.errors.list && html`<p class="faint">Asking for the buckets…</p>`}
      ${list && buckets.length === 0 && html`<p class="empty">There are no buckets. <code>qlock store create</code> makes one.</p>`}
      ${buckets.length > 0 &&
      html`<div class="wide"><table>
        <thead><tr><th>Bucket</th><th>Replicas</th><th>Storage</th><th>History</th><th>Messages</th><th>Size</th><th></th></tr></thead>
        <tbody>${buckets.map(
          (b) => html`<tr key=${b.bucket}><td>${b.prepared ? html`<a href=${hrefOf(b.bucket)}><bdi>${shown(b.bucket)}</bdi></a>` : html`<bdi>${shown(b.bucket)}</bdi>`}</td>
            <td>${b.replicas}</td><td>${b.storage}</td><td>${b.history}</td><td>${number(b.messages)}</td><td>${size(b)}</td>
            <td>${b.prepared ? "" : html`<span class="badge warn">no fences</span> ${b.command ? html`<code>${shown(b.command)}</code>` : html`<small class="faint">${shown((b.missing ?? []).join("; "))}</small>`}`}</td></tr>`,
        )}</tbody>
      </table></div>`}
      ${list?.body.more && html`<p class="faint">There are more than this list has.</p>`}
    </section>`;
  }

  const size = (b) => html`<span class=${b.max_bytes && b.bytes > 0.9 * b.max_bytes ? "few" : ""}>${bytes(b.bytes)}${b.max_bytes ? " of " + bytes(b.max_bytes) : ""}</span>`;

  /** Who holds the lock of a fence now. */
  function Holder({ fence }) {
    const holders = open.holders.get(fence.encoded);
    if (!holders) return html`<span class="faint">–</span>`;
    if (holders.length === 0) return html`<span class="faint">nobody</span>`;
    const [first] = holders;
    return html`<bdi>${shown(first.client)}</bdi>${holders.length > 1 && " and " + several(holders.length - 1, "other")}
      ${first.token > fence.token && html` <span class="badge" title="Its token is newer than that of the last use.">has not used the bucket yet</span>`}`;
  }

  function Fences() {
    const { report } = open.got;
    if (!report) return null;
    const { fences, more_fences: more } = report.body;
    const gone = Date.now() - report.at;
    return html`<h3>Locks <small>whose holders have used the bucket</small></h3>
      ${more && html`<p class="faint">There are too many to list.</p>`}
      ${fences.length === 0 && !more && html`<p class="faint">Nobody has read or written under a lock yet.</p>`}
      ${fences.length > 0 &&
      html`<div class="wide"><table>
        <thead><tr><th>Lock</th><th>Last used by</th><th>Token</th><th>Ago</th><th>Held now by</th></tr></thead>
        <tbody>${fences.slice(0, 100).map(
          (f) => html`<tr key=${f.encoded}><td><a href=${page.hrefOf(f.encoded)}><bdi>${nameOf(f)}</bdi></a></td><td><bdi>${shown(f.client ?? "") || "–"}</bdi>${f.shared && html` <span class="badge">reader</span>`}</td>
            <td>${f.token}</td><td>${span(f.for_ms + gone)}</td><td><${Holder} fence=${f} /></td></tr>`,
        )}</tbody>
      </table></div>`}
      ${fences.length > 100 && html`<p class="faint">and ${number(fences.length - 100)} more</p>`}`;
  }

  function Value() {
    const { value } = open.got;
    const failure = open.errors.value;
    return html`<section class="one-value" aria-label="Value"><h3>Value of <bdi>${shown(open.key)}</bdi> <small><a href=${hrefOf(open.bucket)}>close</a></small></h3>
      ${failure?.status === 404 ? html`<p class="few">The key has no value.</p>` : html`<${Failure} failure=${failure} />`}
      ${!value && !failure && html`<p class="faint">Asking for the value…</p>`}
      ${value && html`<${Text} entry=${value.body} />`}</section>`;
  }

  function Text({ entry: e }) {
    const binary = e.value === undefined;
    const text = binary ? e.value_base64 : e.value;
    // Spaces, tabs and ends of lines are seen in a value, other than in a name.
    const lines = text.slice(0, mostText).split(/([ \t\n]+)/).map((part, i) => (i % 2 ? part : shown(part))).join("");
    return html`<p class="faint">revision ${e.revision}, ${binary ? "binary, as base64" : several(text.length, "character")}</p>
      ${text === "" ? html`<p class="faint">It is empty.</p>` : html`<pre class="text">${lines}</pre>`}
      ${text.length > mostText && html`<p class="faint">Only the beginning is shown.</p>`}`;
  }

  function Bucket() {
    const { report, keys } = open.got;
    const b = report?.body.bucket;
    const words = open.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const all = (keys?.body.keys ?? []).filter((k) => words.every((w) => k.key.toLowerCase().includes(w)));
    const gone = keys ? Date.now() - keys.at : 0;
    return html`<section class="stores" aria-label="Bucket"><p><a href="#/stores">Buckets</a></p>
      <h2><bdi>${shown(open.bucket)}</bdi> ${b && html`<small>${several(b.replicas, "replica")}, ${b.storage}, ${size(b)}</small>`}</h2>
      <${Failure} failure=${open.errors.report} />
      <${Fences} />
      <h3>Keys ${keys && html`<small>${number(keys.body.keys.length)}${keys.body.more ? ", and more" : ""}</small>`}</h3>
      <div class="tools"><input id="filter" type="search" placeholder="Filter by key ( / )" aria-label="Filter" autocomplete="off" spellcheck=${false} value=${open.filter} onInput=${(e) => ((open.filter = e.target.value), (open.rows = 200), draw())} /></div>
      ${open.errors.keys && (open.errors.keys.text !== open.errors.report?.text) && html`<${Failure} failure=${open.errors.keys} />`}
      ${open.key !== null && html`<${Value} />`}
      ${keys && all.length === 0 && html`<p class="empty">${keys.body.keys.length === 0 ? "There are no keys." : "No key matches."}</p>`}
      ${all.length > 0 &&
      html`<div class="wide keys-list"><table>
        <thead><tr><th>Key</th><th>Revision</th><th>Written</th></tr></thead>
        <tbody>${all.slice(0, open.rows).map(
          (k) => html`<tr key=${k.key} class=${k.key === open.key ? "selected" : ""}><td><a href=${hrefOf(open.bucket, k.key)} aria-current=${k.key === open.key ? "true" : undefined}><bdi>${shown(k.key)}</bdi></a></td><td>${k.revision}</td><td>${span(k.for_ms + gone)} ago</td></tr>`,
        )}</tbody>
      </table></div>`}
      ${all.length > open.rows && html`<p><button onClick=${() => ((open.rows += 1000), draw())}>Show more of ${number(all.length)}</button></p>`}
    </section>`;
  }

  const Stores = () => open && (open.bucket === null ? html`<${Buckets} />` : html`<${Bucket} />`);

  /** Follows the part of the address behind #/stores/. It throws if that cannot be decoded. */
  function route(rest) {
    const [bucket, key] = rest.split("/").map(decodeURIComponent);
    show(bucket || null, key ?? null);
  }

  return { Stores, route, close, parent: () => (open?.key != null ? hrefOf(open.bucket) : open?.bucket != null ? "#/stores" : "#/") };
}
