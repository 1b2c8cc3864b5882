// The protocol: what the page asks, by name, and what the engine answers. Any engine behind these
// methods will do; this one computes in the page, and `worker.js` puts it into a worker.

import { Dual } from "./contrastive.js";
import { Generator } from "./generation.js";
import { ObjectGrammar } from "./grammar.js";
import { MaskCodec } from "./mask_codec.js";
import { PaliGemma } from "./paligemma.js";
import { parseBoxes, splitLabels } from "./boxes.js";
import { Processor } from "./processing.js";
import { logProbability, probabilities } from "./sampling.js";
import { readSafetensors } from "./safetensors.js";
import * as trace from "./trace.js";
import * as weights from "./weights.js";

/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {import("./generation.js").Run} Run */
/** @typedef {import("./processing.js").Picture} Picture */
/** @typedef {import("./trace.js").Part} Part */
/** @typedef {{config: any, tokenizer: any, weights: ArrayBuffer, preprocessor?: any}} ModelFiles */
/** @typedef {{config: any, tokenizer: any, weights: ArrayBuffer}} DualFiles */

const KEPT = 10; // runs that can still be asked about, and pictures

export class Lab {
  constructor() {
    /** @type {Map<number, Run>} */
    this.runs = new Map();
    this.next = 1;
    /** @type {number[]} runs that stay whatever comes after them */
    this.held = [];
    /** @type {{key: string, generator: Generator} | null} the last model in fewer bits */
    this.rounded = null;
    /** @type {Map<string, Picture>} by what the page calls them */
    this.pictures = new Map();
  }

  /** @param {ModelFiles} files @param {BufferSource | null} wasm
   * @param {number} more bytes of weights, as float32, that `addWeights` brings later */
  load(files, wasm, more = 0) {
    const { tensors } = readSafetensors(files.weights);
    this.make = (/** @type {import("./safetensors.js").Tensors} */ own) =>
      new PaliGemma(files.config, own, wasm);
    this.model = new PaliGemma(files.config, tensors, wasm, more);
    this.processor = new Processor(files.tokenizer, this.model.config, files.preprocessor);
    this.generator = new Generator(this.model, this.processor);
    return { config: this.model.config, simd: Boolean(this.model.kernel.product) };
  }

  /** The decoder's weights, where `load` was given the tower's alone. @param {ArrayBuffer} file */
  addWeights(file) {
    this.whole.add(readSafetensors(file).tensors);
  }

  /** What turns sixteen codes into a mask. @param {ArrayBuffer} file */
  loadCodec(file) {
    this.codec = new MaskCodec(readSafetensors(file).tensors);
  }

  /** The tower's part of a run, ahead of it. @param {{picture: string, edits?: Edits}} request */
  look({ picture, edits = {} }) {
    const seen = this.pictures.get(picture);
    if (seen && !edits.bits) this.generator?.look(seen, edits);
  }

  /** @param {DualFiles} files @param {BufferSource | null} wasm */
  loadDual(files, wasm) {
    const { tensors } = readSafetensors(files.weights);
    this.dual = new Dual(files.config, tensors, wasm, files.tokenizer);
    const { scale, bias, isClip } = this.dual;
    return { scale, bias, isClip };
  }

  /** A picture by a name, for the runs that follow. @param {string} name @param {Picture} picture */
  picture(name, picture) {
    this.pictures.set(name, picture);
    const names = [...this.pictures.keys()];
    for (const old of names.slice(0, Math.max(0, names.length - KEPT))) this.pictures.delete(old);
  }

  /** @param {number} number @returns {Run} */
  found(number) {
    const run = this.runs.get(number);
    if (!run) throw new Error(`run ${number} is no longer kept`);
    return run;
  }

  /**
   * Answers a prompt about a picture: what the page shows, and the number to ask more with.
   * @param {{picture: string, prompt: string, edits?: Edits, sampling?: any, forced?: number[],
   *   grammar?: boolean, maxNewTokens?: number}} request
   */
  run({ picture, prompt, edits = {}, sampling, forced, grammar = false, maxNewTokens = 96 }) {
    if (!this.generator || !this.processor || !this.model) throw new Error("no model is loaded");
    const seen = this.pictures.get(picture);
    if (!seen) throw new Error(`there is no picture ${picture}`);
    const task = /^(detect|segment) (.*)$/s.exec(prompt);
    const labels = task ? splitLabels(task[2]) : [];
    const held = grammar && task && labels.length;
    const rule = held ? new ObjectGrammar(this.processor, labels, task[1] === "segment") : null;
    const request = { prompt, edits, sampling, forced, grammar: rule, maxNewTokens };
    const run = this.generatorFor(edits).run(seen, request);
    const number = this.next++;
    this.runs.set(number, run);
    const loose = [...this.runs.keys()].filter((old) => !this.held.includes(old));
    for (const old of loose.slice(0, -KEPT)) this.runs.delete(old);
    const { processor } = this;
    const boxes = parseBoxes(run.text).map((box) => ({
      ...box,
      mask: box.codes && this.codec ? this.codec.decode(box.codes) : null,
    }));
    return {
      run: number,
      prompt: run.prompt,
      promptWords: run.prompt.map((id) => processor.spell(id)),
      answer: run.answer,
      answerWords: run.answer.map((id) => processor.spell(id)),
      logProbabilities: run.logProbabilities,
      text: run.text,
      ended: run.ended,
      boxes,
      length: run.cache.length,
      milliseconds: run.milliseconds,
    };
  }

  /** What answers with these edits: weights in fewer bits are a model of their own, the last of which
   * is kept. @param {Edits} edits @returns {Generator} */
  generatorFor({ bits }) {
    const { model, make, processor } = this;
    if (!this.generator || !model || !make || !processor) throw new Error("no model is loaded");
    if (!bits) return this.generator;
    const key = JSON.stringify([bits.bits, bits.group, bits.part]);
    if (this.rounded?.key !== key) {
      const own = make(weights.roundedTensors(model.tensors, bits));
      this.rounded = { key, generator: new Generator(own, processor) };
      // Runs of an earlier one would keep all its weights.
      for (const [number, run] of this.runs) if (run.model !== model) this.runs.delete(number);
    }
    return this.rounded.generator;
  }

  /** Keeps a run when newer ones push the old out; the last eight such. @param {{run: number}} which */
  keep({ run }) {
    this.held = [...this.held.filter((one) => one !== run), run].slice(-8);
  }

  /** Everyone's weights in one head: T × S.
   * @param {{run: number, part: Part, layer: number, head: number}} which */
  attention({ run, part, layer, head }) {
    return trace.attention(this.found(run), part, layer, head);
  }

  /** One row (or, `to`, one column) of every head of a part: layers × heads of S (or T) numbers.
   * @param {{run: number, part: Part, token: number, to?: boolean}} which */
  heads({ run, part, token, to = false }) {
    const found = this.found(run);
    const { config } = found.model;
    const { layers, heads } = part === "tower" ? config.vision : config.text;
    return Array.from({ length: layers }, (_, layer) =>
      Array.from({ length: heads }, (_, head) => {
        if (!to) return trace.attentionRow(found, part, layer, head, token);
        const { T, S } = trace.headsOf(found, part, layer);
        const all = trace.attention(found, part, layer, head);
        return Float32Array.from({ length: T }, (_, t) => all[t * S + token]);
      }),
    );
  }

  /** @param {{run: number, part: Part, layer: number, head: number, row: number, column: number}} which */
  cell({ run, part, layer, head, row, column }) {
    return trace.cell(this.found(run), part, layer, head, row, column);
  }

  /** @param {{run: number, part: Part, layer: number}} which */
  hidden({ run, part, layer }) {
    return trace.hidden(this.found(run), part, layer).slice();
  }

  /** Layers × positions: the likeliest words had the decoder ended there.
   * @param {{run: number, positions: number[], k?: number}} which */
  lens({ run, positions, k = 3 }) {
    const found = this.found(run);
    return Array.from({ length: found.model.config.text.layers + 1 }, (_, i) =>
      trace.lens(found, i - 1, positions, k),
    );
  }

  /** Before an answer's word: logits of all words, and which of them the grammar allowed.
   * @param {{run: number, step: number}} which */
  logits({ run, step }) {
    const found = this.found(run);
    return { logits: found.logits[step], allowed: found.allowed[step] ?? null };
  }

  /** The likeliest words before an answer's word. @param {{run: number, step: number, k?: number}} which */
  top({ run, step, k = 10 }) {
    const found = this.found(run);
    return trace.candidates(found, found.logits[step], k);
  }

  /** For the four edges of a box: probabilities of the 1024 places. @param {{run: number, first: number}} which */
  edges({ run, first }) {
    const found = this.found(run);
    const { firstLocation } = found.processor;
    return [0, 1, 2, 3].map((i) =>
      probabilities(found.logits[first + i]).slice(firstLocation, firstLocation + 1024),
    );
  }

  /** The vector to paste: a token's stream after a layer. @param {{run: number, layer: number, position: number}} which */
  patch({ run, layer, position }) {
    const { width } = this.found(run).model.config.text;
    const stream = trace.hidden(this.found(run), "decoder", layer);
    return Array.from(stream.subarray(position * width, (position + 1) * width));
  }

  /** @param {{run: number, position: number, id: number}} which */
  attribution({ run, position, id }) {
    return trace.attribution(this.found(run), position, id);
  }

  /** @param {{run: number, other: number}} which */
  moved({ run, other }) {
    return trace.moved(this.found(run), this.found(other));
  }

  /** log p of given words after each other, from a step on, were they said. @param {{run: number, step: number, ids: number[]}} which */
  score({ run, step, ids }) {
    const found = this.found(run);
    return ids.map((id, i) => logProbability(found.logits[step + i], id));
  }

  /** T × S: 1 where the mask lets a token look. @param {{run: number}} which */
  mask({ run }) {
    const found = this.found(run);
    const T = found.cache.length;
    return Uint8Array.from({ length: T * T }, (_, i) =>
      Number(found.mask(Math.floor(i / T), i % T)),
    );
  }

  /** @param {{run: number, layer: number, head: number, most: number, span: [number, number]}} which */
  distances({ run, layer, head, most, span }) {
    return trace.scoreByDistance(this.found(run), layer, head, most, span);
  }

  /** Keys and values that the cache holds for a layer: T × (K · d) each. @param {{run: number, layer: number}} which */
  cache({ run, layer }) {
    const { k, v } = this.found(run).cache.layers[layer];
    return { k: k.values.slice(), v: v.values.slice(), width: k.width };
  }

  /** What an answer becomes if a prompt's word is exchanged after the prompt was run: "stale" leaves
   * the cache as it is, "column" exchanges the word's own key and value alone.
   * @param {{run: number, position: number, id: number, how: "stale" | "column"}} which */
  exchanged({ run, position, id, how }) {
    return trace.exchanged(this.found(run), position, id, how);
  }

  /** @param {{run: number, part: Part, layer: number, first: number, count: number, k?: number}} which */
  components({ run, part, layer, first, count, k = 3 }) {
    return trace.components(this.found(run), part, layer, first, count, k);
  }

  /** @param {{run: number, part: Part, layer: number, token: number, first: number, count: number}} which */
  similar({ run, part, layer, token, first, count }) {
    return trace.similar(this.found(run), part, layer, token, first, count);
  }

  /** @param {{run: number, part: Part, position: number}} which */
  stream({ run, part, position }) {
    return trace.stream(this.found(run), part, position);
  }

  /** @param {{run: number, layer: number, position: number, k?: number}} which */
  neurons({ run, layer, position, k = 8 }) {
    return trace.neurons(this.found(run), layer, position, k);
  }

  /** @param {{run: number, patch: number}} which */
  projected({ run, patch }) {
    return trace.projected(this.found(run), patch);
  }

  // The weights alone

  get whole() {
    if (!this.model) throw new Error("no model is loaded");
    return this.model;
  }

  filters() {
    return weights.filters(this.whole);
  }

  matrices() {
    return weights.matrices(this.whole.tensors);
  }

  /** @param {{name: string, bits: number, group?: number}} which */
  matrix({ name, bits, group = 0 }) {
    return weights.matrix(this.whole.tensors, name, bits, group);
  }

  /** @param {{id: number, k?: number}} which */
  nearest({ id, k = 8 }) {
    const { norm, nearest } = weights.nearest(this.whole, id, k);
    const spell = (/** @type {number} */ one) => this.processor?.spell(one);
    return { norm, nearest: nearest.map((one) => ({ ...one, word: spell(one.id) })) };
  }

  /** @param {{ids: number[], k?: number}} which */
  tableComponents({ ids, k = 2 }) {
    return weights.tableComponents(this.whole, ids, k);
  }

  measure() {
    return weights.measure(this.whole);
  }

  // Words and masks

  /** @param {{codes: number[]}} which */
  decodeMask({ codes }) {
    if (!this.codec) throw new Error("this model has no mask codec");
    return this.codec.decode(codes);
  }

  /** What ids are called, by id. @param {{ids: number[]}} which @returns {Record<number, string>} */
  words({ ids }) {
    return Object.fromEntries(
      ids.map((id) => [id, /** @type {Processor} */ (this.processor).spell(id)]),
    );
  }

  /** @param {{text: string}} which */
  tokenize({ text }) {
    if (!this.processor) throw new Error("no model is loaded");
    const ids = this.processor.tokenizer.encodePlain(text);
    return { ids, words: ids.map((id) => this.processor?.spell(id)) };
  }

  /** A text's pieces as they merge: first its characters, or their bytes, then after each merge.
   * @param {{text: string}} which @returns {{steps: string[][]}} */
  merges({ text }) {
    const { processor } = this;
    if (!processor) throw new Error("no model is loaded");
    /** @type {string[][]} */
    const steps = [];
    processor.tokenizer.merged(text, (ids) => steps.push(ids.map((id) => processor.spell(id))));
    return { steps };
  }

  /** Ids that `<loc0000>` and `<seg000>` start at, and the end. */
  ids() {
    const { firstLocation, firstCode, eos } = /** @type {Processor} */ (this.processor);
    return { firstLocation, firstCode, eos };
  }

  /** @param {{pictures: string[], texts: string[]}} given */
  embed({ pictures, texts }) {
    const { dual } = this;
    if (!dual) throw new Error("the dual encoder is not loaded");
    const seen = pictures.map((name) => /** @type {Picture} */ (this.pictures.get(name)));
    return {
      pictures: seen.map((picture) => dual.embedPicture(picture)),
      texts: texts.map((text) => dual.embedText(text)),
    };
  }
}
