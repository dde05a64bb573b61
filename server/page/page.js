// The page: the request's form, one or two panes, the key, links.

import { Failure, get, post } from "./api.js";
import { clearError, element, showError } from "./fields.js";
import { Pane, copy } from "./pane.js";
import { EMPTY, bodyOf, filled, fragmentOf, pathOf, stateOf } from "./request.js";

const KEY = "unmask.key"; // in this tab's storage, for as long as it is open
const STATE = "unmask.state"; // the form's, for a reload of this tab
const TEXTS = ["prompt", "system", "message", "max_tokens", "temperature", "seed", "kind", "constraint"];
const SAMPLE = { ...EMPTY, prompt: "Tom has 7 apples. Tom buys 3 more. Tom loses 4 of them. Tom finds 2 more. How many apples does Tom have now?" };
const CONSTRAINTS = {
  json: ["JSON Schema", '{"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}'],
  regex: ["Regular expression that the whole answer matches", "[0-9]{1,2}"],
  choice: ["Possible answers, one a line", "yes\nno"],
  grammar: ["Grammar (EBNF)", 'root ::= "yes" | "no"'],
};

const $ = (id) => document.getElementById(id);
const form = $("request");
const panes = ["A", "B"].map((name) => new Pane(name, name === "A" ? answered : () => {}, tellReplay));
const constraints = {}; // what was entered for each kind of structured output
let kind = ""; // the one that is shown
let turns = [];
let model = "";
let described = null; // the schema of `diffusion`
let running = null; // an AbortController
let finished = Promise.resolve(); // the last run
let asked = EMPTY; // the state of the last run
let wanted = null; // what a link says of panes whose fields are not there yet

// The form's state

function currentState() {
  const texts = Object.fromEntries(TEXTS.map((id) => [id, $(id).value]));
  const mode = form.elements.mode.value;
  return { ...texts, mode, turns, compare: $("compare").checked, panes: wanted ?? panes.map((pane) => pane.fields.changed()) };
}

function enter(state) {
  for (const id of TEXTS) $(id).value = state[id];
  form.elements.mode.value = state.mode;
  turns = state.turns;
  $("compare").checked = state.compare;
  kind = state.kind;
  $("structured").open = Boolean(kind);
  $("notice").hidden = true;
  for (const control of document.querySelectorAll("[aria-invalid]")) clearError(control);
  wanted = state.panes;
  arrange();
  if (described) enterPanes();
}

/** Fills the panes' fields once they are there. A value that none of them takes makes the link unreadable. */
function enterPanes() {
  if (!wanted) return;
  const isTaken = panes.map((pane, index) => pane.fields.enter(wanted[index])).every(Boolean);
  wanted = null;
  if (isTaken) arrange();
  else refuseLink();
}

/** Enters what a link holds, or says that it holds nothing. */
function follow(fragment) {
  const state = stateOf(fragment);
  if (state) enter(state);
  else refuseLink();
}

function refuseLink() {
  enter(SAMPLE);
  $("notice").textContent = "This link cannot be read. Below is a sample.";
  $("notice").hidden = false;
  $("status").textContent = $("notice").textContent;
}

/** Keeps the state for a reload, and drops a fragment that is none of it. */
function keep(state) {
  try {
    sessionStorage.setItem(STATE, JSON.stringify(state));
  } catch {
    // A browser that stores nothing, or no more, forgets; the page works.
  }
  if (location.hash && location.hash !== fragmentOf(state)) history.replaceState(null, "", location.pathname + location.search);
}

function kept() {
  try {
    return filled(JSON.parse(sessionStorage.getItem(STATE)));
  } catch {
    return null;
  }
}

/** Shows the parts that the state has, and the code that matches it. */
function arrange() {
  const state = currentState();
  $("prompt-part").hidden = state.mode !== "prompt";
  $("chat-part").hidden = state.mode !== "chat";
  $("run").textContent = state.mode === "chat" ? "Send" : "Run";
  $("whose").hidden = !state.compare;
  $("constraint-field").hidden = !state.kind;
  if (state.kind) [$("constraint-label").textContent, $("constraint").placeholder] = CONSTRAINTS[state.kind];
  $("turns").replaceChildren(...turns.map(turnItem));
  $("turns").hidden = !turns.length;
  document.body.classList.toggle("comparing", state.compare);
  panes[1].root.hidden = !state.compare;
  tellReplay();
  tellCode(state);
  keep(state);
}

function tellReplay() {
  $("play-both").hidden = !$("compare").checked;
  $("play-both").disabled = !panes.every((pane) => pane.canPlay);
}

/** Takes away what was asked before, and ends what is asked now. */
function clear() {
  running?.abort();
  panes.forEach((pane) => pane.clear());
}

function tellCode(state) {
  const url = new URL(pathOf(state), document.baseURI).href.split("#")[0];
  panes.forEach((pane, index) => pane.tell(url, bodyOf(state, state.panes[index]), Boolean($("key").value), model));
}

function turnItem({ role, content }, index) {
  const item = element("li", { className: role });
  const remove = element("button", { type: "button", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove turn ${index + 1}`);
  remove.addEventListener("click", () => {
    turns = turns.toSpliced(index, 1);
    arrange();
    $("message").focus();
  });
  item.append(element("b", { textContent: role }), element("p", { textContent: content }), remove);
  return item;
}

// Running

function start() {
  if (!running) finished = runOnce();
}

async function runOnce() {
  running = new AbortController();
  $("run").disabled = true;
  $("stop").disabled = false;
  try {
    if ((described || (await describe())) && hasMessage()) await run(running.signal);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop").disabled = true;
  }
}

/** Whether a conversation has something to answer; says so if not. */
function hasMessage() {
  const { mode, message } = currentState();
  if (mode !== "chat" || message.trim() || turns.at(-1)?.role === "user") return true;
  showError($("message"), "The message is empty; write what the model shall answer.");
  return false;
}

async function run(signal) {
  $("notice").hidden = true;
  for (const control of document.querySelectorAll("[aria-invalid]")) clearError(control);
  const state = currentState();
  asked = state;
  $("status").textContent = "Running.";
  const asking = panes.slice(0, state.compare ? 2 : 1).map((pane, index) => {
    return pane.ask(pathOf(state), $("key").value, bodyOf(state, state.panes[index]), signal, form);
  });
  $("status").textContent = (await Promise.all(asking)).join(" ");
}

/** Pane A's answer becomes the conversation's next turn. */
function answered(run) {
  if (asked.mode !== "chat") return;
  const message = asked.message || !turns.length ? [{ role: "user", content: asked.message }] : [];
  turns = [...turns, ...message, { role: "assistant", content: run.text }];
  if ($("message").value === asked.message) $("message").value = "";
  arrange();
  $("turns").scrollTop = $("turns").scrollHeight; // its own box alone: on a phone the canvas has come into view
}

/** Reads the API's description and the model's name; whether that worked. */
async function describe() {
  try {
    const [openapi, models] = await Promise.all([get("openapi.json", $("key").value), get("v1/models", $("key").value)]);
    described = openapi.components.schemas.DiffusionRequest;
    model = models.data[0].id;
    const about = openapi.info["x-model"];
    $("model").textContent = `${model}, ${rounded(about.parameters)} parameters, up to ${models.data[0].max_model_len} tokens`;
    panes.forEach((pane) => pane.fields.describe(described));
    for (const pane of panes) pane.endIds = about.end_token_ids;
    present(about);
    clearError($("key"));
    arrange();
    enterPanes();
    return true;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) showError($("key"), error.message);
    else $("model").textContent = error.message;
    $("status").textContent = error.message;
    return false;
  }
}

/** Says what a bundled model is, and offers examples of what it can do. */
function present({ summary, limits, examples = [] }) {
  $("about").hidden = !summary;
  $("summary").textContent = `${model} is ${summary}.`;
  $("limits").textContent = limits ?? "";
  $("examples").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map(exampleButton));
}

function exampleButton({ name, state }) {
  const button = element("button", { type: "button", textContent: name });
  button.addEventListener("click", async () => {
    clear();
    await finished;
    clear(); // what the run that was ended has said
    enter({ ...EMPTY, ...state });
    start();
  });
  return button;
}

/** A number of parameters in words: 1.1 million. */
function rounded(count) {
  const [size, unit] = count < 1e9 ? [1e6, "million"] : [1e9, "billion"];
  return `${Number((count / size).toPrecision(2))} ${unit}`;
}

// Holes

/** Puts a hole of as many tokens in the selection's place. The space before a word is a part of its token, so of the hole. */
async function makeHole() {
  const prompt = $("prompt");
  const text = prompt.value;
  let { selectionStart: first, selectionEnd: last } = prompt;
  while (last > first && text[last - 1] === " ") last--; // a double click may select the space behind a word
  if (first === last) {
    showError(prompt, "Nothing is selected: select the words that the model shall fill in, then press the button again.");
    return;
  }
  if (text[first - 1] === " " && text[first] !== " ") first--;
  try {
    const body = { prompt: text.slice(first, last), add_special_tokens: false };
    const { count } = await post("tokenize", $("key").value, body);
    prompt.focus();
    prompt.setSelectionRange(first, last);
    document.execCommand("insertText", false, `<|fill:${count}|>`); // unlike `setRangeText`, this can be undone
    arrange();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    showError(error.status === 401 ? $("key") : prompt, error.message);
  }
}

// Events

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  clearError($("key"));
  describe();
});
$("kind").addEventListener("change", ({ target }) => {
  constraints[kind] = $("constraint").value;
  kind = target.value;
  $("constraint").value = constraints[kind] ?? "";
  arrange();
});
for (const choice of form.elements.mode) choice.addEventListener("change", clear);
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
  event.preventDefault();
  start();
});
$("play-both").addEventListener("click", () => panes.forEach((pane) => pane.play(true)));
$("key").addEventListener("change", () => sessionStorage.setItem(KEY, $("key").value));
document.addEventListener("input", ({ target }) => target.type !== "range" && requestAnimationFrame(arrange));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("hole").addEventListener("click", makeHole);
$("fresh").addEventListener("click", () => {
  turns = [];
  clear();
  arrange();
  $("message").focus();
});
$("share").addEventListener("click", ({ target }) => {
  history.replaceState(null, "", fragmentOf(currentState()));
  copy(location.href, target);
});
window.addEventListener("hashchange", () => location.hash && follow(location.hash));

$("panes").append(...panes.map((pane) => pane.root));
$("key").value = sessionStorage.getItem(KEY) ?? "";
if (sessionStorage.getItem(KEY)) $("access").hidden = false;
if (location.hash) follow(location.hash);
else enter(kept() ?? SAMPLE);
describe();
