// 2 · SigLIP's vision tower: a picture becomes one vector per patch (see modeling_siglip.py).
// No class token, learned positions, full attention, LayerNorm before each block, tanh-GELU.

import { isOff } from "./edits.js";
import { activate } from "./layers/activations.js";
import { attend } from "./layers/attention.js";
import { layerNorm } from "./layers/norms.js";
import { weightsUnder } from "./safetensors.js";

/** @typedef {import("./config.js").VisionConfig} VisionConfig */
/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {import("./kernel.js").Kernel} Kernel */
/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {import("./layers/attention.js").Heads} Heads */
/**
 * @typedef {object} TowerRecord everything on the way, to be asked about later
 * @property {Float32Array} patches P × (3 · p²), the pictures' pixels cut up
 * @property {Float32Array} inputs P × D, embedded, with positions
 * @property {{heads: Heads, middle: Float32Array, output: Float32Array}[]} layers
 * @property {Float32Array} features P × D, after the last norm
 */

/** a += b. @param {Float32Array} a @param {Float32Array} b */
export function add(a, b) {
  for (let i = 0; i < a.length; i++) a[i] += b[i];
  return a;
}

/** A part of the model: weights whose names begin alike, and its linear layers. */
class Part {
  /** @param {VisionConfig} config @param {Tensors} tensors @param {Kernel} kernel @param {string} prefix */
  constructor(config, tensors, kernel, prefix) {
    this.config = config;
    this.kernel = kernel;
    this.weight = weightsUnder(tensors, prefix);
  }

  /** @param {string} name @param {Float32Array} x @param {number} inputs @param {number} outputs */
  linear(name, x, inputs, outputs) {
    const [w, b] = [this.weight(`${name}.weight`), this.weight(`${name}.bias`)];
    return this.kernel.linear(x, x.length / inputs, w, b, inputs, outputs);
  }
}

export class SigLip extends Part {
  /** 3 × S × S, numbers in [−1, 1] → P × (3 · p²), patches row by row. @param {Float32Array} pixels */
  cut(pixels) {
    const { side, patch, channels } = this.config;
    const perRow = side / patch;
    const out = new Float32Array(pixels.length);
    let at = 0;
    for (let row = 0; row < perRow; row++)
      for (let column = 0; column < perRow; column++)
        for (let c = 0; c < channels; c++)
          for (let y = 0; y < patch; y++) {
            const from = (c * side + row * patch + y) * side + column * patch;
            out.set(pixels.subarray(from, from + patch), at);
            at += patch;
          }
    return out;
  }

  /** Patches projected to the tower's width, plus their positions: P × D.
   * @param {Float32Array} patches @param {Edits} edits */
  embed(patches, edits) {
    const { width, channels, patch } = this.config;
    const x = this.linear("embeddings.patch_embedding", patches, channels * patch ** 2, width);
    const positions = this.weight("embeddings.position_embedding.weight");
    if (edits.towerPositions === "none") return x;
    if (edits.towerPositions !== "transposed") return add(x, positions);
    const perRow = Math.sqrt(x.length / width);
    for (let p = 0; p < perRow ** 2; p++) {
      const swapped = (p % perRow) * perRow + Math.floor(p / perRow);
      for (let i = 0; i < width; i++) x[p * width + i] += positions[swapped * width + i];
    }
    return x;
  }

  /** One layer: x + attention(norm(x)), then x + mlp(norm(x)).
   * @param {number} number @param {Float32Array} x P × D, changed in place @param {Edits} edits */
  layer(number, x, edits) {
    const { width, hidden, heads: H, eps } = this.config;
    const name = `encoder.layers.${number}`;
    const P = x.length / width;
    const d = width / H;
    const norm = (/** @type {string} */ which) =>
      layerNorm(
        x,
        this.weight(`${name}.${which}.weight`),
        this.weight(`${name}.${which}.bias`),
        eps,
      );
    const h = norm("layer_norm1");
    const [q, k, v] = ["q", "k", "v"].map((part) =>
      this.linear(`${name}.self_attn.${part}_proj`, h, width, width),
    );
    const scale = edits.unscaledScores ? 1 : d ** -0.5;
    /** @type {Heads} */
    const heads = { q, k, v, T: P, S: P, H, K: H, d, scale, cap: null, start: 0, mask: null };
    const part = `tower.${number}`;
    if (!isOff(edits, `${part}.attention`)) {
      const mixed = attend(this.kernel, heads, (head) => isOff(edits, `${part}.${head}`));
      add(x, this.linear(`${name}.self_attn.out_proj`, mixed, width, width));
    }
    const middle = x.slice();
    if (!isOff(edits, `${part}.mlp`)) {
      const inner = this.linear(`${name}.mlp.fc1`, norm("layer_norm2"), width, hidden);
      add(x, this.linear(`${name}.mlp.fc2`, activate(inner, edits.activation), hidden, width));
    }
    return { heads, middle, output: x.slice() };
  }

  /** 3 × S × S → P × D and what happened on the way.
   * @param {Float32Array} pixels @param {Edits} edits @returns {TowerRecord} */
  forward(pixels, edits = {}) {
    const patches = this.cut(pixels);
    const x = this.embed(patches, edits);
    const inputs = x.slice();
    const layers = [];
    for (let number = 0; number < this.config.layers; number++) {
      const before = isOff(edits, `tower.${number}`) ? x.slice() : null;
      layers.push(this.layer(number, x, edits));
      if (before) {
        x.set(before);
        layers[number].output = before;
      }
    }
    const [w, b] = ["weight", "bias"].map((part) => this.weight(`post_layernorm.${part}`));
    return { patches, inputs, layers, features: layerNorm(x, w, b, this.config.eps) };
  }
}

/** SigLIP's pooling head, which PaliGemma drops: a learned probe asks all patches, an MLP follows. */
export class AttentionPooling extends Part {
  /** P × D → D. @param {Float32Array} patches */
  forward(patches) {
    const { width: D, hidden, heads: H, eps } = this.config;
    const [w, b] = ["weight", "bias"].map((part) => this.weight(`attention.in_proj_${part}`));
    const [q, k, v] = [this.weight("probe"), patches, patches].map((x, i) => {
      const [own, shift] = [w, b].map((all) => all.subarray((i * all.length) / 3)); // W_q, W_k, W_v
      return this.kernel.linear(x, x.length / D, own, shift, D, D);
    });
    const [S, d, scale] = [patches.length / D, D / H, (D / H) ** -0.5];
    const heads = { q, k, v, T: 1, S, H, K: H, d, scale, cap: null, start: 0, mask: null };
    const y = this.linear("attention.out_proj", attend(this.kernel, heads), D, D);
    const [gain, shift] = ["weight", "bias"].map((part) => this.weight(`layernorm.${part}`));
    const inner = this.linear("mlp.fc1", layerNorm(y, gain, shift, eps), D, hidden);
    return add(y, this.linear("mlp.fc2", activate(inner), hidden, D));
  }
}
