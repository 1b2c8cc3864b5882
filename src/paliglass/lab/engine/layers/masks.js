// Who may look at whom. 0 for a given token, 1 for one to be predicted; add up from the left: a token
// may look at every token whose sum is no larger than its own (a prefix-LM; see layers/masks.py).

/** @typedef {import("./attention.js").Mask} Mask */
/** @typedef {"prefix" | "causal" | "blind" | "self" | "window"} MaskName */
/** @typedef {{name?: MaskName, window?: number, painted?: [number, number, number, number, 0 | 1][]}} MaskEdit
 *   painted: rectangles [first row, last row, first column, last column, may look], later over earlier */

/** @type {Record<MaskName, string>} */
export const MASKS = {
  prefix: "prefix-LM: picture and prompt see each other fully, the answer is causal",
  causal: "causal: each token sees itself and the past alone",
  blind: "patches blind to the prompt: the picture sees itself, the prompt is causal",
  self: "answer sees itself: of the past, an answer's word sees the answer alone and the prompt's end",
  window: "window: the answer sees the last few tokens alone",
};

/**
 * @param {number} prefix tokens given: picture and prompt
 * @param {number} picture how many of them are patches
 * @param {MaskEdit} edit
 * @returns {Mask}
 */
export function maskOf(prefix, picture, edit = {}) {
  const { name = "prefix", window = 16, painted = [] } = edit;
  /** @type {Record<MaskName, Mask>} */
  const rules = {
    prefix: (t, s) => s <= t || (t < prefix && s < prefix),
    causal: (t, s) => s <= t,
    blind: (t, s) => s <= t || (t < picture && s < picture),
    self: (t, s) => (t < prefix ? s < prefix : s <= t && s >= prefix - 1),
    window: (t, s) => (t < prefix ? s < prefix : s <= t && s > t - window),
  };
  const rule = rules[name];
  if (!painted.length) return rule;
  // A row without a single key has no softmax: a token goes on seeing itself.
  return (t, s) => {
    if (t === s) return true;
    for (let i = painted.length - 1; i >= 0; i--) {
      const [top, bottom, left, right, may] = painted[i];
      if (t >= top && t <= bottom && s >= left && s <= right) return Boolean(may);
    }
    return rule(t, s);
  };
}
