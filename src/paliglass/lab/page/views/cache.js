// 7 · Cache console: what is kept of the past, what that saves, and what goes wrong when it is stale.

import { button, choice, el, fill, inWords, shown } from "../dom.js";
import { heading } from "../lessons.js";
import { drawField } from "../draw.js";
import { EMPTY } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

/** 12345678 → "12.3 M". @param {number} value */
const large = (value) =>
  value >= 1e12
    ? `${(value / 1e12).toFixed(2)} T`
    : value >= 1e9
      ? `${(value / 1e9).toFixed(2)} G`
      : value >= 1e6
        ? `${(value / 1e6).toFixed(1)} M`
        : value >= 1e3
          ? `${(value / 1e3).toFixed(1)} k`
          : String(value);

/** Multiply-adds of the decoder for `fresh` tokens that see `seen`, the head for the last alone.
 * @param {import("../../engine/config.js").TextConfig} text @param {number} fresh @param {number} seen */
export function operations(text, fresh, seen) {
  const { width: D, hidden, layers, heads: H, keyHeads: K, headDim: d, vocab } = text;
  const projections = D * H * d * 2 + D * K * d * 2;
  const perToken = layers * (projections + 3 * D * hidden);
  return fresh * perToken + layers * 2 * H * d * fresh * seen + D * vocab;
}

export const cacheView = {
  id: "cache",
  title: "Cache",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const controls = el("div", { class: "controls" });
    const columns = el("div", { class: "cache-fields" });
    const counts = el("div");
    const stale = el("div");
    const text = el("div");
    const mine = store.own("cache", { at: -1 });
    let asked = 0;
    /** @type {any} */
    let player = null;
    let position = -1;
    let word = "";
    fill(
      root,
      heading(
        "Cache: what is kept of the past",
        "The prompt goes through once and leaves a key and a value for each token in each layer. Then each new word computes its own column alone and reads the others.",
        "cache",
        "layers/kv_cache.py, generation.py",
      ),
      controls,
      columns,
      counts,
      stale,
      text,
    );

    const show = async () => {
      const { result, config } = store;
      if (!result) return;
      const own = ++asked;
      const P = result.prompt.length;
      const last = result.length - P;
      const step = mine.at < 0 ? last : Math.min(mine.at, last);
      const held = P + step;
      const layer = Math.min(store.state.layer, config.text.layers - 1);
      const { k, v, width } = await store.client.ask("cache", { run: result.run, layer });
      if (own !== asked) return;
      const go = (/** @type {number} */ to) => (
        (mine.at = Math.min(Math.max(to, 0), last)),
        show()
      );
      fill(
        controls,
        button("◀", () => go(step - 1), {
          class: "chip",
          disabled: step === 0,
          "aria-label": "a step back",
        }),
        button("▶", () => go(step + 1), {
          class: "chip",
          disabled: step === last,
          "aria-label": "a step forward",
        }),
        button(
          player ? "Stop" : "Play",
          () => {
            if (player) player = clearInterval(player);
            else {
              let now = 0;
              player = setInterval(() => {
                if (now > last) player = clearInterval(player);
                else go(now++);
              }, 450);
            }
            show();
          },
          { class: "chip" },
        ),
        el(
          "span",
          {},
          step === 0
            ? "prefill: the whole prompt at once"
            : [
                "step ",
                String(step),
                ": ",
                el("b", { class: "answer", text: shown(result.answerWords[step - 1]) }),
              ],
        ),
        choice(
          "layer",
          Array.from({ length: config.text.layers }, (_, l) => [l, `layer ${l}`]),
          layer,
          (value) => store.set({ layer: value }),
        ),
      );
      const T = result.length;
      const paint = (/** @type {Float32Array} */ rows, /** @type {string} */ name) => {
        const canvas = el("canvas", {
          class: "cache-field",
          role: "img",
          "aria-label": `${name}: ${held} of ${T} columns filled`,
        });
        let most = 1e-9;
        for (const value of rows) most = Math.max(most, Math.abs(value));
        const turned = new Float32Array(T * width);
        for (let t = 0; t < held; t++)
          for (let i = 0; i < width; i++) turned[i * T + t] = rows[t * width + i] / most;
        drawField(canvas, turned, width, T, (value) => [
          value >= 0 ? "--vision" : "--answer",
          Math.min(1, Math.abs(value) * 1.6),
        ]);
        return canvas;
      };
      fill(
        columns,
        el("span", { text: "K" }),
        paint(k, "keys"),
        el("span", { text: "V" }),
        paint(v, "values"),
        el("span"),
        el(
          "div",
          { class: "cache-now" },
          el("i", {
            style: {
              left: `${(100 * (step ? held - 1 : 0)) / T}%`,
              width: `${(100 * (step ? 1 : P)) / T}%`,
            },
          }),
        ),
      );

      const { text: decoder } = config;
      const bytes = held * 2 * decoder.layers * decoder.keyHeads * decoder.headDim * 4;
      const withCache = Array.from({ length: step + 1 }, (_, i) =>
        i ? operations(decoder, 1, P + i) : operations(decoder, P, P),
      );
      const without = Array.from({ length: step + 1 }, (_, i) => operations(decoder, P + i, P + i));
      const sum = (/** @type {number[]} */ all) => all.reduce((a, b) => a + b, 0);
      const [a, b] = [sum(withCache), sum(without)];
      const bar = (/** @type {string} */ name, /** @type {number} */ value) =>
        el(
          "tr",
          {},
          el("th", { scope: "row", text: name }),
          el(
            "td",
            {},
            el("span", {
              class: "meter big",
              style: { "--p": (value / Math.max(a, b)).toFixed(4), "--c": "var(--vision)" },
            }),
          ),
          el("td", { class: "num", text: large(value) }),
        );
      fill(
        counts,
        el(
          "p",
          {},
          "The cache holds ",
          el("b", { text: String(held) }),
          " tokens: ",
          el("code", {
            text: `${held} × 2 × ${decoder.layers} layers × ${decoder.keyHeads * decoder.headDim} × 4 bytes = ${large(bytes)}B`,
          }),
          ".",
        ),
        el("p", {
          class: "hint",
          text: `A column is a token, a row one of ${width} numbers: green above 0, orange below.`,
        }),
        el("h3", { text: "Multiply-adds of the decoder so far" }),
        el("table", { class: "counts" }, bar("with the cache", a), bar("without", b)),
        el("p", {
          class: "hint",
          text: step
            ? `This word: ${large(withCache[step])} with, ${large(without[step])} without, ${(without[step] / withCache[step]).toFixed(0)} times as many.`
            : "Prefill costs the same either way.",
        }),
      );
      fill(
        text,
        inWords(
          `After ${step} words the cache holds ${held} tokens in ${large(bytes)}B. The decoder has done ${large(a)} multiply-adds; without the cache it would have been ${large(b)}.`,
        ),
      );
    };

    const showStale = () => {
      const { result, config } = store;
      if (!result) return;
      const words = result.prompt
        .slice(config.patches + 1, -1)
        .map((/** @type {number} */ _, /** @type {number} */ i) => config.patches + 1 + i);
      if (!words.includes(position)) position = words.at(-1) ?? -1;
      const input = el("input", {
        type: "text",
        value: word,
        placeholder: "another word",
        "aria-label": "the other word",
        on: { input: () => (word = input.value) },
      });
      const out = el("div");
      const exchange = async () => {
        const { ids, words: spelled } = await store.client.ask("tokenize", {
          text: (result.promptWords[position].startsWith(" ") ? " " : "") + word.trim(),
        });
        if (ids.length !== 1) {
          fill(
            out,
            el("p", {
              class: "hint",
              text: `“${word}” is ${ids.length} tokens (${spelled.map(shown).join(" | ")}); choose a word that is one.`,
            }),
          );
          return;
        }
        const prompt = result.promptWords
          .slice(config.patches + 1, -1)
          .map((/** @type {string} */ one, /** @type {number} */ i) =>
            config.patches + 1 + i === position ? spelled[0] : one,
          )
          .join("")
          .trimStart();
        const picture = await store.picture();
        const [kept, column, fresh] = await Promise.all([
          ...["stale", "column"].map((how) =>
            store.client.ask("exchanged", { run: result.run, position, id: ids[0], how }),
          ),
          store.answer(picture, store.state.edits, [], prompt),
        ]);
        const row = (/** @type {string} */ name, /** @type {string} */ said) =>
          el(
            "tr",
            {},
            el("th", { scope: "row", text: name }),
            el("td", { class: "said", text: said || EMPTY }),
          );
        fill(
          out,
          el("p", { class: "prompt", text: prompt }),
          el(
            "table",
            { class: "counts" },
            row("cache as it was", kept.text),
            row("that column renewed", column.text),
            row("all computed anew", fresh.text),
          ),
        );
      };
      fill(
        stale,
        el("h3", { text: "Change an old word behind the cache's back" }),
        el("p", {
          class: "hint",
          text: "Keys and values of the other tokens have seen the old word. Renewing its own column is not enough where they carry what it said.",
        }),
        words.length
          ? [
              el(
                "div",
                { class: "tokens" },
                words.map((/** @type {number} */ i) =>
                  el(
                    "button",
                    {
                      type: "button",
                      class: "token word",
                      "data-place": i,
                      "aria-pressed": String(i === position),
                      on: { click: () => ((position = i), showStale()) },
                    },
                    shown(store.word(i)),
                  ),
                ),
              ),
              el(
                "form",
                {
                  class: "row narrow",
                  on: {
                    submit: (/** @type {Event} */ event) => (event.preventDefault(), exchange()),
                  },
                },
                input,
                button("Exchange", exchange, { class: "chip" }),
              ),
            ]
          : el("p", { class: "hint", text: "This prompt has one word alone." }),
        out,
      );
    };
    return {
      update(/** @type {string} */ reason) {
        show();
        if (reason !== "select") showStale();
      },
      leave: () => clearInterval(player),
    };
  },
};
