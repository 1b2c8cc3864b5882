// 6 · The loop: prefill once, then decode token by token; see generation.py.

import { towerKey } from "./edits.js";
import { allow } from "./grammar.js";
import { argmax, distribution, draw, logProbability, uniforms } from "./sampling.js";

/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {import("./grammar.js").ObjectGrammar} ObjectGrammar */
/** @typedef {import("./paligemma.js").PaliGemma} PaliGemma */
/** @typedef {import("./processing.js").Processor} Processor */
/** @typedef {import("./processing.js").Picture} Picture */
/** @typedef {import("./sampling.js").Sampling} Sampling */
/**
 * @typedef {object} Request
 * @property {string} prompt
 * @property {Edits} [edits]
 * @property {Sampling & {seed?: number}} [sampling] greedy by default
 * @property {number[]} [forced] the answer's first tokens, said whatever the model thinks
 * @property {ObjectGrammar | null} [grammar] what the answer keeps to
 * @property {number} [maxNewTokens]
 */

/** @typedef {{picture: Picture, key: string, tower: import("./siglip.js").TowerRecord,
 *   milliseconds: number}} Seen what the tower saw, and how long it took; 0 once a run has told */

const now = () => performance.now();

/** A prompt with its answer, and everything on the way. */
export class Run {
  /** @param {PaliGemma} model @param {Processor} processor @param {Request} request */
  constructor(model, processor, request) {
    this.model = model;
    this.processor = processor;
    this.request = request;
    this.edits = request.edits ?? {};
    this.prompt = processor.encodePrefix(request.prompt, this.edits);
    /** @type {number[]} the answer; <eos> is its last if it ended by itself */
    this.answer = [];
    /** @type {Float32Array[]} before each answer token: logits of the words */
    this.logits = [];
    /** @type {(import("./grammar.js").Allowed | null)[]} what the grammar allowed there */
    this.allowed = [];
    this.ended = false;
    this.cache = model.decoder.newCache();
    this.mask = model.mask(this.prompt, this.edits);
    this.milliseconds = { tower: 0, prefill: 0, decode: 0 };
    /** @type {import("./siglip.js").TowerRecord | null} */
    this.tower = null;
  }

  /** All tokens that went through the decoder. */
  get ids() {
    return [...this.prompt, ...this.answer].slice(0, this.cache.length);
  }

  /** @param {Float32Array} hidden */
  keepLogits(hidden) {
    const { width } = this.model.config.text;
    const all = this.model.decoder.logits(hidden.subarray(hidden.length - width));
    this.logits.push(all.slice(0, this.model.config.words));
  }

  /** The tower and the prompt. @param {import("./siglip.js").TowerRecord} tower */
  prefill(tower) {
    const begun = now();
    this.tower = tower;
    const features = this.model.project(tower.features, this.edits);
    this.keepLogits(this.model.prefill(this.prompt, features, this.cache, this.edits));
    this.milliseconds.prefill = now() - begun;
  }

  /** One more token through the decoder. @param {number} id */
  extend(id) {
    const x = this.model.decoder.embed([id], this.edits);
    this.keepLogits(this.model.decoder.extend(x, this.cache, this.mask, this.edits));
  }

  /** Answers to the end, or to the limit. */
  generate() {
    const begun = now();
    const { grammar = null, sampling = {}, forced = [], maxNewTokens = 256 } = this.request;
    const limit = Math.min(maxNewTokens, this.model.config.text.limit - this.prompt.length);
    const uniform = uniforms(sampling.seed ?? 0);
    let state = grammar?.start() ?? null;
    for (let step = 0; step < limit; step++) {
      const allowed = state?.allowed(limit - step) ?? null;
      const logits = allowed ? allow(this.logits[step], allowed) : this.logits[step];
      const greedy = !sampling.temperature;
      const id =
        forced[step] ?? (greedy ? argmax(logits) : draw(distribution(logits, sampling), uniform()));
      this.allowed.push(allowed);
      this.answer.push(id);
      if (id === this.model.config.eos) {
        this.ended = true;
        break;
      }
      if (step + 1 === limit) break;
      state = state?.after(id) ?? null;
      this.extend(id);
    }
    this.milliseconds.decode = now() - begun;
    return this;
  }

  get text() {
    return this.processor.decode(this.answer);
  }

  /** log p of each answer token, among all words. */
  get logProbabilities() {
    return this.answer.map((id, step) => logProbability(this.logits[step], id));
  }
}

/** Runs prompts about pictures, and keeps the features of the last picture. */
export class Generator {
  /** @param {PaliGemma} model @param {Processor} processor */
  constructor(model, processor) {
    this.model = model;
    this.processor = processor;
    /** @type {Seen[]} */
    this.kept = [];
  }

  /** What the tower sees in a picture under these edits. @param {Picture} picture @param {Edits} edits */
  look(picture, edits) {
    const key = towerKey(edits);
    let found = this.kept.find((one) => one.picture === picture && one.key === key);
    if (!found) {
      const begun = now();
      const tower = this.model.tower.forward(this.processor.pixels(picture, edits), edits);
      found = { picture, key, tower, milliseconds: now() - begun };
      this.kept = [found, ...this.kept].slice(0, 4);
    }
    return found;
  }

  /** @param {Picture} picture @param {Request} request */
  run(picture, request) {
    const seen = this.look(picture, request.edits ?? {});
    const run = new Run(this.model, this.processor, request);
    run.milliseconds.tower = seen.milliseconds;
    seen.milliseconds = 0; // the next run finds it kept
    run.prefill(seen.tower);
    return run.generate();
  }
}
