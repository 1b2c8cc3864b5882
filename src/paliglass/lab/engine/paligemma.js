// 3 · PaliGemma (arXiv 2407.07726): picture and words in one sequence; see modeling_paligemma.py.
//
//     pixels ─ tower ─ projector ─┐
//                             merge ─ decoder ─ logits
//     ids ──── embedding ─────────┘

import { readConfig } from "./config.js";
import { Gemma } from "./gemma.js";
import { Kernel } from "./kernel.js";
import { maskOf } from "./layers/masks.js";
import { SigLip } from "./siglip.js";

/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {import("./layers/kv_cache.js").KVCache} KVCache */
/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {import("./siglip.js").TowerRecord} TowerRecord */

export class PaliGemma {
  /** @param {any} config config.json's data @param {Tensors} tensors
   * @param {BufferSource | null} wasm kernel.wasm; null: plain JavaScript
   * @param {number} more bytes, as float32, of tensors that `add` is given later */
  constructor(config, tensors, wasm, more = 0) {
    this.config = readConfig(config);
    this.tensors = tensors;
    this.kernel = new Kernel(tensors, wasm, more);
    this.tower = new SigLip(this.config.vision, tensors, this.kernel, "vision_tower.vision_model.");
    this.decoder = new Gemma(this.config.text, tensors, this.kernel);
  }

  /** More weights: the tower can look before the decoder's are there. @param {Tensors} tensors */
  add(tensors) {
    this.kernel.hold(tensors);
    Object.assign(this.tensors, tensors);
  }

  /** P × D_vision → P × D, as the decoder takes them.
   * @param {Float32Array} features @param {Edits} edits */
  project(features, edits = {}) {
    const [w, b] = ["weight", "bias"].map(
      (part) => this.tensors[`multi_modal_projector.linear.${part}`].data,
    );
    const { vision, text, patches } = this.config;
    const x = this.kernel.linear(features, patches, w, b, vision.width, text.width);
    return changeFeatures(x, text.width, edits);
  }

  /** Ids, with features in the places of `<image>`: T × D.
   * @param {number[]} ids @param {Float32Array} features @param {Edits} edits */
  embed(ids, features, edits = {}) {
    const { imageToken, text } = this.config;
    const x = this.decoder.embed(
      ids.map((id) => (id === imageToken ? 0 : id)),
      edits,
    );
    let next = 0;
    ids.forEach((id, t) => {
      if (id !== imageToken) return;
      x.set(features.subarray(next, next + text.width), t * text.width);
      next += text.width;
    });
    if (next !== features.length)
      throw new Error("ids and features differ in their number of patches");
    return x;
  }

  /** The prompt through the decoder: an empty cache is filled. T × D after the last norm.
   * @param {number[]} ids @param {Float32Array} features @param {KVCache} cache @param {Edits} edits */
  prefill(ids, features, cache, edits = {}) {
    return this.decoder.extend(
      this.embed(ids, features, edits),
      cache,
      this.mask(ids, edits),
      edits,
    );
  }

  /** The mask of a prompt and what follows it. @param {number[]} ids @param {Edits} edits */
  mask(ids, edits = {}) {
    const picture = ids.filter((id) => id === this.config.imageToken).length;
    return maskOf(ids.length, picture, edits.mask);
  }
}

/** Features as the edits want them: scaled, shuffled (by a fixed order), pooled or zero.
 * @param {Float32Array} x P × D @param {number} width @param {Edits} edits */
export function changeFeatures(x, width, edits) {
  const P = x.length / width;
  if (edits.scaleFeatures) for (let i = 0; i < x.length; i++) x[i] *= Math.sqrt(width);
  if (edits.features === "zero") x.fill(0);
  if (edits.features === "shuffled") {
    const from = x.slice();
    shuffledOrder(P).forEach((p, i) => x.set(from.subarray(p * width, (p + 1) * width), i * width));
  }
  if (edits.features === "pooled") {
    const mean = new Float32Array(width);
    for (let i = 0; i < x.length; i++) mean[i % width] += x[i] / P;
    for (let p = 0; p < P; p++) x.set(mean, p * width);
  }
  return x;
}

/** One order of 0 … n − 1, always the same: Fisher and Yates with a small linear generator.
 * @param {number} n */
export function shuffledOrder(n) {
  const order = Array.from({ length: n }, (_, i) => i);
  let state = 1;
  for (let i = n - 1; i > 0; i--) {
    state = (state * 48271) % 2147483647;
    const j = state % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
