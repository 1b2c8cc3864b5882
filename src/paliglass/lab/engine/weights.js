// Questions about the weights alone, and a model with its weights in fewer bits.

import { principal } from "./principal.js";
import { top } from "./sampling.js";

/** @typedef {import("./paligemma.js").PaliGemma} PaliGemma */
/** @typedef {import("./safetensors.js").Tensors} Tensors */
/**
 * @typedef {object} Rounding
 * @property {number} bits 2 … 8 a weight
 * @property {number} group inputs that share a scale; 0: all of an output's
 * @property {"all" | "tower" | "decoder" | "table"} part whose matrices; the projector is the tower's
 */

const TABLE = "language_model.model.embed_tokens.weight";

/** What a tensor belongs to; null: it is no matrix that vectors are multiplied by.
 * @param {string} name @param {number[]} shape @returns {Rounding["part"] | null} */
export function partOf(name, shape) {
  if (shape.length < 2 || name.includes("position_embedding")) return null;
  if (name === TABLE) return "table";
  return name.startsWith("language_model.") ? "decoder" : "tower";
}

/** Weights in a few bits: the nearest of −m … m times a scale, where m = 2^(bits − 1) − 1 and the scale
 * is a group's largest weight over m. In float32, halves away from −∞.
 * @param {Float32Array} w O × I @param {number} inputs I @param {number} bits @param {number} group */
export function rounded(w, inputs, bits, group) {
  const most = 2 ** (bits - 1) - 1;
  const size = group || inputs;
  const out = new Float32Array(w.length);
  for (let row = 0; row < w.length; row += inputs)
    for (let from = row; from < row + inputs; from += size) {
      const end = Math.min(from + size, row + inputs);
      let largest = 0;
      for (let i = from; i < end; i++) largest = Math.max(largest, Math.abs(w[i]));
      const scale = Math.fround(largest / most);
      if (!scale) continue;
      for (let i = from; i < end; i++)
        out[i] = Math.floor(Math.fround(Math.fround(w[i] / scale) + 0.5)) * scale;
    }
  return out;
}

/** The tensors of a model in fewer bits. @param {Tensors} tensors @param {Rounding} rounding @returns {Tensors} */
export function roundedTensors(tensors, { bits, group, part }) {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, data }]) => {
      const own = partOf(name, shape);
      const isMeant = own !== null && (part === "all" || part === own);
      return [
        name,
        { shape, data: isMeant ? rounded(data, data.length / shape[0], bits, group) : data },
      ];
    }),
  );
}

/** All matrices: what they are called and how large they are. @param {Tensors} tensors */
export const matrices = (tensors) =>
  Object.entries(tensors)
    .map(([name, { shape, data }]) => ({
      name,
      part: partOf(name, shape),
      rows: shape[0],
      columns: data.length / shape[0],
    }))
    .filter(({ part }) => part)
    .sort((a, b) => (a.name < b.name ? -1 : 1));

const BINS = 121;
const SAMPLE = 32;

/** One matrix beside itself in fewer bits: how its weights are spread, a few of them, the error.
 * @param {Tensors} tensors @param {string} name @param {number} bits 16: as it is @param {number} group */
export function matrix(tensors, name, bits, group) {
  const { shape, data } = tensors[name];
  const columns = data.length / shape[0];
  const after = bits >= 16 ? data : rounded(data, columns, bits, group);
  let most = 0;
  for (const value of data) most = Math.max(most, Math.abs(value));
  const counts = [data, after].map((values) => {
    const found = new Float32Array(BINS);
    const half = (BINS - 1) / 2;
    for (const value of values)
      found[Math.floor(Math.fround(Math.fround(Math.fround(value / most) * half) + half + 0.5))]++;
    return found;
  });
  let apart = 0,
    size = 0;
  for (let i = 0; i < data.length; i++) {
    apart += (data[i] - after[i]) ** 2;
    size += data[i] ** 2;
  }
  return {
    most,
    before: counts[0],
    after: counts[1],
    error: Math.sqrt(apart / size),
    sample: [data, after].map((values) => values.slice(0, Math.min(SAMPLE, columns))),
  };
}

/** The tower's first matrix, O × (3 · p²): each row is a small picture that patches are held against.
 * @param {PaliGemma} model */
export function filters({ tower }) {
  const [weights, bias] = ["weight", "bias"].map((part) =>
    tower.weight(`embeddings.patch_embedding.${part}`).slice(),
  );
  return { weights, bias };
}

/** Rows of the table for ids, end to end. @param {PaliGemma} model @param {number[]} ids */
function tableRows({ decoder }, ids) {
  const { width } = decoder.config;
  const table = decoder.weight("embed_tokens.weight");
  const rows = new Float32Array(ids.length * width);
  ids.forEach((id, i) => rows.set(table.subarray(id * width, (id + 1) * width), i * width));
  return rows;
}

/** The words whose rows of the table point most nearly the same way, itself left out.
 * @param {PaliGemma} model @param {number} id @param {number} k */
export function nearest(model, id, k) {
  const { config, decoder, kernel } = model;
  const { width, vocab } = config.text;
  const own = tableRows(model, [id]);
  const table = decoder.weight("embed_tokens.weight");
  const products = kernel.linear(own, 1, table, null, width, vocab);
  const length = (/** @type {Float32Array} */ row) => Math.sqrt(row.reduce((s, v) => s + v * v, 0));
  const norm = length(own);
  const cosines = Float32Array.from({ length: config.words }, (_, i) =>
    i === id
      ? -Infinity
      : products[i] / (norm * length(table.subarray(i * width, (i + 1) * width)) || Infinity),
  );
  return { norm, nearest: top(cosines, k).map((i) => ({ id: i, cosine: cosines[i] })) };
}

/** Principal components of some words' rows of the table.
 * @param {PaliGemma} model @param {number[]} ids @param {number} k */
export const tableComponents = (model, ids, k) => principal(tableRows(model, ids), ids.length, k);

const WINDOWS = 5;
const PATIENCE = 12; // milliseconds of each

/** Speeds of the matrix product here and now, the best of some short windows: operations a second with
 * many tokens, bytes of weights a second with a single one. @param {PaliGemma} model */
export function measure({ config, decoder, kernel }) {
  const { width, vocab, hidden } = config.text;
  const rate = (/** @type {number} */ amount, /** @type {() => void} */ work) => {
    work();
    let best = 0;
    for (let window = 0; window < WINDOWS; window++) {
      const begun = performance.now();
      let times = 0;
      do work();
      while ((times++, performance.now() - begun < PATIENCE));
      best = Math.max(best, (1000 * times * amount) / (performance.now() - begun));
    }
    return best;
  };
  const T = 64;
  const x = new Float32Array(T * width).fill(0.5);
  const up = decoder.weight("layers.0.mlp.up_proj.weight");
  const table = decoder.weight("embed_tokens.weight");
  return {
    operations: rate(2 * T * width * hidden, () => kernel.linear(x, T, up, null, width, hidden)),
    bytes: rate(4 * width * vocab, () =>
      kernel.linear(x.subarray(0, width), 1, table, null, width, vocab),
    ),
    bytesPerWeight: 4,
  };
}
