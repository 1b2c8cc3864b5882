// The dual encoder: picture and text meet in one product (see contrastive/modeling_contrastive.py).
//
//     picture ─ ResNet or ViT ─ W_i ─ unit length ─┐
//                                        cosine · exp(t) (+ b)
//     text ──── bag of words ── W_t ─ unit length ─┘

import { Kernel } from "./kernel.js";
import { normalize, square } from "./processing.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {import("./processing.js").Picture} Picture */
/** @typedef {{data: Float32Array, channels: number, side: number}} Places side² × channels */

const NORM_EPS = 1e-5; // BatchNorm's

/** Windows of k × k around places `stride` apart: n × (channels · k²), zeros outside.
 * @param {Places} x @param {number} k @param {number} stride */
function windows({ data, channels, side }, k, stride) {
  const pad = k >> 1;
  const to = Math.floor((side + 2 * pad - k) / stride) + 1;
  const out = new Float32Array(to * to * channels * k * k);
  let at = 0;
  for (let y = 0; y < to; y++)
    for (let x = 0; x < to; x++)
      for (let c = 0; c < channels; c++)
        for (let i = 0; i < k; i++)
          for (let j = 0; j < k; j++, at++) {
            const row = y * stride + i - pad;
            const column = x * stride + j - pad;
            if (row >= 0 && row < side && column >= 0 && column < side)
              out[at] = data[(row * side + column) * channels + c];
          }
  return { out, side: to };
}

/** @param {Float32Array} x to unit length, in place */
export function unit(x) {
  const length = Math.max(Math.hypot(...x), 1e-12);
  for (let i = 0; i < x.length; i++) x[i] /= length;
  return x;
}

export class Dual {
  /** @param {any} config config.json's data @param {Tensors} tensors
   * @param {BufferSource | null} wasm @param {any} tokenizer tokenizer.json */
  constructor(config, tensors, wasm, tokenizer) {
    const { image_config: image, text_config: text } = config;
    if (image.model_type !== "resnet" || text.model_type !== "cbow")
      throw new Error(
        `the lab runs a resnet with a cbow, not ${image.model_type}, ${text.model_type}`,
      );
    this.config = config;
    this.tensors = tensors;
    this.kernel = new Kernel(tensors, wasm);
    this.tokenizer = new Tokenizer(tokenizer, { specialAsText: true });
  }

  get isClip() {
    return this.config.loss === "clip";
  }

  /** exp(t), what cosines are multiplied by. */
  get scale() {
    return Math.exp(this.tensors.logit_scale.data[0]);
  }

  get bias() {
    return this.tensors.logit_bias?.data[0] ?? 0;
  }

  /** Convolution and BatchNorm in evaluation, as one linear map per window.
   * @param {string} name @param {Places} x @param {number} stride @returns {Places} */
  convolve(name, x, stride) {
    const {
      data: w,
      shape: [O, I, k],
    } = this.tensors[`image_encoder.${name}.0.weight`];
    const { out, side } = windows(x, k, stride);
    const y = this.kernel.linear(out, side * side, w, null, I * k * k, O);
    const [scale, shift, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(
      (part) => this.tensors[`image_encoder.${name}.1.${part}`].data,
    );
    for (let i = 0; i < y.length; i++) {
      const c = i % O;
      y[i] = ((y[i] - mean[c]) / Math.sqrt(variance[c] + NORM_EPS)) * scale[c] + shift[c];
    }
    return { data: y, channels: O, side };
  }

  /** relu(shortcut(x) + conv(relu(conv(x)))). @param {number} number @param {Places} x @param {number} stride */
  block(number, x, stride) {
    const name = `blocks.${number}`;
    const inner = this.convolve(`${name}.convolution1`, x, stride);
    relu(inner);
    const y = this.convolve(`${name}.convolution2`, inner, 1);
    const isChanged = `image_encoder.${name}.shortcut.0.weight` in this.tensors;
    const short = isChanged ? this.convolve(`${name}.shortcut`, x, stride) : x;
    for (let i = 0; i < y.data.length; i++) y.data[i] += short.data[i];
    return relu(y);
  }

  /** A picture → D numbers of unit length. @param {Picture} picture */
  embedPicture(picture) {
    const { image_size: side, depths, num_channels: channels } = this.config.image_config;
    const planes = normalize(square(picture, side));
    const data = new Float32Array(planes.length);
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < side * side; i++) data[i * channels + c] = planes[c * side * side + i];
    let x = pooled(relu(this.convolve("stem", { data, channels, side }, 2)));
    let number = 0;
    depths.forEach((/** @type {number} */ depth, /** @type {number} */ stage) => {
      for (let block = 0; block < depth; block++, number++)
        x = this.block(number, x, stage && !block ? 2 : 1);
    });
    const mean = new Float32Array(x.channels);
    const count = x.side ** 2;
    for (let i = 0; i < x.data.length; i++) mean[i % x.channels] += x.data[i] / count;
    return this.joint("image_projection", mean);
  }

  /** A text → D numbers of unit length. @param {string} text */
  embedText(text) {
    const { max_position_embeddings: most, hidden_size: width } = this.config.text_config;
    const ids = [...this.tokenizer.encode(text).slice(0, most - 1), this.tokenizer.id("<eos>")];
    const table = this.tensors["text_encoder.token_embedding.weight"].data;
    const mean = new Float32Array(width);
    for (const id of ids) for (let i = 0; i < width; i++) mean[i] += table[id * width + i];
    return this.joint(
      "text_projection",
      mean.map((v) => v / ids.length),
    );
  }

  /** @param {string} name @param {Float32Array} x */
  joint(name, x) {
    const weight = this.tensors[`${name}.weight`];
    if (!weight) return unit(x);
    const bias = this.tensors[`${name}.bias`]?.data ?? null;
    return unit(this.kernel.linear(x, 1, weight.data, bias, x.length, weight.shape[0]));
  }
}

/** @param {Places} x in place */
function relu(x) {
  for (let i = 0; i < x.data.length; i++) if (x.data[i] < 0) x.data[i] = 0;
  return x;
}

/** The largest of each 3 × 3, two places apart. @param {Places} x @returns {Places} */
function pooled({ data, channels, side }) {
  const to = Math.floor((side - 1) / 2) + 1;
  const out = new Float32Array(to * to * channels).fill(-Infinity);
  for (let y = 0; y < to; y++)
    for (let x = 0; x < to; x++)
      for (let i = Math.max(2 * y - 1, 0); i <= Math.min(2 * y + 1, side - 1); i++)
        for (let j = Math.max(2 * x - 1, 0); j <= Math.min(2 * x + 1, side - 1); j++)
          for (let c = 0; c < channels; c++) {
            const at = (y * to + x) * channels + c;
            out[at] = Math.max(out[at], data[(i * side + j) * channels + c]);
          }
  return { data: out, channels, side: to };
}
