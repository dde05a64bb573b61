// Calls of the API, and what went wrong in words.

/** An answer that did not come. `param` names the field at fault, if the server does. */
export class Failure extends Error {
  constructor(message, { status = null, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The JSON at a path, relative to the page: a proxy may serve it below a prefix. Raises Failure. */
export async function get(path, key) {
  const answer = await send(path, { headers: headers(key) });
  return answer.json();
}

/** What a posted body is answered with, whole. Raises Failure. */
export async function post(path, key, body) {
  const answer = await send(path, posted(key, body));
  return answer.json();
}

/** Events of a stream as {name, data}; raises Failure, or AbortError once `signal` is aborted. */
export async function* stream(path, key, body, signal) {
  const answer = await send(path, { ...posted(key, body), signal });
  let isWhole = false;
  try {
    for await (const { name, data } of events(answer.body)) {
      if (data === "[DONE]") isWhole = true;
      else yield { name, data: JSON.parse(data) };
    }
  } catch (error) {
    if (error.name === "TypeError") throw new Failure("The connection broke before the answer was whole.");
    throw error;
  }
  if (!isWhole) throw new Failure("The connection ended before the answer was whole.");
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function posted(key, body) {
  return {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify(body),
  };
}

async function send(path, options) {
  const { authorization = "" } = options.headers;
  if (!/^[\x20-\x7e]*$/.test(authorization)) { // no header can hold it
    throw new Failure("A key has letters from A to Z, digits and signs alone; this one has others.", { status: 401 });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it running?");
  }
  if (!answer.ok) throw await refused(answer);
  return answer;
}

async function refused(answer) {
  const { status } = answer;
  const told = await answer.json().then((body) => body.error, () => null);
  const message = told?.message ?? `The server answered ${status}.`;
  if (status === 401) return new Failure("This server wants an API key, and this is none that it knows.", { status });
  if (status === 429) {
    const wait = answer.headers.get("retry-after");
    return new Failure(`The server is busy: ${message}${wait ? ` Try again in ${wait} s.` : ""}`, { status });
  }
  return new Failure(message, { status, param: told?.param ?? null });
}

/** Server-sent events of a body: fields `event` and `data`, as this server sends them. */
async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const event = read(frame);
        if (event.data !== null) yield event; // else a comment, which keeps the connection alive
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops to listen ends the request
  }
}

function read(frame) {
  const event = { name: null, data: null };
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) event.name = line.slice(7);
    else if (line.startsWith("data: ")) event.data = line.slice(6);
  }
  return event;
}
