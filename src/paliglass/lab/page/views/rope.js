// 9 · RoPE dials: a rotation for each pair of channels, and what it makes of distance.

import { choice, el, fill, inWords, number, plotWidth, shown, slider } from "../dom.js";
import { heading } from "../lessons.js";

/** @typedef {import("../store.js").Store} Store */

const ROWS = 4; // of the picture, so far back

/** A dial with the query's hand and the key's. @param {number} i @param {number} q @param {number} k
 * @param {number} share of the sum, −1 … 1 @param {string} title */
function dial(i, q, k, share, title) {
  const hand = (/** @type {number} */ angle, /** @type {string} */ name) =>
    el("line", { class: name, x1: 0, y1: 0, x2: 15 * Math.cos(angle), y2: -15 * Math.sin(angle) });
  return el(
    "svg",
    { class: "dial", viewBox: "-20 -20 40 40", role: "img", "aria-label": title },
    el("title", { text: title }),
    el("circle", {
      class: share < 0 ? "minus" : "plus",
      r: 18,
      "fill-opacity": Math.abs(share).toFixed(3),
    }),
    hand(q, "q-hand"),
    hand(k, "k-hand"),
  );
}

export const ropeView = {
  id: "rope",
  title: "RoPE",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const controls = el("div", { class: "controls" });
    const sliders = el("div", { class: "dials" });
    const dials = el("div", { class: "dial-grid" });
    const sum = el("p", { class: "readout" });
    const curve = el("div");
    const all = el("div");
    const text = el("div");
    const { patches, perRow } = store.config;
    const distances = ROWS * perRow + 1; // shown
    const mine = store.own("rope", { m: perRow + 1, n: 1, span: "patches" });
    let asked = 0;
    fill(
      root,
      heading(
        "RoPE dials: positions as rotations",
        "Each pair of channels is a dial with two hands, the query's, in violet, and the key's, turned by their positions: fast on the first dial, hardly at all on the last. A dial is green where its pair adds to the score and orange where it takes away. Only the difference of the two positions counts: move both and the sum stays.",
        "rope",
        "layers/rope.py",
      ),
      controls,
      sliders,
      dials,
      sum,
      el("h3", { text: "A real head's score by distance" }),
      curve,
      all,
      text,
    );

    /** @type {any} */
    let found = null;
    const turned = () => {
      if (!found) return;
      const { pairs, d, theta, scale } = found;
      const terms = pairs.map(
        (/** @type {any} */ { even, odd, turn }) =>
          even * Math.cos((mine.m - mine.n) * turn) - odd * Math.sin((mine.m - mine.n) * turn),
      );
      const most = Math.max(...terms.map(Math.abs), 1e-9);
      const score =
        terms.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0) * scale;
      fill(
        dials,
        pairs.map((/** @type {any} */ { turn }, /** @type {number} */ i) => {
          const half = d / 2;
          const q = Math.atan2(found.q[i + half], found.q[i]) + mine.m * turn;
          const k = Math.atan2(found.k[i + half], found.k[i]) + mine.n * turn;
          return dial(
            i,
            q,
            k,
            terms[i] / most,
            `pair ${i}: ${number(theta ** ((-2 * i) / d), 4)} a position, adds ${number(terms[i])}`,
          );
        }),
      );
      sum.textContent = `m = ${mine.m}, n = ${mine.n}: Σ of ${pairs.length} cosines × scale = ${number(score)} at distance ${mine.m - mine.n}`;
    };

    const update = async () => {
      const { result, config } = store;
      if (!result) return;
      const own = ++asked;
      const { layers, heads, headDim: d, theta, scale } = config.text;
      const layer = Math.min(store.state.layer, layers - 1);
      const head = Math.min(store.state.head, heads - 1);
      /** @type {[number, number]} */
      const range = mine.span === "patches" ? [0, patches] : [patches, result.length];
      fill(
        controls,
        choice(
          "layer",
          Array.from({ length: layers }, (_, l) => [l, `layer ${l}`]),
          layer,
          (value) => store.set({ layer: value }),
        ),
        choice(
          "head",
          Array.from({ length: heads }, (_, h) => [h, `head ${h}`]),
          head,
          (value) => store.set({ head: value }),
        ),
        choice(
          "tokens",
          [
            ["patches", "mean patch"],
            ["words", "mean word"],
          ],
          mine.span,
          (value) => ((mine.span = value), update()),
        ),
      );
      const every = await Promise.all(
        Array.from({ length: layers * heads }, (_, i) =>
          store.client.ask("distances", {
            run: result.run,
            layer: Math.floor(i / heads),
            head: i % heads,
            most: distances,
            span: range,
          }),
        ),
      );
      if (own !== asked) return;
      const chosen = every[layer * heads + head];
      found = { ...chosen, d, theta, scale };
      fill(
        sliders,
        slider(
          "m, the query",
          { min: 0, max: patches + perRow, step: 1 },
          mine.m,
          (value) => ((mine.m = value), turned()),
        ),
        slider(
          "n, the key",
          { min: 0, max: patches + perRow, step: 1 },
          mine.n,
          (value) => ((mine.n = value), turned()),
        ),
      );
      turned();
      fill(curve, plot(chosen.scores, perRow, plotWidth(root, 600)));
      fill(
        all,
        el(
          "h3",
          {},
          "All heads; lines at 0, ",
          Array.from({ length: ROWS }, (_, i) => perRow * (i + 1)).join(", "),
          `: a row of the picture is ${perRow} patches`,
        ),
        el(
          "div",
          { class: "curves" },
          every.map((one, i) =>
            el(
              "button",
              {
                type: "button",
                class: "curve",
                "aria-pressed": String(i === layer * heads + head),
                "aria-label": `${Math.floor(i / heads)}·${i % heads}: layer ${Math.floor(i / heads)}, head ${i % heads}`,
                on: { click: () => store.set({ layer: Math.floor(i / heads), head: i % heads }) },
              },
              plot(one.scores, perRow),
              el("span", { text: `${Math.floor(i / heads)}·${i % heads}` }),
            ),
          ),
        ),
      );
      /** @type {number[]} */
      const scores = chosen.scores;
      const peaks = scores
        .map((value, distance) => ({ value, distance }))
        .filter(
          ({ value, distance: i }) =>
            i > 0 && i < distances - 1 && value > scores[i - 1] && value > scores[i + 1],
        )
        .sort((a, b) => b.value - a.value)
        .slice(0, 3);
      fill(
        text,
        inWords(
          `Layer ${layer}, head ${head}, ${mine.span === "patches" ? "the mean patch" : `the mean of the words from ${shown(store.word(range[0]))}`}: ${number(chosen.scores[0])} at distance 0; ${peaks.map(({ value, distance }) => `a peak of ${number(value)} at ${distance}`).join(", ")}. A row of the picture is ${perRow} patches long.`,
        ),
      );
    };
    return { update };
  },
};

/** Scores over distances, with lines at multiples of the picture's row.
 * @param {number[]} values @param {number} perRow @param {number} width 0: small, without numbers */
function plot(values, perRow, width = 0) {
  const small = !width;
  const [wide, high] = small ? [120, 60] : [width, 180];
  const least = Math.min(...values);
  const most = Math.max(...values);
  const margin = small ? 10 : 22; // half a number's width
  const x = (/** @type {number} */ i) => (i / (values.length - 1)) * (wide - 2 * margin) + margin;
  const y = (/** @type {number} */ v) =>
    high - (small ? 6 : 26) - ((v - least) / (most - least || 1)) * (high - (small ? 12 : 46));
  return el(
    "svg",
    {
      class: "plot",
      viewBox: `0 0 ${wide} ${high}`,
      role: "img",
      "aria-label": `score by distance: ${values.map((v) => number(v, 1)).join(", ")}`,
    },
    values.map((_, i) =>
      i % perRow === 0
        ? [
            el("line", { class: "grid", x1: x(i), x2: x(i), y1: 0, y2: high - (small ? 0 : 18) }),
            small ? null : el("text", { class: "tick", x: x(i), y: high - 4, text: String(i) }),
          ]
        : null,
    ),
    el("polyline", {
      class: "line",
      points: values.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" "),
    }),
    small
      ? null
      : values.map((v, i) =>
          i % perRow === 0
            ? [
                el("circle", { class: "dot", cx: x(i), cy: y(v), r: 4 }),
                el("text", { class: "tick value", x: x(i), y: y(v) - 9, text: number(v, 1) }),
              ]
            : null,
        ),
  );
}
