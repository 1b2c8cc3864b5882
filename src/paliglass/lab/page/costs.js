// What an answer costs: operations, weights read, cache read. A multiplication with its addition is two
// operations; norms, softmax and activations are left out, as everywhere.

/** @typedef {import("../engine/config.js").VisionConfig} Vision */
/** @typedef {import("../engine/config.js").TextConfig} Text */
/** @typedef {{vision: Vision, text: Text, patches: number}} Shape */
/** @typedef {{operations: number, weights: number, cache: number}} Cost weights: how many are read; cache:
 *   numbers of it */

/** PaliGemma's published sizes (arXiv 2407.07726), at 224 pixels. @type {Shape} */
export const LARGE = /** @type {any} */ ({
  vision: { width: 1152, hidden: 4304, layers: 27, patch: 14, channels: 3 },
  text: {
    vocab: 257216,
    width: 2048,
    hidden: 16384,
    layers: 18,
    heads: 8,
    keyHeads: 1,
    headDim: 256,
  },
  patches: 256,
});

/** The tower and the projector, for B pictures. @param {Shape} shape @param {number} B @returns {Cost} */
export function towerCost({ vision, text, patches: P }, B = 1) {
  const { width: D, hidden, layers, patch, channels } = vision;
  const inLayers = layers * (4 * D * D + 2 * D * hidden);
  const weights = inLayers + D * channels * patch ** 2 + D * text.width;
  return { operations: B * (2 * P * weights + layers * 4 * P * P * D), weights, cache: 0 };
}

/** T new tokens of each of B rows that see S, and the words' logits for the last.
 * @param {Shape} shape @param {number} T @param {number} S @param {number} B @returns {Cost} */
export function decoderCost({ text }, T, S, B = 1) {
  const { width: D, hidden, layers, heads: H, keyHeads: K, headDim: d, vocab } = text;
  const inLayers = layers * (2 * D * H * d + 2 * D * K * d + 3 * D * hidden);
  const attention = layers * 4 * T * S * H * d;
  return {
    operations: B * (2 * T * inLayers + attention + 2 * D * vocab),
    weights: inLayers + D * vocab,
    cache: B * layers * 2 * S * K * d,
  };
}

/** Two costs, one after the other. @param {Cost} a @param {Cost} b @returns {Cost} */
const both = (a, b) => ({
  operations: a.operations + b.operations,
  weights: a.weights + b.weights,
  cache: a.cache + b.cache,
});

/** How long each phase of an answer took, and its operations a second: 0 where they are not known,
 * because it was kept from before, or parts of the model were left out.
 * @param {Shape} config @param {any} result */
export function phasesOf(config, { prompt, length, milliseconds, edits }) {
  const P = prompt.length;
  const words = Array.from({ length: Math.max(length - P, 0) }, (_, i) =>
    decoderCost(config, 1, P + i + 1),
  ).reduce(both, { operations: 0, weights: 0, cache: 0 });
  /** @type {[string, number, Cost][]} */
  const phases = [
    ["tower", milliseconds.tower, towerCost(config)],
    ["prompt", milliseconds.prefill, decoderCost(config, P, P)],
    ["words", milliseconds.decode, words],
  ];
  return phases.map(([name, ms, { operations }]) => {
    const isKept = name === "tower" && ms < 1;
    const isKnown = ms > 0 && !isKept && !edits.off?.length;
    return { name, seconds: ms / 1000, isKept, rate: isKnown ? (1000 * operations) / ms : 0 };
  });
}
