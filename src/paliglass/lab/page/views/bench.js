// 4 · Next-word bench: real logits, the ways to choose among them, and the tree of what might be said.

import { distribution, draw, probabilities, top, uniforms } from "../../engine/sampling.js";
import { button, el, fill, inWords, number, percent, shown, slider } from "../dom.js";
import { heading } from "../lessons.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const SHOWN = 14;

export const benchView = {
  id: "bench",
  title: "Next word",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const steps = el("div", { class: "controls" });
    const dials = el("div", { class: "dials" });
    const table = el("div");
    const tree = el("div");
    /** @type {{forced: number[], text: string, word: string, p: number, prompt: string}[]} */
    let branches = [];
    /** @type {any} */
    let found = null;
    let needle = -1;
    let asked = 0;
    fill(
      root,
      heading(
        "Next word: one of many",
        "After each word the model gives every word of its vocabulary a number. Choose how one is drawn; click another word and the answer branches there.",
        "sampling",
        "sampling.py",
      ),
      steps,
      dials,
      table,
      tree,
    );

    const step = () => {
      const { result } = store;
      return Math.min(
        Math.max(store.token - result.prompt.length + 1, 0),
        result.answer.length - 1,
      );
    };
    const sampling = () => {
      const { temperature, topK, topP, minP } = store.state.sampling;
      return { temperature, topK: topK || undefined, topP, minP };
    };
    /** @param {any} changes */
    const turn = (changes) => {
      needle = -1;
      store.set({ sampling: { ...store.state.sampling, ...changes } });
    };
    const { temperature, topK, topP, minP } = store.state.sampling;
    fill(
      dials,
      slider(
        "temperature",
        { min: 0, max: 3, step: 0.05 },
        temperature,
        (v) => turn({ temperature: v }),
        (v) => (v ? number(v) : "greedy"),
      ),
      slider(
        "top-k",
        { min: 0, max: 40, step: 1 },
        topK,
        (v) => turn({ topK: v }),
        (v) => (v ? String(v) : "all"),
      ),
      slider(
        "top-p",
        { min: 0.05, max: 1, step: 0.05 },
        topP,
        (v) => turn({ topP: v }),
        (v) => number(v),
      ),
      slider(
        "min-p",
        { min: 0, max: 0.5, step: 0.01 },
        minP,
        (v) => turn({ minP: v }),
        (v) => number(v),
      ),
    );

    /** @param {number} id */
    const branch = (id) => {
      const { result } = store;
      const at = step();
      if (!branches.some(({ forced, prompt }) => !forced.length && prompt === store.prompt))
        keep([], "", 1);
      store.set({ forced: [...result.answer.slice(0, at), id] });
      waiting = {
        forced: [...result.answer.slice(0, at), id],
        word: store.word(result.prompt.length + at),
      };
    };
    /** @type {any} */
    let waiting = null;
    /** @param {number[]} forced @param {string} word @param {number} p */
    const keep = (forced, word, p) => {
      branches = branches.filter(
        (one) => one.prompt === store.prompt && String(one.forced) !== String(forced),
      );
      branches.push({ forced, word, p, text: store.result.text, prompt: store.prompt });
    };

    /** The least sure step: where the two likeliest words are closest. */
    const unsure = async () => {
      const { result } = store;
      let best = 0,
        least = Infinity;
      for (let i = 0; i < result.answer.length; i++) {
        const [a, b] = await store.client.ask("top", { run: result.run, step: i, k: 2 });
        if (a.p - b.p < least) [best, least] = [i, a.p - b.p];
      }
      store.set({ token: result.prompt.length - 1 + best });
    };

    const show = () => {
      if (!found) return;
      const raw = probabilities(found.logits);
      const drawn = distribution(found.logits, sampling());
      const order = top(raw, SHOWN);
      const chosen = store.result.answer[step()];
      if (!order.includes(chosen)) order.push(chosen);
      let reached = 0;
      const most = Math.max(raw[order[0]], drawn[order[0]]);
      const left = drawn.reduce((count, p) => count + Number(p > 0), 0);
      const words = /** @type {Record<number, string>} */ (found.words);
      fill(
        table,
        el(
          "table",
          { class: "words" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ["word", "the model", "as drawn", "so far"].map((text) =>
                el("th", { scope: "col", text }),
              ),
            ),
          ),
          el(
            "tbody",
            {},
            order.map((id) => {
              reached += drawn[id];
              return el(
                "tr",
                {
                  class: `${drawn[id] ? "" : "out"} ${id === chosen ? "said" : ""} ${id === needle ? "hit" : ""}`,
                },
                el(
                  "td",
                  {},
                  button(shown(words[id]), () => branch(id), {
                    class: "plain c-answer",
                    title: id === chosen ? "this was said" : "say this instead",
                  }),
                ),
                el(
                  "td",
                  {},
                  el("span", {
                    class: "meter",
                    style: { "--p": (raw[id] / most).toFixed(4), "--c": "var(--muted)" },
                  }),
                  el("span", { class: "num", text: percent(raw[id]) }),
                ),
                el(
                  "td",
                  {},
                  el("span", {
                    class: "meter",
                    style: { "--p": (drawn[id] / most).toFixed(4), "--c": "var(--answer)" },
                  }),
                  el("span", { class: "num", text: percent(drawn[id]) }),
                ),
                el("td", { class: "num", text: drawn[id] ? percent(reached) : "" }),
              );
            }),
          ),
        ),
        el(
          "div",
          { class: "row" },
          button(
            "Draw a word",
            () => {
              const seed = store.state.sampling.seed + 1;
              store.state.sampling = { ...store.state.sampling, seed };
              needle = draw(drawn, uniforms(seed)());
              show();
            },
            { class: "chip" },
          ),
          needle >= 0
            ? el(
                "span",
                {},
                "the needle fell on ",
                el("b", { class: "answer", text: shown(words[needle] ?? "") || `word ${needle}` }),
                ` (${percent(drawn[needle])}) `,
                button("Say it", () => branch(needle), { class: "chip" }),
              )
            : null,
          el("span", {
            class: "hint",
            text: `${left} of ${raw.length} words are left to draw from`,
          }),
        ),
        inWords(
          `At this step the likeliest words are ${order
            .slice(0, 5)
            .map((id) => `${shown(words[id])} ${percent(raw[id])}`)
            .join(", ")}. ${left} words are left to draw from.`,
        ),
      );
      showTree();
    };

    const showTree = () => {
      const own = branches.filter(({ prompt }) => prompt === store.prompt);
      fill(
        tree,
        own.length ? el("h3", { text: "What else was said" }) : null,
        el(
          "ul",
          { class: "tree" },
          own.map(({ forced, text, word }) =>
            el(
              "li",
              { class: String(forced) === String(store.state.forced) ? "current" : "" },
              button(
                [
                  el("span", {
                    class: "num",
                    text: forced.length ? `word ${forced.length}: not “${shown(word)}”` : "greedy",
                  }),
                  answerText({ text }, forced.length ? { text: own[0].text } : null),
                ],
                () => store.set({ forced }),
                { class: "plain" },
              ),
            ),
          ),
        ),
      );
    };

    const update = async () => {
      const { result } = store;
      if (!result || !result.answer.length) return;
      if (waiting && String(waiting.forced) === String(store.state.forced) && !store.busy) {
        keep(waiting.forced, waiting.word, 0);
        waiting = null;
      }
      const own = ++asked;
      const at = step();
      fill(
        steps,
        button("◀", () => store.set({ token: result.prompt.length - 2 + at }), {
          class: "chip",
          disabled: at === 0,
          "aria-label": "the word before",
        }),
        el(
          "span",
          {},
          `word ${at + 1} of ${result.answer.length}: after `,
          el("b", {
            class: "answer",
            text: at ? result.answerWords.slice(Math.max(0, at - 4), at).join("") : "the prompt",
          }),
        ),
        button("▶", () => store.set({ token: result.prompt.length + at }), {
          class: "chip",
          disabled: at + 1 >= result.answer.length,
          "aria-label": "the word after",
        }),
        button("The least sure word", unsure, { class: "chip" }),
        store.state.forced.length
          ? button("Back to greedy", () => store.set({ forced: [] }), { class: "chip" })
          : null,
      );
      const { logits } = await store.client.ask("logits", { run: result.run, step: at });
      const order = top(logits, SHOWN + 30);
      const words = await store.client.ask("words", { ids: [...order, result.answer[at]] });
      if (own !== asked) return;
      found = { logits, words };
      show();
    };
    return { update };
  },
};
