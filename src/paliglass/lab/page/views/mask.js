// 3 · Mask painter: who may look at whom, drawn by hand, and what becomes of the answer.

import { MASKS } from "../../engine/layers/masks.js";
import {
  button,
  choice,
  color,
  el,
  fill,
  heading,
  inWords,
  percent,
  scaleOf,
  shown,
} from "../dom.js";
import { drawField, legend } from "../draw.js";
import { COLORS, COLOR_NAMES, pixelsOf } from "../scene.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../scene.js").Thing} Thing */

const NAMES = {
  prefix: "prefix-LM",
  causal: "causal",
  blind: "patches blind to the prompt",
  self: "answer sees itself alone",
  window: "window of 16",
};
const DRAWINGS = 40;

/** Forty drawings of two shapes, always the same: one of them is asked for.
 * @param {number} seed @returns {{scene: any, label: string, box: number[]}} */
export function drawing(seed) {
  let state = seed * 7919 + 17;
  const random = (/** @type {number} */ n) => (state = (state * 48271) % 2147483647) % n;
  const kinds = ["circle", "square", "triangle", "star"];
  const first = random(4);
  const left = random(2);
  /** @type {Thing[]} */
  const things = [first, (first + 1 + random(3)) % 4].map((kind, i) => ({
    kind: "shape",
    name: kinds[kind],
    turn: 0,
    color: COLORS[[0, 2, 3, 4, 5][random(5)]],
    x: (i === left ? 260 : 720) + random(80) - 40,
    y: 250 + random(500),
    size: 200 + random(160),
  }));
  const [{ name, x, y, size, color: paint }] = things;
  const r = size / 2;
  const [top, bottom, side] = {
    circle: [1, 1, 1],
    square: [0.9, 0.9, 0.9],
    triangle: [0.95, 0.8, 1],
    star: [1, 0.81, 0.95],
  }[name] ?? [1, 1, 1];
  const label = `${COLOR_NAMES[COLORS.indexOf(paint ?? "")]} ${name}`;
  return {
    scene: { ground: "#f3f3ef", things },
    label,
    box: [x - r * side, y - r * top, x + r * side, y + r * bottom].map((v) => v / 1000),
  };
}

/** Intersection over union. @param {number[]} a @param {number[]} b */
export function overlap(a, b) {
  const w = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const h = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (/** @type {number[]} */ [x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  return (w * h) / (area(a) + area(b) - w * h);
}

export const maskView = {
  id: "mask",
  title: "Mask painter",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const canvas = el("canvas", {
      class: "mask-canvas",
      role: "img",
      "aria-label": "the mask: rows look, columns are looked at",
      tabindex: 0,
    });
    const presets = el("div", { class: "controls" });
    const where = el("p", { class: "readout", text: "Drag over the square to paint." });
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
        "Mask painter",
        "A row is a token that looks, a column one that is looked at: first the patches, then the prompt, then the answer. PaliGemma lets picture and prompt see each other fully and keeps the answer causal. Paint another rule.",
        "masks",
        "layers/masks.py",
      ),
      presets,
      el(
        "div",
        { class: "painter" },
        canvas,
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

    const draw = () => {
      const T = Math.sqrt(mask.length);
      const { patches } = store.config;
      const end = store.result.prompt.length;
      drawField(canvas, mask, T, T, () => ["--soft", 1]);
      const context = canvas.getContext("2d");
      const image = context.getImageData(0, 0, T, T);
      const paints = [color("--vision"), color("--word"), color("--answer")];
      const paper = color("--soft");
      for (let i = 0; i < mask.length; i++) {
        const s = i % T;
        const full = paints[s < patches ? 0 : s < end ? 1 : 2];
        const paint = mask[i] ? full.map((v, c) => Math.round(0.72 * v + 0.28 * paper[c])) : paper;
        image.data.set(paint, 4 * i);
      }
      context.putImageData(image, 0, 0);
      if (drag) {
        const [top, bottom, left, right] = rectangle();
        context.strokeStyle = `rgb(${color("--ink")})`;
        context.strokeRect(left + 0.5, top + 0.5, right - left, bottom - top);
      }
    };

    /** @type {number[] | null} */
    let drag = null;
    const rectangle = () => {
      const [t0, s0, t1, s1] = drag ?? [0, 0, 0, 0];
      return [Math.min(t0, t1), Math.max(t0, t1), Math.min(s0, s1), Math.max(s0, s1)];
    };
    /** @param {PointerEvent} event */
    const place = (event) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const T = Math.sqrt(mask.length);
      const cell = (/** @type {number} */ v) => Math.min(Math.max(Math.floor(v * T), 0), T - 1);
      return [cell((event.clientY - top) / height), cell((event.clientX - left) / width)];
    };
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      canvas.setPointerCapture(event.pointerId);
      const [t, s] = place(event);
      drag = [t, s, t, s];
    });
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const [t, s] = place(event);
      const T = Math.sqrt(mask.length);
      where.textContent = `${shown(store.word(t))} ${mask[t * T + s] ? "may" : "may not"} look at ${shown(store.word(s))}`;
      if (drag) {
        [drag[2], drag[3]] = [t, s];
        draw();
      }
    });
    canvas.addEventListener("pointerup", () => {
      if (!drag) return;
      const painted = [...(edit().painted ?? []), [...rectangle(), may]];
      drag = null;
      paintWith(painted);
    });

    const count = async () => {
      stop = false;
      const rules = [...new Set(["prefix", "blind", "causal", edit().name ?? "prefix"])];
      for (const rule of rules) counts[rule] = 0;
      for (let i = 0; i < DRAWINGS && !stop; i++) {
        const { scene, label, box } = drawing(i);
        await store.client.ask("picture", { name: "drawing", picture: await pixelsOf(scene) });
        for (const rule of rules) {
          const { boxes } = await store.client.ask("run", {
            picture: "drawing",
            prompt: `detect ${label}`,
            edits: rule === "prefix" ? {} : { mask: { name: rule } },
            maxNewTokens: 24,
          });
          if (boxes.length && overlap(boxes[0].box, box) >= 0.5) counts[rule]++;
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
        text: " found where the box overlaps by half or more; some twenty seconds",
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
      const T = moved[0].length;
      const top = Math.max(...moved.map((/** @type {Float32Array} */ row) => Math.max(...row)));
      const scale = scaleOf(top);
      const field = el("canvas", {
        class: "moved",
        role: "img",
        "aria-label": "how far each token's stream moved",
      });
      drawField(
        field,
        Float32Array.from(moved.flatMap((/** @type {Float32Array} */ row) => [...row])),
        moved.length,
        T,
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
        el("div", { class: "moved-rows" }, field),
        el(
          "div",
          { class: "axis" },
          el("span", { class: "c-vision", text: "patches" }),
          el("span", { class: "c-word", text: "prompt" }),
          el("span", { class: "c-answer", text: "answer" }),
        ),
        inWords(
          `${MASKS[/** @type {import("../../engine/layers/masks.js").MaskName} */ (name)]}. ${edit().painted?.length ?? 0} painted rectangles. With prefix-LM the answer is “${plain.text}”, with this mask “${result.text}”. The stream moved by at most ${percent(top)} of its length.`,
        ),
      );
    };
    return { update, leave: () => (stop = true) };
  },
};
