// The page: the request's form, one or two panes, the key, links.

import { Failure, get, post } from "./api.js";
import { clearError, element, showError } from "./fields.js";
import { Pane, copy } from "./pane.js";
import { EMPTY, bodyOf, fragmentOf, pathOf, stateOf } from "./request.js";

const KEY = "unmask.key"; // in this tab's storage, for as long as it is open
const TEXTS = ["prompt", "system", "message", "max_tokens", "temperature", "seed", "kind", "constraint"];
const EXAMPLE = "Tom has 7 apples. Tom buys 3 more. Tom loses 4 of them. Tom finds 2 more. How many apples does Tom have now?";

const $ = (id) => document.getElementById(id);
const form = $("request");
const panes = ["A", "B"].map((name) => new Pane(name, name === "A" ? answered : () => {}));
let turns = [];
let model = "";
let described = null; // the schema of `diffusion`
let running = null; // an AbortController
let asked = EMPTY; // the state of the last run
let wanted = null; // what a link says of panes whose fields are not there yet

// The form's state

function currentState() {
  const texts = Object.fromEntries(TEXTS.map((id) => [id, $(id).value]));
  const mode = form.elements.mode.value;
  return { ...texts, mode, turns, compare: $("compare").checked, panes: panes.map((pane) => pane.fields.changed()) };
}

function enter(state) {
  for (const id of TEXTS) $(id).value = state[id];
  form.elements.mode.value = state.mode;
  turns = state.turns;
  $("compare").checked = state.compare;
  if (state.kind) $("structured").open = true;
  panes.forEach((pane, index) => pane.fields.enter(state.panes[index]));
  wanted = described ? null : state.panes;
  arrange();
}

/** Shows the parts that the state has, and the code that matches it. */
function arrange() {
  const state = currentState();
  $("prompt-part").hidden = state.mode !== "prompt";
  $("chat-part").hidden = state.mode !== "chat";
  $("constraint-field").hidden = !state.kind;
  $("turns").replaceChildren(...turns.map(turnItem));
  $("turns").hidden = !turns.length;
  document.body.classList.toggle("comparing", state.compare);
  panes[1].root.hidden = !state.compare;
  tellCode(state);
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

async function start() {
  if (running) return;
  running = new AbortController();
  $("run").disabled = true;
  $("stop").disabled = false;
  try {
    if (described || (await describe())) await run(running.signal);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop").disabled = true;
  }
}

async function run(signal) {
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
}

/** Reads the API's description and the model's name; whether that worked. */
async function describe() {
  try {
    const [openapi, models] = await Promise.all([get("openapi.json", $("key").value), get("v1/models", $("key").value)]);
    described = openapi.components.schemas.DiffusionRequest;
    model = models.data[0].id;
    $("model").textContent = `${model}, ${models.data[0].max_model_len} tokens`;
    panes.forEach((pane) => pane.fields.describe(described));
    panes.forEach((pane, index) => wanted && pane.fields.enter(wanted[index]));
    wanted = null;
    clearError($("key"));
    arrange();
    return true;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) showError($("key"), error.message);
    else $("model").textContent = error.message;
    $("status").textContent = error.message;
    return false;
  }
}

// Holes

/** Puts a hole of as many tokens in the selection's place. */
async function makeHole() {
  const prompt = $("prompt");
  const { selectionStart: first, selectionEnd: last } = prompt;
  const selected = prompt.value.slice(first, last);
  let length = 8;
  try {
    if (selected) ({ count: length } = await post("tokenize", $("key").value, { prompt: selected, add_special_tokens: false }));
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    showError(error.status === 401 ? $("key") : prompt, error.message);
    return;
  }
  prompt.setRangeText(`<|fill:${length}|>`, first, last, "end");
  prompt.focus();
  arrange();
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
  arrange();
  $("message").focus();
});
$("share").addEventListener("click", ({ target }) => {
  history.replaceState(null, "", fragmentOf(currentState()));
  copy(location.href, target);
});
window.addEventListener("hashchange", () => enter(stateOf(location.hash)));

$("panes").append(...panes.map((pane) => pane.root));
$("key").value = sessionStorage.getItem(KEY) ?? "";
enter(location.hash ? stateOf(location.hash) : { ...EMPTY, prompt: EXAMPLE });
describe();
