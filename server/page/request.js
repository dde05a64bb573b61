// What is asked: the form's state, the body that it becomes, and the fragment that holds it in a link.

import { read } from "./fields.js";

const MODES = ["prompt", "chat"];
const KINDS = ["", "json", "regex", "choice", "grammar"];
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

/** The state in a fragment, which anybody may have written: null if any of it is not of its field's kind. */
export function stateOf(fragment) {
  try {
    return filled(JSON.parse(decodeURIComponent(fragment.replace(/^#/, ""))));
  } catch {
    return null;
  }
}

/** An empty form's state with what is told instead, or null. What no field is called is left out. */
export function filled(told) {
  if (typeof told !== "object" || told === null || Array.isArray(told)) return null;
  const state = structuredClone(EMPTY);
  for (const [name, empty] of Object.entries(EMPTY)) {
    const value = Object.hasOwn(told, name) ? told[name] : empty;
    if (typeof value !== typeof empty || Array.isArray(value) !== Array.isArray(empty)) return null;
    state[name] = value;
  }
  const isKnown = MODES.includes(state.mode) && KINDS.includes(state.kind);
  if (!isKnown || !state.turns.every(isTurn) || state.panes.length !== 2 || !state.panes.every(isPlain)) return null;
  state.turns = state.turns.map(({ role, content }) => ({ role, content }));
  return state;
}

function isTurn(turn) {
  return ["user", "assistant"].includes(turn?.role) && typeof turn.content === "string";
}

function isPlain(values) {
  const isValue = (value) => value === null || ["string", "number", "boolean"].includes(typeof value);
  return typeof values === "object" && values !== null && !Array.isArray(values) && Object.values(values).every(isValue);
}
