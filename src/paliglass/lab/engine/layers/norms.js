// LayerNorm (vision tower) and RMSNorm (decoder, arXiv 1910.07467), row by row.

/** (x − mean) / √(variance + eps) · w + b. x: T × D → T × D.
 * @param {Float32Array} x @param {Float32Array} w @param {Float32Array} b @param {number} eps */
export function layerNorm(x, w, b, eps) {
  const D = w.length;
  const y = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += D) {
    let mean = 0,
      variance = 0;
    for (let i = 0; i < D; i++) mean += x[from + i];
    mean /= D;
    for (let i = 0; i < D; i++) variance += (x[from + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / D + eps);
    for (let i = 0; i < D; i++) y[from + i] = (x[from + i] - mean) * scale * w[i] + b[i];
  }
  return y;
}

/** x / √(mean(x²) + eps) · (1 + w). Gemma stores w, not 1 + w. x: T × D → T × D.
 * @param {Float32Array} x @param {Float32Array} w @param {number} eps
 * @param {boolean} centred subtract the mean first, as LayerNorm would */
export function rmsNorm(x, w, eps, centred = false) {
  const D = w.length;
  const y = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += D) {
    let mean = 0,
      square = 0;
    if (centred) {
      for (let i = 0; i < D; i++) mean += x[from + i];
      mean /= D;
    }
    for (let i = 0; i < D; i++) square += (x[from + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / D + eps);
    for (let i = 0; i < D; i++) y[from + i] = (x[from + i] - mean) * scale * (1 + w[i]);
  }
  return y;
}
