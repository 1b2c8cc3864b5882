// Boxes as PaliGemma writes them: <locY0><locX0><locY1><locX1> label, " ; " between them; in an answer
// to `segment` sixteen <seg> tokens between box and label. See tasks/boxes.py.

export const BINS = 1024;
export const MASK_TOKENS = 16;

/** @typedef {{label: string, box: [number, number, number, number], codes: number[] | null,
 *   start: number, end: number}} ParsedBox box: x0, y0, x1, y1 as shares of the picture */

const LOCATION = "<loc(?:0\\d{3}|10[01]\\d|102[0-3])>";
const CODE = "<seg(?:0\\d{2}|1[01]\\d|12[0-7])>";
const BOX = new RegExp(
  `((?:${LOCATION}){4})(?!${LOCATION})((?:${CODE})*)((?:(?!<loc\\d{4}>|<seg\\d{3}>)[^;])*)`,
  "gu",
);

/** All well-formed boxes of an answer, in order. @param {string} answer @returns {ParsedBox[]} */
export function parseBoxes(answer) {
  const found = [];
  for (const match of answer.matchAll(BOX)) {
    const numbers = (/** @type {string} */ text) => (text.match(/\d+/g) ?? []).map(Number);
    const [y0, x0, y1, x1] = numbers(match[1]).map((n) => n / (BINS - 1));
    if (!(x1 > x0 && y1 > y0)) continue;
    const codes = numbers(match[2]);
    found.push({
      label: match[3].trim(),
      box: /** @type {[number, number, number, number]} */ ([x0, y0, x1, y1]),
      codes: codes.length === MASK_TOKENS ? codes : null,
      start: match.index,
      end: match.index + match[0].trimEnd().length,
    });
  }
  return found;
}

/** "dog ; cat" → its labels, each once. @param {string} text */
export function splitLabels(text) {
  const parts = text.split(";").map((part) => part.split(/\s+/).filter(Boolean).join(" "));
  return [...new Set(parts.filter(Boolean))];
}
