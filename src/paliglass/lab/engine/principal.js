// Principal components: the directions in which some rows differ most.

import { uniforms } from "./sampling.js";

const GUARD = 8; // directions that are computed beside the wanted ones, so that those settle
const ROUNDS = 80;

/**
 * Of n rows: how far each lies along the first k components, by subspace iteration on their dot
 * products and a last rotation (Rayleigh and Ritz).
 * @param {ArrayLike<number>} rows n × D @param {number} n @param {number} k
 * @returns {{scores: Float32Array, shares: number[]}} scores: n × k, the largest of a column positive;
 *   shares: of the rows' variance
 */
export function principal(rows, n, k) {
  const products = centredProducts(rows, n);
  let total = 0;
  for (let i = 0; i < n; i++) total += products[i * n + i];
  const count = Math.min(n, k + GUARD);
  const uniform = uniforms(1);
  let basis = Array.from({ length: count }, () => Float64Array.from({ length: n }, uniform));
  orthogonalize(basis);
  for (let round = 0; round < ROUNDS; round++) {
    basis = basis.map((vector) => times(products, vector));
    orthogonalize(basis);
  }
  const images = basis.map((vector) => times(products, vector));
  const small = basis.map((a) => images.map((b) => dot(a, b)));
  const { values, vectors } = eigen(small);
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const scores = new Float32Array(n * k);
  const shares = [];
  for (let j = 0; j < k; j++) {
    const chosen = order[j];
    const value = chosen === undefined ? 0 : Math.max(values[chosen], 0);
    shares.push(total ? value / total : 0);
    if (chosen === undefined) continue;
    const column = new Float64Array(n);
    basis.forEach((vector, i) => {
      for (let t = 0; t < n; t++) column[t] += vectors[i][chosen] * vector[t];
    });
    const largest = column.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
    const size = Math.sqrt(value) * (largest < 0 ? -1 : 1);
    for (let t = 0; t < n; t++) scores[t * k + j] = size * column[t];
  }
  return { scores, shares };
}

/** n × n dot products of rows less their mean. @param {ArrayLike<number>} rows @param {number} n */
function centredProducts(rows, n) {
  const D = rows.length / n;
  const mean = new Float64Array(D);
  for (let i = 0; i < rows.length; i++) mean[i % D] += rows[i] / n;
  const centred = Float64Array.from(rows, (v, i) => v - mean[i % D]);
  const products = new Float64Array(n * n);
  for (let a = 0; a < n; a++)
    for (let b = 0; b <= a; b++) {
      let sum = 0;
      for (let i = 0; i < D; i++) sum += centred[a * D + i] * centred[b * D + i];
      products[a * n + b] = products[b * n + a] = sum;
    }
  return products;
}

/** @param {Float64Array} a @param {Float64Array} b */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** @param {Float64Array} matrix n × n @param {Float64Array} vector */
function times(matrix, vector) {
  const n = vector.length;
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0; j < n; j++) sum += matrix[i * n + j] * vector[j];
    out[i] = sum;
  }
  return out;
}

/** Gram and Schmidt, twice over for the rounding; a vector of which nothing is left becomes zero.
 * @param {Float64Array[]} basis changed in place */
function orthogonalize(basis) {
  basis.forEach((vector, i) => {
    const before = Math.sqrt(dot(vector, vector));
    for (let twice = 0; twice < 2; twice++)
      for (const other of basis.slice(0, i)) {
        const along = dot(vector, other);
        for (let t = 0; t < vector.length; t++) vector[t] -= along * other[t];
      }
    const size = Math.sqrt(dot(vector, vector));
    const scale = size > 1e-12 * before ? 1 / size : 0;
    for (let t = 0; t < vector.length; t++) vector[t] *= scale;
  });
}

/** Eigenvalues and vectors, in columns, of a small symmetric matrix, by Jacobi's rotations.
 * @param {number[][]} matrix */
function eigen(matrix) {
  const n = matrix.length;
  const a = matrix.map((row) => [...row]);
  const vectors = a.map((_, i) => Array.from({ length: n }, (_, j) => Number(i === j)));
  for (let sweep = 0; sweep < 30; sweep++)
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        if (!a[p][q]) continue;
        const angle = 0.5 * Math.atan2(2 * a[p][q], a[q][q] - a[p][p]);
        const [c, s] = [Math.cos(angle), Math.sin(angle)];
        for (let i = 0; i < n; i++)
          [a[i][p], a[i][q]] = [c * a[i][p] - s * a[i][q], s * a[i][p] + c * a[i][q]];
        for (let i = 0; i < n; i++)
          [a[p][i], a[q][i]] = [c * a[p][i] - s * a[q][i], s * a[p][i] + c * a[q][i]];
        for (const row of vectors)
          [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
      }
  return { values: a.map((row, i) => row[i]), vectors };
}
