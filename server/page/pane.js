// One pane: its settings, the canvas of its run, and the replay.

import { Failure, stream } from "./api.js";
import { CanvasView } from "./canvas.js";
import { curl, python } from "./code.js";
import { DiffusionFields, controlOf, element, showError } from "./fields.js";
import { Run } from "./run.js";

const LIVE_PACE = 60; // least milliseconds between two steps that are shown while they come
const MOST_BEHIND = 50; // steps that what is shown may be behind what has come
const REPLAY = { whole: 8000, least: 16, most: 400 }; // milliseconds of a replay, and bounds for each step of it
const PARTS = [".replay", ".counters", ".work"]; // what there is of a run

export class Pane {
  /** `onEnd(run)`: called with each run that is complete. */
  constructor(name, onEnd) {
    const content = document.getElementById("pane").content.cloneNode(true);
    this.name = name;
    this.onEnd = onEnd;
    this.root = content.querySelector(".pane");
    this.find = (selector) => this.root.querySelector(selector);
    this.find("h2").append("Settings ", element("span", { className: "letter", textContent: name }));
    this.root.setAttribute("aria-label", `Pane ${name}`);
    this.find(".canvas").id = `canvas-${name}`;
    this.find(".canvas").setAttribute("aria-label", `Canvas ${name}`);
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
    this.find(".play").addEventListener("click", () => (this.pace ? this.#pause() : this.#play()));
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
      target.setAttribute("aria-pressed", String(isFolded));
    });
    for (const kind of ["curl", "python"]) {
      this.find(`.copy-${kind}`).setAttribute("aria-label", `Copy ${kind} of pane ${this.name}`);
      this.find(`.copy-${kind}`).addEventListener("click", ({ target }) => copy(this.find(`.${kind}`).textContent, target));
    }
  }

  /** Shows what a request of this pane is elsewhere. */
  tell(url, body, hasKey, model) {
    this.find(".curl").textContent = curl(url, body, hasKey);
    this.find(".python").textContent = python(url, body, model);
    const count = Object.keys(this.fields.changed()).filter((name) => name !== "cache" && name !== "unmask").length;
    this.find(".changed").textContent = count ? `(${count} changed)` : "";
  }

  /** Asks and shows what comes. Returns in words how that ended; `form` holds the fields that panes share. */
  async ask(path, key, body, signal, form) {
    const run = new Run(performance.now());
    this.root.setAttribute("aria-busy", "true");
    this.find(".failure").hidden = true;
    try {
      for await (const { name, data } of stream(path, key, body, signal)) this.#take(run, name, data);
      run.ended = performance.now();
      this.find(".answer").textContent = run.text;
      this.onEnd(run);
      const { completion_tokens: tokens, diffusion } = run.usage;
      return `Pane ${this.name}: done, ${tokens} tokens in ${diffusion.forwards} forwards.`;
    } catch (error) {
      return this.#fail(error, form);
    } finally {
      run.ended ??= performance.now();
      this.#schedule();
      this.root.removeAttribute("aria-busy");
    }
  }

  /** Shows this run from now on: the one before stays until then, however its request is refused. */
  #begin(run) {
    this.run = run;
    this.step = 0;
    this.find(".answer").textContent = "";
    for (const part of PARTS) this.find(part).hidden = true;
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
      }
      run.usage = data.usage ?? run.usage;
      this.find(".answer").textContent = run.text;
    }
    this.#schedule();
  }

  #fail(error, form) {
    if (error.name === "AbortError") {
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

  #play() {
    const steps = this.run.steps.length;
    if (this.step >= steps) this.step = 0;
    this.pace = Math.min(Math.max(REPLAY.whole / steps, REPLAY.least), REPLAY.most);
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
    if (!run.canvas) return; // a new run has begun since this frame was asked for
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
    if (this.find(".work").hidden) this.#reveal();
    this.view.show(run, step);
    const slider = this.find(".slider");
    slider.max = steps;
    slider.value = step;
    slider.setAttribute("aria-valuetext", `step ${step} of ${steps}`);
    this.#write(".step", `step ${step} of ${steps}`);
    this.#write(".finish", run.finish ? `finish_reason: ${run.finish}` : "");
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
    for (const part of PARTS) this.find(part).hidden = false;
    // Where all stands below each other, the canvas would fill unseen.
    if (matchMedia("(max-width: 899px)").matches && this.name === "A") this.find(".replay").scrollIntoView();
  }

  #write(selector, text) {
    if (this.shown[selector] !== text) this.find(selector).textContent = this.shown[selector] = text;
  }
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
