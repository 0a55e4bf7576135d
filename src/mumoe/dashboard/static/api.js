// Requests to the server that this page came from, and nowhere else.

let page = "";

export function setPage(secret) {
  page = secret;
}

async function answer(response) {
  const found = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
  if (!response.ok) throw new Error(found.error || `The server answered with status ${response.status}.`);
  return found;
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The dashboard has stopped. Start it again in the terminal and open its new address.");
  }
  return answer(response);
}

export function get(path, query = {}) {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value != null));
  return send(`${path}?${text}`, {});
}

export function post(path, content, signal) {
  const headers = { "content-type": "application/json", "x-mumoe-page": page };
  return send(path, { method: "POST", headers, body: JSON.stringify(content), signal });
}

// A file that the server makes, as a blob.
export async function fetched(path, query) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, { credentials: "same-origin" });
  return response.ok ? response.blob() : answer(response);
}

export function upload(file) {
  return send("/api/upload", { method: "POST", headers: { "x-mumoe-page": page }, body: file });
}

// One request at a time: while one is under way only the newest of those that follow is kept.
export function latest(work) {
  let running = false;
  let next = null;
  return async function ask(...given) {
    if (running) {
      next = given;
      return;
    }
    running = true;
    try {
      for (let current = given; current; ) {
        next = null;
        await work(...current);
        current = next;
      }
    } finally {
      running = false;
    }
  };
}

// Watch a job until it is done; report its progress.
export async function watch(number, report) {
  for (;;) {
    const job = await get("/api/job", { number });
    report(job);
    if (job.state === "done") return job.result;
    if (job.state === "failed") throw new Error(job.error);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
