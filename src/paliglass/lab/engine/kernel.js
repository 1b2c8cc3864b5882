// The matrix product: kernel.wasm where WebAssembly has SIMD, plain JavaScript elsewhere.

/** @typedef {import("./safetensors.js").Tensors} Tensors */

const SCRATCH = 24 << 20; // bytes for what is multiplied but is no weight: w, x and y, a third each
const PAGE = 1 << 16;

/** A multiple of four: what the kernel's rows must be. @param {number} n */
export const padded = (n) => (n + 3) & ~3;

/** Multiplies matrices, and holds the weights where the WebAssembly code can reach them. */
export class Kernel {
  /**
   * @param {Tensors} tensors the weights; their data move into the kernel's memory.
   * @param {BufferSource | null} wasm kernel.wasm; null multiplies in JavaScript.
   * @param {number} more bytes for tensors that `hold` is given later
   */
  constructor(tensors, wasm, more = 0) {
    /** @type {((x: number, T: number, w: number, b: number, I: number, O: number, y: number) => void) | null} */
    this.product = null;
    this.memory = new ArrayBuffer(0);
    this.free = 0; // where the next tensor goes
    const none = new Float32Array(0);
    this.w = none;
    this.x = none;
    this.y = none;
    if (!wasm || !WebAssembly.validate(/** @type {BufferSource} */ (wasm))) return;
    const size = Object.values(tensors).reduce(
      (sum, { data }) => sum + 4 * padded(data.length),
      PAGE + SCRATCH + more,
    );
    const memory = new WebAssembly.Memory({ initial: Math.ceil(size / PAGE) });
    const instance = new WebAssembly.Instance(new WebAssembly.Module(wasm), { env: { memory } });
    this.product = /** @type {any} */ (instance.exports.linear);
    this.memory = memory.buffer;
    const third = SCRATCH / 12; // in numbers
    const room = (/** @type {number} */ i) =>
      new Float32Array(memory.buffer, PAGE + 4 * third * i, third);
    this.w = room(0);
    this.x = room(1);
    this.y = room(2);
    this.free = PAGE + SCRATCH;
    this.hold(tensors);
  }

  /** Moves weights into the kernel's memory; what finds no room stays where it is, and is copied
   * whenever it is multiplied. @param {Tensors} tensors */
  hold(tensors) {
    for (const tensor of Object.values(tensors)) {
      const size = 4 * padded(tensor.data.length);
      if (this.free + size > this.memory.byteLength) return;
      const stored = new Float32Array(this.memory, this.free, tensor.data.length);
      stored.set(tensor.data);
      tensor.data = stored;
      this.free += size;
    }
  }

  /**
   * x · wᵀ + b.
   * @param {Float32Array} x T × I
   * @param {number} T
   * @param {Float32Array} w O × I; I a multiple of 4
   * @param {Float32Array | null} b O
   * @param {number} I
   * @param {number} O
   * @returns {Float32Array} T × O
   */
  linear(x, T, w, b, I, O) {
    if (!this.product || I % 4) return linear(x, T, w, b, I, O);
    let weights = w;
    if (w.buffer !== this.memory) {
      if (O * I > this.w.length) return linear(x, T, w, b, I, O);
      this.w.set(w.length === O * I ? w : w.subarray(0, O * I));
      weights = this.w;
    }
    const bias = b && b.buffer === this.memory ? b.byteOffset : 0;
    const most = Math.max(1, Math.floor(this.x.length / Math.max(I, O))); // rows that fit
    const out = new Float32Array(T * O);
    for (let t = 0; t < T; t += most) {
      const rows = Math.min(most, T - t);
      this.x.set(x.subarray(t * I, (t + rows) * I));
      this.product(this.x.byteOffset, rows, weights.byteOffset, bias, I, O, this.y.byteOffset);
      out.set(this.y.subarray(0, rows * O), t * O);
    }
    return out;
  }
}

/** `Kernel.linear` in JavaScript, four outputs at a time.
 * @param {Float32Array} x @param {number} T @param {Float32Array} w
 * @param {Float32Array | null} b @param {number} I @param {number} O */
export function linear(x, T, w, b, I, O) {
  const y = new Float32Array(T * O);
  for (let t = 0; t < T; t++) {
    const from = t * I;
    let o = 0;
    for (; o + 3 < O; o += 4) {
      let s0 = 0,
        s1 = 0,
        s2 = 0,
        s3 = 0;
      const w0 = o * I,
        w1 = w0 + I,
        w2 = w1 + I,
        w3 = w2 + I;
      for (let i = 0; i < I; i++) {
        const v = x[from + i];
        s0 += v * w[w0 + i];
        s1 += v * w[w1 + i];
        s2 += v * w[w2 + i];
        s3 += v * w[w3 + i];
      }
      const to = t * O + o;
      y[to] = s0;
      y[to + 1] = s1;
      y[to + 2] = s2;
      y[to + 3] = s3;
    }
    for (; o < O; o++) {
      let sum = 0;
      for (let i = 0; i < I; i++) sum += x[from + i] * w[o * I + i];
      y[t * O + o] = sum;
    }
    if (b) for (let o = 0; o < O; o++) y[t * O + o] += b[o];
  }
  return y;
}
