// 4 · The decoder: Gemma (arXiv 2403.08295) and Gemma 2 (arXiv 2408.00118); see modeling_gemma.py.
// RMSNorm with weights offset from 1, shared key/value heads, GeGLU, an output layer that is the
// embedding table. Gemma 2 also normalises what attention and MLP return, and caps scores and logits.

import { isOff, neuronsOff } from "./edits.js";
import { activate } from "./layers/activations.js";
import { attend } from "./layers/attention.js";
import { KVCache } from "./layers/kv_cache.js";
import { rmsNorm } from "./layers/norms.js";
import { applyRotary } from "./layers/rope.js";
import { weightsUnder } from "./safetensors.js";
import { add } from "./siglip.js";

/** @typedef {import("./config.js").TextConfig} TextConfig */
/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {import("./kernel.js").Kernel} Kernel */
/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {import("./layers/attention.js").Heads} Heads */
/** @typedef {import("./layers/attention.js").Mask} Mask */

export class Gemma {
  /** @param {TextConfig} config @param {Tensors} tensors @param {Kernel} kernel @param {string} prefix */
  constructor(config, tensors, kernel, prefix = "language_model.model.") {
    this.config = config;
    this.kernel = kernel;
    this.weight = weightsUnder(tensors, prefix);
  }

  /** @param {string} name @param {Float32Array} x @param {number} inputs @param {number} outputs */
  linear(name, x, inputs, outputs) {
    const w = this.weight(`${name}.weight`);
    return this.kernel.linear(x, x.length / inputs, w, null, inputs, outputs);
  }

  newCache() {
    const { layers, heads, keyHeads, headDim, width } = this.config;
    return new KVCache({
      layers,
      queryWidth: heads * headDim,
      keyWidth: keyHeads * headDim,
      width,
    });
  }

  /** Ids → T × D: rows of the table times √D. @param {ArrayLike<number>} ids @param {Edits} edits */
  embed(ids, edits = {}) {
    const { width } = this.config;
    const table = this.weight("embed_tokens.weight");
    const scale = edits.unscaledWords ? 1 : Math.fround(Math.sqrt(width));
    const x = new Float32Array(ids.length * width);
    for (let t = 0; t < ids.length; t++)
      for (let i = 0; i < width; i++) x[t * width + i] = table[ids[t] * width + i] * scale;
    return x;
  }

  /** @param {string} name @param {Float32Array} x @param {Edits} edits */
  norm(name, x, edits) {
    return rmsNorm(x, this.weight(`${name}.weight`), this.config.eps, edits.norm === "layer");
  }

  /**
   * New tokens through all layers, beside what the cache holds.
   * @param {Float32Array} embeddings T × D @param {KVCache} cache filled by this
   * @param {Mask | null} mask @param {Edits} edits
   * @returns {Float32Array} T × D, after the last norm
   */
  extend(embeddings, cache, mask, edits = {}) {
    const { width, layers } = this.config;
    const x = embeddings.slice();
    const start = cache.length;
    this.paste(x, start, -1, edits);
    cache.inputs.push(x);
    for (let number = 0; number < layers; number++) {
      const before = isOff(edits, `decoder.${number}`) ? x.slice() : null;
      this.layer(number, x, start, cache, mask, edits);
      if (before) x.set(before);
      this.paste(x, start, number, edits);
      cache.layers[number].output.push(x);
    }
    const hidden = this.norm("norm", x, edits);
    cache.final.push(hidden);
    return hidden;
  }

  /** Puts given vectors in tokens' places. @param {Float32Array} x @param {number} start
   * @param {number} layer @param {Edits} edits */
  paste(x, start, layer, edits) {
    const { width } = this.config;
    for (const { layer: own, position, vector } of edits.patches ?? [])
      if (own === layer && position >= start && (position - start) * width < x.length)
        x.set(vector, (position - start) * width);
  }

  /** Attention, then the MLP; x is changed in place.
   * @param {number} number @param {Float32Array} x T × D @param {number} start @param {KVCache} cache
   * @param {Mask | null} mask @param {Edits} edits */
  layer(number, x, start, cache, mask, edits) {
    const { width, hidden, postNorms, heads: H, headDim: d } = this.config;
    const name = `layers.${number}`;
    const part = `decoder.${number}`;
    const record = cache.layers[number];
    this.project(number, this.norm(`${name}.input_layernorm`, x, edits), start, cache, edits);
    if (!isOff(edits, `${part}.attention`)) {
      const heads = this.heads(number, cache, start, mask, edits);
      const mixed = attend(this.kernel, heads, (head) => isOff(edits, `${part}.${head}`));
      let attended = this.linear(`${name}.self_attn.o_proj`, mixed, H * d, width);
      if (postNorms) attended = this.norm(`${name}.post_attention_layernorm`, attended, edits);
      add(x, attended);
    }
    record.middle.push(x);
    if (isOff(edits, `${part}.mlp`)) return;
    let out = this.linear(
      `${name}.mlp.down_proj`,
      this.inner(number, x, edits).values,
      hidden,
      width,
    );
    if (postNorms) out = this.norm(`${name}.post_feedforward_layernorm`, out, edits);
    add(x, out);
  }

  /** What stands inside an MLP: gelu(gate) · up, and its factors. T × hidden each.
   * @param {number} number @param {Float32Array} x T × D @param {Edits} edits */
  inner(number, x, edits) {
    const { width, hidden, postNorms } = this.config;
    const name = `layers.${number}`;
    const before = postNorms ? "pre_feedforward_layernorm" : "post_attention_layernorm";
    const h = this.norm(`${name}.${before}`, x, edits);
    const gate = this.linear(`${name}.mlp.gate_proj`, h, width, hidden);
    const activated = activate(gate.slice(), edits.activation);
    const up = this.linear(`${name}.mlp.up_proj`, h, width, hidden);
    const values = activated.map((v, i) => v * up[i]);
    for (const neuron of neuronsOff(edits, `decoder.${number}`))
      for (let at = neuron; at < values.length; at += hidden) values[at] = 0;
    return { gate, activated, up, values };
  }

  /** Queries, keys and values of new tokens, turned by their positions, into the cache.
   * @param {number} number @param {Float32Array} h T × D @param {number} start @param {KVCache} cache
   * @param {Edits} edits */
  project(number, h, start, cache, edits) {
    const { width, heads: H, keyHeads: K, headDim: d, theta } = this.config;
    const T = h.length / width;
    const [q, k, v] = [
      ["q", H],
      ["k", K],
      ["v", K],
    ].map(([part, heads]) =>
      this.linear(`layers.${number}.self_attn.${part}_proj`, h, width, Number(heads) * d),
    );
    if (!edits.noRotary) {
      const positions = Array.from({ length: T }, (_, t) => start + t + 1 + (edits.shift ?? 0));
      applyRotary(q, positions, d, theta);
      applyRotary(k, positions, d, theta);
    }
    const record = cache.layers[number];
    record.q.push(q);
    record.k.push(k);
    record.v.push(v);
  }

  /** What the queries from `start` on are attended with: the cache's own arrays, in part.
   * @param {number} number @param {KVCache} cache @param {number} start @param {Mask | null} mask
   * @param {Edits} edits @returns {import("./layers/attention.js").Heads} */
  heads(number, cache, start, mask, edits) {
    const { heads: H, keyHeads: K, headDim: d, scale, scoreCap: cap } = this.config;
    const { q, k, v } = cache.layers[number];
    return {
      q: q.values.subarray(start * H * d),
      k: k.values,
      v: v.values,
      T: q.count - start,
      S: k.count,
      H,
      K,
      d,
      scale: edits.unscaledScores ? 1 : scale,
      cap,
      start,
      mask,
    };
  }

  /** n × D after the last norm → n × V logits. @param {Float32Array} hidden */
  logits(hidden) {
    const { width, vocab, logitCap: cap } = this.config;
    const table = this.weight("embed_tokens.weight");
    const out = this.kernel.linear(hidden, hidden.length / width, table, null, width, vocab);
    if (cap) for (let i = 0; i < out.length; i++) out[i] = Math.tanh(out[i] / cap) * cap;
    return out;
  }
}
