// 5 · Break-it board: say first what will happen, then see it computed.

import { button, el, fill, inWords, percent } from "../dom.js";
import { heading } from "../lessons.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../../engine/edits.js").Edits} Edits */

/** @type {{group: string, id: string, title: string, why: string, edits: Edits}[]} */
export const SWITCHES = [
  {
    group: "The picture",
    id: "bgr",
    title: "Red and blue swapped",
    why: "The tower was trained on RGB; colours are numbers in an order.",
    edits: { channels: "bgr" },
  },
  {
    group: "The picture",
    id: "zero",
    title: "Features all zero",
    why: "Nothing is left of the picture; the words that come are what the model thinks likely without looking.",
    edits: { features: "zero" },
  },
  {
    group: "The picture",
    id: "pooled",
    title: "One mean feature for all patches",
    why: "Every patch says the same now: what lay where is lost.",
    edits: { features: "pooled" },
  },
  {
    group: "The picture",
    id: "shuffled",
    title: "Patches in another order",
    why: "Place is told by the order in which patches enter the decoder.",
    edits: { features: "shuffled" },
  },
  {
    group: "Positions",
    id: "no-tower-positions",
    title: "Tower without positions",
    why: "A patch no longer knows where it lay when it met the others.",
    edits: { towerPositions: "none" },
  },
  {
    group: "Positions",
    id: "transposed",
    title: "Rows and columns exchanged",
    why: "The tower's learned positions are its only map of the picture.",
    edits: { towerPositions: "transposed" },
  },
  {
    group: "Positions",
    id: "no-rope",
    title: "No rotary positions",
    why: "Without them the decoder's attention is blind to order.",
    edits: { noRotary: true },
  },
  {
    group: "Positions",
    id: "shift",
    title: "All positions + 1000",
    why: "Rotary attention depends on differences of positions alone.",
    edits: { shift: 1000 },
  },
  {
    group: "Scales and norms",
    id: "words",
    title: "Words not multiplied by √D",
    why: "Words enter √D times too small beside the picture.",
    edits: { unscaledWords: true },
  },
  {
    group: "Scales and norms",
    id: "features",
    title: "Features multiplied by √D too",
    why: "A norm before each part takes the length off again, but what layers add to a patch weighs √D times less.",
    edits: { scaleFeatures: true },
  },
  {
    group: "Scales and norms",
    id: "scores",
    title: "No 1/√d before the softmax",
    why: "Scores are √d times as large: attention looks at one token where it weighed several.",
    edits: { unscaledScores: true },
  },
  {
    group: "Scales and norms",
    id: "norm",
    title: "LayerNorm for RMSNorm",
    why: "The streams' means are small: subtracting them changes little.",
    edits: { norm: "layer" },
  },
  {
    group: "Non-linearity",
    id: "relu",
    title: "ReLU for GELU",
    why: "They differ only around zero.",
    edits: { activation: "relu" },
  },
  {
    group: "Non-linearity",
    id: "linear",
    title: "No non-linearity",
    why: "Each MLP becomes one matrix.",
    edits: { activation: "none" },
  },
  {
    group: "The prompt",
    id: "newline",
    title: "No newline after the prompt",
    why: "In training every prompt ended with it: it says “now answer”.",
    edits: { noNewline: true },
  },
];

export const breakView = {
  id: "break",
  title: "Break it",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const board = el("div", { class: "switches" });
    const verdict = el("div", { class: "verdict", "aria-live": "polite" });
    const parts = el("div");
    const text = el("div");
    /** @type {Record<string, {guess: boolean, same: boolean | null}>} */
    const guesses = {};
    let open = "";
    let asked = 0;
    fill(
      root,
      heading(
        "Break it: what is needed",
        "Take a part of the model away. Say first what will happen: the same answer, or another? Then it is computed. Some parts carry everything, some nothing.",
        "architecture",
        "modeling_gemma.py",
      ),
      verdict,
      board,
      parts,
      text,
    );

    const current = () =>
      SWITCHES.find(({ edits }) => JSON.stringify(edits) === JSON.stringify(store.state.edits));
    /** @param {typeof SWITCHES[0]} one @param {boolean} same */
    const guess = (one, same) => {
      guesses[one.id] = { guess: same, same: null };
      open = "";
      store.set({ edits: structuredClone(one.edits) });
    };
    /** @param {string} part */
    const toggle = (part) => {
      const off = store.state.edits.off ?? [];
      const next = off.includes(part) ? off.filter((one) => one !== part) : [...off, part];
      const { off: _, ...rest } = store.state.edits;
      store.set({ edits: next.length ? { ...rest, off: next } : rest });
    };

    const showBoard = () => {
      const groups = [...new Set(SWITCHES.map(({ group }) => group))];
      fill(
        board,
        groups.map((group) => [
          el("h3", { text: group }),
          el(
            "div",
            { class: "cards" },
            SWITCHES.filter((one) => one.group === group).map((one) => {
              const isOn = current() === one;
              const known = guesses[one.id];
              return el(
                "div",
                { class: `card switch ${isOn ? "on" : ""}` },
                button(
                  el("b", { text: one.title }),
                  () => {
                    if (isOn) store.set({ edits: {} });
                    else if (known) store.set({ edits: structuredClone(one.edits) });
                    else open = open === one.id ? "" : one.id;
                    showBoard();
                  },
                  {
                    class: "plain",
                    "aria-pressed": String(isOn),
                    "aria-expanded": known ? null : String(open === one.id),
                  },
                ),
                open === one.id
                  ? el(
                      "div",
                      { class: "row" },
                      el("span", { text: "What will it say?" }),
                      button("The same", () => guess(one, true), { class: "chip" }),
                      button("Something else", () => guess(one, false), { class: "chip" }),
                    )
                  : el("span", {
                      text:
                        known && known.same !== null
                          ? `${known.same === known.guess ? "as you said" : "not as you said"}: ${known.same ? "the same" : "another answer"}`
                          : "",
                    }),
              );
            }),
          ),
        ]),
      );
    };

    const showParts = () => {
      const off = store.state.edits.off ?? [];
      const board = (
        /** @type {string} */ part,
        /** @type {number} */ layers,
        /** @type {number} */ heads,
      ) =>
        el(
          "div",
          { class: "parts" },
          Array.from({ length: layers }, (_, l) =>
            el(
              "div",
              { class: "part-row", role: "group", "aria-label": `${part} layer ${l}` },
              el("span", { class: "layer-name", text: String(l) }),
              Array.from({ length: heads }, (_, h) => cell(`${part}.${l}.${h}`, String(h))),
              cell(`${part}.${l}.mlp`, "MLP"),
              cell(`${part}.${l}`, "layer"),
            ),
          ),
        );
      const cell = (/** @type {string} */ part, /** @type {string} */ label) =>
        button(label, () => toggle(part), {
          class: "part",
          "aria-pressed": String(off.includes(part)),
          "aria-label": `${label}: ${part} off`,
        });
      const { vision, text: decoder } = store.config;
      fill(
        parts,
        el("h3", { text: "Any head, MLP or layer" }),
        el("p", { class: "hint", text: "Click to switch it off; several at once if you like." }),
        el(
          "div",
          { class: "two" },
          el(
            "div",
            {},
            el("h4", { text: "decoder" }),
            board("decoder", decoder.layers, decoder.heads),
          ),
          el("div", {}, el("h4", { text: "tower" }), board("tower", vision.layers, vision.heads)),
        ),
      );
    };

    const update = async () => {
      const { result } = store;
      if (!result) return;
      const own = ++asked;
      const plain = await store.baseline();
      if (own !== asked) return;
      const isBroken = Object.keys(store.state.edits).length > 0;
      const one = current();
      const same = plain.text === result.text;
      if (one && guesses[one.id] && !store.busy) guesses[one.id].same = same;
      const first = (/** @type {any} */ run) =>
        percent(
          Math.exp(
            run.logProbabilities.reduce(
              (/** @type {number} */ a, /** @type {number} */ b) => a + b,
              0,
            ) / run.logProbabilities.length,
          ),
        );
      fill(
        verdict,
        el(
          "p",
          {},
          el("b", { text: "A" }),
          " whole ",
          el("span", { class: "said" }, answerText(plain, isBroken ? result : null)),
          el("span", { class: "num", text: ` ${first(plain)}` }),
        ),
        isBroken
          ? [
              el(
                "p",
                {},
                el("b", { text: "B" }),
                " broken ",
                el("span", { class: "said" }, answerText(result, plain)),
                el("span", { class: "num", text: ` ${first(result)}` }),
              ),
              el(
                "p",
                { class: "why" },
                el("b", { text: same ? "The same answer. " : "Another answer. " }),
                one?.why ?? "",
              ),
              button("Make it whole", () => store.set({ edits: {} }), { class: "chip" }),
            ]
          : el("p", {
              class: "hint",
              text: "Nothing is broken. Choose a part. Per cent: how sure it was of its words, on average.",
            }),
      );
      showBoard();
      showParts();
      fill(
        text,
        inWords(
          isBroken
            ? `With ${JSON.stringify(store.state.edits)} the answer is “${result.text}” instead of “${plain.text}”.`
            : `Nothing is broken; the answer is “${plain.text}”.`,
        ),
      );
    };
    return { update };
  },
};
