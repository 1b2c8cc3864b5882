// 1 · Live sentence: a picture one can draw on, and a model that answers while one drags.

import { button, el, fill, inWords, percent } from "../dom.js";
import { heading } from "../lessons.js";
import { START } from "../store.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../scene.js").Thing} Thing */

/** @param {string} name @param {number} x @param {number} y @param {number} size @returns {Thing} */
const sticker = (name, x, y, size = 340) => ({ kind: "sticker", name, x, y, size, turn: 0 });

/** Pictures worth a try, and what to ask about them. */
export const EXAMPLES = [
  {
    id: "farm",
    title: "A farm",
    text: "three things, one sentence",
    changes: { scene: START.scene, task: "caption" },
  },
  {
    id: "count",
    title: "How many?",
    text: "things of one kind, counted",
    changes: {
      scene: {
        ground: "#fff4e6",
        things: [
          sticker("balloon", 200, 220, 220),
          sticker("balloon", 640, 230, 220),
          sticker("balloon", 220, 680, 220),
          sticker("cat", 700, 700, 380),
        ],
      },
      task: "ask",
      words: { ...START.words, ask: "how many balloons do you see?" },
    },
  },
  {
    id: "colour",
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
      words: START.words,
    },
  },
  {
    id: "absent",
    title: "It is not there",
    text: "a question about what is not in the picture",
    changes: {
      scene: START.scene,
      task: "ask",
      words: { ...START.words, ask: "where is the airplane?" },
    },
  },
  {
    id: "find",
    title: "Find them",
    text: "boxes that follow the hand",
    changes: {
      scene: {
        ground: "#f6efe2",
        things: [
          sticker("cat", 280, 320),
          sticker("bicycle", 720, 680),
          sticker("pizza", 700, 260, 260),
        ],
      },
      task: "detect",
      words: { ...START.words, detect: "cat ; pizza" },
    },
  },
  {
    id: "cut",
    title: "Cut it out",
    text: "a box, then sixteen codes for its outline",
    changes: {
      scene: {
        ground: "#e6eef5",
        things: [sticker("pig", 430, 540, 600), sticker("balloon", 830, 190, 240)],
      },
      task: "segment",
      words: { ...START.words, segment: "pig" },
    },
  },
  {
    id: "read",
    title: "Read",
    text: "a word in the picture, letter by letter",
    changes: {
      scene: {
        ground: "#ffffff",
        things: [
          { kind: "text", name: "CAFE", x: 500, y: 270, size: 520, turn: 0, color: "#e03131" },
          sticker("doughnut", 500, 690, 400),
        ],
      },
      task: "read",
    },
  },
  {
    id: "describe",
    title: "Describe",
    text: "what there is, and where",
    changes: { scene: START.scene, task: "describe" },
  },
  {
    id: "empty",
    title: "An empty picture",
    text: "there is nothing to be named",
    changes: { scene: { ground: "#d9d9d9", things: [] }, task: "caption" },
  },
];

/** An example's picture. @param {string} name @returns {import("../scene.js").Scene} */
export const exampleScene = (name) =>
  /** @type {any} */ (EXAMPLES.find(({ id }) => id === name)).changes.scene;

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
