// Tours: predict, act, see, and one sentence why. What a step claims is measured when it is taken; a
// test takes every step and holds the measurement to the answer that is marked right here.

import { distribution } from "../engine/sampling.js";
import { button, el, fill, number, percent } from "./dom.js";
import { lessonLink } from "./lessons.js";
import { probe } from "./probe.js";
import { pixelsOf } from "./scene.js";
import { readable } from "./words.js";
import { START } from "./store.js";
import { operations } from "./views/cache.js";
import { EXAMPLES } from "./views/live.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */
/**
 * @typedef {object} Step
 * @property {string} text what is to be seen
 * @property {Partial<State>} [start] the state before
 * @property {string} ask @property {[string, string]} options @property {number} right
 * @property {Partial<State>} [act] what is done once the reader has said what will happen
 * @property {(store: Store) => Promise<[boolean, string]>} measure whether the first option holds, and
 *   the numbers that tell
 * @property {string} why
 */
/** @typedef {{id: string, title: string, lesson: string, steps: Step[]}} TourData */

const FARM = START.scene;
const WITHOUT_STAR = { ...FARM, things: FARM.things.slice(0, 2) };
const scene = (/** @type {number} */ i) => /** @type {any} */ (EXAMPLES[i].changes.scene);
/** @type {Partial<State>} */
const FRESH = {
  scene: FARM,
  task: "caption",
  words: START.words,
  edits: {},
  grammar: false,
  forced: [],
  token: -1,
  key: -1,
  to: false,
};

/** Whether the answer with these edits is the same as without. @param {Store} store */
async function sameAsWhole(store) {
  const plain = await store.baseline();
  const { text } = store.result;
  const numbers =
    plain.text !== text && readable(plain.text) === readable(text) ? "; the places differ" : "";
  return /** @type {[boolean, string]} */ ([
    plain.text === text,
    `whole: “${readable(plain.text)}”; now: “${readable(text) || "nothing"}”${numbers}`,
  ]);
}

/** @param {Partial<State>["edits"]} edits @param {string} name @param {boolean} same @param {string} why @returns {Step} */
const broken = (edits, name, same, why) => ({
  text: `${name}.`,
  start: { ...FRESH, view: "break" },
  ask: "What will it say?",
  options: ["The same", "Something else"],
  right: same ? 0 : 1,
  act: { edits },
  measure: sameAsWhole,
  why,
});

/** @type {TourData[]} */
export const TOURS = [
  {
    id: "pixels",
    title: "From pixels to a word",
    lesson: "architecture",
    steps: [
      {
        text: "The picture is cut into squares; each becomes one vector, as if it were a word.",
        start: { ...FRESH, view: "attention", part: "tower", layer: 0, head: 0, token: 36 },
        ask: "How many vectors is this picture for the model?",
        options: ["64", "16 384, one for each pixel"],
        right: 0,
        measure: async ({ config }) => [
          config.patches === 64,
          `${config.perRow} × ${config.perRow} = ${config.patches} patches of ${config.vision.patch} × ${config.vision.patch} pixels`,
        ],
        why: "A patch is a token: 64 of them stand before the first word.",
      },
      {
        text: "The caption names a star. Take the star away.",
        start: { ...FRESH, view: "live" },
        ask: "Will the caption still name one?",
        options: ["Yes, it knows the scene", "No"],
        right: 1,
        act: { scene: WITHOUT_STAR },
        measure: async ({ result }) => [result.text.includes("star"), `now: “${result.text}”`],
        why: "The words hang on the patches: this is grounding.",
      },
      {
        text: "Now take everything away and ask for a caption of nothing.",
        start: { ...FRESH, view: "live" },
        ask: "What will it say?",
        options: ["Nothing at all", "It names something"],
        right: 1,
        act: { scene: { ground: "#d9d9d9", things: [] } },
        measure: async ({ result }) => [!result.text.trim(), `it says “${result.text}”`],
        why: "A language model must say some word; it was rarely shown an empty picture.",
      },
      {
        text: "A word is chosen from a distribution over the whole vocabulary.",
        start: { ...FRESH, view: "bench" },
        ask: "At its least sure step, how far ahead is the word that was said?",
        options: ["It has more than 90 %", "Less"],
        right: 1,
        measure: async (store) => {
          const { result } = store;
          const least = Math.min(...result.logProbabilities.map(Math.exp));
          const at = result.logProbabilities.findIndex(
            (/** @type {number} */ v) => Math.exp(v) === least,
          );
          store.set({ token: result.prompt.length - 1 + at });
          return [least > 0.9, `“${result.answerWords[at].trim()}” has ${percent(least)}`];
        },
        why: "Most words of a sentence are nearly certain; the choices are made at a few.",
      },
    ],
  },
  {
    id: "masks",
    title: "Why masks",
    lesson: "masks",
    steps: [
      {
        text: "Picture and prompt may see each other fully. In a causal model the patches could not see the question.",
        start: { ...FRESH, view: "mask", task: "detect" },
        ask: "With a causal mask, do the boxes stay where they are, to the last number?",
        options: ["Yes", "No"],
        right: 1,
        act: { edits: { mask: { name: "causal" } } },
        measure: sameAsWhole,
        why: "The patches could no longer ask each other, nor the question, what to look for.",
      },
      {
        text: "Let the answer see itself alone: no picture, no prompt but its end.",
        start: { ...FRESH, view: "mask" },
        ask: "Is the caption still about this picture?",
        options: ["Yes", "No"],
        right: 1,
        act: { edits: { mask: { name: "self" } } },
        measure: async ({ result }) => [
          ["star", "tractor", "doughnut"].some((word) => result.text.includes(word)),
          `it says “${result.text || "nothing"}”`,
        ],
        why: "One word still comes, from the prompt's end, which has seen the picture; each next one must fetch from the patches what it is to say.",
      },
      {
        text: "The answer is causal: a word sees the words before it.",
        start: { ...FRESH, view: "mask" },
        ask: "If an answer's words could look at no more than the last sixteen tokens, would the caption change?",
        options: ["It stays the same", "It changes"],
        right: 1,
        act: { edits: { mask: { name: "window", window: 16 } } },
        measure: sameAsWhole,
        why: "The patches lie further back than that: a window cuts the picture off.",
      },
    ],
  },
  {
    id: "cache",
    title: "Why a cache",
    lesson: "cache",
    steps: [
      {
        text: "Each new word looks at all tokens before it. Their keys and values do not change.",
        start: { ...FRESH, view: "cache" },
        ask: "For the answer's last word, how much work does the cache save the decoder?",
        options: ["About half", "More than nine tenths"],
        right: 1,
        measure: async ({ result, config }) => {
          const [a, b] = [
            operations(config.text, 1, result.length),
            operations(config.text, result.length, result.length),
          ];
          return [
            a > b / 10,
            `${(a / 1e6).toFixed(1)} M multiply-adds with the cache, ${(b / 1e6).toFixed(0)} M without`,
          ];
        },
        why: "One column instead of all of them.",
      },
      {
        text: "Now cheat: after the prompt was run, exchange “caption”, its first word, for “detect” and keep the cache.",
        start: { ...FRESH, view: "cache" },
        ask: "Does the answer notice?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const { ids } = await store.client.ask("tokenize", { text: "detect" });
          const { text } = await store.client.ask("exchanged", {
            run: store.result.run,
            position: store.config.patches + 1,
            id: ids[0],
            how: "stale",
          });
          return [text !== store.result.text, `it says “${text}”`];
        },
        why: "Nobody reads the prompt again: the cache is what the model knows of the past.",
      },
    ],
  },
  {
    id: "rope",
    title: "RoPE finds rows",
    lesson: "rope",
    steps: [
      {
        text: "The decoder counts tokens in one row, 1, 2, 3, …; nobody told it that a picture is a square of 8 × 8 patches.",
        start: { ...FRESH, view: "rope", layer: 1, head: 0 },
        ask: "At which distance is the score of layer 1's head 0 largest?",
        options: ["At 1, the neighbour", "At 16, two rows up"],
        right: 1,
        measure: async ({ client, result, config }) => {
          const { scores } = await client.ask("distances", {
            run: result.run,
            layer: 1,
            head: 0,
            most: 33,
            span: [0, config.patches],
          });
          const best = scores.indexOf(Math.max(...scores));
          return [
            best === 1,
            `largest at ${best}: ${number(scores[best], 1)}; at 1: ${number(scores[1], 1)}`,
          ];
        },
        why: "In training it found out that what lies above is a whole number of rows back.",
      },
      broken(
        { shift: 1000 },
        "Add 1000 to every position",
        true,
        "Only differences of positions enter a score.",
      ),
      broken(
        { noRotary: true },
        "Take the rotations away",
        false,
        "Without them the decoder does not know what stands where.",
      ),
    ],
  },
  {
    id: "siglip",
    title: "CLIP to SigLIP",
    lesson: "siglip",
    steps: [
      {
        text: "A picture, four texts, one of which fits. CLIP shares 100 % out among the texts.",
        start: { ...FRESH, view: "contrastive" },
        ask: "If the text that fits is there twice, can it have more than 50 %?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const dual = await store.client.loadDual();
          const cosines = await dualCosines(store, [
            "a tractor and a doughnut",
            "a tractor and a doughnut",
            "a cat",
            "an apple",
          ]);
          const p = distribution(Float32Array.from(cosines, (c) => c * dual.scale));
          return [p[0] > 0.5001, `the two copies have ${percent(p[0])} and ${percent(p[1])}`];
        },
        why: "A softmax has one cake to share.",
      },
      {
        text: "SigLIP asks of each pair alone, by a sigmoid.",
        start: { ...FRESH, view: "contrastive" },
        ask: "Does a copy of a text change what the first one gets?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const one = (/** @type {number} */ c) => 1 / (1 + Math.exp(-(c * 10 - 5)));
          const [alone] = await dualCosines(store, ["a tractor and a doughnut"]);
          const [twice] = await dualCosines(store, [
            "a tractor and a doughnut",
            "a tractor and a doughnut",
          ]);
          return [
            one(alone) !== one(twice),
            `${percent(one(alone))} alone, ${percent(one(twice))} beside its copy (t = ln 10, b = −5)`,
          ];
        },
        why: "Each cell is a question of its own, so no cell needs the others: that is what lets SigLIP train on huge batches.",
      },
    ],
  },
  {
    id: "boxes",
    title: "A box is four words",
    lesson: "detection",
    steps: [
      {
        text: "The model says top, left, bottom, right as four words out of 1024, and then what is in the box.",
        start: {
          ...FRESH,
          view: "boxes",
          task: "detect",
          words: { ...START.words, detect: "doughnut" },
        },
        ask: "Is a place next to the best one nearly as likely?",
        options: ["Yes, places are numbers to it", "No, they are words like any other"],
        right: 1,
        measure: async ({ client, result }) => {
          const [top] = await client.ask("edges", { run: result.run, first: 0 });
          const best = top.indexOf(Math.max(...top));
          const beside = Math.max(top[best - 1] ?? 0, top[best + 1] ?? 0);
          return [
            beside > top[best] / 2,
            `${String(best).padStart(4, "0")} has ${percent(top[best])}, the place beside it ${percent(beside)}`,
          ];
        },
        why: "mini was trained on places of its own grid, and the one beside is not on it: to mini it is a word that never comes. View 13 shows the places of the grid in the table, where they lie in order.",
      },
      {
        text: "Say another box in its place: the upper left corner, where the star is.",
        start: {
          ...FRESH,
          view: "boxes",
          task: "detect",
          words: { ...START.words, detect: "doughnut" },
        },
        ask: "Will the model still call what is in it a doughnut, as surely?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const { firstLocation } = await store.client.ask("ids");
          const said = [100, 130, 340, 390].map((place) => firstLocation + place);
          const label = (/** @type {any} */ run) => Math.exp(run.logProbabilities[4]);
          const other = await store.answer(await store.picture(), {}, said);
          store.set({ forced: said });
          return [
            label(other) > 0.9 * label(store.result),
            `the label's first word: ${percent(label(store.result))} in its own box, “${other.answerWords[4].trim()}” ${percent(label(other))} in the other`,
          ];
        },
        why: "The label is read after the box, from the patches inside it: so its probability tells good boxes from bad.",
      },
    ],
  },
  {
    id: "lens",
    title: "Where the answer forms",
    lesson: "decoder",
    steps: [
      {
        text: "On forty drawings of two shapes, a plane is fitted to tell patches of circles from patches of squares. The middle of both looks the same.",
        start: { ...FRESH, view: "lens" },
        ask: "Where does a patch know what it is part of?",
        options: ["At once, by its own pixels", "Only some layers up the tower"],
        right: 1,
        measure: async (store) => {
          const found = await probe(store, "round", {}, () => true, 40);
          const tower = found.filter(({ part }) => part === "tower").map(({ share }) => share);
          return [
            tower[0] > 0.9,
            `right at the input ${percent(tower[0])}, then ${tower.slice(1).map(percent).join(", ")}`,
          ];
        },
        why: "Attention carries the edges to the middle: each patch learns what it belongs to.",
      },
      {
        text: "Read every layer's stream as if it were the last. The first word of the answer is “a”.",
        start: { ...FRESH, view: "lens" },
        ask: "Is it there already when the prompt's last token enters?",
        options: ["Yes", "No"],
        right: 1,
        measure: async ({ client, result }) => {
          const lens = await client.ask("lens", {
            run: result.run,
            positions: [result.prompt.length - 1],
            k: 1,
          });
          const first = lens.findIndex(
            (/** @type {any} */ layer) => layer[0][0].id === result.answer[0],
          );
          return [
            first === 0,
            `the likeliest word is the one that was said from ${first ? `layer ${first - 1}` : "the input"} on`,
          ];
        },
        why: "The input is the newline itself; attention brings what there is to say.",
      },
      {
        text: "“a” is said; “yellow” comes next. Another picture has a red star. Take the stream of its “a” after layer 2, of 0 to 3, and paste it here.",
        start: { ...FRESH, view: "lens" },
        ask: "Does the yellow star turn red?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const { client, result } = store;
          await client.ask("picture", { name: "donor", picture: await pixelsOf(scene(2)) });
          const donor = await client.ask("run", { picture: "donor", prompt: store.prompt });
          const position = result.prompt.length;
          const paste = async (/** @type {number} */ layer) => {
            const vector = await client.ask("patch", { run: donor.run, layer, position });
            return (
              await store.answer(await store.picture(), { patches: [{ layer, position, vector }] })
            ).text;
          };
          const [early, late] = [await paste(2), await paste(3)];
          return [early.includes("red"), `after layer 2: “${early}”; after layer 3: “${late}”`];
        },
        why: "The colour is not yet there after layer 2: the last layer fetches it from the patches, which are still yours.",
      },
    ],
  },
  {
    id: "break",
    title: "What can be broken",
    lesson: "architecture",
    steps: [
      broken(
        { activation: "relu" },
        "ReLU in GELU's place, everywhere",
        true,
        "They differ only around zero.",
      ),
      broken(
        { activation: "none" },
        "No non-linearity at all",
        false,
        "Each MLP is then one matrix.",
      ),
      broken(
        { norm: "layer" },
        "LayerNorm in RMSNorm's place",
        true,
        "The mean that it takes off is small.",
      ),
      broken(
        { towerPositions: "none" },
        "A tower without positions",
        false,
        "The patches are a bag: who lay beside whom is lost.",
      ),
      broken(
        { unscaledWords: true },
        "Words not multiplied by √D",
        false,
        "They enter fourteen times too small.",
      ),
      broken(
        { features: "zero" },
        "Features that are all zero",
        false,
        "What is said then is said without looking.",
      ),
    ],
  },
];

/** Cosines of the drawn picture with texts. @param {Store} store @param {string[]} texts @returns {Promise<number[]>} */
async function dualCosines(store, texts) {
  await store.client.loadDual();
  await store.client.ask("picture", { name: "tour", picture: await pixelsOf(store.state.scene) });
  const { pictures, texts: words } = await store.client.ask("embed", { pictures: ["tour"], texts });
  return words.map((/** @type {Float32Array} */ w) =>
    w.reduce((sum, v, i) => sum + v * pictures[0][i], 0),
  );
}

export class Tour {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.root = el("section", {
      class: "tour",
      hidden: true,
      "aria-label": "tour",
      "aria-live": "polite",
    });
    /** @type {{guess: number, first: boolean, text: string} | null} */
    this.outcome = null;
  }

  menu() {
    const list = el(
      "div",
      { class: "tour-list", hidden: true },
      TOURS.map(({ id, title, steps }) =>
        button(
          [el("b", { text: title }), el("span", { class: "hint", text: `${steps.length} steps` })],
          () => {
            list.hidden = true;
            this.go(id, 0);
          },
          { class: "plain" },
        ),
      ),
    );
    const open = button(
      "Tours",
      () => {
        list.hidden = !list.hidden;
        open.setAttribute("aria-expanded", String(!list.hidden));
      },
      { class: "chip", "aria-expanded": "false" },
    );
    return el("div", { class: "tour-menu" }, open, list);
  }

  get tour() {
    return TOURS.find(({ id }) => id === this.store.state.tour) ?? null;
  }

  get step() {
    return this.tour?.steps[this.store.state.step] ?? null;
  }

  /** @param {string} id @param {number} step */
  async go(id, step) {
    this.outcome = null;
    const data = TOURS.find((one) => one.id === id);
    this.store.set({ tour: id, step, ...structuredClone(data?.steps[step]?.start ?? {}) });
    this.show();
    await this.store.idle;
  }

  resume() {
    if (this.step) this.show();
  }

  /** @param {number} guess */
  async predict(guess) {
    const { step } = this;
    if (!step) return;
    if (step.act) this.store.set(structuredClone(step.act));
    await this.store.idle;
    const [first, text] = await step.measure(this.store);
    this.outcome = { guess, first, text };
    this.show();
  }

  show() {
    const { tour, step, outcome } = this;
    this.root.hidden = !tour || !step;
    if (!tour || !step) return;
    const at = this.store.state.step;
    const last = at + 1 === tour.steps.length;
    const measured = outcome ? Number(!outcome.first) : -1;
    fill(
      this.root,
      el(
        "div",
        { class: "tour-head" },
        el("b", { text: tour.title }),
        el("span", { class: "hint", text: `${at + 1} of ${tour.steps.length}` }),
        el("span", { class: "spring" }),
        button(
          "×",
          () => ((this.outcome = null), this.store.set({ tour: "", step: 0 }), this.show()),
          { class: "icon", "aria-label": "leave the tour" },
        ),
      ),
      this.store.name === "mini"
        ? null
        : el("p", {
            class: "hint",
            text: "Written for mini: the numbers are this model's, the reasons may not be.",
          }),
      el("p", { class: "tour-text", text: step.text }),
      el("p", {}, el("b", { text: step.ask })),
      el(
        "div",
        { class: "row" },
        step.options.map((option, i) =>
          button(option, () => this.predict(i), {
            class: `chip ${measured === i ? "right" : ""}`,
            disabled: Boolean(outcome),
            "aria-pressed": String(outcome?.guess === i),
          }),
        ),
      ),
      outcome
        ? [
            el(
              "p",
              { class: "outcome" },
              el("b", { text: outcome.guess === measured ? "As you said: " : "Not so: " }),
              outcome.text,
            ),
            el("p", { class: "tour-why", text: step.why }),
            el(
              "div",
              { class: "row" },
              last ? null : button("Next", () => this.go(tour.id, at + 1), { class: "chip" }),
              el("span", { class: "hint" }, lessonLink(tour.lesson)),
            ),
          ]
        : null,
    );
  }
}
