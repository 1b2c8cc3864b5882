// Ridge regression: a plane between two kinds of vectors.

/** @typedef {{rows: Float32Array[], answers: number[]}} Sample rows of D numbers, and 1 or −1 for each */

/** w with (XᵀX + λI) w = Xᵀy, by Cholesky; the last of w is the constant.
 * @param {Sample} sample @param {number} ridge @returns {Float64Array} D + 1 */
export function fit({ rows, answers }, ridge = 10) {
  const D = rows[0].length + 1;
  const A = new Float64Array(D * D);
  const b = new Float64Array(D);
  rows.forEach((row, n) => {
    for (let i = 0; i < D; i++) {
      const x = i < D - 1 ? row[i] : 1;
      b[i] += x * answers[n];
      for (let j = 0; j <= i; j++) A[i * D + j] += x * (j < D - 1 ? row[j] : 1);
    }
  });
  for (let i = 0; i < D; i++) A[i * D + i] += ridge;
  for (let i = 0; i < D; i++)
    for (let j = 0; j <= i; j++) {
      let sum = A[i * D + j];
      for (let k = 0; k < j; k++) sum -= A[i * D + k] * A[j * D + k];
      A[i * D + j] = i === j ? Math.sqrt(sum) : sum / A[j * D + j];
    }
  for (let i = 0; i < D; i++) {
    for (let k = 0; k < i; k++) b[i] -= A[i * D + k] * b[k];
    b[i] /= A[i * D + i];
  }
  for (let i = D - 1; i >= 0; i--) {
    for (let k = i + 1; k < D; k++) b[i] -= A[k * D + i] * b[k];
    b[i] /= A[i * D + i];
  }
  return b;
}

/** The share of rows on the right side. @param {Float64Array} w @param {Sample} sample */
export function accuracy(w, { rows, answers }) {
  const right = rows.filter((row, n) => {
    const z = row.reduce((sum, x, i) => sum + x * w[i], w[w.length - 1]);
    return z * answers[n] > 0;
  });
  return right.length / rows.length;
}

/** How often one is right who always gives the commoner answer. @param {Sample} sample */
export function commoner({ answers }) {
  const share = answers.filter((answer) => answer > 0).length / answers.length;
  return Math.max(share, 1 - share);
}
