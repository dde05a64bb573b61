// The canvas as cells. Cells are of one size, so that a token in place of a mask moves nothing, and only those that
// changed are touched.

const KEYS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

/** Draws steps of a run into `root`, a listbox, and tells of the cell under the pointer or the cursor in `readout`. */
export class CanvasView {
  constructor(root, readout) {
    this.root = root;
    this.readout = readout;
    this.run = null;
    this.step = 0;
    this.cells = []; // elements
    this.drawn = []; // what each of them shows
    this.cursor = -1;
    root.addEventListener("keydown", (event) => this.#move(event));
    root.addEventListener("focus", () => this.#select(this.cursor < 0 ? this.#first() : this.cursor));
    root.addEventListener("pointerover", (event) => this.#tell(this.cells.indexOf(event.target)));
    root.addEventListener("pointerleave", () => this.#tell(this.cursor));
    root.addEventListener("click", (event) => this.#select(this.cells.indexOf(event.target)));
  }

  /** Draws the canvas after a step. */
  show(run, step) {
    if (run !== this.run || this.cells.length !== run.size) this.#begin(run);
    this.step = step;
    run.cells(step).forEach((cell, position) => this.#draw(position, cell));
    this.#follow(run.steps[step - 1]?.block[0]);
    this.#tell(this.cursor);
  }

  /** Brings the open block into view when it has changed: to ask for places each time would cost a layout. */
  #follow(block) {
    if (block === this.block) return;
    this.block = block;
    const { root } = this;
    const top = block === undefined ? 0 : this.cells[block].offsetTop;
    if (top < root.scrollTop || top > root.scrollTop + root.clientHeight * 0.7) root.scrollTop = top - root.clientHeight * 0.3;
  }

  #begin(run) {
    this.run = run;
    this.block = undefined;
    this.cursor = -1;
    this.root.removeAttribute("aria-activedescendant");
    this.drawn = Array.from({ length: run.size }, () => ({}));
    this.cells = this.drawn.map((_, position) => {
      const cell = document.createElement("div");
      cell.id = `${this.root.id}-${position}`;
      cell.setAttribute("role", "option");
      cell.setAttribute("aria-selected", "false");
      return cell;
    });
    this.root.replaceChildren(...this.cells);
  }

  #draw(position, { kind, text, step, level, marks }) {
    const element = this.cells[position];
    const drawn = this.drawn[position];
    const look = ["cell", kind, ...(level === undefined ? [] : [`level-${level}`]), ...marks].join(" ");
    if (drawn.look !== look) element.className = drawn.look = look;
    if (drawn.kind !== kind || drawn.text !== text) {
      element.textContent = kind === "mask" ? "" : legible(text);
      if (kind === "mask") element.setAttribute("aria-label", "mask");
      else element.removeAttribute("aria-label");
      Object.assign(drawn, { kind, text });
    }
    if (drawn.step !== step) {
      if (step === undefined) delete element.dataset.step;
      else element.dataset.step = step;
      drawn.step = step;
    }
  }

  #first() {
    return this.cells.findIndex((cell) => cell.offsetParent !== null && !cell.classList.contains("prompt"));
  }

  #move(event) {
    const visible = this.cells.filter((cell) => cell.offsetParent !== null);
    const at = visible.indexOf(this.cells[this.cursor]);
    const columns = visible.findIndex((cell) => cell.offsetTop > visible[0].offsetTop);
    const by = { ...KEYS, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (by === undefined || !visible.length) return;
    event.preventDefault();
    const to = Math.min(Math.max(at + by, 0), visible.length - 1);
    this.#select(this.cells.indexOf(visible[to]));
  }

  #select(position) {
    if (position < 0) return;
    this.cells[this.cursor]?.setAttribute("aria-selected", "false");
    this.cursor = position;
    const cell = this.cells[position];
    cell.setAttribute("aria-selected", "true");
    this.root.setAttribute("aria-activedescendant", cell.id);
    cell.scrollIntoView({ block: "nearest" });
    this.#tell(position);
  }

  #tell(position) {
    const text = this.run && position >= 0 ? this.#words(position) : "Point at a cell, or move here with Tab and arrows.";
    if (this.readout.textContent !== text) this.readout.textContent = text;
  }

  /** One cell in words: position, token, step, confidence. */
  #words(position) {
    const { run, step } = this;
    const token = run.prompt[position];
    if (token !== undefined) {
      const shared = position < run.canvas.cached_tokens ? ", not computed again" : "";
      return `position ${position}: ${JSON.stringify(token)}, of the prompt${shared}`;
    }
    const write = run.written(position, step);
    if (!write) return `position ${position}: mask`;
    const percent = (100 * write.confidence).toFixed(1);
    return `position ${position}: ${JSON.stringify(write.token)} (${write.id}), step ${write.step}, confidence ${percent} %`;
  }
}

/** A token's text as a cell shows it: blanks that would not be seen have signs. */
function legible(text) {
  const shown = text.replace(/^ /, "").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return shown.trim() ? shown : shown.replaceAll(" ", "␣") || "␣";
}
