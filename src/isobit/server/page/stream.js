// The server: one answer as it comes, the model and its load. Everything goes to where this page came from.

const KEY = "isobit.key";
let askForKey = async () => null;

/** Who asks the person for a key, when the server wants one. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** An error in words. */
export class Problem extends Error {
  constructor(message, status = 0, after = null) {
    super(message);
    this.status = status;
    this.after = after; // seconds until it makes sense to try again
  }
}

async function send(path, options = {}, mayAsk = true) {
  const headers = { accept: "application/json", ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (reply.status === 401 && mayAsk) {
    const given = await askForKey();
    if (given) {
      sessionStorage.setItem(KEY, given);
      return send(path, options, true);
    }
  }
  if (!reply.ok) throw await problem(reply);
  return reply;
}

async function problem(reply) {
  let text = `The server answered ${reply.status}.`;
  try {
    text = (await reply.json()).error.message;
  } catch { /* no JSON: the status has to do */ }
  const after = Number.parseInt(reply.headers.get("retry-after") ?? "", 10);
  return new Problem(text, reply.status, Number.isFinite(after) ? after : null);
}

/** JSON of a route. */
export async function get(path, mayAsk = false) {
  return (await send(path, {}, mayAsk)).json();
}

/**
 * One answer of a chat.
 *
 * @param body of /v1/chat/completions
 * @param signal ends it
 * @yields the chunks of the stream, parsed
 */
export async function* answer(body, signal) {
  const reply = await send("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection was lost while the answer came.");
    }
    if (part.done) throw new Problem("The answer broke off.");
    const lines = (rest + part.value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(chunk.error.message);
      yield chunk;
    }
  }
}
