// Tours: predict, act, see, and one sentence why. What a step claims is measured when it is taken; a
// test takes every step and holds the measurement to the answer that is marked right here.

import { distribution } from "../engine/sampling.js";
import { button, el, fill, number, percent } from "./dom.js";
import { middlePatch } from "./draw.js";
import { lessonLink } from "./lessons.js";
import { probe } from "./probe.js";
import { pixelsOf } from "./scene.js";
import { readable } from "./words.js";
import { START } from "./store.js";
import { LARGE, decoderCost, towerCost } from "./costs.js";
import { operations } from "./views/cache.js";
import { exampleScene } from "./views/live.js";
import { MACHINES, duration, large } from "./views/roofline.js";
import { PLACES } from "./views/tokens.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./store.js").State} State */
/** @typedef {import("./costs.js").Cost} Cost */
/** @typedef {import("../engine/config.js").Config} Config */
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

/** An answer in a line; one that repeats itself is long, and “nothing” is a word of it. @param {string} text */
function quoted(text) {
  const all = readable(text).trim();
  if (!all) return "no word";
  return `“${all.length > 100 ? `${all.slice(0, 99)}…` : all}”`;
}

/** Whether the answer with these edits is the same as without. @param {Store} store */
async function sameAsWhole(store) {
  const plain = await store.baseline();
  const { text } = store.result;
  const numbers =
    plain.text !== text && readable(plain.text) === readable(text) ? "; the places differ" : "";
  return /** @type {[boolean, string]} */ ([
    plain.text === text,
    `whole: ${quoted(plain.text)}; now: ${quoted(text)}${numbers}`,
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

/** Patches of bare ground in the farm's picture, at the upper right and the lower left. @param {Config} config */
const corners = ({ patches, perRow }) => [perRow - 1, patches - perRow];

/** The patches that lie on the farm's doughnut, whose sticker is as round as it. @param {Config} config */
function doughnut({ patches, perRow }) {
  const { x, y, size } = FARM.things[1];
  const middle = (/** @type {number} */ i) => ((i + 0.5) * 1000) / perRow;
  return Array.from({ length: patches }, (_, p) => p).filter(
    (p) => Math.hypot(middle(p % perRow) - x, middle(Math.floor(p / perRow)) - y) < size / 2,
  );
}

const FITS = "a tractor, a doughnut and a star"; // all that is in the farm's picture
const NEITHER = ["a cat", "an apple"]; // of what is in it
const TWICE = { ...START.words, ask: "star star" };
const DOWN = "language_model.model.layers.0.mlp.down_proj.weight";

/** @param {ArrayLike<number>} x */
const size = (x) => Math.sqrt(Array.from(x).reduce((sum, v) => sum + v * v, 0));

/** @param {ArrayLike<number>} a @param {ArrayLike<number>} b */
const distance = (a, b) => size(Array.from(a, (v, i) => v - b[i]));

/** The largest difference. @param {ArrayLike<number>} a @param {ArrayLike<number>} b */
const greatest = (a, b) =>
  Array.from(a).reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0);

/** @param {Config} config @returns {TourData[]} */
const toursOf = (config) => [
  {
    id: "pixels",
    title: "From pixels to a word",
    lesson: "architecture",
    steps: [
      {
        text: "The picture is cut into squares; each becomes one vector, as if it were a word.",
        start: {
          ...FRESH,
          view: "attention",
          part: "tower",
          layer: 0,
          head: 0,
          token: middlePatch(config),
        },
        ask: "How many vectors is this picture for the model?",
        options: [
          `${config.patches}`,
          `${(config.vision.side ** 2).toLocaleString("fr")}, one for each pixel`,
        ],
        right: 0,
        measure: async ({ result }) => {
          const count = result.prompt.findIndex(
            (/** @type {number} */ id) => id !== config.imageToken,
          );
          const { perRow, vision } = config;
          return [
            count === perRow ** 2,
            `${count} stand before the prompt's first word: ${perRow} × ${perRow} patches of ${vision.patch} × ${vision.patch} pixels`,
          ];
        },
        why: "A patch is a token, like a word; with a vector for each pixel the sequence would be far too long.",
      },
      {
        text: "A tower of six layers makes of the squares what the decoder is given. Ask another question of the same picture.",
        start: { ...FRESH, view: "live" },
        ask: "Do the vectors change that the tower makes of the picture?",
        options: ["Yes, it looks for what is asked", "No"],
        right: 1,
        act: { task: "ask" },
        measure: async (store) => {
          const [one, other] = await Promise.all(
            ["caption en", store.prompt].map((prompt) => patchesAfter(store, prompt, {}, "tower")),
          );
          const far = distance(one, other);
          return [
            far > 0,
            `they differ by ${number(far, 1)}, of a length of ${number(size(one), 1)}`,
          ];
        },
        why: "The tower never reads the prompt; question and picture meet in the decoder.",
      },
      {
        text: "The caption names a star. Take the star away.",
        start: { ...FRESH, view: "live" },
        ask: "Will the caption still name one?",
        options: ["Yes, it knows the scene", "No"],
        right: 1,
        act: { scene: WITHOUT_STAR },
        measure: async ({ result }) => [
          result.text.includes("star"),
          `now: ${quoted(result.text)}`,
        ],
        why: "The words hang on the patches: this is grounding.",
      },
      {
        text: "Now take everything away and ask for a caption of an empty picture.",
        start: { ...FRESH, view: "live" },
        ask: "What will it say?",
        options: ["It names something", "That there is nothing"],
        right: 1,
        act: { scene: { ground: "#d9d9d9", things: [] } },
        measure: async ({ result }) => [
          result.text.trim() !== "nothing",
          `it says ${quoted(result.text)}`,
        ],
        why: "A language model must say some word. In training some pictures were empty and their caption was “nothing”: that there is nothing has to be learned like any other word.",
      },
      {
        text: "A question may take for granted what is not so. There is no airplane here; ask where the airplane is.",
        start: { ...FRESH, view: "live" },
        ask: "Does it name a place?",
        options: ["Yes: it was asked for one", "No"],
        right: 1,
        act: { task: "ask", words: { ...START.words, ask: "where is the airplane?" } },
        measure: async (store) => {
          const present = await store.answer(
            await store.picture(),
            {},
            [],
            "answer en where is the tractor?",
          );
          return [
            store.result.text.trim() !== "nothing",
            `it says ${quoted(store.result.text)}; asked where the tractor is: ${quoted(present.text)}`,
          ];
        },
        why: "Such questions were among those that it was trained on, with “nothing” as their answer: all that keeps it from naming some place.",
      },
      {
        text: "A word is chosen from a distribution over the whole vocabulary. Here the star of another picture is described, a bit off the middle.",
        start: { ...FRESH, view: "bench", scene: exampleScene("colour"), task: "describe" },
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
        text: "The first patch, in the upper left corner, is the first token of all.",
        start: { ...FRESH, view: "mask" },
        ask: "What may it look at?",
        options: ["Itself alone: nothing is before it", "All patches and the whole prompt"],
        right: 1,
        measure: async ({ client, result }) => {
          const mask = await client.ask("mask", { run: result.run });
          const row = [...mask.slice(0, result.length)];
          const seen = row.filter(Boolean).length;
          const { length } = result.prompt;
          return [seen < length, `${seen} tokens; ${length} are picture and prompt`];
        },
        why: "A picture has no order of reading, and what is given may be read back and forth: only what is still to be said must be hidden.",
      },
      {
        text: "Picture and prompt may see each other fully. In a causal model the patches could not see the question.",
        start: { ...FRESH, view: "mask", task: "detect" },
        ask: "With a causal mask, does it find the same things, in the same boxes?",
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
          `it says ${quoted(result.text)}`,
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
            return distance(one, other) / size(one);
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
        text: "Put another first word into the model's mouth, and look at what the prompt left in the cache.",
        start: { ...FRESH, view: "cache" },
        ask: "Are the keys and values of picture and prompt other ones now?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const plain = store.result;
          const [, second] = await store.client.ask("top", { run: plain.run, step: 0, k: 2 });
          const before = await promptKeys(store, plain);
          store.set({ forced: [second.id] });
          await store.idle;
          const after = await promptKeys(store, store.result);
          const changed = before.filter((layer, i) => layer.some((v, j) => v !== after[i][j]));
          return [
            changed.length > 0,
            `“${second.word.trim()}” is said in the place of “${plain.answerWords[0].trim()}”: ${changed.length} of ${before.length} layers have other keys or values`,
          ];
        },
        why: "The prompt may not look at the answer, so what it left stays right, whatever is said.",
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
          return [text !== store.result.text, `it says ${quoted(text)}`];
        },
        why: "Nobody reads the prompt again: the cache is what the model knows of the past.",
      },
      {
        text: "Then run the prompt with that one word exchanged, as it should be done.",
        start: { ...FRESH, view: "cache" },
        ask: "In layer 1, whose keys become other ones?",
        options: ["That word's alone", "Those of all patches and words"],
        right: 1,
        measure: async (store) => {
          const { client, config, result } = store;
          const other = await client.ask("run", {
            picture: await store.picture(),
            prompt: "detect en",
            maxNewTokens: 1,
          });
          const changed = [];
          for (const layer of [0, 1]) {
            const [one, two] = await Promise.all(
              [result, other].map(({ run }) => client.ask("cache", { run, layer })),
            );
            const keys = Array.from(result.prompt, (_, t) => t).filter((t) =>
              one.k
                .slice(t * one.width, (t + 1) * one.width)
                .some(
                  (/** @type {number} */ v, /** @type {number} */ i) =>
                    v !== two.k[t * one.width + i],
                ),
            );
            changed.push(keys.length);
          }
          return [
            changed[1] < config.patches,
            `in layer 0 ${changed[0]} of ${result.prompt.length}, in layer 1 ${changed[1]}`,
          ];
        },
        why: "In layer 0 everyone looked at that word: what is kept holds for whoever could not see the change, and here even the patches see the prompt.",
      },
    ],
  },
  {
    id: "rope",
    title: "RoPE finds rows",
    lesson: "rope",
    steps: [
      {
        text: `The decoder counts tokens in one row, 1, 2, 3, …; nobody told it that a picture is a square of ${config.perRow} × ${config.perRow} patches.`,
        start: { ...FRESH, view: "rope", layer: 0, head: 1 },
        ask: `Is the score of layer 0's head 1 largest at about ${2 * config.perRow}, two rows up?`,
        options: ["No, at another distance", "Yes"],
        right: 1,
        measure: async ({ client, result, config }) => {
          const { scores } = await client.ask("distances", {
            run: result.run,
            layer: 0,
            head: 1,
            most: 4 * config.perRow + 1,
            span: [0, config.patches],
          });
          const best = scores.indexOf(Math.max(...scores));
          return [
            Math.abs(best - 2 * config.perRow) > 2,
            `largest at ${best}: ${number(scores[best], 1)}; at 1: ${number(scores[1], 1)}`,
          ];
        },
        why: "In training it found out that what lies above is a whole number of rows back.",
      },
      {
        text: "Ask “star star”: a prompt with the same word twice. Now take the rotations away.",
        start: { ...FRESH, view: "rope", layer: 1, head: 0, task: "ask", words: TWICE },
        ask: "Can the decoder still tell the two apart?",
        options: ["Yes, one comes first", "No, they stay equal in every layer"],
        right: 1,
        act: { edits: { noRotary: true } },
        measure: async (store) => {
          const apart = async (/** @type {any} */ { run, prompt }) => {
            const layer = store.config.text.layers - 1;
            const at = [3, 2].map((back) => prompt.length - back); // a newline is the last
            const [one, other] = await Promise.all(
              at.map((position) => store.client.ask("patch", { run, layer, position })),
            );
            return distance(one, other) / size(one);
          };
          const [whole, without] = [await apart(await store.baseline()), await apart(store.result)];
          return [
            without > 1e-4,
            `after the last layer they differ by ${percent(whole)} of their length with rotations, by ${percent(without)} without`,
          ];
        },
        why: "Attention sums over a set: equal words ask the same question of the same tokens and get the same answer, unless their positions turn them.",
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
          const cosines = await dualCosines(store, [FITS, FITS, "a cat", "an apple"]);
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
          const [alone] = await dualCosines(store, [FITS]);
          const [twice] = await dualCosines(store, [FITS, FITS]);
          return [
            sigmoid(alone) !== sigmoid(twice),
            `${percent(sigmoid(alone))} alone, ${percent(sigmoid(twice))} beside its copy (t = ln 10, b = −5)`,
          ];
        },
        why: "Each cell is a question of its own, so no cell needs the others: that is what lets SigLIP train on huge batches.",
      },
      {
        text: "Add 3 to the score of every pair: that is what the number b is for.",
        start: { ...FRESH, view: "contrastive" },
        ask: "Whose numbers change?",
        options: ["CLIP's and SigLIP's", "SigLIP's alone"],
        right: 1,
        measure: async (store) => {
          const { scale } = await store.client.loadDual();
          const cosines = await dualCosines(store, NEITHER);
          const shares = (/** @type {number} */ more) =>
            distribution(Float32Array.from(cosines, (c) => c * scale + more))[0];
          const [clip, siglip] = [
            shares,
            (/** @type {number} */ more) => sigmoid(cosines[0], more),
          ].map((of) => [of(0), of(3)]);
          const told = (/** @type {number[]} */ two) => two.map(percent).join(", then ");
          return [
            Math.abs(clip[0] - clip[1]) > 1e-3,
            `“${NEITHER[0]}”, CLIP: ${told(clip)}; SigLIP: ${told(siglip)}`,
          ];
        },
        why: "A softmax cancels whatever all scores share; a sigmoid needs b, to begin with the no that is right for nearly every pair of a batch.",
      },
    ],
  },
  {
    id: "boxes",
    title: "A box is four words",
    lesson: "detection",
    steps: [
      {
        text: "Ask for a doughnut's box. Of all words of the vocabulary, 1024 are places.",
        start: {
          ...FRESH,
          view: "boxes",
          task: "detect",
          words: { ...START.words, detect: "doughnut" },
        },
        ask: "How much of the first word's probability do the 1024 have together?",
        options: ["About their share of the vocabulary", "Nearly all"],
        right: 1,
        measure: async ({ client, config, result }) => {
          const [top] = await client.ask("edges", { run: result.run, first: 0 });
          const sum = top.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
          return [
            sum < 0.9,
            `${percent(sum)}; they are ${percent(1024 / config.text.vocab)} of the vocabulary`,
          ];
        },
        why: "Nothing but training makes a place come after “detect”: there is no head for boxes, only the next word.",
      },
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
        text: "Asked for a tractor and a doughnut, it begins with the tractor's box. Say the doughnut's in its place.",
        start: { ...FRESH, view: "boxes", task: "detect" },
        ask: "Will it still call what is in it a tractor, which was asked for first?",
        options: ["Yes", "No"],
        right: 1,
        measure: async (store) => {
          const { client, result } = store;
          const { firstLocation } = await client.ask("ids");
          const places = result.answer.filter(
            (/** @type {number} */ id) => id >= firstLocation && id < firstLocation + 1024,
          );
          store.set({ forced: places.slice(4, 8) });
          await store.idle;
          const label = (/** @type {any} */ run) =>
            `“${run.answerWords[4].trim()}” with ${percent(Math.exp(run.logProbabilities[4]))}`;
          return [
            result.answer[4] === store.result.answer[4],
            `the label's first word is ${label(result)} in its own box, ${label(store.result)} in the other`,
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
          await client.ask("picture", {
            name: "donor",
            picture: await pixelsOf(exampleScene("colour")),
          });
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
      {
        text: "Now paste where the answer begins: the stream of the prompt's last token after the last layer, from that other picture.",
        start: { ...FRESH, view: "lens" },
        ask: "Are the first word's chances that picture's now, to the last digit?",
        options: ["Yes", "No, your patches still count"],
        right: 0,
        measure: async (store) => {
          const { client, config, result } = store;
          await client.ask("picture", {
            name: "donor",
            picture: await pixelsOf(exampleScene("colour")),
          });
          const donor = await client.ask("run", { picture: "donor", prompt: store.prompt });
          const [layer, position] = [config.text.layers - 1, result.prompt.length - 1];
          const vector = await client.ask("patch", { run: donor.run, layer, position });
          store.set({ edits: { patches: [{ layer, position, vector }] } });
          await store.idle;
          const [own, theirs, pasted] = await Promise.all(
            [result, donor, store.result].map(({ run }) => client.ask("logits", { run, step: 0 })),
          );
          const far = (/** @type {any} */ one) => number(greatest(pasted.logits, one.logits), 4);
          return [
            greatest(pasted.logits, theirs.logits) < 1e-4,
            `logits differ from the other picture's by ${far(theirs)} at the most, from your picture's by ${far(own)}`,
          ];
        },
        why: "A word is read from one vector, so all that the patches have to say must be in it by then.",
      },
      {
        text: "Heads and MLPs only ever add to that vector, and a word's logit is a sum over it. So it can be split up: so much from this head, so much from that one.",
        start: { ...FRESH, view: "lens" },
        ask: "Do the parts add up to the logit?",
        options: ["Yes", "No, parts act on one another"],
        right: 0,
        measure: async ({ client, result }) => {
          const asked = {
            run: result.run,
            position: result.prompt.length - 1,
            id: result.answer[0],
          };
          const { parts } = await client.ask("attribution", asked);
          const { logits } = await client.ask("logits", { run: result.run, step: 0 });
          const sum = parts.reduce(
            (/** @type {number} */ a, /** @type {any} */ one) => a + one.value,
            0,
          );
          const logit = logits[result.answer[0]];
          return [
            Math.abs(sum - logit) < 1e-2,
            `${parts.length} parts give ${number(sum, 3)}; the logit of “${result.answerWords[0].trim()}” is ${number(logit, 3)}`,
          ];
        },
        why: "They do act on one another, on the way, but what each one wrote at last is a summand; the last norm's divisor is the same for all.",
      },
    ],
  },
  {
    id: "break",
    title: "What can be broken",
    lesson: "architecture",
    steps: [
      {
        ...broken(
          { activation: "relu" },
          "It is to say where everything is; ReLU takes GELU's place, everywhere",
          true,
          "They differ only around zero, so most of what it says stays.",
        ),
        start: { ...FRESH, view: "break", task: "describe" },
        measure: async (store) => {
          const [same, told] = await sameAsWhole(store);
          const { edits } = store.state;
          const caption = await store.answer(await store.picture(), edits, [], "caption en");
          return [same, `${told}; its caption: ${quoted(caption.text)}`];
        },
      },
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
        text: "A patch is 16 × 16 pixels in three colours. One matrix makes a vector of it.",
        start: { ...FRESH, view: "patches", token: doughnut(config)[0] },
        ask: "Has the vector more numbers than the patch, or fewer?",
        options: ["More", "Fewer"],
        right: 1,
        measure: async ({ client, result: { run } }) => {
          const found = await client.ask("projected", { run, patch: doughnut(config)[0] });
          const [pixels, outputs] = [found.pixels.length, found.outputs.length];
          return [outputs > pixels, `${pixels} go in, ${outputs} come out`];
        },
        why: "Each number says how well the patch fits one filter; fine grain that no filter asks for is lost at once.",
      },
      {
        text: "Two patches of bare ground, in two corners of the picture, have the same pixels.",
        start: { ...FRESH, view: "patches", token: corners(config)[0] },
        ask: "Do they enter the tower as the same vector?",
        options: ["Yes", "No"],
        right: 1,
        measure: async ({ client, result: { run } }) => {
          const [one, other] = await Promise.all(
            corners(config).map((patch) => client.ask("projected", { run, patch })),
          );
          const far = (/** @type {"pixels" | "outputs" | "input"} */ name) =>
            distance(one[name], other[name]);
          return [
            far("input") === 0,
            `their pixels differ by ${number(far("pixels"), 1)}, the filters' answers by ${number(far("outputs"), 1)}, what enters by ${number(far("input"), 1)}`,
          ];
        },
        why: "To each patch's vector the tower adds one that was learned for its place; without it nobody could tell left from right.",
      },
      {
        text: "Take the star away, which is in the upper left. Look at the patch in the upper right corner.",
        start: { ...FRESH, view: "patches", token: corners(config)[0] },
        ask: "Does it enter the tower as another vector now?",
        options: ["Yes", "No"],
        right: 1,
        act: { scene: WITHOUT_STAR },
        measure: async (store) => {
          const far = await cornerMoved(store, -1);
          return [far > 0, `what enters differs by ${number(far, 3)}`];
        },
        why: "The filters see one patch at a time: what lies elsewhere cannot reach it yet.",
      },
      {
        text: "The same corner, and again the star is taken away: but now look one layer later.",
        start: { ...FRESH, view: "patches", token: corners(config)[0] },
        ask: "After the tower's first layer, is the corner's vector another one?",
        options: ["Yes", "No"],
        right: 0,
        act: { scene: WITHOUT_STAR },
        measure: async (store) => {
          const far = await cornerMoved(store, 0);
          const last = await cornerMoved(store, store.config.vision.layers - 1);
          return [
            far > 0,
            `it differs by ${percent(far)} of its length, after the last layer by ${percent(last)}`,
          ];
        },
        why: "The tower has no mask: from its first layer on every patch looks at every other.",
      },
      {
        text: "Take the doughnut's patches, some pink, some brown, and ask how alike two of them are, against one of them and a patch from elsewhere.",
        start: { ...FRESH, view: "patches", token: doughnut(config)[0] },
        ask: "Where do they stand out more from the rest?",
        options: ["Where they enter the tower", "After its last layer"],
        right: 1,
        measure: async ({ client, config, result: { run } }) => {
          const its = doughnut(config);
          const apart = async (/** @type {number} */ layer) => {
            /** @type {[number[], number[]]} */
            const [own, rest] = [[], []];
            for (const token of its) {
              const asked = { run, part: "tower", layer, token, first: 0, count: config.patches };
              const found = await client.ask("similar", asked);
              for (let i = 0; i < found.length; i++)
                if (i !== token) (its.includes(i) ? own : rest).push(found[i]);
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
        text: "Take the busiest neuron of that layer out, for every token; then, in its place, the next, one after the other through the sixteen busiest.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "Without how many of the sixteen does the answer begin with another word?",
        options: ["Four or more", "Fewer than four"],
        right: 1,
        measure: async (store) => {
          const { client, prompt, result } = store;
          const asked = { run: result.run, layer: 1, position: store.token, k: 16 };
          const { top } = await client.ask("neurons", asked);
          const without = (/** @type {any} */ { neuron }) => ({ off: [`decoder.1.mlp.${neuron}`] });
          const picture = await store.picture();
          await store.keep(result.run); // so many others would push it out
          let missed = 0;
          for (const one of top) {
            const values = { picture, prompt, edits: without(one), maxNewTokens: 1 };
            const { answer } = await client.ask("run", values);
            if (answer[0] !== result.answer[0]) missed++;
          }
          store.set({ edits: without(top[0]) });
          await store.idle;
          const word = (/** @type {any} */ run) =>
            `“${run.answerWords[0].trim()}” with ${percent(Math.exp(run.logProbabilities[0]))}`;
          return [
            missed >= 4,
            `${missed} of ${top.length}; without the busiest, neuron ${top[0].neuron}: ${word(store.result)} in the place of ${word(result)}`,
          ];
        },
        why: "What a model knows is spread over many neurons, so that hardly any one of them is missed.",
      },
      {
        text: "Switch off all layers of the decoder.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "What comes out at the end?",
        options: ["Nothing: zeros", "What entered"],
        right: 1,
        measure: async (store) => {
          const { client, config } = store;
          const { layers } = config.text;
          store.set({ edits: { off: Array.from({ length: layers }, (_, i) => `decoder.${i}`) } });
          await store.idle;
          const { run } = store.result;
          const [before, after] = await Promise.all(
            [-1, layers - 1].map((layer) =>
              client.ask("patch", { run, layer, position: store.token }),
            ),
          );
          return [
            size(after) === 0,
            `${number(size(before), 1)} long enters, ${number(size(after), 1)} comes out, ${number(distance(before, after), 1)} apart; the answer: ${quoted(store.result.text)}`,
          ];
        },
        why: "A layer is not a station that hands on its result: the stream runs past it, and it adds.",
      },
      {
        text: "Make the vector that comes out of the last layer ten times as long, without turning it.",
        start: { ...FRESH, view: "stream", part: "decoder", layer: 1 },
        ask: "Is the model more sure of its word now?",
        options: ["Yes, ten times larger logits", "No, nothing changes"],
        right: 1,
        measure: async (store) => {
          const { client, config, result } = store;
          const [layer, position] = [config.text.layers - 1, result.prompt.length - 1];
          const own = await client.ask("patch", { run: result.run, layer, position });
          const vector = own.map((/** @type {number} */ v) => 10 * v);
          store.set({ edits: { patches: [{ layer, position, vector }] } });
          await store.idle;
          const share = (/** @type {any} */ one) => Math.exp(one.logProbabilities[0]);
          const [before, after] = [result, store.result].map(share);
          return [
            Math.abs(before - after) > 1e-3,
            `“${result.answerWords[0].trim()}” has ${percent(before)} before, ${percent(after)} after`,
          ];
        },
        why: "Before the table there is an RMSNorm, as before every layer's parts: it divides the length away, and only the direction is read.",
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
        text: "“star” at the beginning of a text, and “star” in “a star”.",
        start: { ...FRESH, view: "tokens" },
        ask: "Are they the same token?",
        options: ["Yes", "No"],
        right: 1,
        measure: async ({ client }) => {
          const [alone, within] = await Promise.all(
            ["star", "a star"].map((text) => client.ask("tokenize", { text })),
          );
          const [one, other] = [alone, within].map(({ ids }) => ids.at(-1));
          return [
            one === other,
            `number ${one} (“${alone.words.at(-1)}”) and number ${other} (“${within.words.at(-1)}”)`,
          ];
        },
        why: "The space before a word belongs to it, so these are two rows of the table, and the model has to learn for itself that they mean the same.",
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
      {
        text: "A row for each token: that is a large matrix. It is read twice, when a word enters and when the next is chosen.",
        start: { ...FRESH, view: "tokens" },
        ask: "How much of the decoder is the table?",
        options: ["Next to nothing", "More than a tenth"],
        right: 1,
        measure: async ({ config }) => {
          const share = (/** @type {import("./costs.js").Shape} */ shape) =>
            (shape.text.vocab * shape.text.width) / decoderCost(shape, 1, 1).weights;
          return [
            share(config) <= 0.1,
            `${percent(share(config))} of this decoder's weights, ${percent(share(LARGE))} of PaliGemma 3B's`,
          ];
        },
        why: "That is why the same table serves both ends, and why a vocabulary of all languages is dear to a small model.",
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
        text: "A weight is rounded to the nearest multiple of its row's step. Go from 8 bits to 6.",
        start: { ...FRESH, view: "bits" },
        ask: "How much larger does the error become?",
        options: ["Twice as large", "About four times"],
        right: 1,
        measure: async ({ client }) => {
          const [eight, six] = await Promise.all(
            [8, 6].map((bits) => client.ask("matrix", { name: DOWN, bits, group: 0 })),
          );
          return [
            six.error < 3 * eight.error,
            `${percent(eight.error)} of the weights with 8 bits, ${percent(six.error)} with 6: ${number(six.error / eight.error, 1)} times (layer 0, down_proj)`,
          ];
        },
        why: "Each bit fewer makes the steps twice as wide, and the error is a part of a step: nothing happens for long, and then all at once.",
      },
      {
        text: "With 4 bits a weight is one of 15 values, times a scale. The scale is set by the largest weight that shares it.",
        start: { ...FRESH, view: "bits" },
        ask: "Which is nearer to the original: a scale for each row, or one for every 32 weights?",
        options: ["A scale for each row", "One for every 32"],
        right: 1,
        measure: async ({ client }) => {
          const [row, group] = await Promise.all(
            [0, 32].map((size) => client.ask("matrix", { name: DOWN, bits: 4, group: size })),
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
      {
        text: "Two bits leave three values to choose from. The largest weight of a row sets s.",
        start: { ...FRESH, view: "bits" },
        ask: "How many of the weights become zero?",
        options: ["About a third: three values", "More than half"],
        right: 1,
        measure: async ({ client }) => {
          const { before, after } = await client.ask("matrix", { name: DOWN, bits: 2, group: 0 });
          const [was, is] = [before, after].map(
            (/** @type {Float32Array} */ counts) =>
              counts[(counts.length - 1) / 2] / counts.reduce((a, b) => a + b, 0),
          );
          return [is < 0.5, `${percent(is)}; ${percent(was)} were as near to zero before`];
        },
        why: "Weights lie in a bell around zero, and a row's largest is far out: half of it is more than nearly all of them.",
      },
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
      {
        text: "Store PaliGemma 3B's weights in 4 bits in the place of 16. They are widened before they are multiplied, so no operation is saved.",
        start: { ...FRESH, view: "roofline" },
        ask: "How much sooner can an H100 say the next word of a single answer?",
        options: ["Hardly: the arithmetic is the same", "In less than a third of the time"],
        right: 1,
        measure: async ({ config, result }) => {
          const cost = decoderCost(LARGE, 1, LARGE.patches + result.length - config.patches);
          const [sixteen, four] = [16, 4].map((bits) =>
            Math.max(...times(cost, MACHINES[0], bits)),
          );
          return [
            four > sixteen / 3,
            `at least ${number(1000 * sixteen, 2)} ms with 16 bits, ${number(1000 * four, 2)} ms with 4`,
          ];
        },
        why: "The step takes as long as the reading, and there is a quarter to be read.",
      },
      {
        text: "Give PaliGemma's tower a picture of 896 pixels in 224's place: sixteen times as many patches.",
        start: { ...FRESH, view: "roofline" },
        ask: "How many times as much does the tower compute?",
        options: ["Sixteen times", "More than twenty times"],
        right: 1,
        measure: async () => {
          const [small, great] = [1, 16].map(
            (times) => towerCost({ ...LARGE, patches: times * LARGE.patches }).operations,
          );
          return [
            great <= 20 * small,
            `${large(small)} operations, then ${large(great)}: ${number(great / small, 1)} times`,
          ];
        },
        why: "Each patch costs the same in the matrices, but looks at sixteen times as many others: that part grows by 256.",
      },
    ],
  },
];

/** What a cost reads: numbers in 16 bits, weights in so many. @param {Cost} cost @param {number} bits */
function counted({ operations, weights, cache }, bits = 16) {
  return { operations, bytes: (bits / 8) * weights + 2 * cache };
}

/** Seconds of computing and of reading that a cost takes at least.
 * @param {Cost} cost @param {import("./views/roofline.js").Machine} machine @param {number} bits of a
 * weight @returns {[number, number]} */
function times(cost, machine, bits = 16) {
  const { operations, bytes } = counted(cost, bits);
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

/** SigLIP's answer to one pair, with t = ln 10 and b = −5. @param {number} cosine
 * @param {number} more to be added to the score */
const sigmoid = (cosine, more = 0) => 1 / (1 + Math.exp(5 - 10 * cosine - more));

/** Each layer's keys and values of picture and prompt. @param {Store} store @param {any} result
 * @returns {Promise<number[][]>} */
async function promptKeys({ client, config }, { run, prompt }) {
  const layers = Array.from({ length: config.text.layers }, (_, layer) => layer);
  const found = await Promise.all(layers.map((layer) => client.ask("cache", { run, layer })));
  return found.map(({ k, v, width }) =>
    [k, v].flatMap((kept) => [...kept.slice(0, prompt.length * width)]),
  );
}

/** How far a corner's vector in the tower is from the one in the whole farm's picture, as a share of
 * its length. @param {Store} store @param {number} layer −1: what enters the first */
async function cornerMoved(store, layer) {
  const { client, config, result } = store;
  await client.ask("picture", { name: "farm", picture: await pixelsOf(FARM) });
  const asked = { picture: "farm", prompt: store.prompt, maxNewTokens: 1 };
  const whole = await client.ask("run", asked);
  const { width } = config.vision;
  const [corner] = corners(config);
  const [before, after] = await Promise.all(
    [whole, result].map(({ run }) => client.ask("hidden", { run, part: "tower", layer })),
  );
  const [a, b] = [before, after].map((all) => all.slice(corner * width, (corner + 1) * width));
  return distance(a, b) / size(a);
}

/** The patches' streams after a part's last layer.
 * @param {Store} store @param {string} prompt @param {import("../engine/edits.js").Edits} edits
 * @param {"tower" | "decoder"} part @returns {Promise<number[]>} */
async function patchesAfter(store, prompt, edits, part = "decoder") {
  const { client, config } = store;
  const asked = { picture: await store.picture(), prompt, edits, maxNewTokens: 1 };
  const { run } = await client.ask("run", asked);
  const { layers, width } = part === "tower" ? config.vision : config.text;
  const found = await client.ask("hidden", { run, part, layer: layers - 1 });
  return [...found.slice(0, config.patches * width)];
}

export class Tour {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.tours = toursOf(store.config);
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
      this.tours.map(({ id, title, steps }) =>
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
    return this.tours.find(({ id }) => id === this.store.state.tour) ?? null;
  }

  get step() {
    return this.tour?.steps[this.store.state.step] ?? null;
  }

  /** @param {string} id @param {number} step */
  async go(id, step) {
    this.outcome = null;
    const data = this.tours.find((one) => one.id === id);
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
