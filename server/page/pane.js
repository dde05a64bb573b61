// One pane: its settings, the canvas of its run, and the replay.

import { Failure, stream } from "./api.js";
import { CanvasView } from "./canvas.js";
import { curl, python } from "./code.js";
import { DiffusionFields, controlOf, element, showError } from "./fields.js";
import { Run } from "./run.js";

const LIVE_PACE = 120; // least milliseconds between two steps that are shown while they come
const MOST_BEHIND = 50; // steps that what is shown may be behind what has come
const REPLAY = { whole: 12000, least: 16, most: 700 }; // milliseconds of a replay, and bounds for each step of it
const PARTS = [".replay", ".counters", ".work"]; // what there is of a run

export class Pane {
  /** `onEnd(run)`: called with each run that is complete; `onShow()` when there is something to replay, or no more. */
  constructor(name, onEnd, onShow) {
    const content = document.getElementById("pane").content.cloneNode(true);
    this.name = name;
    this.onEnd = onEnd;
    this.onShow = onShow;
    this.endIds = []; // tokens that end an answer
    this.body = null; // what the form would send now
    this.hasFailed = false; // since the run that is shown
    this.root = content.querySelector(".pane");
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").append("Settings ", element("span", { className: "letter", textContent: name }));
    this.root.setAttribute("aria-label", `Pane ${name}`);
    this.find(".canvas").id = `canvas-${name}`;
    this.find(".canvas").setAttribute("aria-label", `Canvas ${name}`);
    this.find(".speed").setAttribute("aria-label", `Speed of the replay of pane ${name}`);
    this.find(".slider").setAttribute("aria-label", `Step shown in pane ${name}`);
    this.view = new CanvasView(this.find(".canvas"), this.find(".readout"));
    this.fields = new DiffusionFields(name, this.find(".policies"), this.find(".fields"));
    this.run = null;
    this.step = 0; // the one that is shown
    this.pace = null; // milliseconds a step while playing
    this.frame = null; // the animation frame that is asked for
    this.shown = {}; // texts of counters, so that only changed ones are written
    this.#listen();
  }

  #listen() {
    this.find(".play").addEventListener("click", () => (this.pace ? this.#pause() : this.play()));
    this.find(".speed").addEventListener("change", () => this.pace && this.play());
    this.find(".copy-answer").setAttribute("aria-label", `Copy the answer of pane ${this.name}`);
    this.find(".copy-answer").addEventListener("click", ({ target }) => copy(this.run.text, target));
    this.find(".slider").addEventListener("input", (event) => {
      this.#pause();
      this.#goto(Number(event.target.value));
    });
    this.find(".all").addEventListener("change", (event) => {
      this.fields.isAll = event.target.checked;
      this.fields.choose();
    });
    this.root.addEventListener("input", () => this.fields.choose());
    this.find(".fold").addEventListener("click", ({ target }) => {
      const isFolded = this.find(".canvas").classList.toggle("folded");
      target.textContent = isFolded ? "Show the prompt" : "Hide the prompt";
    });
    for (const kind of ["curl", "python"]) {
      this.find(`.copy-${kind}`).setAttribute("aria-label", `Copy ${kind} of pane ${this.name}`);
      this.find(`.copy-${kind}`).addEventListener("click", ({ target }) => copy(this.find(`.${kind}`).textContent, target));
    }
  }

  /** Shows what a request of this pane is elsewhere. */
  tell(url, body, hasKey, model) {
    this.body = body;
    this.#tellAge();
    this.find(".curl").textContent = curl(url, body, hasKey);
    this.find(".python").textContent = python(url, body, model);
    const count = Object.keys(this.fields.changed()).filter((name) => name !== "cache" && name !== "unmask").length;
    this.find(".changed").textContent = count ? `(${count} changed)` : "";
  }

  /** Takes away the run that is shown. */
  clear() {
    this.run = null;
    this.hasFailed = false;
    for (const part of PARTS) this.find(part).hidden = true;
    this.find(".failure").hidden = true;
    this.find(".empty").hidden = false;
    this.#tellAge();
    this.onShow();
  }

  /** Says of a run that is shown, if it is none of what the form has now. */
  #tellAge() {
    const isWaiting = this.root.hasAttribute("aria-busy") && this.asked !== this.run;
    const isOld = this.run !== null && (isWaiting || this.hasFailed || this.run.key !== keyOf(this.body));
    this.root.classList.toggle("old", isOld);
    const note = this.find(".note");
    note.hidden = !isWaiting && this.run === null; // beside a run its place is kept, so that nothing jumps
    const words = isOld ? "Below is the last run. " : "";
    const why = isWaiting ? "Waiting for the server …" : this.hasFailed ? "" : isOld ? "The request has changed since." : "";
    if (note.textContent !== words + why) note.textContent = words + why;
    this.find(".empty").hidden = isWaiting || this.run !== null;
  }

  /** Asks and shows what comes. Returns in words how that ended; `form` holds the fields that panes share. */
  async ask(path, key, body, signal, form) {
    const run = new Run(performance.now(), this.endIds);
    run.key = keyOf(body);
    this.asked = run;
    this.root.setAttribute("aria-busy", "true");
    this.find(".failure").hidden = true;
    this.#tellAge();
    try {
      for await (const { name, data } of stream(path, key, body, signal)) this.#take(run, name, data);
      run.ended = performance.now();
      this.onEnd(run);
      const { completion_tokens: tokens, diffusion } = run.usage;
      return `Pane ${this.name}: done, ${tokens} tokens in ${diffusion.forwards} forwards.`;
    } catch (error) {
      return this.#fail(error, form);
    } finally {
      run.ended ??= performance.now();
      this.root.removeAttribute("aria-busy");
      this.#tellAge();
      this.#schedule();
    }
  }

  /** Shows this run from now on: the one before stays until then, however its request is refused. */
  #begin(run) {
    this.run = run;
    this.hasFailed = false;
    this.step = 0;
    this.find(".answer").textContent = "";
    this.find(".no-text").hidden = true;
    for (const part of PARTS) this.find(part).hidden = true;
    this.#tellAge();
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.pace = isStill ? 0.01 : LIVE_PACE;
    this.last = performance.now();
  }

  #take(run, name, data) {
    if (this.run !== run) this.#begin(run);
    if (data.error) throw new Failure(data.error.message, { param: data.error.param });
    if (name === "unmask.step") {
      run.add(data.trace, performance.now());
    } else {
      for (const choice of data.choices) {
        run.text += choice.text ?? choice.delta?.content ?? "";
        run.finish = choice.finish_reason ?? run.finish;
        run.shown = choice.shown ?? run.shown;
      }
      run.usage = data.usage ?? run.usage;
      this.find(".answer").textContent = run.text.replace(/^\s+/, ""); // on the screen alone
    }
    this.#schedule();
  }

  #fail(error, form) {
    this.hasFailed = this.run !== null && this.run !== this.asked;
    const isStopped = error.name === "AbortError";
    this.find(".failure").classList.toggle("calm", isStopped);
    if (isStopped) {
      this.find(".failure").textContent = "Stopped.";
      this.find(".failure").hidden = false;
      return `Pane ${this.name}: stopped.`;
    }
    if (!(error instanceof Failure)) throw error;
    const control = error.status === 401 ? document.getElementById("key") : controlOf(error.param, this.root, form);
    if (control) showError(control, error.message);
    this.find(".failure").textContent = error.message;
    this.find(".failure").hidden = Boolean(control);
    return `Pane ${this.name}: ${error.message}`;
  }

  get canPlay() {
    return Boolean(this.run?.canvas) && !this.find(".work").hidden;
  }

  /** Replays, from the beginning if all is shown or `isFromStart`. */
  play(isFromStart = false) {
    const steps = this.run.steps.length;
    if (isFromStart || this.step >= steps) this.step = 0;
    this.pace = Math.min(Math.max(REPLAY.whole / steps, REPLAY.least), REPLAY.most) / Number(this.find(".speed").value);
    this.last = performance.now();
    this.#schedule();
  }

  #pause() {
    this.pace = null;
    this.#schedule();
  }

  #goto(step) {
    this.step = step;
    this.#schedule();
  }

  /** Draws in the next frame, however much comes before it. */
  #schedule() {
    if (this.frame === null && this.run?.canvas) this.frame = requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    this.frame = null;
    const { run } = this;
    if (!run?.canvas) return; // a new run has begun since this frame was asked for
    const steps = run.steps.length;
    const isLive = run.ended === null;
    if (this.pace !== null) {
      const due = Math.max(0, Math.floor((now - this.last) / this.pace));
      this.last += due * this.pace;
      this.step = Math.min(steps, this.step + due);
      if (isLive || this.pace === LIVE_PACE) this.step = Math.max(this.step, steps - MOST_BEHIND);
      if (this.step === steps) {
        this.last = now; // the next step that comes is shown at once
        if (!isLive) this.pace = null;
      }
      if (this.pace !== null && this.step < steps) this.#schedule();
    }
    this.#show(steps);
  }

  #show(steps) {
    const { run, step } = this;
    const isFirst = this.find(".work").hidden;
    for (const part of PARTS) this.find(part).hidden = false;
    this.view.show(run, step);
    if (isFirst) this.#reveal();
    const slider = this.find(".slider");
    slider.max = steps;
    slider.value = step;
    slider.setAttribute("aria-valuetext", `step ${step} of ${steps}`);
    this.#write(".step", `step ${step} of ${steps}`);
    this.#write(".finish", run.finish ? `finish_reason: ${run.finish}` : "");
    const isEmpty = run.ended !== null && run.finish !== null && run.text.trim() === "";
    this.find(".no-text").hidden = !isEmpty;
    this.find(".answer").hidden = isEmpty;
    this.#write(".play", this.pace === null ? "Play" : "Pause");
    const counters = run.counters(step);
    const texts = {
      ...counters,
      tokens_per_forward: counters.tokens_per_forward.toFixed(2),
      rate: counters.rate.toFixed(0),
      elapsed: `${counters.elapsed.toFixed(2)} s`,
    };
    for (const [name, text] of Object.entries(texts)) this.#write(`[data-counter=${name}]`, String(text));
  }

  #reveal() {
    // Where all stands below each other, the canvas would fill unseen.
    if (matchMedia("(max-width: 899px)").matches && this.name === "A") this.find(".replay").scrollIntoView();
    this.onShow();
  }

  #write(selector, text) {
    if (this.shown[selector] !== text) this.find(selector).textContent = this.shown[selector] = text;
  }
}

/** What makes an answer that of a request: of a conversation, all but its turns, which the answer itself changes. */
function keyOf(body) {
  return JSON.stringify({ ...body, messages: body.messages && [] });
}

/** Copies a text, and says so on the button for a moment. */
export async function copy(text, button) {
  const label = (button.dataset.label ??= button.textContent);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    byHand(text); // no clipboard over plain HTTP from another machine
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

function byHand(text) {
  const area = element("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
