// Tours: predict, act, see, and one sentence why. What a step claims is measured when it is taken; a
// test takes every step and holds the measurement to the answer that is marked right here.

import { distribution } from "../engine/sampling.js";
import { button, el, fill, number, percent } from "./dom.js";
import { lessonLink } from "./lessons.js";
import { probe } from "./probe.js";
import { pixelsOf } from "./scene.js";
import { readable } from "./words.js";
import { START } from "./store.js";
import { LARGE, decoderCost } from "./costs.js";
import { operations } from "./views/cache.js";
import { EXAMPLES } from "./views/live.js";
import { MACHINES, duration, large } from "./views/roofline.js";
import { PLACES } from "./views/tokens.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */
/** @typedef {import("./costs.js").Cost} Cost */
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

/** An answer in a line; one that repeats itself is long. @param {string} text */
function clipped(text) {
  const all = readable(text).trim();
  return all.length > 100 ? `${all.slice(0, 99)}…` : all;
}

/** Whether the answer with these edits is the same as without. @param {Store} store */
async function sameAsWhole(store) {
  const plain = await store.baseline();
  const { text } = store.result;
  const numbers =
    plain.text !== text && readable(plain.text) === readable(text) ? "; the places differ" : "";
  return /** @type {[boolean, string]} */ ([
    plain.text === text,
    `whole: “${clipped(plain.text)}”; now: “${clipped(text) || "nothing"}”${numbers}`,
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

/** @param {number} bits @param {string} name @param {boolean} same @param {string} why @returns {Step} */
const rounding = (bits, name, same, why) => {
  const edits = /** @type {Partial<State>["edits"]} */ ({ bits: { bits, group: 0, part: "all" } });
  const step = broken(edits, name, same, why);
  return { ...step, start: { ...FRESH, view: "bits" } };
};

// Places in the farm's picture, whose patches lie in 8 rows of 8.
const CORNERS = [7, 56];
const DOUGHNUT = [13, 14, 21, 22, 29, 30];
const NEITHER = ["a cat", "an apple"]; // of what is in it

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
      {
        text: "With patches blind to the prompt, ask for the tractor, then for the doughnut, and compare what the patches are after the last layer.",
        start: { ...FRESH, view: "mask", task: "detect" },
        ask: "Do the patches' vectors depend on the question?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const far = async (/** @type {import("../engine/edits.js").Edits} */ edits) => {
            const [one, other] = await Promise.all(
              ["detect tractor", "detect doughnut"].map((prompt) =>
                patchesAfter(store, prompt, edits),
              ),
            );
            return Math.hypot(...one.map((v, i) => v - other[i])) / Math.hypot(...one);
          };
          const blind = await far({ mask: { name: "blind" } });
          return [
            blind > 0,
            `they differ by ${percent(blind)} of their length; with prefix-LM by ${percent(await far({}))}`,
          ];
        },
        why: "What may not be looked at cannot matter. PaliGemma lets patches see the question, so that they can get ready for it.",
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
        text: "Several heads look, each with a query of its own.",
        start: { ...FRESH, view: "cache" },
        ask: "What does a token leave in the cache of a layer?",
        options: ["One key and one value, for all heads", "A key and a value for each head"],
        right: 0,
        measure: async ({ client, config, result }) => {
          const { k, v } = await client.ask("cache", { run: result.run, layer: 0 });
          const { heads, headDim } = config.text;
          const left = (k.length + v.length) / result.length;
          return [
            left === 2 * headDim,
            `${left} numbers; with a pair for each of the ${heads} heads it would be ${2 * heads * headDim}`,
          ];
        },
        why: "Heads that share keys and values (multi-query attention) make the cache smaller by as many times as there are heads, and with it what each new word has to read.",
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
      {
        text: "The first pair of channels turns by 1 radian from token to token, a full turn in about six. Each next pair turns more slowly.",
        start: { ...FRESH, view: "rope", layer: 1, head: 0 },
        ask: "How long does the last pair take for a full turn?",
        options: ["Some hundreds of tokens", "Tens of thousands"],
        right: 1,
        measure: async ({ config: { text } }) => {
          const turn = 2 * Math.PI * text.theta ** ((text.headDim - 2) / text.headDim);
          return [turn < 10_000, `${large(turn)} tokens; the longest text here has ${text.limit}`];
        },
        why: "Fast pairs tell neighbours apart, slow ones hardly notice a distance: what is said through them is said whatever the position.",
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
        text: "Now two texts of which neither fits: “a cat” and “an apple”.",
        start: { ...FRESH, view: "contrastive" },
        ask: "Can CLIP's shares say that neither does?",
        options: ["Yes, both get less than half", "No, one gets half or more"],
        right: 1,
        measure: async (store) => {
          const dual = await store.client.loadDual();
          const cosines = await dualCosines(store, NEITHER);
          const p = distribution(Float32Array.from(cosines, (c) => c * dual.scale));
          return [
            Math.max(...p) < 0.5,
            NEITHER.map((text, i) => `“${text}” ${percent(p[i])}`).join(", "),
          ];
        },
        why: "Shares add up to 100 %: they tell which text fits better, not whether it fits.",
      },
      {
        text: "Ask SigLIP's sigmoids of the same two texts, each alone.",
        start: { ...FRESH, view: "contrastive" },
        ask: "What do they say?",
        options: ["One of the two fits", "Neither fits"],
        right: 1,
        measure: async (store) => {
          const shares = (await dualCosines(store, NEITHER)).map(sigmoid);
          return [
            Math.max(...shares) >= 0.5,
            NEITHER.map((text, i) => `“${text}” ${percent(shares[i])}`).join(", "),
          ];
        },
        why: "A sigmoid may say no to every text: its numbers need not add up to anything.",
      },
      {
        text: "SigLIP asks of each pair alone, by a sigmoid.",
        start: { ...FRESH, view: "contrastive" },
        ask: "Does a copy of a text change what the first one gets?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const [alone] = await dualCosines(store, ["a tractor and a doughnut"]);
          const [twice] = await dualCosines(store, [
            "a tractor and a doughnut",
            "a tractor and a doughnut",
          ]);
          return [
            sigmoid(alone) !== sigmoid(twice),
            `${percent(sigmoid(alone))} alone, ${percent(sigmoid(twice))} beside its copy (t = ln 10, b = −5)`,
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
      {
        text: "Nothing in the model keeps a box's bottom below its top. A grammar can: it strikes out what would make no answer that can be read.",
        start: {
          ...FRESH,
          view: "boxes",
          task: "detect",
          words: { ...START.words, detect: "doughnut" },
          grammar: true,
        },
        ask: "Once the top is said to be 0800, may the bottom be 0100?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const { firstLocation } = await store.client.ask("ids");
          const said = [800, 100].map((place) => firstLocation + place);
          const { run } = await store.answer(await store.picture(), {}, said);
          const { allowed } = await store.client.ask("logits", { run, step: 2 });
          const may = (/** @type {number} */ place) =>
            allowed.ids.includes(firstLocation + place) ||
            (firstLocation + place >= allowed.low && firstLocation + place < allowed.high);
          return [
            may(100),
            `the bottom may be ${Math.max(allowed.low - firstLocation, 0)} to ${allowed.high - firstLocation - 1}`,
          ];
        },
        why: "The words that may come get all the probability; the model chooses among them, and every box has an area.",
      },
      {
        text: "A mask is sixteen words more. Say another word for the first of them.",
        start: {
          ...FRESH,
          view: "boxes",
          task: "segment",
          words: { ...START.words, segment: "tractor" },
        },
        ask: "Where does the mask change?",
        options: ["All over the box", "Mostly in the upper left quarter"],
        right: 1,
        measure: async ({ client, result }) => {
          const { codes, mask } = result.boxes[0];
          const counts = [0, 0]; // changes in that quarter, and elsewhere
          for (let code = 0; code < 128; code += 8) {
            const other = await client.ask("decodeMask", { codes: [code, ...codes.slice(1)] });
            for (let i = 0; i < mask.length; i++) {
              const isNear = i % 64 < 32 && i < 32 * 64;
              if (mask[i] > 0 !== other[i] > 0) counts[isNear ? 0 : 1]++;
            }
          }
          const share = counts[0] / (counts[0] + counts[1]);
          return [
            share < 0.5,
            `${percent(share)} of what changes lies there, over sixteen other words in its place`,
          ];
        },
        why: "Each word stands for a pattern in its own sixteenth of the box; the decoder smooths the seams between them.",
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
  {
    id: "patches",
    title: "What a patch becomes",
    lesson: "patches",
    steps: [
      {
        text: "Two patches of bare ground, in two corners of the picture, have the same pixels.",
        start: { ...FRESH, view: "patches", token: CORNERS[0] },
        ask: "Do they enter the tower as the same vector?",
        options: ["Yes", "No"],
        right: 1,
        measure: async ({ client, result: { run } }) => {
          const [one, other] = await Promise.all(
            CORNERS.map((patch) => client.ask("projected", { run, patch })),
          );
          const far = (/** @type {"pixels" | "outputs" | "input"} */ name) =>
            Math.hypot(
              ...one[name].map(
                (/** @type {number} */ v, /** @type {number} */ i) => v - other[name][i],
              ),
            );
          return [
            far("input") === 0,
            `their pixels differ by ${number(far("pixels"), 1)}, the filters' answers by ${number(far("outputs"), 1)}, what enters by ${number(far("input"), 1)}`,
          ];
        },
        why: "To each patch's vector the tower adds one that was learned for its place; without it nobody could tell left from right.",
      },
      {
        text: "Take the doughnut's patches, some pink, some brown, and ask how alike two of them are, against one of them and a patch from elsewhere.",
        start: { ...FRESH, view: "patches", token: DOUGHNUT[0] },
        ask: "Where do they stand out more from the rest?",
        options: ["Where they enter the tower", "After its last layer"],
        right: 1,
        measure: async ({ client, config, result: { run } }) => {
          const apart = async (/** @type {number} */ layer) => {
            /** @type {[number[], number[]]} */
            const [own, rest] = [[], []];
            for (const token of DOUGHNUT) {
              const asked = { run, part: "tower", layer, token, first: 0, count: config.patches };
              const found = await client.ask("similar", asked);
              for (let i = 0; i < found.length; i++)
                if (i !== token) (DOUGHNUT.includes(i) ? own : rest).push(found[i]);
            }
            const mean = (/** @type {number[]} */ x) => x.reduce((a, b) => a + b, 0) / x.length;
            return [mean(own), mean(rest)];
          };
          const [before, after] = [await apart(-1), await apart(config.vision.layers - 1)];
          const told = (/** @type {number[]} */ [own, rest]) =>
            `cosine ${number(own)} among themselves, ${number(rest)} with the others`;
          return [
            before[0] - before[1] > after[0] - after[1],
            `entering: ${told(before)}; after the last layer: ${told(after)}`,
          ];
        },
        why: "Layer by layer attention carries what surrounds a patch into it: in the end it says what it is part of, not what colour it is.",
      },
    ],
  },
  {
    id: "stream",
    title: "A stream that is added to",
    lesson: "feed_forward",
    steps: [
      {
        text: "The prompt's last token enters the decoder as a vector. Four layers add to it, twice each.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "How long is what entered, beside what comes out?",
        options: ["More than half as long", "Less than half"],
        right: 1,
        measure: async (store) => {
          const asked = { run: store.result.run, part: "decoder", position: store.token };
          const { input, layers } = await store.client.ask("stream", asked);
          const { length } = layers.at(-1);
          return [
            input > length / 2,
            `${number(input, 1)} enters, ${number(length, 1)} comes out: ${percent(input / length)}`,
          ];
        },
        why: "Layers only ever add, and what they add outgrows the word that they began with.",
      },
      {
        text: "An MLP is a row of neurons. Each reads the token's vector, and writes its own column as strongly as what it read was to its liking.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "At this token in layer 1, how many of its neurons write at least a tenth of what the busiest one does?",
        options: ["Most of them", "Fewer than a quarter"],
        right: 1,
        measure: async (store) => {
          const asked = { run: store.result.run, layer: 1, position: store.token, k: 1 };
          const { working, inner } = await store.client.ask("neurons", asked);
          return [working > inner / 2, `${working} of ${inner}`];
        },
        why: "GELU closes whatever is negative: for each token a few neurons speak, for another token others.",
      },
      {
        text: "Take the busiest neuron of that layer out, for every token.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "Does the answer begin with another word now?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const plain = store.result;
          const asked = { run: plain.run, layer: 1, position: store.token, k: 1 };
          const { top } = await store.client.ask("neurons", asked);
          const edits = { off: [`decoder.1.mlp.${top[0].neuron}`] };
          store.set({ edits });
          await store.idle;
          const word = (/** @type {any} */ run) =>
            `“${run.answerWords[0].trim()}” with ${percent(Math.exp(run.logProbabilities[0]))}`;
          return [
            plain.answer[0] !== store.result.answer[0],
            `neuron ${top[0].neuron} is out: ${word(plain)} before, ${word(store.result)} now`,
          ];
        },
        why: "What a model knows is spread over many neurons, so that hardly any one of them is missed.",
      },
    ],
  },
  {
    id: "tokens",
    title: "Words are rows of a table",
    lesson: "tokens",
    steps: [
      {
        text: "“a yellow tractor” has 16 characters.",
        start: { ...FRESH, view: "tokens" },
        ask: "How many tokens does it become?",
        options: ["Five at the most", "About one for each character"],
        right: 0,
        measure: async ({ client }) => {
          const { ids, words } = await client.ask("tokenize", { text: "a yellow tractor" });
          return [ids.length <= 5, `${ids.length}: ${words.join(" | ")}`];
        },
        why: "Pairs that stood together often in the tokenizer's texts were merged, again and again, until common words were one piece.",
      },
      {
        text: "“zygomorphic” was hardly in those texts.",
        start: { ...FRESH, view: "tokens" },
        ask: "What does it become?",
        options: ["One token for whatever is unknown", "Several pieces that are known"],
        right: 1,
        measure: async ({ client }) => {
          const { ids, words } = await client.ask("tokenize", { text: "zygomorphic" });
          return [ids.length === 1, `${ids.length}: ${words.join(" | ")}`];
        },
        why: "Characters, and in the end bytes, are tokens too, so every text can be written; a rare one only takes more of them.",
      },
      {
        text: "A place in the picture is one of 1024 words, each with a row of its own. Nobody told the table that they are numbers.",
        start: { ...FRESH, view: "tokens" },
        ask: "Of the 65 places that the view joins by a line, how many have one of the two beside them on that line as the nearest of the 65?",
        options: ["A few, as by chance", "Most"],
        right: 1,
        measure: async ({ client }) => {
          const { firstLocation } = await client.ask("ids");
          const ids = PLACES.map((place) => firstLocation + place);
          let count = 0;
          for (const [i, id] of ids.entries()) {
            const { nearest } = await client.ask("nearest", { id, k: 1024 });
            const best = nearest.find((/** @type {any} */ one) => ids.includes(one.id));
            if (best && Math.abs(ids.indexOf(best.id) - i) === 1) count++;
          }
          return [count < ids.length / 2, `${count} of ${ids.length}`];
        },
        why: "Two places side by side came after the same kinds of pictures in training: words that are used alike get rows that are alike.",
      },
    ],
  },
  {
    id: "bits",
    title: "How few bits",
    lesson: "int8",
    steps: [
      rounding(
        8,
        "Round every weight to one of 255 values, a scale for each row: 8 bits in 16's place",
        true,
        "The errors are small and point every way, so in a sum of hundreds most of them cancel.",
      ),
      {
        text: "With 4 bits a weight is one of 15 values, times a scale. The scale is set by the largest weight that shares it.",
        start: { ...FRESH, view: "bits" },
        ask: "Which is nearer to the original: a scale for each row, or one for every 32 weights?",
        options: ["A scale for each row", "One for every 32"],
        right: 1,
        measure: async ({ client }) => {
          const name = "language_model.model.layers.0.mlp.down_proj.weight";
          const [row, group] = await Promise.all(
            [0, 32].map((size) => client.ask("matrix", { name, bits: 4, group: size })),
          );
          return [
            row.error < group.error,
            `the error is ${percent(row.error)} of the weights with a scale for each row, ${percent(group.error)} with one for every 32 (layer 0, down_proj)`,
          ];
        },
        why: "One large weight makes the steps coarse for all that share its scale; fewer share it now, for half a bit more a weight.",
      },
      rounding(
        2,
        "2 bits: each weight is −s, 0 or s",
        false,
        "Most weights are far smaller than their row's largest, and become zero.",
      ),
    ],
  },
  {
    id: "roofline",
    title: "Computing or reading",
    lesson: "cost",
    steps: [
      {
        text: "To say one more word the decoder reads all its weights, in 16 bits, and uses each of them once.",
        start: { ...FRESH, view: "roofline" },
        ask: "How many operations does it do for each byte that it reads?",
        options: ["About one", "Some fifty"],
        right: 0,
        measure: async ({ config, result }) => {
          const { operations, bytes } = counted(decoderCost(config, 1, result.length));
          return [
            operations / bytes < 2,
            `${large(operations)} operations, ${large(bytes)} bytes: ${number(operations / bytes, 1)} for each`,
          ];
        },
        why: "A multiplication and an addition for two bytes. For the prompt's many tokens each weight is used as many times: that makes the difference.",
      },
      {
        text: "Two CPU cores compute 0.1 T operations a second and read 20 GB. The prompt's tokens all go through at once.",
        start: { ...FRESH, view: "roofline" },
        ask: "What takes them longer for the prompt?",
        options: ["Computing", "Reading"],
        right: 0,
        measure: async ({ config, result }) => {
          const tokens = result.prompt.length;
          const told = (/** @type {Cost} */ cost) => {
            const [computing, reading] = times(cost, MACHINES[1]);
            return `${duration(computing)} of computing, ${duration(reading)} of reading`;
          };
          const prompt = decoderCost(config, tokens, tokens);
          const [computing, reading] = times(prompt, MACHINES[1]);
          return [
            computing > reading,
            `the prompt: ${told(prompt)}; one more word: ${told(decoderCost(config, 1, result.length))}`,
          ];
        },
        why: "So a faster processor makes the first word come sooner, and fewer bits a weight make the others come faster.",
      },
      {
        text: "A server says the next word of 64 answers in one step, with PaliGemma 3B on an H100. The weights are read once for all.",
        start: { ...FRESH, view: "roofline" },
        ask: "How long is the step, beside one for a single answer?",
        options: ["More than ten times as long", "Not twice as long"],
        right: 1,
        measure: async ({ config, result }) => {
          const seen = LARGE.patches + result.length - config.patches;
          const [one, many] = [1, 64].map((rows) =>
            Math.max(...times(decoderCost(LARGE, 1, seen, rows), MACHINES[0])),
          );
          return [
            many > 10 * one,
            `at least ${number(1000 * one, 2)} ms for one answer, ${number(1000 * many, 2)} ms for 64: ${number(many / one, 2)} times`,
          ];
        },
        why: "A step that waits for memory has arithmetic to spare; only each answer's own cache has to be read besides.",
      },
    ],
  },
];

/** What a cost reads, in 16 bits. @param {Cost} cost */
function counted({ operations, weights, cache }) {
  return { operations, bytes: 2 * (weights + cache) };
}

/** Seconds of computing and of reading that a cost takes at least.
 * @param {Cost} cost @param {import("./views/roofline.js").Machine} machine @returns {[number, number]} */
function times(cost, machine) {
  const { operations, bytes } = counted(cost);
  return [operations / machine.operations, bytes / machine.bytes];
}

/** Cosines of the drawn picture with texts. @param {Store} store @param {string[]} texts @returns {Promise<number[]>} */
async function dualCosines(store, texts) {
  await store.client.loadDual();
  await store.client.ask("picture", { name: "tour", picture: await pixelsOf(store.state.scene) });
  const { pictures, texts: words } = await store.client.ask("embed", { pictures: ["tour"], texts });
  return words.map((/** @type {Float32Array} */ w) =>
    w.reduce((sum, v, i) => sum + v * pictures[0][i], 0),
  );
}

/** SigLIP's answer to one pair, with t = ln 10 and b = −5. @param {number} cosine */
const sigmoid = (cosine) => 1 / (1 + Math.exp(5 - 10 * cosine));

/** The patches' streams after the decoder's last layer.
 * @param {Store} store @param {string} prompt @param {import("../engine/edits.js").Edits} edits
 * @returns {Promise<number[]>} */
async function patchesAfter(store, prompt, edits) {
  const { client, config } = store;
  const asked = { picture: await store.picture(), prompt, edits, maxNewTokens: 1 };
  const { run } = await client.ask("run", asked);
  const layer = config.text.layers - 1;
  const found = await client.ask("hidden", { run, part: "decoder", layer });
  return [...found.slice(0, config.patches * config.text.width)];
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
