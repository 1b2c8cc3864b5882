// 1 · Pictures and prompts → numbers and ids; see processing_paligemma.py.
//
//     <image> × P   <bos>   prompt   \n

import { resize } from "./resize.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./config.js").Config} Config */
/** @typedef {import("./edits.js").Edits} Edits */
/** @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray}} Picture
 *   rows of RGB, or of RGBA, which is laid over white */

/** Rows of RGB bytes. @param {Picture} picture */
export function rgb({ width, height, data }) {
  if (data.length === width * height * 3) return new Uint8Array(data);
  const out = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3];
    if (alpha === 255) {
      out[3 * i] = data[4 * i];
      out[3 * i + 1] = data[4 * i + 1];
      out[3 * i + 2] = data[4 * i + 2];
      continue;
    }
    for (let c = 0; c < 3; c++)
      out[3 * i + c] = Math.round((data[4 * i + c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return out;
}

/** The model's square, side × side × 3. @param {Picture} picture @param {number} side */
export const square = (picture, side) => resize(rgb(picture), picture.width, picture.height, side);

/** Bytes → 3 × S × S in [−1, 1], in float32 as numpy computes it.
 * @param {Uint8Array} bytes side × side × 3 @param {number[]} mean @param {number[]} std */
export function normalize(bytes, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5]) {
  const count = bytes.length / 3;
  const out = new Float32Array(bytes.length);
  const share = Math.fround(1 / 255);
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < count; i++)
      out[c * count + i] = Math.fround(Math.fround(bytes[3 * i + c] * share) - mean[c]) / std[c];
  return out;
}

export class Processor {
  /** @param {any} tokenizer tokenizer.json @param {Config} config
   * @param {{image_mean?: number[], image_std?: number[]}} settings preprocessor_config.json */
  constructor(tokenizer, config, settings = {}) {
    this.tokenizer = new Tokenizer(tokenizer);
    this.config = config;
    this.settings = settings;
    this.bos = this.tokenizer.id("<bos>");
    this.eos = this.tokenizer.id("<eos>");
    this.pad = this.tokenizer.id("<pad>");
    this.firstLocation = this.tokenizer.id("<loc0000>");
    this.firstCode = this.tokenizer.id("<seg000>");
  }

  /** A picture → 3 × S × S. @param {Picture} picture @param {Edits} edits */
  pixels(picture, edits = {}) {
    const bytes = square(picture, this.config.vision.side);
    if (edits.channels === "bgr")
      for (let i = 0; i < bytes.length; i += 3) [bytes[i], bytes[i + 2]] = [bytes[i + 2], bytes[i]];
    if (edits.channels === "grey")
      for (let i = 0; i < bytes.length; i += 3)
        bytes.fill(
          Math.round(0.299 * bytes[i] + 0.587 * bytes[i + 1] + 0.114 * bytes[i + 2]),
          i,
          i + 3,
        );
    return normalize(bytes, this.settings.image_mean, this.settings.image_std);
  }

  /** The ids that the model is given. @param {string} prompt @param {Edits} edits */
  encodePrefix(prompt, edits = {}) {
    const places = new Array(this.config.patches).fill(this.config.imageToken);
    const words = this.tokenizer.encodePlain(prompt + (edits.noNewline ? "" : "\n"));
    return [...places, this.bos, ...words];
  }

  /** Ids → text up to `<eos>`; location and segment tokens stay. @param {number[]} ids */
  decode(ids) {
    const end = ids.indexOf(this.eos);
    const hidden = [this.pad, this.bos, this.config.imageToken];
    const shown = (end < 0 ? ids : ids.slice(0, end)).filter((id) => !hidden.includes(id));
    return this.tokenizer.decode(shown);
  }

  /** A token as a reader should see it: ▁ as a space, a byte as itself. @param {number} id */
  spell(id) {
    return (this.tokenizer.tokens[id] ?? `#${id}`).replaceAll("▁", " ");
  }
}
