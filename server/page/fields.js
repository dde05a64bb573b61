// Fields of the form: those of `diffusion`, made from the API's description, and errors shown at any field.

const POLICIES = ["cache", "unmask"];
const NONE = "none"; // what people type for null, where a number may be absent
const NOT_SHOWN = ["trace", "step_map"]; // the page always asks for the trace

/** The parameters of one pane, as fields. */
export class DiffusionFields {
  /** `prefix` keeps ids of two panes apart; `policies` and `others` are the elements that the fields go into. */
  constructor(prefix, policies, others) {
    this.prefix = prefix;
    this.policies = policies;
    this.others = others;
    this.controls = new Map();
    this.isAll = false;
  }

  /** Makes the fields from the schema of `DiffusionRequest`, keeping what was entered. */
  describe(schema) {
    const entered = this.changed();
    this.properties = schema.properties;
    this.controls.clear();
    this.policies.replaceChildren();
    this.others.replaceChildren();
    for (const [name, property] of Object.entries(schema.properties)) {
      if (NOT_SHOWN.includes(name)) continue;
      const { field, control } = makeField(`${this.prefix}-${name}`, name, property);
      this.controls.set(name, control);
      field.hidden = isUnfit(property);
      (POLICIES.includes(name) ? this.policies : this.others).append(field);
    }
    this.enter(entered);
  }

  /** Shows the parameters that the chosen policies read, or all of them. */
  choose() {
    const names = POLICIES.flatMap((name) => choicesOf(this.properties?.[name]));
    const chosen = POLICIES.map((name) => this.#value(name) ?? this.properties?.[name].default);
    for (const [name, control] of this.controls) {
      if (POLICIES.includes(name)) continue;
      const readers = readersOf(this.properties[name], names);
      if (isUnfit(this.properties[name])) continue; // hidden for good
      const isRead = !readers.length || readers.some((reader) => chosen.includes(reader));
      control.closest(".field").hidden = !isRead && !this.isAll;
    }
    for (const [name, control] of this.controls) if (control.tagName === "SELECT") tellOption(control, this.properties[name]);
  }

  /** What differs from the server's defaults, as the API takes it. */
  changed() {
    const values = {};
    for (const name of this.controls.keys()) {
      const value = this.#value(name);
      const isShown = !this.controls.get(name).closest(".field").hidden;
      if (value !== undefined && isShown) values[name] = value;
    }
    return values;
  }

  /** Fills the fields with values, as `changed` gives them; others become the defaults. Whether all had a field that takes them. */
  enter(values) {
    for (const [name, control] of this.controls) {
      const value = values[name];
      control.value = value === undefined ? "" : String(value);
    }
    if (this.properties) this.choose();
    const isTaken = ([name, value]) => value === this.properties?.[name]?.default || !isUnfit(this.properties?.[name]) && this.controls.get(name)?.value === String(value);
    return Object.entries(values).every(isTaken);
  }

  #value(name) {
    const control = this.controls.get(name);
    const text = control ? control.value.trim() : "";
    return text === "" ? undefined : read(text, kindOf(this.properties[name]).type);
  }
}

/** What is entered, as JSON: null, a number if JavaScript holds it exactly, else the text, of which the server complains. */
export function read(text, type) {
  if (text === "null") return null;
  if (type !== "integer" && type !== "number") return text;
  if (text === NONE) return null;
  const number = Number(text);
  const isLost = !Number.isFinite(number) || (Number.isInteger(number) && !Number.isSafeInteger(number));
  return text.trim() === "" || isLost ? text : number;
}

function kindOf(property) {
  return property.anyOf?.find((kind) => kind.type !== "null") ?? property;
}

/** Whether the model refuses every value of a parameter; `x-unfit` has those that it refuses. */
function isUnfit(property) {
  return property?.["x-unfit"] === true;
}

function choicesOf(property) {
  return (property && kindOf(property).enum) ?? [];
}

/** The policies that read a parameter. Its description begins with their names; without any, all read it. */
function readersOf(property, policies) {
  const lists = [...(property.description ?? "").matchAll(/(?:^|; )([a-z0-9_, ]+): /g)].map((match) => match[1].split(", "));
  return lists.filter((list) => list.every((name) => policies.includes(name))).flat();
}

function makeField(id, name, property) {
  const field = element("div", { className: "field" });
  const kind = kindOf(property);
  const control = kind.enum ? selection(kind.enum, property) : entry(kind, property.default);
  control.id = id;
  control.name = `diffusion.${name}`;
  const words = [range(kind), plainly(property.description ?? "")].filter(Boolean).join(". ");
  const hint = element("p", { className: "hint", id: `${id}-hint`, textContent: words });
  control.setAttribute("aria-describedby", hint.id);
  const label = element("label", { htmlFor: id, textContent: name });
  field.append(label, control, hint);
  return { field, control };
}

/** A description without its sources, and without JSON's word for nothing. */
function plainly(description) {
  const cited = / ?\([^()]*(?:arXiv|\d{4}\.\d{5}|LLM)[^()]*\)/g;
  return description.replace(cited, "").replaceAll("null is ", `${NONE} means `).replaceAll("null", NONE);
}

function selection(choices, property) {
  const { default: preset, "x-unfit": unfit = [] } = property;
  const offered = choices.filter((choice) => choice !== preset && !unfit.includes(choice));
  const absent = preset === null || preset === undefined ? "server's choice" : `${preset} (default)`;
  return element("select", {}, new Option(absent, ""), ...offered.map((choice) => new Option(choice)));
}

/** Says below a selection what the option that is selected does. */
function tellOption(select, property) {
  const words = property["x-enumDescriptions"]?.[select.value || property.default];
  if (words) select.closest(".field").querySelector(".hint").textContent = words;
}

function entry(kind, preset) {
  const isWhole = kind.type === "integer";
  const shown = preset === undefined ? "" : String(preset ?? NONE);
  return element("input", { type: "text", inputMode: isWhole ? "numeric" : "decimal", autocomplete: "off", placeholder: shown });
}

function range(kind) {
  const low = kind.minimum ?? kind.exclusiveMinimum;
  const high = kind.maximum ?? kind.exclusiveMaximum;
  const lower = low === undefined ? "" : `${kind.minimum === undefined ? "Above" : "From"} ${low}`;
  const upper = high === undefined ? "" : `${kind.maximum === undefined ? "below" : "to"} ${high}`;
  return [lower, upper].filter(Boolean).join(" ");
}

/** A new element with these properties. Texts of others go into `textContent` alone. */
export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Shows a message at a control, or below the row that it stands in, so that none changes its width; and moves there. */
export function showError(control, message) {
  clearError(control);
  const error = element("p", { className: "error", id: `${control.id}-error`, textContent: message });
  control.setAttribute("aria-invalid", "true");
  control.dataset.hint = control.getAttribute("aria-describedby") ?? "";
  control.setAttribute("aria-describedby", `${error.id} ${control.dataset.hint}`.trim());
  (control.closest(".row") ?? control).after(error);
  for (let outer = control.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
  control.closest("form")?.removeAttribute("hidden");
  control.focus();
  control.addEventListener("input", () => clearError(control), { once: true });
}

export function clearError(control) {
  const error = document.getElementById(`${control.id}-error`);
  if (!error) return;
  error.remove();
  control.removeAttribute("aria-invalid");
  if (control.dataset.hint) control.setAttribute("aria-describedby", control.dataset.hint);
  else control.removeAttribute("aria-describedby");
}

/** The control that the API's name of a field belongs to, or that of the object it is in: `a.b[0].c`, `a.b`, `a`. */
export function controlOf(param, ...scopes) {
  for (let name = param ?? ""; name; name = name.replace(/(^|[.[])[^.[]*$/, "")) {
    for (const scope of scopes) {
      const found = scope.querySelector(`[name="${CSS.escape(name)}"]`);
      if (found && !found.closest(".field")?.hidden && !found.closest("[hidden]")) return found;
    }
  }
  return null;
}
