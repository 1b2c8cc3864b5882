// 8 · Lens and patching: the answer as it forms from layer to layer, and what carries it.

import { button, el, fill, inWords, number, percent, shown } from "../dom.js";
import { heading } from "../lessons.js";
import { drawScene, pixelsOf } from "../scene.js";
import { START, isIndex } from "../store.js";
import { EMPTY } from "../words.js";
import { EXAMPLES } from "./live.js";
import { probePanel } from "./probe_panel.js";

/** @typedef {import("../store.js").Store} Store */

const WORK = 2e11; // multiply-adds with the table that one look at all layers may take

export const lensView = {
  id: "lens",
  title: "Lens",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const grid = el("div", { class: "lens-scroll" });
    const cell = el("div");
    const paste = el("div");
    const parts = el("div");
    const text = el("div");
    // −1: what enters
    const mine = store.own("lens", { layer: 1 }, { layer: (layer) => isIndex(layer + 1) });
    let asked = 0;
    /** @type {{scene: any, result: any, prompt: string} | null} the picture that streams are pasted from */
    let other = null;
    const panel = probePanel(store);
    fill(
      root,
      heading(
        "Lens and patching: where the answer forms",
        "How early does the model know what it will say? A row is a layer, a column a token, and each cell the likeliest next word had the decoder ended there; bold: the word that really came next. Then paste a token's vector from another picture and see whether the answer comes with it.",
        "decoder",
        "inspect/tracing.py",
      ),
      grid,
      cell,
      paste,
      parts,
      text,
      panel.root,
    );

    const update = async () => {
      const { result, config } = store;
      if (!result) return;
      const own = ++asked;
      const { patches } = config;
      const P = result.prompt.length;
      const { vocab, width } = config.text;
      // A large model's table is long to read: as many words as some seconds allow.
      const most = Math.max(4, Math.floor(WORK / (vocab * width * (config.text.layers + 1))));
      const length = Math.min(result.length, patches + most);
      const positions = Array.from({ length: length - patches }, (_, i) => patches + i);
      const lens = await store.client.ask("lens", { run: result.run, positions, k: 5 });
      if (own !== asked) return;
      const token = Math.max(store.token, patches);
      const layers = config.text.layers;
      const position = Math.min(token, length - 1);
      const layer = Math.min(mine.layer, layers - 1);
      fill(
        grid,
        el(
          "table",
          { class: "lens" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              el("th", { text: "after" }),
              positions.map((t) =>
                el("th", {
                  scope: "col",
                  class: t < P ? "c-word" : "c-answer",
                  "data-place": t,
                  text: shown(store.word(t)),
                }),
              ),
            ),
          ),
          el(
            "tbody",
            {},
            Array.from({ length: layers + 1 }, (_, i) => layers - 1 - i).map((l) =>
              el(
                "tr",
                {},
                el("th", { scope: "row", text: l < 0 ? "input" : `layer ${l}` }),
                positions.map((t, i) => {
                  const [best] = lens[l + 1][i];
                  const isNext = best.id === [...result.prompt, ...result.answer][t + 1];
                  return el(
                    "td",
                    {},
                    button(
                      shown(best.word),
                      () => {
                        mine.layer = l;
                        store.set({ token: t });
                      },
                      {
                        class: `lens-cell ${isNext ? "next" : ""}`,
                        style: { "--p": best.p.toFixed(3) },
                        title: percent(best.p),
                        "data-place": t,
                        "aria-pressed": String(l === layer && t === position),
                      },
                    ),
                  );
                }),
              ),
            ),
          ),
        ),
      );
      const at = lens[layer + 1][position - patches];
      fill(
        cell,
        el(
          "h3",
          {},
          layer < 0 ? "What enters" : `After layer ${layer}`,
          " at ",
          el("b", {
            class: position < P ? "words" : "answer",
            "data-place": position,
            text: shown(store.word(position)),
          }),
        ),
        el(
          "div",
          { class: "tokens" },
          at.map((/** @type {any} */ { word, p }) =>
            el(
              "span",
              { class: "token answer", style: { "--p": p.toFixed(3) } },
              shown(word),
              el("small", { text: percent(p) }),
            ),
          ),
        ),
      );
      if (length < result.length)
        cell.append(
          el("p", {
            class: "hint",
            text: `The first ${most} words are shown: this model's table is large.`,
          }),
        );
      await showPaste(own, layer, position);
      if (own !== asked) return;
      await showParts(own, position);
      fill(
        text,
        inWords(
          `At ${shown(store.word(position))}: ${Array.from({ length: layers + 1 }, (_, i) => `${i ? `layer ${i - 1}` : "input"} ${shown(lens[i][position - patches][0].word)} ${percent(lens[i][position - patches][0].p)}`).join(", ")}.`,
        ),
      );
    };

    /** @param {any} scene */
    const loadOther = async (scene) => {
      await store.client.ask("picture", { name: "other", picture: await pixelsOf(scene) });
      const result = await store.client.ask("run", { picture: "other", prompt: store.prompt });
      await store.keep(result.run);
      other = { scene, result, prompt: store.prompt };
      update();
    };

    /** @param {number} own @param {number} layer @param {number} position */
    const showPaste = async (own, layer, position) => {
      const { result } = store;
      const patched = store.state.edits.patches;
      const plain = patched ? await store.baseline() : null;
      if (own !== asked) return;
      if (other && other.prompt !== store.prompt) other = null;
      const small = el("canvas", {
        width: 128,
        height: 128,
        class: "thumb",
        role: "img",
        "aria-label": "picture B",
      });
      if (other) drawScene(small, other.scene);
      const canPaste = other && position < other.result.length;
      fill(
        paste,
        el("h3", { text: "Paste from another picture" }),
        el(
          "div",
          { class: "row" },
          el("span", { text: "B:" }),
          EXAMPLES.filter(({ id, changes }) => id === "farm" || changes.scene !== START.scene).map(
            ({ title, changes }) =>
              button(title, () => loadOther(changes.scene), { class: "chip" }),
          ),
          store.before
            ? button("the state A", () => loadOther(store.before?.scene), { class: "chip" })
            : null,
        ),
        other
          ? el(
              "div",
              { class: "row top" },
              small,
              el(
                "div",
                {},
                el(
                  "p",
                  {},
                  "B alone is answered ",
                  el("span", { class: "said", text: other.result.text || EMPTY }),
                ),
                button(
                  `Paste B's stream after ${layer < 0 ? "the input" : `layer ${layer}`} at “${shown(store.word(position))}”`,
                  async () => {
                    const vector = await store.client.ask("patch", {
                      run: other?.result.run,
                      layer,
                      position,
                    });
                    store.set({
                      edits: { ...store.state.edits, patches: [{ layer, position, vector }] },
                    });
                  },
                  { class: "chip", disabled: !canPaste },
                ),
                patched
                  ? button(
                      "Take it out",
                      () => {
                        const { patches: _, ...rest } = store.state.edits;
                        store.set({ edits: rest });
                      },
                      { class: "chip" },
                    )
                  : null,
              ),
            )
          : null,
        plain
          ? el(
              "div",
              { class: "verdict" },
              el(
                "p",
                {},
                el("b", { text: "A" }),
                " without ",
                el("span", { class: "said", text: plain.text || EMPTY }),
              ),
              el(
                "p",
                {},
                el("b", { text: "B" }),
                " with the paste ",
                el("span", { class: "said", text: result.text || EMPTY }),
              ),
            )
          : null,
      );
    };

    /** @param {number} own @param {number} position */
    const showParts = async (own, position) => {
      const { result } = store;
      const ids = [...result.prompt, ...result.answer];
      const id = ids[position + 1] ?? result.answer.at(-1);
      const found = await store.client.ask("attribution", { run: result.run, position, id });
      if (own !== asked) return;
      const order = found.parts.toSorted(
        (/** @type {any} */ a, /** @type {any} */ b) => Math.abs(b.value) - Math.abs(a.value),
      );
      const most = Math.abs(order[0].value) || 1;
      fill(
        parts,
        el(
          "h3",
          {},
          "What adds to the logit of ",
          el("b", { class: "answer", text: shown(store.word(position + 1)) || "the end" }),
        ),
        el(
          "table",
          { class: "signed" },
          order
            .slice(0, 10)
            .map((/** @type {any} */ { name, value }) =>
              el(
                "tr",
                {},
                el(
                  "th",
                  { scope: "row" },
                  name === "embedding"
                    ? "its own embedding"
                    : button(
                        partName(name),
                        () => store.set({ view: "break", edits: { off: [name] } }),
                        { class: "plain", title: "switch it off" },
                      ),
                ),
                el(
                  "td",
                  {},
                  el("span", {
                    class: `signed-bar ${value < 0 ? "minus" : ""}`,
                    style: { "--p": (Math.abs(value) / most).toFixed(3) },
                  }),
                ),
                el("td", { class: "num", text: number(value) }),
              ),
            ),
        ),
        el("p", {
          class: "hint",
          text: `All ${found.parts.length} parts together: ${number(found.logit)}, the logit. The last norm's divisor is held as it is.`,
        }),
      );
    };
    return { update, leave: panel.leave };
  },
};

/** "decoder.1.2" → "layer 1, head 2". @param {string} name */
function partName(name) {
  const [, layer, part] = name.split(".");
  return `layer ${layer}, ${part === "mlp" ? "MLP" : `head ${part}`}`;
}
