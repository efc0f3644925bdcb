// Talks to the service. What comes back is text, and is only ever shown as text.

const PLACE = "tvp-key";
let key = "";

/** An error that is told to the reader: the service's own message, where it sent one. */
export class ServiceError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The key. It is kept for this tab: a phone may load a page again while its camera's app is in front. */
export function readKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    useKey(given);
    history.replaceState(null, "", location.pathname + location.search); // out of sight
  }
  try {
    key ||= sessionStorage.getItem(PLACE) ?? "";
  } catch {
    // The browser stores nothing: the key lasts until the page is left.
  }
  return key;
}

export function useKey(text) {
  key = text.trim();
  try {
    sessionStorage.setItem(PLACE, key);
  } catch {
    // As above.
  }
}

/** The tasks that are served. */
export async function listTasks() {
  return (await (await call("v1/tasks")).json()).tasks;
}

/** What the model is shown of a picture, as a file. */
export async function preview(task, file, signal) {
  const reply = await call(`v1/tasks/${encodeURIComponent(task)}/preview`, form({ image: file }), signal);
  return reply.blob();
}

/** Labels with their scores, the best first; without labels, the task's own. */
export async function rank(fields, signal) {
  return (await (await call("v1/rank", form(fields), signal)).json()).ranked;
}

/** An answer. `piece` is told each part of its text as it comes. */
export async function ask(fields, piece, signal) {
  const reply = await call("v1/ask", form({ ...fields, stream: "true" }), signal);
  for await (const event of events(reply.body)) {
    if (event.error) throw new ServiceError(event.error.message, reply.status, event.error.code);
    if (event.answer) return event.answer;
    piece(event.text);
  }
  throw new ServiceError("The connection ended before the answer did. Ask again.");
}

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one instanceof File) body.append(name, one, "picture");
      else if (one !== undefined && one !== "") body.append(name, one);
    }
  }
  return { method: "POST", body };
}

async function call(path, options = {}, signal = undefined) {
  if (/[^\x21-\x7e]/.test(key)) throw new ServiceError("This is no key: a key has no spaces and no accents.", 401);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, signal, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServiceError("The service cannot be reached. See whether it runs, and whether this device is in its network.");
  }
  if (reply.ok) return reply;
  let told = {};
  try {
    told = (await reply.json()).error ?? told;
  } catch {
    // No JSON: something between the page and the service answered.
  }
  throw new ServiceError(told.message ?? `The service answered with status ${reply.status}.`, reply.status, told.code);
}

/** The values of a stream of server-sent events; signs of life are passed over. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServiceError("The connection broke before the answer was whole. Ask again.");
      }
      if (read.done) return;
      const parts = (text + read.value).split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
