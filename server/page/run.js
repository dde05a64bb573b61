// A run: what one stream has told so far, and what any step of it looks like. Knows no document and no network.

const LEVELS = [0.5, 0.7, 0.9, 0.99]; // where the next colour of a confidence begins

/** What the steps of one answer did. Steps count from 1; step 0 is the canvas before the first. */
export class Run {
  /** `endIds`: tokens that end an answer; `started`: milliseconds, as all times here. */
  constructor(started, endIds = []) {
    this.started = started;
    this.endIds = endIds;
    this.ended = null;
    this.steps = [];
    this.text = "";
    this.usage = null;
    this.finish = null;
    this.shown = null; // ranges of positions that the text shows, once the choice is complete
    this.canvas = null;
    this.prompt = []; // by position: a token of the prompt, or undefined where there is something to fill
    this.writes = []; // by position: what was decoded there, in the order of steps
    this.blocks = new Map(); // first position of a block: the step that opened it
    this.totals = [{ rows: 0, time: started }]; // up to each step
  }

  /** Takes in the `trace` of one event. */
  add(step, time) {
    if (step.canvas) this.#lay(step.canvas);
    this.steps.push(step);
    const number = this.steps.length;
    step.positions.forEach((position, at) => {
      this.writes[position].push({
        step: number,
        token: step.tokens[at],
        id: step.token_ids[at],
        confidence: step.confidences[at],
      });
    });
    if (!this.blocks.has(step.block[0])) this.blocks.set(step.block[0], number);
    const before = this.totals.at(-1);
    this.totals.push({
      rows: before.rows + step.rows.reduce((sum, [start, end]) => sum + end - start, 0),
      time,
    });
  }

  #lay(canvas) {
    this.canvas = canvas;
    const isAnswer = new Array(canvas.end).fill(false);
    for (const [start, end] of canvas.answer) isAnswer.fill(true, start, end);
    let next = 0;
    this.prompt = isAnswer.map((answer) => (answer ? undefined : canvas.prompt[next++]));
    this.writes = Array.from({ length: canvas.end }, () => []);
  }

  get size() {
    return this.canvas ? this.canvas.end : 0;
  }

  /** One past the answer's last token, once the answer is complete; holes have no end of their own. */
  get end() {
    if (!this.usage || this.canvas.answer.length !== 1) return null;
    const end = this.canvas.answer[0][0] + this.usage.completion_tokens;
    return end < this.canvas.output_end ? end : null;
  }

  /** The last thing decoded at a position up to a step, or undefined. */
  written(position, step) {
    return this.writes[position].findLast((write) => write.step <= step);
  }

  /** What each cell shows after a step: an array of {kind, text, step, level, marks}. */
  cells(step) {
    const { cached_tokens: cached, output_end: outputEnd } = this.canvas;
    const told = this.steps[step - 1];
    const computed = new Uint8Array(this.size);
    for (const [start, end] of told ? told.rows : []) computed.fill(1, start, end);
    const [open, close] = told ? told.block : [0, 0];
    const end = this.end;
    // The end is known once its position is decoded, or nothing is decoded any more.
    const isEnded = end !== null && (step === this.steps.length || this.written(end, step) !== undefined);
    return this.prompt.map((token, position) => {
      const write = token === undefined ? this.written(position, step) : undefined;
      const inBlock = position >= open && position < close;
      const marks = [];
      if (token !== undefined && position < cached) marks.push("shared");
      if (write && write.step === step) marks.push("fresh");
      if (inBlock) marks.push("open");
      if (this.blocks.get(position) <= step) marks.push("block");
      if (computed[position]) marks.push(inBlock ? "computed" : "refreshed");
      if (isEnded && position === end) marks.push("end");
      if (token === undefined && (position >= outputEnd || (isEnded && position > end))) marks.push("beyond");
      if (token !== undefined) return { kind: "prompt", text: token, marks };
      if (write) return { kind: "token", text: write.token, step: write.step, level: level(write.confidence), marks };
      if (told && position >= told.visible_end) marks.push("unseen");
      return { kind: "mask", text: "", marks };
    });
  }

  /**
   * The answer's tokens that are decoded up to a step: those that its text shows. Until it is complete, where it ends is
   * known only from tokens that end it.
   */
  tokens(step) {
    const written = (position) => this.written(position, step);
    const isEnd = (position) => this.endIds.includes(written(position)?.id);
    let count = 0;
    for (const [start, end] of this.shown ?? this.canvas.answer) {
      for (let position = start; position < end && (this.shown || !isEnd(position)); position++) count += written(position) ? 1 : 0;
    }
    return count;
  }

  /** What has been spent up to a step; after the last one as `usage` tells it. */
  counters(step) {
    const { rows, time } = this.totals[step];
    const isWhole = this.usage && this.ended !== null && step === this.steps.length;
    const seconds = ((isWhole ? this.ended : time) - this.started) / 1000;
    const diffusion = isWhole ? this.usage.diffusion : null;
    const told = isWhole ? this.usage.completion_tokens : this.tokens(step);
    return {
      forwards: diffusion ? diffusion.forwards : step,
      tokens_per_forward: diffusion ? diffusion.tokens_per_forward : step ? told / step : 0,
      rows_computed: diffusion ? diffusion.rows_computed : rows,
      cached_tokens: isWhole ? this.usage.prompt_tokens_details.cached_tokens : this.canvas.cached_tokens,
      rate: seconds > 0 ? told / seconds : 0,
      elapsed: seconds,
    };
  }
}

/** The number of a confidence's colour, 0 to 4. */
export function level(confidence) {
  return LEVELS.filter((bound) => confidence >= bound).length;
}
