// Sixteen codes → a 64 × 64 mask: the decoder of the VQ-VAE behind <seg> (see modeling_mask_codec.py).

/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {{data: Float32Array, channels: number, side: number}} Map2d channels × side × side */

/** A convolution of stride 1 that keeps the side. w: O × I × k × k.
 * @param {Map2d} x @param {Float32Array} w @param {Float32Array} b @param {number} k */
export function convolve({ data, channels, side }, w, b, k) {
  const O = b.length;
  const pad = k >> 1;
  const out = new Float32Array(O * side * side);
  for (let o = 0; o < O; o++)
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        let sum = b[o];
        for (let c = 0; c < channels; c++)
          for (let i = 0; i < k; i++) {
            const row = y + i - pad;
            if (row < 0 || row >= side) continue;
            for (let j = 0; j < k; j++) {
              const column = x + j - pad;
              if (column < 0 || column >= side) continue;
              sum +=
                data[(c * side + row) * side + column] * w[((o * channels + c) * k + i) * k + j];
            }
          }
        out[(o * side + y) * side + x] = sum;
      }
  return { data: out, channels: O, side };
}

/** A transposed convolution, 4 × 4, stride 2, padding 1: the side doubles. w: I × O × 4 × 4.
 * @param {Map2d} x @param {Float32Array} w @param {Float32Array} b */
function double({ data, channels, side }, w, b) {
  const O = b.length;
  const wide = 2 * side;
  const out = new Float32Array(O * wide * wide);
  for (let o = 0; o < O; o++) out.fill(b[o], o * wide * wide, (o + 1) * wide * wide);
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const value = data[(c * side + y) * side + x];
        if (!value) continue;
        for (let o = 0; o < O; o++)
          for (let i = 0; i < 4; i++) {
            const row = 2 * y + i - 1;
            if (row < 0 || row >= wide) continue;
            for (let j = 0; j < 4; j++) {
              const column = 2 * x + j - 1;
              if (column >= 0 && column < wide)
                out[(o * wide + row) * wide + column] += value * w[((c * O + o) * 4 + i) * 4 + j];
            }
          }
      }
  return { data: out, channels: O, side: wide };
}

/** @param {Map2d} x */
function relu(x) {
  return { ...x, data: x.data.map((v) => Math.max(v, 0)) };
}

export class MaskCodec {
  /** @param {Tensors} tensors */
  constructor(tensors) {
    this.tensors = tensors;
  }

  /** @param {string} name @param {Map2d} x @param {(x: Map2d, w: Float32Array, b: Float32Array) => Map2d} f */
  apply(name, x, f) {
    return f(x, this.tensors[`${name}.weight`].data, this.tensors[`${name}.bias`].data);
  }

  /** x + conv1×1(relu(conv3×3(relu(conv3×3(x))))). @param {string} name @param {Map2d} x */
  residual(name, x) {
    const conv = (/** @type {number} */ n, /** @type {Map2d} */ h, /** @type {number} */ k) =>
      this.apply(`${name}.net.${n}`, h, (m, w, b) => convolve(m, w, b, k));
    const out = conv(4, relu(conv(2, relu(conv(0, x, 3)), 3)), 1);
    return { ...out, data: out.data.map((v, i) => v + x.data[i]) };
  }

  /** 16 codes, row by row of a 4 × 4 grid → 64 × 64 numbers in about [−1, 1]: inside where above 0.
   * @param {number[]} codes */
  decode(codes) {
    const { data: book, shape } = this.tensors.codebook;
    const dim = shape[1];
    const grid = new Float32Array(dim * codes.length);
    codes.forEach((code, place) => {
      for (let i = 0; i < dim; i++) grid[i * codes.length + place] = book[code * dim + i];
    });
    /** @type {Map2d} */
    let x = { data: grid, channels: dim, side: 4 };
    x = relu(this.apply("decoder.0", x, (m, w, b) => convolve(m, w, b, 1)));
    x = this.residual("decoder.3", this.residual("decoder.2", x));
    for (const n of [4, 6, 8, 10]) x = relu(this.apply(`decoder.${n}`, x, double));
    return this.apply("decoder.12", x, (m, w, b) => convolve(m, w, b, 1)).data;
  }
}
