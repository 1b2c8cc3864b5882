// 12 · Stream and MLP: one token's vector through the layers, and the neurons that write into it.

import {
  button,
  choosePart,
  el,
  fill,
  inWords,
  number,
  plotWidth,
  scrolled,
  shown,
} from "../dom.js";
import { heading } from "../lessons.js";
import { gelu } from "../../engine/layers/activations.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const SHOWN = 8; // neurons

export const streamView = {
  id: "stream",
  title: "Stream and MLP",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const controls = el("div", { class: "controls" });
    const table = scrolled("the stream, layer by layer");
    const mlp = scrolled("neurons");
    const verdict = el("div");
    const text = el("div");
    let asked = 0;
    fill(
      root,
      heading(
        "Stream and MLP: what layers add",
        "One token's vector runs through all layers, and each layer only adds to it: attention brings what other tokens know, the MLP what its own neurons make of that. Choose a patch or a word, then a layer, then take a neuron out.",
        "feed_forward",
        "modeling_gemma.py",
      ),
      controls,
      table,
      mlp,
      verdict,
      text,
    );

    const update = async () => {
      const { result, config, client } = store;
      if (!result) return;
      const own = ++asked;
      const { part } = store.state;
      const position = part === "tower" ? Math.min(store.token, config.patches - 1) : store.token;
      const count = (part === "tower" ? config.vision : config.text).layers;
      const layer = Math.min(store.state.layer, count - 1);
      fill(
        controls,
        choosePart(part, (value) => store.set({ part: value })),
        el(
          "p",
          { class: "chosen" },
          "The stream of ",
          el("b", {
            class: position < config.patches ? "vision" : "words",
            "data-place": position,
            text: shown(store.word(position)),
          }),
        ),
      );
      const found = await client.ask("stream", { run: result.run, part, position });
      if (own !== asked) return;
      const most = Math.max(
        found.input,
        ...found.layers.map((/** @type {any} */ one) =>
          Math.max(one.length, one.attention, one.mlp),
        ),
      );
      const bar = (/** @type {number} */ value, /** @type {string} */ color) =>
        el(
          "td",
          {},
          el("span", {
            class: "meter",
            style: { "--p": (value / most).toFixed(4), "--c": `var(${color})` },
          }),
          el("span", { class: "num", text: number(value, 1) }),
        );
      fill(
        table,
        el(
          "table",
          { class: "streams" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ["layer", "attention adds", "the MLP adds", "length after", "cosine with before"].map(
                (name) => el("th", { scope: "col", text: name }),
              ),
            ),
          ),
          el(
            "tbody",
            {},
            el(
              "tr",
              {},
              el("th", { scope: "row", text: "input" }),
              el("td", {}),
              el("td", {}),
              bar(found.input, "--muted"),
              el("td", {}),
            ),
            found.layers.map((/** @type {any} */ one, /** @type {number} */ l) =>
              el(
                "tr",
                { class: l === layer ? "hit" : "" },
                el(
                  "th",
                  { scope: "row" },
                  button(`layer ${l}`, () => store.set({ layer: l }), {
                    class: "plain",
                    "aria-pressed": String(l === layer),
                  }),
                ),
                bar(one.attention, "--word"),
                bar(one.mlp, "--answer"),
                bar(one.length, "--muted"),
                el("td", { class: "num", text: number(one.cosine, 3) }),
              ),
            ),
          ),
        ),
        el("p", {
          class: "hint",
          text: "Lengths are Euclidean norms. Parts may point against each other, so they need not add up to the length after.",
        }),
      );
      const largest = found.layers.reduce(
        (/** @type {number} */ best, /** @type {any} */ one, /** @type {number} */ l) =>
          one.cosine < found.layers[best].cosine ? l : best,
        0,
      );
      let words = `The stream of ${shown(store.word(position))} in the ${part}: its length grows from ${number(found.input, 1)} to ${number(found.layers.at(-1).length, 1)}; layer ${largest} turns it most (cosine ${number(found.layers[largest].cosine, 3)}).`;
      if (part === "decoder") words += ` ${await showNeurons(own, layer, position)}`;
      else
        fill(
          mlp,
          el("p", {
            class: "hint",
            text: "Neurons are shown for the decoder: what they write can be read as words.",
          }),
        );
      if (own !== asked) return;
      await showVerdict(own);
      if (own === asked) fill(text, inWords(words));
    };

    /** @param {number} own @param {number} layer @param {number} position */
    const showNeurons = async (own, layer, position) => {
      const { result, client } = store;
      const found = await client.ask("neurons", { run: result.run, layer, position, k: SHOWN });
      if (own !== asked) return "";
      const off = store.state.edits.off ?? [];
      fill(
        mlp,
        el("h3", {
          text: `Layer ${layer}'s MLP: ${found.working} of ${found.inner} neurons write at least a tenth of what the largest does`,
        }),
        curve(found.top, plotWidth(root, 600)),
        el(
          "table",
          { class: "neurons" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              [
                "neuron",
                "gate",
                "gelu(gate)",
                "× up",
                "= value",
                "words that it raises",
                "break it",
              ].map((name) => el("th", { scope: "col", text: name })),
            ),
          ),
          el(
            "tbody",
            {},
            found.top.map((/** @type {any} */ one) => {
              const name = `decoder.${layer}.mlp.${one.neuron}`;
              return el(
                "tr",
                {},
                el("th", { scope: "row", text: String(one.neuron) }),
                [one.gate, one.activated, one.up, one.value].map((value) =>
                  el("td", { class: "num", text: number(value) }),
                ),
                el(
                  "td",
                  {},
                  one.words.map((/** @type {any} */ { word, adds }) =>
                    el(
                      "span",
                      { class: "token answer" },
                      shown(word),
                      adds === null ? null : el("small", { text: `+${number(adds)}` }),
                    ),
                  ),
                ),
                el(
                  "td",
                  {},
                  button("Take out", () => toggle(name), { class: "chip small" }),
                ),
              );
            }),
          ),
        ),
        el(
          "p",
          { class: "hint" },
          "A neuron's value times its column of the down matrix is what it writes. Small numbers: what that adds to the word's logit, were nothing added after it; the last norm's divisor is held as it is.",
        ),
        off
          .filter((name) => /\.mlp\.\d+$/.test(name))
          .map((name) =>
            button(
              `Put back ${name.replace("decoder.", "layer ").replace(".mlp.", ", neuron ")}`,
              () => toggle(name),
              { class: "chip" },
            ),
          ),
      );
      const [{ neuron, value, words }] = found.top;
      return `In layer ${layer} neuron ${neuron} writes most (value ${number(value)}) and raises ${words.map((/** @type {any} */ one) => shown(one.word)).join(", ")}.`;
    };

    /** @param {string} name */
    const toggle = (name) => {
      const off = store.state.edits.off ?? [];
      const next = off.includes(name) ? off.filter((one) => one !== name) : [...off, name];
      const { off: _, ...rest } = store.state.edits;
      store.set({ edits: next.length ? { ...rest, off: next } : rest });
    };

    /** @param {number} own */
    const showVerdict = async (own) => {
      if (!Object.keys(store.state.edits).length) return fill(verdict);
      const plain = await store.baseline();
      if (own !== asked) return;
      fill(
        verdict,
        el(
          "div",
          { class: "verdict" },
          el(
            "p",
            {},
            el("b", { text: "A" }),
            " whole ",
            el("span", { class: "said" }, answerText(plain)),
          ),
          el(
            "p",
            {},
            el("b", { text: "B" }),
            " changed ",
            el("span", { class: "said" }, answerText(store.result, plain)),
          ),
        ),
      );
    };
    return { update };
  },
};

/** GELU's curve, and where the neurons stand on it. @param {any[]} neurons @param {number} wide */
function curve(neurons, wide) {
  const reach = Math.max(3, ...neurons.map(({ gate }) => Math.abs(gate)));
  const high = 130;
  const x = (/** @type {number} */ v) => ((v + reach) / (2 * reach)) * (wide - 40) + 20;
  const y = (/** @type {number} */ v) => high - 24 - (Math.max(v, -0.2) / reach) * (high - 40);
  const points = Array.from({ length: 121 }, (_, i) => -reach + (2 * reach * i) / 120);
  return el(
    "svg",
    {
      class: "plot",
      viewBox: `0 0 ${wide} ${high}`,
      role: "img",
      "aria-label": `GELU, with the gates of ${neurons.length} neurons: ${neurons.map(({ gate }) => number(gate, 1)).join(", ")}`,
    },
    el("line", { class: "grid", x1: x(0), x2: x(0), y1: 0, y2: high - 18 }),
    el("polyline", {
      class: "line",
      points: points.map((v) => `${x(v).toFixed(1)},${y(gelu(v)).toFixed(1)}`).join(" "),
    }),
    [-reach, 0, reach].map((v) =>
      el("text", { class: "tick", x: x(v), y: high - 4, text: number(v, 1) }),
    ),
    neurons.map(({ gate, neuron }) =>
      el(
        "circle",
        { class: "dot", cx: x(gate), cy: y(gelu(gate)), r: 5 },
        el("title", { text: `neuron ${neuron}` }),
      ),
    ),
  );
}
