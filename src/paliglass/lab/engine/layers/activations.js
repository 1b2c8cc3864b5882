// What stands between two linear layers: without it they would be one.

/** GELU's tanh form (arXiv 1606.08415): (1 + tanh u) / 2 = 1 / (1 + e^(−2u)), and exp is twice as fast.
 * @param {number} x */
export const gelu = (x) => x / (1 + Math.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)));

/** @type {Record<string, (x: number) => number>} */
export const ACTIVATIONS = { gelu, relu: (x) => Math.max(x, 0), none: (x) => x };

/** In place. @param {Float32Array} x @param {string} name */
export function activate(x, name = "gelu") {
  const f = ACTIVATIONS[name];
  for (let i = 0; i < x.length; i++) x[i] = f(x[i]);
  return x;
}
