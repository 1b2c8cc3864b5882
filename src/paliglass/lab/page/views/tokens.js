// 13 · Tokenizer and table: a text merges into tokens, and each token is a row of the table.

import { button, el, fill, inWords, number, percent, plotWidth, shown, slider } from "../dom.js";
import { heading } from "../lessons.js";

/** @typedef {import("../store.js").Store} Store */

// Of the 1024 places, evenly from the first to the last: drawn as a line.
export const PLACES = Array.from({ length: 65 }, (_, i) => Math.round((i * 1023) / 64));
const LONGEST = 80; // characters

export const tokensView = {
  id: "tokens",
  title: "Tokens and table",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const merging = el("div");
    const row = el("div");
    const places = el("div");
    const text = el("div");
    let asked = 0;
    let chosen = -1; // whose row is shown
    const mine = store.own("tokens", { text: "a yellow tractor", step: -1, id: -1 });
    /** @type {any} */
    let timer;
    /** @type {any} the places' components, which do not change */
    let line = null;
    const input = el("input", {
      type: "text",
      value: mine.text,
      maxlength: LONGEST,
      spellcheck: "false",
      "aria-label": "a text to be cut into tokens",
      on: {
        input: () => {
          clearTimeout(timer);
          timer = setTimeout(() => {
            [mine.text, mine.step, mine.id] = [input.value, -1, -1];
            update();
          }, 150);
        },
      },
    });
    fill(
      root,
      heading(
        "Tokens and table: words as rows",
        "A text begins as single characters. Again and again the pair that was learned earliest merges, until no known pair is left: those pieces are the tokens. Each is a number, and the number is a row of one table.",
        "tokens",
        "processing_paligemma.py",
      ),
      input,
      merging,
      row,
      places,
      text,
    );

    const update = async () => {
      const own = ++asked;
      const { client } = store;
      const [{ steps }, { ids, words }] = await Promise.all([
        client.ask("merges", { text: input.value }),
        client.ask("tokenize", { text: input.value }),
      ]);
      if (own !== asked) return;
      const last = steps.length - 1;
      const at = mine.step < 0 ? last : Math.min(mine.step, last);
      // Some texts hold tokens that no merge makes, as several newlines: those are cut out first.
      const isWhole = String(steps[last]) === String(words);
      const isWord = mine.id >= 0 && mine.id < store.config.words;
      chosen = isWord ? mine.id : (ids.at(-1) ?? -1);
      const pieces = el("div", { class: "tokens" });
      const count = el("p", { class: "readout" });
      const show = (/** @type {number} */ now) => {
        const before = now > 0 ? steps[now - 1] : null;
        const merged = before
          ? steps[now].findIndex(
              (/** @type {string} */ one, /** @type {number} */ i) => one !== before[i],
            )
          : -1;
        fill(
          pieces,
          steps[now].map((/** @type {string} */ piece, /** @type {number} */ i) =>
            el("span", {
              class: `token piece ${i === merged ? "merged" : ""}`,
              text: piece.replaceAll(" ", "␣"),
            }),
          ),
        );
        count.textContent = `${steps[now].length} pieces after ${now} of ${last} merges`;
      };
      fill(
        merging,
        isWhole
          ? [
              slider(
                "merges",
                { min: 0, max: last, step: 1 },
                at,
                (value) => ((mine.step = value), show(value)),
              ),
              pieces,
              count,
            ]
          : el("p", {
              class: "hint",
              text: "This text holds a token that is cut out before any merge.",
            }),
        el("h3", { text: `${ids.length} tokens and their numbers` }),
        el(
          "div",
          { class: "tokens" },
          ids.map((/** @type {number} */ id, /** @type {number} */ i) =>
            button(
              [words[i].replaceAll(" ", "␣"), el("small", { text: String(id) })],
              () => ((mine.id = id), update()),
              { class: "token word", "aria-pressed": String(id === chosen) },
            ),
          ),
        ),
      );
      if (isWhole) show(at);
      await showRow(own);
      if (own !== asked) return;
      await showPlaces(own);
    };

    /** @param {number} own */
    const showRow = async (own) => {
      const id = chosen;
      if (id < 0) return fill(row);
      const [{ norm, nearest }, { [id]: word }] = await Promise.all([
        store.client.ask("nearest", { id, k: 8 }),
        store.client.ask("words", { ids: [id] }),
      ]);
      if (own !== asked) return;
      const width = store.config.text.width;
      fill(
        row,
        el(
          "h3",
          {},
          "Row ",
          String(id),
          " of the table: ",
          el("b", { class: "words", text: shown(word) }),
        ),
        el("p", {
          class: "hint",
          text: `${width} numbers, ${number(norm, 2)} long; × √${width} = ${number(norm * Math.sqrt(width), 1)} where it enters the decoder. The rows that point most nearly the same way:`,
        }),
        el(
          "table",
          { class: "signed near" },
          el(
            "tbody",
            {},
            nearest.map((/** @type {any} */ one) =>
              el(
                "tr",
                {},
                el(
                  "th",
                  { scope: "row" },
                  button(shown(one.word) || one.word, () => ((mine.id = one.id), update()), {
                    class: "plain",
                  }),
                ),
                el(
                  "td",
                  {},
                  el("span", {
                    class: `signed-bar ${one.cosine < 0 ? "minus" : ""}`,
                    style: { "--p": Math.abs(one.cosine).toFixed(3) },
                  }),
                ),
                el("td", { class: "num", text: number(one.cosine) }),
              ),
            ),
          ),
        ),
      );
      fill(
        text,
        inWords(
          `“${input.value}” is ${merging.querySelectorAll(".token.word").length} tokens. The row of ${shown(word)} (${id}) is ${number(norm)} long; nearest to it are ${nearest
            .slice(0, 3)
            .map((/** @type {any} */ one) => `${shown(one.word)} with cosine ${number(one.cosine)}`)
            .join(", ")}.`,
        ),
      );
    };

    /** @param {number} own */
    const showPlaces = async (own) => {
      const { client } = store;
      if (!line) {
        const { firstLocation } = await client.ask("ids");
        const ids = PLACES.map((place) => firstLocation + place);
        line = { ids, ...(await client.ask("tableComponents", { ids, k: 2 })) };
      }
      if (own !== asked) return;
      const { ids, scores, shares } = line;
      const wide = plotWidth(root, 560);
      let most = 1e-9;
      for (const value of scores) most = Math.max(most, Math.abs(value));
      const at = (/** @type {number} */ i) => [
        wide / 2 + ((wide / 2 - 24) * scores[2 * i]) / most,
        170 - (150 * scores[2 * i + 1]) / most,
      ];
      const isOn = (/** @type {number} */ i) => chosen === ids[i];
      fill(
        places,
        el("h3", { text: "Places are words, too" }),
        el("p", {
          class: "hint",
          text: `${PLACES.length} of the 1024 place words, from <loc0000> to <loc1023>, joined in order, by the two directions in which their rows differ most (${shares.map(percent).join(" and ")} of the variance). Nobody told the table that they are numbers: an orderly line was learned, a tangle was not. Choose one to see its neighbours.`,
        }),
        el(
          "svg",
          {
            class: "plot places",
            viewBox: `0 0 ${wide} 340`,
            role: "group",
            "aria-label": "places in the table",
          },
          el("polyline", {
            class: "tie thin",
            fill: "none",
            points: ids
              .map((/** @type {number} */ _, /** @type {number} */ i) =>
                at(i)
                  .map((v) => v.toFixed(1))
                  .join(","),
              )
              .join(" "),
          }),
          ids.map((/** @type {number} */ id, /** @type {number} */ i) => {
            const [x, y] = at(i);
            const name = String(PLACES[i]).padStart(4, "0");
            const choose = () => ((mine.id = id), update());
            return el(
              "g",
              {
                role: "button",
                tabindex: 0,
                "aria-label": `place ${name}`,
                on: {
                  click: choose,
                  keydown: (/** @type {KeyboardEvent} */ e) => {
                    if (e.key !== "Enter" && e.key !== " ") return;
                    e.preventDefault(); // the space bar scrolls
                    choose();
                  },
                },
              },
              el("circle", {
                class: isOn(i) ? "place on" : "place",
                cx: x,
                cy: y,
                r: isOn(i) ? 8 : 5,
                "fill-opacity": (0.25 + (0.75 * i) / PLACES.length).toFixed(2),
              }),
              i % 16 === 0 ? el("text", { class: "tick value", x, y: y - 10, text: name }) : null,
            );
          }),
        ),
      );
    };
    return {
      update(/** @type {string} */ reason = "") {
        if (reason !== "select" && reason !== "scene") update();
      },
    };
  },
};
