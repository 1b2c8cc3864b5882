// 6 · Boxes and masks: a box is four words, each a distribution over 1024 places; a mask is sixteen.

import { button, choice, el, fill, inWords, number, percent, shown, slider } from "../dom.js";
import { heading } from "../lessons.js";
import { maskPath } from "../picture.js";
import { isIndex } from "../store.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../stage.js").Stage} Stage */

const EDGES = ["top", "left", "bottom", "right"]; // in the order in which they are said
const BINS = 1024;

export const boxesView = {
  id: "boxes",
  title: "Boxes and masks",
  /** @param {Element} root @param {Store} store @param {Stage} stage */
  mount(root, store, stage) {
    const which = el("div", { class: "controls" });
    const board = el("div");
    const label = el("div");
    const grammar = el("div");
    const keypad = el("div");
    const text = el("div");
    const mine = store.own(
      "boxes",
      { object: 0, key: 0 },
      { object: isIndex, key: (key) => isIndex(key) && key < 16 },
    );
    /** @type {number[] | null} codes changed by hand */
    let codes = null;
    let asked = 0;
    /** @type {any} */
    let ids = null;
    fill(
      root,
      heading(
        "Boxes and masks: places as words",
        "A box is four words, top, left, bottom and right, each one of 1024 places. Each edge below is the model's distribution for it. Drag an edge: the label's probability tells whether the model believes your box.",
        "detection",
        "tasks/boxes.py, tasks/grammar.py",
      ),
      which,
      board,
      label,
      grammar,
      keypad,
      text,
    );

    /** Where in the answer each box begins: the place of its first edge. @param {any} result */
    const starts = (result) => {
      const isEdge = (/** @type {number} */ id) =>
        id >= ids.firstLocation && id < ids.firstLocation + BINS;
      /** @type {number[]} */
      const found = [];
      for (let i = 0; i + 3 < result.answer.length;)
        if ([0, 1, 2, 3].every((j) => isEdge(result.answer[i + j])))
          [found[found.length], i] = [i, i + 4];
        else i++;
      return found;
    };
    /** The words after a box's edges and codes, up to the next. @param {any} result @param {number} first */
    const labelOf = (result, first) => {
      let from = first + 4;
      while (result.answer[from] >= ids.firstCode && result.answer[from] < ids.firstCode + 128)
        from++;
      let end = from;
      while (
        end < result.answer.length &&
        result.answer[end] !== ids.eos &&
        !shown(result.answerWords[end]).startsWith(";") &&
        !(result.answer[end] >= ids.firstLocation && result.answer[end] < ids.firstLocation + BINS)
      )
        end++;
      return {
        from,
        end,
        p: Math.exp(
          result.logProbabilities
            .slice(from, end)
            .reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0),
        ),
      };
    };

    /** @param {number} edge @param {number} place */
    const drag = (edge, place) => {
      const { result } = store;
      const firsts = starts(result);
      const first = firsts[Math.min(mine.object, firsts.length - 1)];
      const said = result.answer.slice(first, first + 4);
      said[edge] = ids.firstLocation + place;
      clearTimeout(timer);
      timer = setTimeout(
        () => store.set({ forced: [...result.answer.slice(0, first), ...said] }),
        60,
      );
    };
    /** @type {any} */
    let timer;

    const update = async () => {
      const { result } = store;
      if (!result) return;
      const own = ++asked;
      ids ??= await store.client.ask("ids");
      const { task } = store.state;
      const isTask = task === "detect" || task === "segment";
      const firsts = isTask ? starts(result) : [];
      const object = Math.min(mine.object, Math.max(firsts.length - 1, 0));
      fill(
        which,
        choice(
          "task",
          [
            ["detect", "Boxes"],
            ["segment", "Boxes and masks"],
          ],
          task,
          (value) => ((codes = null), store.set({ task: value })),
        ),
        firsts.length > 1
          ? choice(
              "object",
              firsts.map((_, i) => [i, result.boxes[i]?.label || `box ${i + 1}`]),
              object,
              (value) => ((mine.object = value), (codes = null), update()),
            )
          : null,
        store.state.forced.length
          ? button("The model's own box", () => store.set({ forced: [] }), { class: "chip" })
          : null,
      );
      if (!firsts.length) {
        fill(
          board,
          el("p", {
            class: "hint",
            text: isTask
              ? "It found nothing. Ask for something else, or draw some."
              : "Ask for boxes first.",
          }),
        );
        for (const node of [label, grammar, keypad, text]) fill(node);
        return;
      }
      const first = firsts[object];
      const edges = await store.client.ask("edges", { run: result.run, first });
      if (own !== asked) return;
      const places = result.answer
        .slice(first, first + 4)
        .map((/** @type {number} */ id) => id - ids.firstLocation);
      fill(
        board,
        edgeBoard(stage, edges, places, drag),
        el(
          "div",
          { class: "edge-list" },
          EDGES.map((name, i) =>
            el(
              "div",
              {},
              slider(
                name,
                { min: 0, max: BINS - 1, step: 1 },
                places[i],
                (value) => drag(i, value),
                (value) => String(value).padStart(4, "0"),
              ),
              el("span", { class: "num", text: percent(edges[i][places[i]]) }),
            ),
          ),
        ),
      );
      const own_label = labelOf(result, first);
      const name = result.answerWords.slice(own_label.from, own_label.end).join("").trim();
      fill(
        label,
        el(
          "h3",
          {},
          "How well the label fits this box: ",
          el("b", { class: "answer", text: name || "–" }),
        ),
        el(
          "div",
          { class: "row" },
          el("span", {
            class: "meter big",
            style: { "--p": own_label.p.toFixed(4), "--c": "var(--answer)" },
          }),
          el("b", { class: "num", text: percent(own_label.p) }),
          el("span", { class: "hint", text: "among all words" }),
        ),
      );
      await showGrammar(own, first);
      if (own !== asked) return;
      const said = result.boxes[object]?.codes;
      fill(keypad);
      if (said) await showKeypad(own, said, result.boxes[object].box);
      if (own !== asked) return;
      fill(
        text,
        inWords(
          `${name}: ${EDGES.map((edge, i) => `${edge} ${percent(places[i] / 1023)} (p ${percent(edges[i][places[i]])})`).join(", ")}; the label has ${percent(own_label.p)}.`,
        ),
      );
    };

    /** @param {number} own @param {number} first */
    const showGrammar = async (own, first) => {
      const { result } = store;
      const at = Math.min(
        Math.max(store.token - result.prompt.length + 1, 0),
        result.answer.length - 1,
      );
      const [best, { allowed }] = await Promise.all([
        store.client.ask("top", { run: result.run, step: at, k: 8 }),
        store.client.ask("logits", { run: result.run, step: at }),
      ]);
      if (own !== asked) return;
      const may = (/** @type {number} */ id) =>
        !allowed ||
        allowed.ids.includes(id) ||
        (id >= allowed.low && id < allowed.high && !allowed.excluded.includes(id));
      fill(
        grammar,
        el("h3", { text: "The grammar" }),
        choice(
          "grammar",
          [
            [false, "off: any word"],
            [true, "on: only what makes a readable answer"],
          ],
          store.state.grammar,
          (value) => store.set({ grammar: value }),
        ),
        el(
          "p",
          { class: "hint" },
          `Before word ${at + 1}, ${allowed ? `${allowed.ids.length + Math.max(allowed.high - allowed.low - allowed.excluded.length, 0)} words may come` : "every word may come"}; choose another word in the sentence. The likeliest:`,
        ),
        el(
          "div",
          { class: "tokens" },
          best.map((/** @type {any} */ { id, word, p }) =>
            el(
              "span",
              {
                class: `token answer ${may(id) ? "" : "forbidden"}`,
                style: { "--p": p.toFixed(3) },
              },
              shown(word),
              el("small", { text: percent(p) }),
            ),
          ),
        ),
      );
    };

    /** @param {number} own @param {number[]} said @param {number[]} box */
    const showKeypad = async (own, said, box) => {
      const now = codes ?? said;
      const mask = await store.client.ask("decodeMask", { codes: now });
      if (own !== asked) return;
      const preview = el(
        "svg",
        { class: "mask-preview", viewBox: "0 0 1000 1000", role: "img", "aria-label": "the mask" },
        maskPath(mask, [0, 0, 1, 1]),
      );
      const set = (/** @type {number} */ value) => {
        codes = now.map((code, i) => (i === mine.key ? value : code));
        repaint();
      };
      const repaint = async () => {
        const mine = ++asked;
        await showKeypad(mine, said, box);
      };
      fill(
        keypad,
        el("h3", { text: "Sixteen codes, one for each sixteenth of the box" }),
        el(
          "div",
          { class: "keypad" },
          el(
            "div",
            { class: "keys" },
            now.map((code, i) =>
              button(String(code), () => ((mine.key = i), repaint()), {
                class: "key-code",
                "aria-pressed": String(i === mine.key),
                "aria-label": `code ${i + 1}: ${code}`,
              }),
            ),
          ),
          preview,
        ),
        slider(`code ${mine.key + 1}`, { min: 0, max: 127, step: 1 }, now[mine.key], set, String),
        codes
          ? button("The model's own codes", () => ((codes = null), repaint()), { class: "chip" })
          : null,
        el("p", {
          class: "hint",
          text: `${number(mask.reduce((/** @type {number} */ n, /** @type {number} */ v) => n + Number(v > 0), 0) / 40.96, 0)} % of the box is inside.`,
        }),
      );
    };
    return { update };
  },
};

/** The picture with a distribution on each of its edges, and the edges to drag.
 * @param {Stage} stage @param {Float32Array[]} edges @param {number[]} places
 * @param {(edge: number, place: number) => void} drag */
function edgeBoard(stage, edges, places, drag) {
  const canvas = el("canvas", { width: 512, height: 512 });
  canvas.getContext("2d").drawImage(stage.plain, 0, 0);
  const svg = el("svg", { class: "edge-svg", viewBox: "-130 -130 1260 1260" });
  const bins = 128; // eight places a bar
  edges.forEach((p, edge) => {
    const sums = Array.from({ length: bins }, (_, i) =>
      p.slice(i * 8, i * 8 + 8).reduce((a, b) => a + b, 0),
    );
    const most = Math.max(...sums);
    sums.forEach((sum, i) => {
      const size = (110 * sum) / most;
      if (size < 1) return;
      const at = (i * 1000) / bins;
      const wide = 1000 / bins - 1;
      const isRow = edge % 2 === 0; // top and bottom: heights, drawn at the left and the right side
      const x = isRow ? (edge === 0 ? -10 - size : 1010) : at;
      const y = isRow ? at : edge === 1 ? -10 - size : 1010;
      svg.append(
        el("rect", {
          class: "edge-bar",
          x,
          y,
          width: isRow ? size : wide,
          height: isRow ? wide : size,
        }),
      );
    });
  });
  const [y0, x0, y1, x1] = places.map((place) => (place / 1023) * 1000);
  svg.append(
    el("rect", {
      class: "box",
      x: x0,
      y: y0,
      width: Math.max(x1 - x0, 1),
      height: Math.max(y1 - y0, 1),
    }),
  );
  /** @type {[number, number, number, number][]} */
  const lines = [
    [-120, y0, 1000, y0],
    [x0, -120, x0, 1000],
    [0, y1, 1120, y1],
    [x1, 0, x1, 1120],
  ];
  lines.forEach(([ax, ay, bx, by], edge) => {
    const line = el("line", {
      class: "edge-line",
      x1: ax,
      y1: ay,
      x2: bx,
      y2: by,
      "data-edge": edge,
    });
    const grip = el("line", {
      class: `edge-grip ${edge % 2 ? "across" : "down"}`,
      x1: ax,
      y1: ay,
      x2: bx,
      y2: by,
    });
    let held = false;
    grip.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      held = true;
      grip.setPointerCapture(event.pointerId);
    });
    grip.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      if (!held) return;
      const { left, top, width, height } = svg.getBoundingClientRect();
      const at =
        edge % 2
          ? ((event.clientX - left) / width) * 1260 - 130
          : ((event.clientY - top) / height) * 1260 - 130;
      const place = Math.min(Math.max(at, 0), 1000);
      for (const node of [line, grip])
        for (const end of ["1", "2"])
          node.setAttribute((edge % 2 ? "x" : "y") + end, String(place));
      drag(edge, Math.round((place / 1000) * 1023));
    });
    for (const name of ["pointerup", "pointercancel"])
      grip.addEventListener(name, () => (held = false));
    svg.append(line, grip);
  });
  return el("div", { class: "edge-board" }, canvas, svg);
}
