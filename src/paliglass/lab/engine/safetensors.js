// A safetensors file → its tensors, widened to float32.
// Layout: 8 bytes n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then the numbers.

/** @typedef {{shape: number[], data: Float32Array}} Tensor */
/** @typedef {Record<string, Tensor>} Tensors */

/** bfloat16 is the upper half of a float32. @param {Uint16Array} bits */
export function widenBfloat16(bits) {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i] << 16;
  return new Float32Array(words.buffer);
}

/** IEEE half precision: 1 sign, 5 exponent and 10 mantissa bits. @param {Uint16Array} bits */
export function widenFloat16(bits) {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] >> 15 ? -1 : 1;
    const exponent = (bits[i] >> 10) & 31;
    const mantissa = bits[i] & 1023;
    if (exponent === 0) values[i] = sign * mantissa * 2 ** -24;
    else if (exponent === 31) values[i] = mantissa ? NaN : sign * Infinity;
    else values[i] = sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
  }
  return values;
}

/** @type {Record<string, (bytes: ArrayBuffer) => Float32Array>} */
const WIDEN = {
  BF16: (bytes) => widenBfloat16(new Uint16Array(bytes)),
  F16: (bytes) => widenFloat16(new Uint16Array(bytes)),
  F32: (bytes) => new Float32Array(bytes),
};

/**
 * @param {ArrayBuffer} file
 * @returns {{tensors: Tensors, metadata: Record<string, string>}}
 * @throws {Error} for a truncated file or a type that is not read here, naming the tensor.
 */
export function readSafetensors(file) {
  if (file.byteLength < 8) throw new Error("not a safetensors file: fewer than 8 bytes");
  const length = Number(new DataView(file).getBigUint64(0, true));
  if (8 + length > file.byteLength)
    throw new Error("not a safetensors file: its header is cut off");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  /** @type {Tensors} */
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const {
      dtype,
      shape,
      data_offsets: [start, end],
    } = entry;
    if (!(dtype in WIDEN)) throw new Error(`${name} is ${dtype}; the lab reads BF16, F16 and F32`);
    if (8 + length + end > file.byteLength) throw new Error(`${name} is cut off`);
    tensors[name] = { shape, data: WIDEN[dtype](file.slice(8 + length + start, 8 + length + end)) };
  }
  return { tensors, metadata: header.__metadata__ ?? {} };
}

/** The numbers of a part's tensors, by their names in it.
 * @param {Tensors} tensors @param {string} prefix
 * @returns {(name: string) => Float32Array} throws where the tensor is missing, naming it. */
export function weightsUnder(tensors, prefix) {
  return (name) => {
    const found = tensors[prefix + name];
    if (!found) throw new Error(`the weights lack ${prefix}${name}`);
    return found.data;
  };
}
