// Scaled dot-product attention (arXiv 1706.03762): softmax(cap(Q·Kᵀ·scale) where allowed)·V.
// H query heads share K key/value heads: heads 0 … H/K − 1 read key head 0, and so on.

import { padded } from "../kernel.js";

/** @typedef {import("../kernel.js").Kernel} Kernel */
/** @typedef {(t: number, s: number) => boolean} Mask whether query t may see key s */
/**
 * @typedef {object} Heads what attention is computed from
 * @property {Float32Array} q T × (H · d), after RoPE
 * @property {Float32Array} k S × (K · d), after RoPE
 * @property {Float32Array} v S × (K · d)
 * @property {number} T @property {number} S @property {number} H @property {number} K
 * @property {number} d head_dim
 * @property {number} scale @property {number | null} cap
 * @property {number} start the first query's place in the sequence: what the mask calls it
 * @property {Mask | null} mask null: everyone sees everyone
 */

/** Columns `from` … `from + d` of a matrix with rows of `width`.
 * @param {Float32Array} x @param {number} rows @param {number} width @param {number} from @param {number} d */
export function columns(x, rows, width, from, d) {
  const out = new Float32Array(rows * d);
  for (let t = 0; t < rows; t++) out.set(x.subarray(t * width + from, t * width + from + d), t * d);
  return out;
}

/** Softmax of `count` numbers from `from` on, in place; −∞ becomes 0.
 * @param {Float32Array} x @param {number} from @param {number} count */
export function softmax(x, from = 0, count = x.length) {
  let most = -Infinity,
    sum = 0;
  for (let i = from; i < from + count; i++) if (x[i] > most) most = x[i];
  for (let i = from; i < from + count; i++) sum += x[i] = Math.exp(x[i] - most);
  for (let i = from; i < from + count; i++) x[i] /= sum;
  return x;
}

/** Scores of one head before the softmax, T × S; −∞ where the mask forbids.
 * @param {Kernel} kernel @param {Heads} heads @param {number} head */
export function scores(kernel, { q, k, T, S, H, K, d, scale, cap, start, mask }, head) {
  const keys = columns(k, S, K * d, Math.floor((head * K) / H) * d, d);
  const z = kernel.linear(columns(q, T, H * d, head * d, d), T, keys, null, d, S);
  for (let t = 0; t < T; t++) {
    for (let s = 0; s < S; s++) {
      const at = t * S + s;
      z[at] *= scale;
      if (cap) z[at] = Math.tanh(z[at] / cap) * cap;
      if (mask && !mask(start + t, s)) z[at] = -Infinity;
    }
  }
  return z;
}

/** Weights of one head, T × S: each row sums to 1.
 * @param {Kernel} kernel @param {Heads} heads @param {number} head */
export function weights(kernel, heads, head) {
  const p = scores(kernel, heads, head);
  for (let t = 0; t < heads.T; t++) softmax(p, t * heads.S, heads.S);
  return p;
}

/** All heads' outputs side by side, T × (H · d).
 * @param {Kernel} kernel @param {Heads} heads
 * @param {(head: number) => boolean} isOff heads that say nothing */
export function attend(kernel, heads, isOff = () => false) {
  const { v, T, S, H, K, d } = heads;
  const wide = padded(S); // the kernel's rows are multiples of four: the rest are zeros
  const out = new Float32Array(T * H * d);
  const valuesT = new Float32Array(d * wide);
  let group = -1;
  for (let head = 0; head < H; head++) {
    if (isOff(head)) continue;
    const own = Math.floor((head * K) / H);
    if (own !== group) {
      group = own;
      for (let s = 0; s < S; s++)
        for (let i = 0; i < d; i++) valuesT[i * wide + s] = v[s * K * d + own * d + i];
    }
    let p = weights(kernel, heads, head);
    if (wide !== S) {
      const wider = new Float32Array(T * wide);
      for (let t = 0; t < T; t++) wider.set(p.subarray(t * S, (t + 1) * S), t * wide);
      p = wider;
    }
    const mixed = kernel.linear(p, T, valuesT, null, wide, d);
    for (let t = 0; t < T; t++) out.set(mixed.subarray(t * d, (t + 1) * d), (t * H + head) * d);
  }
  return out;
}
