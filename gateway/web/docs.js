// Sends the requests of the documentation page. Everything that comes from outside is put
// into the page as text.
const quote = (s) => "'" + s.replaceAll("'", "'\\''") + "'";

for (const part of document.querySelectorAll("details")) {
  const form = part.querySelector("form");
  const show = (kind, text) => {
    const pre = form.querySelector("pre." + kind);
    pre.textContent = text;
    pre.hidden = false;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    let path = part.dataset.path;
    const query = new URLSearchParams();
    const headers = {};
    let body;
    for (const field of form.elements) {
      if (field.value === "") continue;
      if (field.name === "body") {
        body = field.value;
        headers["Content-Type"] = "application/json";
      } else if (field.dataset.in === "path") {
        // A browser takes . and .. out of a path, however they are written.
        path = path.replace("{" + field.name + "}", encodeURIComponent(field.value));
      } else if (field.dataset.in === "query") {
        query.set(field.name, field.value);
      } else if (field.dataset.in === "header") {
        headers[field.name] = field.value;
      }
    }
    const url = path + (query.size > 0 ? "?" + query : "");
    const method = part.dataset.method;
    let curl = "curl -X " + method + " " + quote(location.origin + url);
    for (const [name, value] of Object.entries(headers)) curl += " -H " + quote(name + ": " + value);
    if (body !== undefined) curl += " -d " + quote(body);
    show("curl", curl);
    show("answer", "…");
    try {
      const answer = await fetch(url, { method, headers, body });
      let text = await answer.text();
      try {
        text = JSON.stringify(JSON.parse(text), null, 2);
      } catch {
        // not JSON: shown as it is
      }
      show("answer", answer.status + " " + answer.statusText + "\n" + text);
    } catch (error) {
      show("answer", "no answer: " + error);
    }
  });
}
