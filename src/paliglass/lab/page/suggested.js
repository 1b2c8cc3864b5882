// What might be asked of a picture, by what was put into it.

/** @typedef {import("./scene.js").Scene} Scene */

const ABSENT = ["dog", "cat", "car"];

/** @param {string} task of those that ask for words @param {Scene} scene @returns {string[]} */
export function suggested(task, { things }) {
  const names = (/** @type {string[]} */ ...kinds) => [
    ...new Set(things.filter(({ kind }) => kinds.includes(kind)).map(({ name }) => name)),
  ];
  const present = names("sticker", "shape");
  const absent = ABSENT.find((name) => !present.includes(name)) ?? "";
  if (task === "segment") return present;
  if (task === "detect")
    return [present.slice(0, 2).join(" ; "), "food", "vehicle", absent].filter(Boolean);
  const [shape] = names("shape");
  const thing = present.find((name) => name !== shape);
  return [
    "what's in the picture?",
    "how many things can you see?",
    thing && `where is the ${thing}?`,
    shape && `what colour is the ${shape}?`,
    names("text").length && "what does it say?",
    `do you see a ${absent}?`,
    `where is the ${absent}?`,
  ].filter((offer) => typeof offer === "string");
}
