// The page's packed parts → bytes: from the page itself in base85, or from a file beside it; gzip; and
// for weights the planes put together again.

/**
 * @typedef {object} Packed a part of the page: see build.py
 * @property {string} text base85 @property {string} [url] where the part is, if not in `text`
 * @property {number} planes @property {number[]} sizes bytes of its sections, unpacked
 */

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

/** Numbers of two bytes lie as all their first bytes, then all their second, with the sign moved from
 * the highest bit to the lowest: the second bytes, the exponents, repeat themselves, and gzip takes a
 * third off. The header before them stays as it is.
 * @param {ArrayBuffer} file @returns {ArrayBuffer} */
export function joinPlanes(file) {
  const from = 8 + Number(new DataView(file).getBigUint64(0, true));
  const packed = new Uint8Array(file);
  const out = packed.slice();
  const half = (packed.length - from) / 2;
  for (let i = 0; i < half; i++) {
    const [low, high] = [packed[from + i], packed[from + half + i]];
    out[from + 2 * i] = (low >> 1) | (high << 7);
    out[from + 2 * i + 1] = (high >> 1) | (low << 7);
  }
  return out.buffer;
}

/** @type {Map<string, Promise<Response>>} what was asked for before it is wanted */
const ahead = new Map();

/** @param {string} url */
export function fetchAhead(url) {
  const response = fetch(url);
  response.catch(() => {}); // told when it is wanted
  ahead.set(url, response);
}

/** @param {string} url @returns {Promise<ReadableStream<Uint8Array>>} */
async function fetched(url) {
  if (url.startsWith("file:"))
    throw new Error(
      "this page is in pieces, which browsers read from a web server alone (`paliglass lab --out lab.html` writes it as one file)",
    );
  const response = await (ahead.get(url) ?? fetch(url));
  ahead.delete(url);
  if (!response.ok || !response.body) throw new Error(`${url}: ${response.status}`);
  return response.body;
}

/** The sections of a part, each as soon as it has arrived.
 * @param {Packed} packed @param {(bytes: number) => void} told of bytes that have come
 * @returns {AsyncGenerator<ArrayBuffer, void>} */
export async function* sections({ text, url, planes, sizes }, told = () => {}) {
  const zipped = url
    ? await fetched(url)
    : new Blob([/** @type {any} */ (fromBase85(text.trim()))]).stream();
  const reader = zipped
    .pipeThrough(/** @type {any} */ (new DecompressionStream("gzip")))
    .getReader();
  let rest = new Uint8Array(0);
  for (const [i, size] of sizes.entries()) {
    const section = new Uint8Array(size);
    for (let at = 0; at < size;) {
      if (!rest.length) {
        const { done, value } = await reader.read();
        if (done) throw new Error("a part of the page is cut off");
        rest = value;
        told(rest.length);
      }
      const piece = rest.subarray(0, size - at);
      section.set(piece, at);
      at += piece.length;
      rest = rest.subarray(piece.length);
    }
    if (i + 1 === sizes.length) await reader.read(); // its end, where gzip's checksum stands
    yield planes === 2 ? joinPlanes(section.buffer) : section.buffer;
  }
}

/** A part of one section. @param {Packed} packed @returns {Promise<ArrayBuffer>} */
export async function unpack(packed) {
  const { value } = await sections(packed).next();
  return /** @type {ArrayBuffer} */ (value);
}
