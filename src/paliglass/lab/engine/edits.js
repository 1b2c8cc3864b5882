// What can be broken: every intervention that the page offers, as one plain object. {} changes nothing.

/** @typedef {import("./layers/masks.js").MaskEdit} MaskEdit */
/** @typedef {import("./weights.js").Rounding} Rounding */
/**
 * @typedef {object} Edits
 * Picture and tower:
 * @property {"bgr" | "grey"} [channels] the picture's colours, red and blue swapped or gone
 * @property {"none" | "transposed"} [towerPositions] learned positions left out, or rows as columns
 * @property {"shuffled" | "pooled" | "zero"} [features] what the decoder is given of the picture
 * @property {boolean} [scaleFeatures] multiply features by √D, as words are
 * Decoder:
 * @property {boolean} [unscaledWords] do not multiply words by √D
 * @property {boolean} [noRotary] no rotary positions
 * @property {number} [shift] added to every position
 * @property {boolean} [noNewline] leave out the newline that ends a prompt
 * @property {"layer"} [norm] LayerNorm's centring in every RMSNorm
 * @property {MaskEdit} [mask]
 * @property {{layer: number, position: number, vector: ArrayLike<number>}[]} [patches] a token's
 *   stream after a layer (−1: what enters the first) replaced by a vector of D numbers
 * Both:
 * @property {"relu" | "none"} [activation] in GELU's place
 * @property {boolean} [unscaledScores] no 1/√d before the softmax
 * @property {string[]} [off] parts that add nothing: "tower.2" (a layer), "decoder.0.3" (a head),
 *   "decoder.1.attention", "decoder.1.mlp", "decoder.1.mlp.57" (a neuron, of the decoder alone)
 * @property {Rounding} [bits] weights in fewer bits
 */

/** Whether a part is switched off. @param {Edits} edits @param {string} part */
export const isOff = (edits, part) => edits.off?.includes(part) ?? false;

/** A layer's neurons that are switched off. @param {Edits} edits @param {string} layer */
export function neuronsOff(edits, layer) {
  const own = (edits.off ?? []).filter((part) => part.startsWith(`${layer}.mlp.`));
  return own.map((part) => Number(part.slice(layer.length + 5)));
}

/** The edits that reach the picture's features, as a key to keep those by. @param {Edits} edits */
export function towerKey(edits) {
  const { channels, towerPositions, activation, unscaledScores, off = [] } = edits;
  const own = off.filter((part) => part.startsWith("tower."));
  return JSON.stringify([channels, towerPositions, activation, unscaledScores, own]);
}
