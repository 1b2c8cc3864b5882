// The file's packed parts → bytes: base64, gzip, and for weights the planes put together again.

/** @param {string} text base64 @returns {Uint8Array} */
function fromBase64(text) {
  const builtIn = /** @type {any} */ (Uint8Array).fromBase64;
  if (builtIn) return builtIn.call(Uint8Array, text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
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
  const zipped = new Blob([/** @type {any} */ (fromBase64(text.trim()))]).stream();
  const stream = zipped.pipeThrough(new DecompressionStream("gzip"));
  const file = await new Response(stream).arrayBuffer();
  return planes === 2 ? joinPlanes(file) : file;
}
