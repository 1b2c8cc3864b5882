// 5 · Logits → the next token. Pure functions; see sampling.py.

import { softmax } from "./layers/attention.js";

/**
 * @typedef {object} Sampling
 * @property {number} [temperature] 0: the likeliest (greedy)
 * @property {number} [topK] sample among the k likeliest
 * @property {number} [topP] among the fewest that together reach p (arXiv 1904.09751)
 * @property {number} [minP] among those at least minP times as likely as the likeliest
 */

/** @param {Float32Array} logits */
export function argmax(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** Probabilities of the words, which sum to 1. @param {Float32Array} logits */
export function probabilities(logits) {
  return softmax(logits.slice());
}

/** Ids from the likeliest on, at most k. @param {ArrayLike<number>} values @param {number} k */
export function top(values, k) {
  const ids = Array.from({ length: values.length }, (_, i) => i);
  return ids.sort((a, b) => values[b] - values[a] || a - b).slice(0, k);
}

/** The distribution that a token is drawn from: temperature first, then the filters, renormalised.
 * @param {Float32Array} logits @param {Sampling} sampling @returns {Float32Array} V, summing to 1 */
export function distribution(logits, { temperature = 1, topK, topP, minP } = {}) {
  const p = new Float32Array(logits.length);
  if (temperature === 0) {
    p[argmax(logits)] = 1;
    return p;
  }
  const most = logits[argmax(logits)];
  for (let i = 0; i < p.length; i++) p[i] = (logits[i] - most) / temperature;
  softmax(p);
  const order = top(p, p.length);
  let kept = topK ? Math.min(topK, p.length) : p.length;
  if (topP !== undefined && topP < 1) {
    // As sampling.py does: the filters follow each other, so p counts among the k that are left.
    let among = 0,
      reached = 0,
      i = 0;
    for (let j = 0; j < kept; j++) among += p[order[j]];
    while (i < kept && reached < topP * among) reached += p[order[i++]];
    kept = Math.max(i, 1);
  }
  if (minP) {
    const least = minP * p[order[0]];
    while (kept > 1 && p[order[kept - 1]] < least) kept--;
  }
  let sum = 0;
  for (let i = 0; i < kept; i++) sum += p[order[i]];
  const out = new Float32Array(p.length);
  for (let i = 0; i < kept; i++) out[order[i]] = p[order[i]] / sum;
  return out;
}

/** The id on which a number in [0, 1) falls when probabilities are laid end to end, in order of ids.
 * @param {Float32Array} p @param {number} uniform */
export function draw(p, uniform) {
  let reached = 0,
    last = 0;
  for (let i = 0; i < p.length; i++) {
    if (!p[i]) continue;
    reached += p[i];
    last = i;
    if (uniform < reached) return i;
  }
  return last;
}

/** log p of one id, by log-sum-exp. @param {Float32Array} logits @param {number} id */
export function logProbability(logits, id) {
  let most = -Infinity,
    sum = 0;
  for (const z of logits) if (z > most) most = z;
  for (const z of logits) sum += Math.exp(z - most);
  return logits[id] - most - Math.log(sum);
}

/** A small seeded generator of numbers in [0, 1) (mulberry32). @param {number} seed */
export function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
