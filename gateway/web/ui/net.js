// Requests to the gateway that served this page. Credentials are kept in memory, and are not
// the browser's own, which it would send for pages of others too.
let authorization = null;
let times = 0; // that somebody has signed in
export const signIn = (header) => ((authorization = header), times++);
/** Tells one user's time at this page from another's. The page and its worker count alike. */
export const signedIn = () => times;

export class Refused extends Error {
  /** sent is signedIn() of when the request was sent. */
  constructor(status, problem, sent) {
    super(problem?.detail || problem?.title || "status " + status);
    this.status = status;
    this.problem = problem ?? {};
    this.sent = sent;
  }
}

export const sleep = (ms, signal) =>
  new Promise((done) => {
    if (signal?.aborted) return done();
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

function send(path, options, signal) {
  const headers = { ...options.headers };
  if (authorization) headers.Authorization = authorization;
  if (options.body) headers["Content-Type"] = "application/json";
  return fetch(path, { ...options, headers, signal, credentials: "omit", cache: "no-store", redirect: "error" });
}

async function refusal(answer, sent) {
  let problem = null;
  try {
    problem = await answer.json();
  } catch {
    // something between the gateway and this page answered
  }
  return new Refused(answer.status, problem, sent);
}

/** Sends a request and reads its answer. It throws Refused if the gateway says no. */
export async function ask(path, options = {}, timeout = 15000) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeout);
  const sent = times;
  try {
    const answer = await send(path, options, stop.signal);
    if (answer.status === 304) return { status: 304 };
    if (!answer.ok) throw await refusal(answer, sent);
    return { status: answer.status, etag: answer.headers.get("ETag"), body: await answer.json() };
  } catch (error) {
    if (stop.signal.aborted) throw new Error("the gateway did not answer within " + timeout / 1000 + " s");
    if (error instanceof TypeError) throw new Error("the gateway cannot be reached");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Reads server-sent events until the stream ends, and calls heard(kind, data, id) for each.
 * EventSource cannot send credentials. The gateway sends a comment every 15 seconds; a stream
 * without one is dead.
 */
export async function readEvents(path, last, signal, heard) {
  const stop = new AbortController();
  const abort = () => stop.abort();
  signal.addEventListener("abort", abort, { once: true });
  let timer = setTimeout(abort, 15000);
  const sent = times;
  try {
    const headers = { Accept: "text/event-stream" };
    if (last) headers["Last-Event-ID"] = last;
    const answer = await send(path, { headers }, stop.signal);
    if (!answer.ok) throw await refusal(answer, sent);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      clearTimeout(timer);
      timer = setTimeout(abort, 40000);
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        let kind = "", id = "", data = "";
        for (const line of part.split("\n")) {
          if (line.startsWith("event: ")) kind = line.slice(7);
          else if (line.startsWith("id: ")) id = line.slice(4);
          else if (line.startsWith("data: ")) data = line.slice(6);
        }
        if (kind) heard(kind, JSON.parse(data), id);
      }
    }
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Error("the stream of events broke");
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
    stop.abort();
  }
}
