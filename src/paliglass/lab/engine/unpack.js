// The file's packed parts → bytes: base85, gzip, and for weights the planes put together again.

// RFC 1924's letters, with a comma for "<"
const LETTERS =
  "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

/** Five letters are four bytes, the first the highest; of a last group of k + 1 letters, k bytes.
 * @param {string} text base85 @returns {Uint8Array} */
export function fromBase85(text) {
  const values = new Uint8Array(128);
  for (let i = 0; i < LETTERS.length; i++) values[LETTERS.charCodeAt(i)] = i;
  const groups = Math.ceil(text.length / 5);
  const view = new DataView(new ArrayBuffer(4 * groups));
  for (let g = 0, at = 0; g < groups; g++) {
    let value = 0;
    for (let k = 0; k < 5; k++, at++) {
      value = value * 85 + (at < text.length ? values[text.charCodeAt(at)] : 84);
    }
    view.setUint32(4 * g, value);
  }
  return new Uint8Array(view.buffer, 0, 4 * groups - (5 * groups - text.length));
}

/** Numbers of two bytes lie as all their first bytes, then all their second: the second, sign and
 * exponent, repeat themselves, and gzip takes a tenth off. The header before them stays as it is.
 * @param {ArrayBuffer} file @returns {ArrayBuffer} */
export function joinPlanes(file) {
  const from = 8 + Number(new DataView(file).getBigUint64(0, true));
  const packed = new Uint8Array(file);
  const out = packed.slice();
  const half = (packed.length - from) / 2;
  for (let i = 0; i < half; i++) {
    out[from + 2 * i] = packed[from + i];
    out[from + 2 * i + 1] = packed[from + half + i];
  }
  return out.buffer;
}

/** @param {{text: string, planes: number}} packed @returns {Promise<ArrayBuffer>} */
export async function unpack({ text, planes }) {
  const zipped = new Blob([/** @type {any} */ (fromBase85(text.trim()))]).stream();
  const stream = zipped.pipeThrough(new DecompressionStream("gzip"));
  const file = await new Response(stream).arrayBuffer();
  return planes === 2 ? joinPlanes(file) : file;
}
