// What is asked: the form's state, the body that it becomes, and the fragment that holds it in a link.

import { read } from "./fields.js";

const HOLE = /<\|fill:\d+\|>/;

/** The state of an empty form, and all that a link may hold. */
export const EMPTY = Object.freeze({
  mode: "prompt",
  prompt: "",
  system: "",
  turns: [],
  message: "",
  max_tokens: "64",
  temperature: "",
  seed: "",
  kind: "",
  constraint: "",
  compare: false,
  panes: [{}, {}],
});

/** Where a state is asked. */
export function pathOf(state) {
  return state.mode === "chat" ? "v1/chat/completions" : "v1/completions";
}

/** The messages that are sent: a system's, the turns so far, and the one that is being written, if any. */
export function messagesOf(state) {
  const message = (role, content) => ({ role, content });
  const written = state.message || !state.turns.length ? [message("user", state.message)] : [];
  return [...(state.system ? [message("system", state.system)] : []), ...state.turns, ...written];
}

/** The body of a request with a pane's diffusion parameters. */
export function bodyOf(state, diffusion) {
  const body = state.mode === "chat" ? { messages: messagesOf(state) } : { prompt: state.prompt };
  const holes = state.mode === "prompt" && HOLE.test(state.prompt);
  if (holes) body.echo = true; // so that the answer is the whole text; its length is the holes'
  const numbers = { max_tokens: "integer", temperature: "number", seed: "integer" };
  for (const [name, type] of Object.entries(numbers)) {
    const text = state[name].trim();
    if (text && !(holes && name === "max_tokens")) body[name] = read(text, type);
  }
  if (state.kind) body.structured_outputs = { [state.kind]: constraintOf(state) };
  body.diffusion = { ...diffusion, trace: true };
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

function constraintOf({ kind, constraint }) {
  if (kind === "choice") return constraint.split("\n").filter((line) => line !== "");
  if (kind !== "json") return constraint;
  try {
    const schema = JSON.parse(constraint);
    return typeof schema === "object" && schema !== null ? schema : constraint;
  } catch {
    return constraint; // as a text, of which the server says what is wrong
  }
}

/** What differs from an empty form, as a fragment. A key is no part of the state. */
export function fragmentOf(state) {
  const differs = ([name, value]) => JSON.stringify(value) !== JSON.stringify(EMPTY[name]);
  const changed = Object.fromEntries(Object.entries(state).filter(differs));
  return `#${encodeURIComponent(JSON.stringify(changed))}`;
}

/** The state in a fragment, which anybody may have written: what is not of its field's kind is left out. */
export function stateOf(fragment) {
  let told;
  try {
    told = JSON.parse(decodeURIComponent(fragment.replace(/^#/, "")));
  } catch {
    return structuredClone(EMPTY);
  }
  const state = structuredClone(EMPTY);
  for (const [name, empty] of Object.entries(EMPTY)) {
    const value = told?.[name];
    if (value !== undefined && typeof value === typeof empty && Array.isArray(value) === Array.isArray(empty)) state[name] = value;
  }
  state.turns = state.turns.filter(isTurn).map(({ role, content }) => ({ role, content }));
  state.panes = [0, 1].map((index) => plain(state.panes[index]));
  return state;
}

function isTurn(turn) {
  return ["user", "assistant"].includes(turn?.role) && typeof turn.content === "string";
}

function plain(values) {
  const isPlain = ([, value]) => value === null || ["string", "number", "boolean"].includes(typeof value);
  return Object.fromEntries(Object.entries(values ?? {}).filter(isPlain));
}
