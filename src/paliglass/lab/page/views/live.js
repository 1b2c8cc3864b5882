// 1 · Live sentence: a picture one can draw on, and a model that answers while one drags.

import { button, el, fill, inWords, percent } from "../dom.js";
import { heading } from "../lessons.js";
import { START } from "../store.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../scene.js").Thing} Thing */

/** @param {string} name @param {number} x @param {number} y @param {number} size @returns {Thing} */
const sticker = (name, x, y, size = 340) => ({ kind: "sticker", name, x, y, size, turn: 0 });

/** Scenes worth a try, and what to ask about them. */
export const EXAMPLES = [
  {
    title: "A farm",
    text: "three things, one sentence",
    changes: { scene: START.scene, task: "caption" },
  },
  {
    title: "An empty picture",
    text: "there is nothing, and it says something",
    changes: { scene: { ground: "#d9d9d9", things: [] }, task: "caption" },
  },
  {
    title: "Which colour?",
    text: "a star that can be painted",
    changes: {
      scene: {
        ground: "#eef1f6",
        things: [
          { kind: "shape", name: "star", x: 330, y: 380, size: 330, turn: 0, color: "#e03131" },
          { kind: "shape", name: "circle", x: 700, y: 660, size: 260, turn: 0, color: "#1971c2" },
        ],
      },
      task: "ask",
    },
  },
  {
    title: "Find them",
    text: "boxes that follow the hand",
    changes: {
      scene: {
        ground: "#f6efe2",
        things: [
          sticker("cat", 280, 320),
          sticker("rocket", 720, 680),
          sticker("pizza", 700, 260, 260),
        ],
      },
      task: "detect",
      words: { ...START.words, detect: "cat ; pizza" },
    },
  },
  {
    title: "Cut it out",
    text: "a box, then sixteen codes for its outline",
    changes: {
      scene: {
        ground: "#e6eef5",
        things: [sticker("elephant", 430, 480, 560), sticker("apple", 830, 200, 220)],
      },
      task: "segment",
      words: { ...START.words, segment: "elephant" },
    },
  },
  {
    title: "Read",
    text: "a word in the picture, letter by letter",
    changes: {
      scene: {
        ground: "#ffffff",
        things: [
          { kind: "text", name: "hello", x: 500, y: 480, size: 480, turn: 0, color: "#1971c2" },
        ],
      },
      task: "read",
    },
  },
];

export const liveView = {
  id: "live",
  title: "Live sentence",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const words = el("div");
    fill(
      root,
      heading(
        "Live sentence: draw, and be told",
        `Draw, drag, ask. ${store.name} answers again while you move things: everything is computed ${store.isRemote ? "on the machine that this page came from" : "in this page"}, nothing leaves it. Watch which words hang on to what is in the picture, and which are made up.`,
        "architecture",
        "modeling_paligemma.py",
      ),
      el(
        "div",
        { class: "cards" },
        EXAMPLES.map(({ title, text, changes }) =>
          button(
            [el("b", { text: title }), el("span", { text })],
            () => {
              store.hold();
              store.set(structuredClone(/** @type {any} */ (changes)));
            },
            { class: "card" },
          ),
        ),
      ),
      el("h3", { text: "How sure it is of each word" }),
      words,
    );
    const update = () => {
      const { result } = store;
      if (!result) return;
      const shares = result.logProbabilities.map(Math.exp);
      fill(
        words,
        el(
          "ol",
          { class: "sure" },
          result.answerWords.map((/** @type {string} */ word, /** @type {number} */ i) =>
            el(
              "li",
              { style: { "--p": shares[i].toFixed(3) } },
              button(
                el("span", { text: word.trim() || "␣" }),
                () => store.set({ view: "bench", token: result.prompt.length + i - 1 }),
                { class: "plain", title: "what else might have been said" },
              ),
              el("span", { class: "num", text: percent(shares[i]) }),
            ),
          ),
        ),
        inWords(
          `To “${store.prompt}” ${store.name} answers “${result.text}”. ${result.boxes.map((/** @type {any} */ b) => `${b.label} from ${b.box.map((/** @type {number} */ v) => percent(v)).join(", ")} (left, top, right, bottom).`).join(" ")} Its least sure word has ${percent(Math.min(...shares))}.`,
        ),
      );
    };
    return { update };
  },
};
