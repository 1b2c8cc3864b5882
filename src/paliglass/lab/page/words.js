// Answers as words, and what is new in one.

import { el } from "./dom.js";

/** Words of `b` that `a` has not, by their longest common subsequence: true where new.
 * @param {string[]} a @param {string[]} b */
export function newWords(a, b) {
  const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      long[i][j] =
        a[i] === b[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const isNew = b.map(() => true);
  let i = 0,
    j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) [isNew[j], i, j] = [false, i + 1, j + 1];
    else if (long[i + 1][j] >= long[i][j + 1]) i++;
    else j++;
  }
  return isNew;
}

/** Boxes and masks as signs: their numbers stand in the sentence's tokens. @param {string} text */
export const readable = (text) =>
  text
    .replace(/(<loc\d{4}>){4}/g, "▢")
    .replace(/(<seg\d{3}>)+/g, "◪")
    .replace(/▢◪?(?=\S)/g, "$& ");

/** What stands for an answer without a word: “nothing” may be one. */
export const EMPTY = "(no word)";

/** An answer as words, those that `other` lacks marked. @param {any} result @param {any} other */
export function answerText(result, other = null) {
  const words = readable(result.text).split(/(?<=\s)/);
  if (!result.text.trim()) return el("span", { class: "nothing", text: EMPTY });
  const isNew = other
    ? newWords(readable(other.text).split(/(?<=\s)/), words)
    : words.map(() => false);
  return words.map((/** @type {string} */ word, /** @type {number} */ i) =>
    isNew[i] ? el("mark", { text: word }) : word,
  );
}
