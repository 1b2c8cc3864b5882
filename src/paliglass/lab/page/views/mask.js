// 3 · Mask painter: who may look at whom, drawn by hand, and what becomes of the answer.

import { MASKS } from "../../engine/layers/masks.js";
import { button, choice, color, el, fill, inWords, percent, scaleOf, shown } from "../dom.js";
import { heading } from "../lessons.js";
import { drawField, legend } from "../draw.js";
import { drawing, overlap } from "../drawings.js";
import { pixelsOf } from "../scene.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const NAMES = {
  prefix: "prefix-LM",
  causal: "causal",
  blind: "patches blind to the prompt",
  self: "answer sees itself alone",
  window: "window of 16",
};
const DRAWINGS = 40;
const WIDEST = 12; // a word's columns in the drawing, of which a patch has one

export const maskView = {
  id: "mask",
  title: "Mask painter",
  /** @param {Element} root @param {Store} store @param {import("../stage.js").Stage} stage */
  mount(root, store, stage) {
    const canvas = el("canvas", {
      class: "mask-canvas",
      role: "img",
      "aria-label": "the mask: rows look, columns are looked at",
      tabindex: 0,
    });
    const times = el("span");
    const presets = el("div", { class: "controls" });
    const where = el("p", {
      class: "readout",
      text: "Drag over the square to paint; or by keys: arrows, and Enter at two corners.",
    });
    const effect = el("div");
    const counting = el("div", { class: "counting" });
    let may = 0;
    /** @type {Uint8Array} */
    let mask = new Uint8Array();
    let asked = 0;
    let stop = false;
    /** @type {Record<string, number>} */
    const counts = {};

    const mode = el("div");
    const showMode = () =>
      fill(
        mode,
        choice(
          "the brush",
          [
            [0, "forbid"],
            [1, "allow"],
          ],
          may,
          (value) => ((may = value), showMode()),
        ),
      );
    showMode();
    fill(
      root,
      heading(
        "Mask painter: who may look at whom",
        "A row is a token that looks, a column one that is looked at: first the patches, then the prompt, then the answer. PaliGemma lets picture and prompt see each other fully and keeps the answer causal. Paint another rule.",
        "masks",
        "layers/masks.py",
      ),
      presets,
      el(
        "div",
        { class: "painter" },
        el(
          "div",
          {},
          el(
            "p",
            { class: "axes" },
            "columns → are looked at: ",
            el("span", { class: "c-vision", text: "patches" }),
            ", ",
            el("span", { class: "c-word", text: "prompt" }),
            ", ",
            el("span", { class: "c-answer", text: "answer" }),
            "; rows ↓ look, in the same order",
            times,
          ),
          canvas,
        ),
        el(
          "div",
          {},
          mode,
          where,
          button("Undo the painting", () => paintWith([]), { class: "chip" }),
        ),
      ),
      effect,
      el("h3", {
        text: `Does it matter? ${DRAWINGS} drawings of two shapes, one of them asked for`,
      }),
      counting,
    );

    const edit = () => store.state.edits.mask ?? {};
    /** @param {any} mask */
    const setMask = (mask) => {
      const { mask: _, ...rest } = store.state.edits;
      const isPlain = (mask.name ?? "prefix") === "prefix" && !mask.painted?.length;
      store.set({ edits: isPlain ? rest : { ...rest, mask } });
    };
    /** @param {any[]} painted */
    const paintWith = (painted) => setMask({ ...edit(), painted });

    /** Patches are many: a word is drawn as wide as `wide` of them, so that it can be seen and hit. */
    const scaled = () => {
      const { patches } = store.config;
      const T = Math.sqrt(mask.length);
      const words = T - patches;
      const wide = Math.min(Math.max(1, Math.round((2 * patches) / (3 * words))), WIDEST);
      const count = patches + wide * words; // of the drawing's columns
      const placeAt = (/** @type {number} */ column) =>
        column < patches ? column : patches + Math.floor((column - patches) / wide);
      const columnOf = (/** @type {number} */ place) =>
        place < patches ? place : patches + (place - patches) * wide;
      return { T, wide, count, placeAt, columnOf };
    };

    const draw = () => {
      const { T, wide, count, placeAt } = scaled();
      const { patches } = store.config;
      const end = store.result.prompt.length;
      times.textContent = wide > 1 ? `; words are drawn ${wide} times as wide as patches` : "";
      canvas.width = canvas.height = count;
      const context = canvas.getContext("2d");
      const image = context.createImageData(count, count);
      const pixels = new Uint32Array(image.data.buffer);
      const packed = (/** @type {number[]} */ [r, g, b]) => r + (g << 8) + (b << 16) + 0xff000000;
      const paper = color("--soft");
      const unseen = packed(paper);
      const paints = [color("--vision"), color("--word"), color("--answer")].map((full) =>
        packed(full.map((v, c) => Math.round(0.72 * v + 0.28 * paper[c]))),
      );
      const kinds = Array.from({ length: T }, (_, s) => paints[s < patches ? 0 : s < end ? 1 : 2]);
      const places = Array.from({ length: count }, (_, column) => placeAt(column));
      places.forEach((t, row) =>
        places.forEach((s, column) => {
          pixels[row * count + column] = mask[t * T + s] ? kinds[s] : unseen;
        }),
      );
      context.putImageData(image, 0, 0);
      if (drag) {
        const [top, bottom, left, right] = rectangle();
        frame(top, left, bottom, right);
      }
    };

    let at = [0, 0]; // where the brush is
    /** @type {number[] | null} */
    let drag = null;
    /** @param {number} top @param {number} left @param {number} bottom @param {number} right places */
    const frame = (top, left, bottom, right) => {
      const { columnOf } = scaled();
      const [x, y] = [left, top].map(columnOf);
      const [wide, high] = [columnOf(right + 1) - x, columnOf(bottom + 1) - y];
      const context = canvas.getContext("2d");
      context.strokeStyle = `rgb(${color("--ink")})`;
      context.strokeRect(x - 0.5, y - 0.5, wide + 1, high + 1);
    };
    const rectangle = () => {
      const [t0, s0, t1, s1] = drag ?? [0, 0, 0, 0];
      return [Math.min(t0, t1), Math.max(t0, t1), Math.min(s0, s1), Math.max(s0, s1)];
    };
    /** @param {PointerEvent} event */
    const place = (event) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const { count, placeAt } = scaled();
      const cell = (/** @type {number} */ v) =>
        placeAt(Math.min(Math.max(Math.floor(v * count), 0), count - 1));
      return [cell((event.clientY - top) / height), cell((event.clientX - left) / width)];
    };
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      if (!store.result) return; // there is no mask yet
      canvas.setPointerCapture(event.pointerId);
      const [t, s] = place(event);
      drag = [t, s, t, s];
    });
    /** The brush is over a cell. @param {number} t @param {number} s */
    const moveTo = (t, s) => {
      if (!store.result) return;
      at = [t, s];
      const T = Math.sqrt(mask.length);
      stage.light(s);
      where.textContent = `${shown(store.word(t))} ${mask[t * T + s] ? "may" : "may not"} look at ${shown(store.word(s))}`;
      if (!drag) return;
      [drag[2], drag[3]] = at;
      draw();
    };
    const finish = () => {
      if (!drag) return;
      const painted = [...(edit().painted ?? []), [...rectangle(), may]];
      drag = null;
      paintWith(painted);
    };
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const [t, s] = place(event);
      moveTo(t, s);
    });
    canvas.addEventListener("pointerup", finish);
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (!store.result) return;
      /** @type {Record<string, [number, number]>} */
      const arrows = {
        ArrowUp: [-1, 0],
        ArrowDown: [1, 0],
        ArrowLeft: [0, -1],
        ArrowRight: [0, 1],
      };
      const last = Math.sqrt(mask.length) - 1;
      if (event.key in arrows) {
        const by = event.shiftKey ? store.config.perRow : 1;
        const [t, s] = arrows[event.key].map((step, i) =>
          Math.min(Math.max(at[i] + by * step, 0), last),
        );
        if (!drag) draw();
        moveTo(t, s);
        if (!drag) frame(t, s, t, s);
      } else if (event.key === "Enter") {
        if (drag) return finish();
        drag = [at[0], at[1], at[0], at[1]];
        draw();
      } else return;
      event.preventDefault();
    });

    const count = async () => {
      if (store.result) await store.keep(store.result.run); // many runs follow
      stop = false;
      const rules = [...new Set(["prefix", "blind", "causal", edit().name ?? "prefix"])];
      for (const rule of rules) counts[rule] = 0;
      for (let i = 0; i < DRAWINGS && !stop; i++) {
        const { scene, label, boxes: truth } = drawing(i);
        await store.client.ask("picture", { name: "drawing", picture: await pixelsOf(scene) });
        for (const rule of rules) {
          const { boxes } = await store.client.ask("run", {
            picture: "drawing",
            prompt: `detect ${label}`,
            edits: rule === "prefix" ? {} : { mask: { name: rule } },
            maxNewTokens: 24,
          });
          if (boxes.length && overlap(boxes[0].box, truth[0]) >= 0.5) counts[rule]++;
        }
        showCounts(rules, i + 1);
      }
    };
    /** @param {string[]} rules @param {number} done */
    const showCounts = (rules, done) =>
      fill(
        counting,
        el(
          "table",
          { class: "counts" },
          rules.map((rule) =>
            el(
              "tr",
              {},
              el("th", { scope: "row", text: /** @type {any} */ (NAMES)[rule] }),
              el("td", {}, el("meter", { min: 0, max: DRAWINGS, value: counts[rule] })),
              el("td", { class: "num", text: `${counts[rule]} of ${done}` }),
            ),
          ),
        ),
        done < DRAWINGS && !stop ? button("Stop", () => (stop = true), { class: "chip" }) : null,
      );
    fill(
      counting,
      button("Count them", count, { class: "chip" }),
      el("span", {
        class: "hint",
        text: ` found where the box overlaps by half or more; ${store.estimate(3 * DRAWINGS)}`,
      }),
    );

    const update = async () => {
      const { result } = store;
      if (!result) return;
      const turn = ++asked;
      const name = edit().name ?? "prefix";
      fill(
        presets,
        choice("mask", Object.entries(NAMES), name, (value) => setMask({ name: value })),
      );
      const [found, plain] = await Promise.all([
        store.client.ask("mask", { run: result.run }),
        store.baseline(),
      ]);
      if (turn !== asked) return;
      mask = found;
      draw();
      const moved = await store.client.ask("moved", { run: result.run, other: plain.run });
      if (turn !== asked) return;
      const top = Math.max(...moved.map((/** @type {Float32Array} */ row) => Math.max(...row)));
      const scale = scaleOf(top);
      const field = el("canvas", {
        class: "moved",
        role: "img",
        "aria-label": "how far each token's stream moved",
      });
      const { count, placeAt } = scaled();
      drawField(
        field,
        moved.flatMap((/** @type {Float32Array} */ row) =>
          Array.from({ length: count }, (_, column) => row[placeAt(column)]),
        ),
        moved.length,
        count,
        (value) => ["--answer", value / scale],
      );
      fill(
        effect,
        el(
          "div",
          { class: "ab" },
          el(
            "p",
            {},
            el("b", { text: "A" }),
            " prefix-LM ",
            el("span", { class: "said" }, answerText(plain, result)),
          ),
          el(
            "p",
            {},
            el("b", { text: "B" }),
            " this mask ",
            el("span", { class: "said" }, answerText(result, plain)),
          ),
        ),
        el(
          "h3",
          {},
          "How far each token's stream moved, layer by layer ",
          legend(scale, "--answer"),
        ),
        top
          ? [
              el("div", { class: "moved-rows" }, field),
              el(
                "div",
                { class: "axis" },
                el("span", { class: "c-vision", text: "patches" }),
                el("span", { class: "c-word", text: "prompt" }),
                el("span", { class: "c-answer", text: "answer" }),
              ),
            ]
          : el("p", {
              class: "hint",
              text: "Not at all: this is the model's own mask. Choose or paint another.",
            }),
        inWords(
          `${MASKS[/** @type {import("../../engine/layers/masks.js").MaskName} */ (name)]}. ${edit().painted?.length ?? 0} painted rectangles. With prefix-LM the answer is “${plain.text}”, with this mask “${result.text}”. The stream moved by at most ${percent(top)} of its length.`,
        ),
      );
    };
    return { update, leave: () => (stop = true) };
  },
};
