// 11 · Patches: a square of pixels against the tower's filters, and what patches have in common later.

import { button, el, fill, inWords, number, percent } from "../dom.js";
import { middlePatch } from "../draw.js";
import { heading } from "../lessons.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../stage.js").Stage} Stage */

const SHOWN = 12; // filters that answer most
const ZOOM = 6; // pixels of the screen for one of the patch's

/** Rows of three numbers as colours, `first` first: each channel's own scale, its middle grey.
 * @param {HTMLCanvasElement} canvas @param {ArrayLike<number>} scores n × 3 */
export function paintComponents(canvas, scores) {
  const n = scores.length / 3;
  const side = Math.round(Math.sqrt(n));
  canvas.width = canvas.height = side;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(side, side);
  const most = [0, 1, 2].map((c) => {
    let found = 1e-9;
    for (let t = 0; t < n; t++) found = Math.max(found, Math.abs(scores[3 * t + c]));
    return found;
  });
  for (let t = 0; t < n; t++)
    image.data.set(
      [0, 1, 2].map((c) => 128 + (127 * scores[3 * t + c]) / most[c]).concat(255),
      4 * t,
    );
  context.putImageData(image, 0, 0);
}

/** 3 × p × p numbers as a small picture. @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} values @param {number} side @param {number} most what is full light */
function paintSquare(canvas, values, side, most) {
  canvas.width = canvas.height = side;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(side, side);
  const area = side * side;
  for (let i = 0; i < area; i++)
    image.data.set(
      [0, 1, 2].map((c) => 127.5 + (127.5 * values[c * area + i]) / most).concat(255),
      4 * i,
    );
  context.putImageData(image, 0, 0);
}

export const patchesView = {
  id: "patches",
  title: "Patches",
  /** @param {Element} root @param {Store} store @param {Stage} stage */
  mount(root, store, stage) {
    const first = el("div");
    const later = el("div");
    const text = el("div");
    /** @type {any} the first matrix, asked for once */
    let filters = null;
    let filter = 0; // the one that is shown
    const mine = store.own("patches", {
      filter: -1,
      layer: store.config.vision.layers - 1,
      part: "tower",
    });
    let asked = 0;
    /** @type {{key: string, found: any[]}} components of all layers, by run */
    let kept = { key: "", found: [] };
    fill(
      root,
      heading(
        "Patches: from pixels to vectors",
        "The picture is cut into squares, and each square's pixels become one vector: every number of it is a sum of pixels times weights. From then on the layers mix them, and patches of the same thing grow alike.",
        "patches",
        "modeling_siglip.py",
      ),
      first,
      later,
      text,
    );

    const { patches, vision } = store.config;
    const chosen = () =>
      store.state.token >= 0 && store.state.token < patches
        ? store.state.token
        : middlePatch(store.config);
    const layers = [
      ...Array.from({ length: vision.layers + 1 }, (_, i) => ({ part: "tower", layer: i - 1 })),
      ...Array.from({ length: store.config.text.layers + 1 }, (_, i) => ({
        part: "decoder",
        layer: i - 1,
      })),
    ];
    const which = () =>
      layers.find((one) => one.part === mine.part && one.layer === mine.layer) ??
      layers[vision.layers];
    /** @param {{part: string, layer: number}} which */
    const named = (which) => `${which.part} ${which.layer < 0 ? "input" : which.layer}`;

    /** @param {any} found @param {number} token */
    const showFirst = (found, token) => {
      const side = vision.patch;
      const inputs = vision.channels * side ** 2;
      const row = (/** @type {number} */ i) =>
        filters.weights.subarray(i * inputs, (i + 1) * inputs);
      const order = Array.from({ length: vision.width }, (_, i) => i).sort(
        (a, b) => Math.abs(found.outputs[b]) - Math.abs(found.outputs[a]),
      );
      filter = mine.filter < 0 || mine.filter >= vision.width ? order[0] : mine.filter;
      const weights = row(filter);
      const products = found.pixels.map(
        (/** @type {number} */ v, /** @type {number} */ i) => v * weights[i],
      );
      const sum = products.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
      const most = (/** @type {Float32Array} */ values) =>
        Math.max(1e-9, ...Array.from(values, Math.abs));
      const square = (
        /** @type {Float32Array} */ values,
        /** @type {string} */ label,
        top = most(values),
      ) => {
        const canvas = el("canvas", { class: "square", role: "img", "aria-label": label });
        paintSquare(canvas, values, side, top);
        canvas.style.width = `${side * ZOOM}px`;
        return canvas;
      };
      fill(
        first,
        el(
          "h3",
          {},
          "From ",
          el("b", { class: "vision", "data-place": token, text: store.word(token) }),
          ` to its number ${filter}`,
        ),
        el(
          "div",
          { class: "equation" },
          el(
            "figure",
            {},
            square(found.pixels, "the patch's pixels", 1),
            el("figcaption", { text: `${inputs} pixels` }),
          ),
          el("span", { text: "×" }),
          el(
            "figure",
            {},
            square(weights, `filter ${filter}`),
            el("figcaption", { text: `filter ${filter}` }),
          ),
          el("span", { text: "=" }),
          el(
            "figure",
            {},
            square(products, "their products"),
            el("figcaption", { text: "products" }),
          ),
        ),
        el("p", {
          class: "readout",
          text: `sum of the products ${number(sum, 3)} + bias ${number(filters.bias[filter], 3)} = ${number(found.outputs[filter], 3)}; + its position's ${number(found.input[filter] - found.outputs[filter], 3)} = ${number(found.input[filter], 3)}, what enters the tower`,
        }),
        el("h3", {
          text: `The ${SHOWN} of ${vision.width} filters that answer most to this patch`,
        }),
        el(
          "div",
          { class: "filters" },
          order.slice(0, SHOWN).map((i) => {
            const canvas = el("canvas", {});
            paintSquare(canvas, row(i), side, most(row(i)));
            return button(
              [canvas, el("span", { class: "num", text: number(found.outputs[i]) })],
              () => ((mine.filter = i), showFirst(found, token)),
              {
                class: "filter",
                "aria-pressed": String(i === filter),
                "aria-label": `filter ${i}: ${number(found.outputs[i])}`,
              },
            );
          }),
        ),
      );
    };

    /** @param {any[]} all @param {Float32Array} similar @param {number} token */
    const showLater = (all, similar, token) => {
      const others = [...similar].filter((_, t) => t !== token);
      const mean = others.reduce((a, b) => a + b, 0) / others.length;
      const at = layers.indexOf(which());
      fill(
        later,
        el("h3", { text: "The same patches after each layer" }),
        el("p", {
          class: "hint",
          text: "The three directions in which the patches differ most, as red, green and blue: patches of one colour are alike. Choose a layer; the picture then shows how like the chosen patch each other one is.",
        }),
        el(
          "div",
          { class: "components" },
          layers.map((which, i) => {
            const canvas = el("canvas", {});
            paintComponents(canvas, all[i].scores);
            return button(
              [canvas, el("span", { text: named(which) })],
              () => ((mine.part = which.part), (mine.layer = which.layer), update()),
              {
                class: "component",
                "aria-pressed": String(i === at),
                "aria-label": `after ${named(which)}`,
              },
            );
          }),
        ),
        el("p", {
          class: "readout",
          text: `After ${named(layers[at])}: the three directions hold ${percent(all[at].shares.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0))} of the variance (${all[at].shares.map(percent).join(", ")}); the cosine with the other patches is ${number(mean)} on average.`,
        }),
      );
      stage.showMap({ values: similar.map((v) => Math.max(v, 0)), top: 1 }, "cosine");
      fill(
        text,
        inWords(
          `${store.word(token)} is a vector of ${vision.width} numbers; number ${filter} answers ${number(projected.outputs[filter])}. After ${named(layers[at])} its cosine with the other ${others.length} patches lies between ${number(Math.min(...others))} and ${number(Math.max(...others))}, ${number(mean)} on average.`,
        ),
      );
    };
    /** @type {any} */
    let projected = null;

    const update = async () => {
      const { result, client } = store;
      if (!result) return;
      const own = ++asked;
      const token = chosen();
      stage.showPatch(token);
      filters ??= await client.ask("filters");
      const found = await client.ask("projected", { run: result.run, patch: token });
      if (own !== asked) return;
      projected = found;
      showFirst(found, token);
      const key = String(result.run);
      if (kept.key !== key) {
        const all = [];
        for (const which of layers) {
          all.push(
            await client.ask("components", { run: result.run, ...which, first: 0, count: patches }),
          );
          if (own !== asked) return;
        }
        alignSigns(all.map(({ scores }) => scores));
        kept = { key, found: all };
      }
      const similar = await client.ask("similar", {
        run: result.run,
        ...which(),
        token,
        first: 0,
        count: patches,
      });
      if (own !== asked) return;
      showLater(kept.found, similar, token);
    };
    return { update, leave: () => void asked++ };
  },
};

/** Turns each component so that it agrees with the layer's before: colours then change less.
 * @param {Float32Array[]} all n × 3 each, changed in place */
function alignSigns(all) {
  for (let i = 1; i < all.length; i++)
    for (let c = 0; c < 3; c++) {
      let along = 0;
      for (let t = c; t < all[i].length; t += 3) along += all[i][t] * all[i - 1][t];
      if (along < 0) for (let t = c; t < all[i].length; t += 3) all[i][t] *= -1;
    }
}
