// CLIP's other picture encoder: convolutions with shortcuts (arXiv 1512.03385; see contrastive/encoders.py).

/** @typedef {import("./kernel.js").Kernel} Kernel */
/** @typedef {import("./safetensors.js").Tensors} Tensors */
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

export class ResNet {
  /** @param {any} config image_config @param {Tensors} tensors @param {Kernel} kernel */
  constructor(config, tensors, kernel) {
    this.config = config;
    this.tensors = tensors;
    this.kernel = kernel;
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

  /** Numbers in [−1, 1], 3 × S × S → one vector. @param {Float32Array} pixels */
  forward(pixels) {
    const { image_size: side, depths, num_channels: channels } = this.config;
    const data = new Float32Array(pixels.length);
    for (let c = 0; c < channels; c++)
      for (let i = 0; i < side * side; i++) data[i * channels + c] = pixels[c * side * side + i];
    let x = pooled(relu(this.convolve("stem", { data, channels, side }, 2)));
    let number = 0;
    depths.forEach((/** @type {number} */ depth, /** @type {number} */ stage) => {
      for (let block = 0; block < depth; block++, number++)
        x = this.block(number, x, stage && !block ? 2 : 1);
    });
    return mean(x.data, x.channels);
  }
}

/** Of all rows, one. @param {Float32Array} x rows of `width` @param {number} width */
export function mean(x, width) {
  const out = new Float32Array(width);
  const count = x.length / width;
  for (let i = 0; i < x.length; i++) out[i % width] += x[i] / count;
  return out;
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
