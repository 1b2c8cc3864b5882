// 2 · Attention, all of it: every head of tower and decoder, and one weight down to its sum.

import {
  button,
  choice,
  choosePart,
  el,
  fill,
  inWords,
  number,
  percent,
  scaleOf,
  shown,
} from "../dom.js";
import { heading } from "../lessons.js";
import { bars, drawMap, legend, middlePatch } from "../draw.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../stage.js").Stage} Stage */

/** The n places of largest weight. @param {ArrayLike<number>} row @param {number} n */
const largest = (row, n) =>
  Array.from({ length: row.length }, (_, i) => i)
    .sort((a, b) => row[b] - row[a])
    .slice(0, n);

export const attentionView = {
  id: "attention",
  title: "Attention",
  /** @param {Element} root @param {Store} store @param {Stage} stage */
  mount(root, store, stage) {
    const grid = el("div", { class: "heads" });
    const controls = el("div", { class: "controls" });
    const row = el("div", { class: "weights" });
    const sum = el("div", { class: "sum" });
    const text = el("div");
    fill(
      root,
      heading(
        "Attention: who looks where",
        "Each small picture is one head: where the chosen patch or word looks. Choose another in the picture or in the sentence; open a head; open a weight and see it computed.",
        "attention",
        "layers/attention.py",
      ),
      controls,
      grid,
      row,
      sum,
      text,
    );
    let asked = 0;

    /** The tower knows patches alone. */
    const query = () => {
      const { part } = store.state;
      return part === "tower"
        ? Math.min(Math.max(store.state.token, 0), store.config.patches - 1)
        : store.token;
    };

    /** The head that is open: one that there is, whatever a link says. */
    const looking = () => {
      const { part, layer, head, to } = store.state;
      const { layers, heads } = part === "tower" ? store.config.vision : store.config.text;
      return { part, layer: Math.min(layer, layers - 1), head: Math.min(head, heads - 1), to };
    };

    const update = async () => {
      const { result, config } = store;
      if (!result) return;
      const { part, layer, head, to } = looking();
      const turn = ++asked;
      const token = query();
      fill(
        controls,
        choosePart(part, (value) => {
          const layers = (value === "tower" ? config.vision : config.text).layers;
          store.set({
            part: value,
            layer: Math.min(layer, layers - 1),
            head: 0,
            token:
              value === "tower" && store.state.token < 0 ? middlePatch(config) : store.state.token,
          });
        }),
        choice(
          "direction",
          [
            [false, "where it looks"],
            [true, "who looks at it"],
          ],
          to,
          (value) => store.set({ to: value }),
        ),
        el(
          "p",
          { class: "chosen" },
          el("span", { text: to ? "Looked at: " : "Looking: " }),
          el("b", {
            class: token < config.patches ? "vision" : "words",
            "data-place": token,
            text: shown(store.word(token)),
          }),
          !to && part === "decoder" && token >= result.prompt.length - 1
            ? el(
                "span",
                {},
                " — choosing ",
                el("b", {
                  class: "answer",
                  "data-place": token + 1,
                  text: shown(store.word(token + 1)) || "the end",
                }),
              )
            : null,
        ),
      );
      const all = await store.client.ask("heads", { run: result.run, part, token, to });
      if (turn !== asked) return;
      const { patches } = config;
      const most = Math.max(
        ...all
          .flat()
          .map((/** @type {Float32Array} */ weights) => Math.max(...weights.subarray(0, patches))),
      );
      const top = Math.min(scaleOf(most), 0.1); // one scale for all heads, or they could not be compared
      fill(
        grid,
        el(
          "div",
          { class: "grid-head" },
          el("span", { text: "a row for each layer, its heads side by side" }),
          legend(top, "--on-vision", most > top),
        ),
        all.map((/** @type {Float32Array[]} */ heads, /** @type {number} */ l) =>
          el(
            "div",
            { class: "layer", role: "group", "aria-label": `layer ${l}` },
            el("span", { class: "layer-name", text: `${l}` }),
            heads.map((weights, h) => {
              const canvas = el("canvas", { width: 72, height: 72 });
              drawMap(canvas, stage.plain, { values: weights.subarray(0, patches), top });
              const seen = weights.subarray(0, patches).reduce((a, b) => a + b, 0);
              return button(
                [
                  canvas,
                  part === "decoder" && !to
                    ? el("span", {
                        class: "share",
                        title: `${percent(seen)} on the picture`,
                        style: { "--p": seen.toFixed(3) },
                      })
                    : null,
                ],
                () => store.set({ layer: l, head: h }),
                {
                  class: "head",
                  "aria-pressed": String(l === layer && h === head),
                  "aria-label": `layer ${l}, head ${h}: ${percent(seen)} on the picture`,
                },
              );
            }),
          ),
        ),
        part === "decoder" && !to
          ? el("p", {
              class: "hint",
              text: "The bar under a head: green is what it gives to the picture, violet to words.",
            })
          : null,
      );
      const weights = all[layer][head];
      const own = scaleOf(Math.max(...weights.subarray(0, patches)));
      stage.showMap(
        { values: weights.subarray(0, patches), top: own },
        `layer ${layer}, head ${head}`,
      );
      arrows(stage, weights, token, config);
      showRow(weights, token);
      await showSum(turn, token, largest(weights, 1)[0]);
      const best = largest(weights, 5).map((i) => `${shown(store.word(i))} ${percent(weights[i])}`);
      fill(
        text,
        inWords(
          `${part} layer ${layer}, head ${head}: ${to ? "those who look most at" : "where"} ${shown(store.word(token))} ${to ? "are" : "looks"}: ${best.join(", ")}.`,
        ),
      );
    };

    /** The words' weights, and the five largest. @param {Float32Array} weights @param {number} token */
    const showRow = (weights, token) => {
      const { patches } = store.config;
      const most = Math.max(...weights, 1e-9);
      const words = Array.from({ length: weights.length - patches }, (_, i) => patches + i);
      const seen = weights.subarray(0, patches).reduce((a, b) => a + b, 0);
      fill(
        row,
        store.state.part === "decoder"
          ? [
              el("h3", {}, `${percent(seen)} on the picture, the rest on words`),
              el(
                "div",
                { class: "tokens" },
                words.map((i) =>
                  el(
                    "button",
                    {
                      type: "button",
                      class: `token weighed ${i < store.result.prompt.length ? "word" : "answer"}`,
                      style: { "--p": (weights[i] / most).toFixed(3) },
                      title: percent(weights[i]),
                      "data-place": i,
                      "aria-pressed": String(store.state.key === i),
                      on: { click: () => store.set({ key: i }) },
                    },
                    shown(store.word(i)),
                    el("small", { text: weights[i] > 0.005 ? percent(weights[i]) : "" }),
                  ),
                ),
              ),
            ]
          : null,
        el("h3", { text: "The five largest" }),
        el(
          "ol",
          { class: "largest" },
          largest(weights, 5).map((i) =>
            el(
              "li",
              {},
              button(
                [
                  el("span", { text: shown(store.word(i)) }),
                  el("span", { class: "num", text: percent(weights[i]) }),
                ],
                () => store.set({ key: i }),
                { class: "plain", "data-place": i, "aria-pressed": String(store.state.key === i) },
              ),
            ),
          ),
        ),
      );
    };

    /** One weight, step by step. @param {number} turn @param {number} token @param {number} best */
    const showSum = async (turn, token, best) => {
      const { part, layer, head, to } = looking();
      const chosen = store.state.key < 0 ? best : store.state.key;
      const key = part === "tower" ? Math.min(chosen, store.config.patches - 1) : chosen;
      const [from, at] = to ? [key, token] : [token, key];
      const cell = await store.client.ask("cell", {
        run: store.result.run,
        part,
        layer,
        head,
        row: from,
        column: at,
      });
      if (turn !== asked) return;
      const readout = el("p", { class: "readout", text: "Point at a bar." });
      const pick = (/** @type {number} */ i) =>
        (readout.textContent = `channel ${i}: ${number(cell.q[i], 3)} × ${number(cell.k[i], 3)} = ${number(cell.products[i], 3)}`);
      const sums = cell.products.reduce(
        (/** @type {number[]} */ all, /** @type {number} */ v) => [...all, (all.at(-1) ?? 0) + v],
        [],
      );
      const step = (
        /** @type {string} */ name,
        /** @type {string} */ value,
        /** @type {string} */ why,
      ) =>
        el(
          "tr",
          {},
          el("th", { scope: "row", text: name }),
          el("td", { class: "num", text: value }),
          el("td", { class: "why", text: why }),
        );
      fill(
        sum,
        el(
          "h3",
          {},
          "One weight: ",
          el("b", { "data-place": from, text: shown(store.word(from)) }),
          " looks at ",
          el("b", { "data-place": at, text: shown(store.word(at)) }),
        ),
        el(
          "div",
          { class: "vectors" },
          el("span", { text: "q" }),
          bars(cell.q, { label: "the query", color: "--word", pick }),
          el("span", { text: "k" }),
          bars(cell.k, { label: "the key", color: "--vision", pick }),
          el("span", { text: "q·k" }),
          bars(cell.products, { label: "their products", pick }),
          el("span", { text: "Σ" }),
          bars(sums, { label: "the sum so far", pick }),
        ),
        readout,
        el(
          "table",
          { class: "steps" },
          el(
            "tbody",
            {},
            step("q · k", number(cell.dot), `${cell.q.length} products, added`),
            step(
              "× scale",
              number(cell.dot * cell.scale),
              `× ${number(cell.scale, 4)} = 1/√${Math.round(1 / cell.scale ** 2)}`,
            ),
            step(
              "mask",
              cell.masked ? "−∞" : number(cell.score),
              cell.masked ? "may not be seen" : "may be seen",
            ),
            step(
              "exp",
              number(cell.exponential, 5),
              `e^(score − ${number(cell.most)}), the row's largest`,
            ),
            step(
              "÷ sum",
              percent(cell.weight),
              `÷ ${number(cell.sum, 3)}, over ${cell.seen} tokens`,
            ),
          ),
        ),
      );
    };
    return { update, leave: () => stage.showMap(null) };
  },
};

/** Arrows from the token that looks to the five patches that it looks at most.
 * @param {Stage} stage @param {Float32Array} weights @param {number} token @param {any} config */
function arrows(stage, weights, token, { patches, perRow }) {
  if (token >= patches) return;
  const middle = (/** @type {number} */ p) => [
    ((p % perRow) + 0.5) * (1000 / perRow),
    (Math.floor(p / perRow) + 0.5) * (1000 / perRow),
  ];
  const [x, y] = middle(token);
  for (const i of largest(weights.subarray(0, patches), 5)) {
    const [tx, ty] = middle(i);
    stage.picture.over.append(
      el("line", {
        class: "arrow",
        x1: x,
        y1: y,
        x2: tx,
        y2: ty,
        "stroke-width": 3 + 20 * weights[i],
      }),
      el("circle", { class: "arrow-end", cx: tx, cy: ty, r: 12 }),
    );
  }
}
