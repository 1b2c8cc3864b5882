// 15 · Roofline: what an answer costs, and whether computing or reading decides how long it takes.

import { choice, el, fill, inWords, number, plotWidth, scrolled, slider } from "../dom.js";
import { heading } from "../lessons.js";
import { LARGE, decoderCost, phasesOf, towerCost } from "../costs.js";
import { isIndex } from "../store.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../costs.js").Cost} Cost */
/** @typedef {{name: string, operations: number, bytes: number}} Machine */

/** Top speeds in round numbers, as makers state them. @type {Machine[]} */
export const MACHINES = [
  { name: "H100", operations: 990e12, bytes: 3.35e12 },
  { name: "two CPU cores", operations: 0.1e12, bytes: 20e9 },
];

/** 12345678 → "12.3 M". @param {number} value */
export function large(value) {
  for (const [size, letter] of /** @type {[number, string][]} */ ([
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]))
    if (value >= size) return `${(value / size).toPrecision(3)} ${letter}`;
  return value.toPrecision(3);
}

/** 0.00123 → "1.23 ms". @param {number} seconds */
export const duration = (seconds) =>
  seconds >= 1
    ? `${seconds.toPrecision(3)} s`
    : seconds >= 1e-3
      ? `${(1e3 * seconds).toPrecision(3)} ms`
      : `${(1e6 * seconds).toPrecision(3)} µs`;

export const rooflineView = {
  id: "roofline",
  title: "Roofline",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const controls = el("div", { class: "stack" });
    const dials = el("div", { class: "dials" });
    const chart = el("div");
    const table = scrolled("costs");
    const real = el("div");
    const text = el("div");
    const mine = store.own(
      "roofline",
      { isLarge: false, rows: 1, bits: 16 },
      { rows: (rows) => isIndex(Math.log2(rows)), bits: (bits) => [32, 16, 8, 4].includes(bits) },
    );
    /** @type {any} */
    let speed = null; // what the engine measured
    let fastest = 0; // operations a second of the fastest phase that was seen
    fill(
      root,
      heading(
        "Roofline: computing or reading",
        "A machine computes and reads, each at some top speed; whatever takes longer decides. Prefill uses every weight it reads for all tokens of the prompt; a decoded word uses it once. So the first waits for arithmetic, the other for memory.",
        "cost",
        "inspect/info.py",
      ),
      controls,
      dials,
      chart,
      table,
      real,
      text,
    );

    const update = async () => {
      if (!store.result) return;
      if (!speed) {
        speed = await store.client.ask("measure");
        fill(
          dials,
          slider(
            "answers at once",
            { min: 0, max: 8, step: 1 },
            Math.log2(mine.rows),
            (v) => ((mine.rows = 2 ** v), show()),
            (v) => String(2 ** v),
          ),
        );
      }
      show();
    };

    const show = () => {
      const { config, result } = store;
      fill(
        controls,
        choice(
          "model",
          [
            [false, "this model"],
            [true, "PaliGemma 3B at 224"],
          ],
          mine.isLarge,
          (value) => ((mine.isLarge = value), show()),
        ),
        choice(
          "weights",
          [
            [32, "float32"],
            [16, "bfloat16"],
            [8, "int8"],
            [4, "int4"],
          ],
          mine.bits,
          (value) => ((mine.bits = value), show()),
        ),
      );
      const shape = mine.isLarge ? LARGE : config;
      const words = result.prompt.length - config.patches;
      const T = shape.patches + words;
      const S = T + result.answer.length;
      /** @type {[string, Cost][]} */
      const phases = [
        ["tower", towerCost(shape, mine.rows)],
        ["prompt", decoderCost(shape, T, T, mine.rows)],
        ["one more word", decoderCost(shape, 1, S, mine.rows)],
      ];
      const read = (/** @type {Cost} */ cost) => (cost.weights * mine.bits) / 8 + 2 * cost.cache;
      const ran = phasesOf(config, result);
      // The fastest that was seen is the top: a busy machine measures less.
      fastest = Math.max(fastest, ...ran.map(({ rate }) => rate));
      const operations = Math.max(speed.operations, fastest);
      const here = { name: "here, measured", operations, bytes: speed.bytes };
      const machines = [here, ...MACHINES];
      fill(
        chart,
        plot(
          plotWidth(root, 700),
          machines,
          phases.map(([name, cost]) => ({ name, intensity: cost.operations / read(cost) })),
        ),
      );
      const limit = (/** @type {Machine} */ machine, /** @type {Cost} */ cost) => {
        const [computing, reading] = [
          cost.operations / machine.operations,
          read(cost) / machine.bytes,
        ];
        return { seconds: Math.max(computing, reading), isRead: reading > computing };
      };
      fill(
        table,
        el(
          "table",
          { class: "counts roof" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              [
                "phase",
                "operations",
                "bytes read",
                "operations a byte",
                ...machines.map(({ name }) => name),
              ].map((name) => el("th", { scope: "col", text: name })),
            ),
          ),
          el(
            "tbody",
            {},
            phases.map(([name, cost]) =>
              el(
                "tr",
                {},
                el("th", { scope: "row", text: name }),
                el("td", { class: "num", text: large(cost.operations) }),
                el("td", { class: "num", text: `${large(read(cost))}B` }),
                el("td", { class: "num", text: number(cost.operations / read(cost), 1) }),
                machines.map((machine) => {
                  const { seconds, isRead } = limit(machine, cost);
                  return el(
                    "td",
                    { class: "num" },
                    `≥ ${duration(seconds)} `,
                    el("small", { text: isRead ? "reading" : "computing" }),
                  );
                }),
              ),
            ),
          ),
        ),
      );
      fill(
        real,
        el("p", {
          class: "hint",
          text: `${mine.rows === 1 ? "One answer" : `${mine.rows} answers`} of a prompt of ${shape.patches} patches and ${words} words; the word after ${S} tokens; cache in 16 bits. Times are the least that the machine's two top speeds allow.`,
        }),
        el("h3", { text: "The answer on view, as it ran here" }),
        el(
          "table",
          { class: "counts" },
          el(
            "tbody",
            {},
            ran.map(({ name, seconds, isKept, rate }) =>
              el(
                "tr",
                {},
                el("th", { scope: "row", text: name }),
                el("td", { class: "num", text: isKept ? "kept from before" : duration(seconds) }),
                el("td", {
                  class: "readout",
                  text: rate
                    ? `${large(rate)} operations/s, ${number((100 * rate) / operations, 0)} % of the top measured`
                    : "",
                }),
              ),
            ),
          ),
        ),
        el("p", {
          class: "hint",
          text: `Measured just now: ${large(speed.operations)} operations/s with 64 tokens, ${large(here.bytes)}B of weights a second with one (${8 * speed.bytesPerWeight} bits each). ${fastest > speed.operations ? `An answer's own fastest phase did ${large(fastest)} operations/s: that is the top here. ` : ""}${result.edits.off?.length ? "Parts are taken out, so this answer's operations are not counted. " : ""}Small matrices stay in the processor's cache, which reads faster than memory.`,
        }),
      );
      const [, [, prompt], [, word]] = phases;
      fill(
        text,
        inWords(
          `${mine.isLarge ? "PaliGemma 3B" : "This model"}: the prompt takes ${large(prompt.operations)} operations and reads ${large(read(prompt))}B, ${number(prompt.operations / read(prompt), 1)} operations a byte; one more word ${large(word.operations)} and ${large(read(word))}B, ${number(word.operations / read(word), 1)} a byte. ${machines.map((machine) => `${machine.name}: a word in ${duration(limit(machine, word).seconds)} at best, limited by ${limit(machine, word).isRead ? "reading" : "computing"}`).join("; ")}.`,
        ),
      );
    };
    return { update };
  },
};

/** Speed against operations a byte, both as powers of ten.
 * @param {number} wide @param {Machine[]} machines @param {{name: string, intensity: number}[]} points */
function plot(wide, machines, points) {
  const high = 316;
  const [least, most] = [0.1, 1e4];
  const tops = machines.map(({ operations }) => operations);
  const [low, top] = [
    Math.min(...machines.map(({ bytes }) => bytes * 0.3), ...tops) / 2,
    Math.max(...tops) * 3,
  ];
  const log = Math.log10;
  const x = (/** @type {number} */ v) =>
    46 + ((log(v) - log(least)) / (log(most) - log(least))) * (wide - 60);
  const y = (/** @type {number} */ v) =>
    high - 46 - ((log(v) - log(low)) / (log(top) - log(low))) * (high - 60);
  const clamp = (/** @type {number} */ v) => Math.min(Math.max(v, least), most);
  const powers = (/** @type {number} */ from, /** @type {number} */ to) =>
    Array.from(
      { length: Math.floor(log(to)) - Math.ceil(log(from)) + 1 },
      (_, i) => Math.ceil(log(from)) + i,
    );
  return el(
    "svg",
    {
      class: "plot roofs",
      viewBox: `0 0 ${wide} ${high}`,
      role: "img",
      "aria-label": `roofline: ${points.map(({ name, intensity }) => `${name} at ${number(intensity, 1)} operations a byte`).join(", ")}`,
    },
    powers(least, most).map((p) => [
      el("line", { class: "grid", x1: x(10 ** p), x2: x(10 ** p), y1: 4, y2: high - 44 }),
      el("text", {
        class: "tick",
        x: x(10 ** p),
        y: high - 28,
        text: p < 3 ? String(10 ** p) : `${10 ** (p - 3)} k`,
      }),
    ]),
    powers(low, top)
      .filter((p) => p % 3 === 0)
      .map((p) => [
        el("line", { class: "grid", x1: 46, x2: wide - 14, y1: y(10 ** p), y2: y(10 ** p) }),
        el("text", {
          class: "tick side",
          x: 40,
          y: y(10 ** p) + 4,
          text: `1 ${{ 6: "M", 9: "G", 12: "T", 15: "P" }[p] ?? ""}`,
        }),
      ]),
    el("text", {
      class: "tick",
      x: wide / 2,
      y: high - 8,
      text: "operations for each byte that is read",
    }),
    points.map(({ name, intensity }, i) => [
      el("line", {
        class: `phase p${i}`,
        x1: x(clamp(intensity)),
        x2: x(clamp(intensity)),
        y1: 4,
        y2: high - 44,
      }),
      el("text", {
        class: `tick phase-name p${i}`,
        x: x(clamp(intensity)) - 5,
        y: 16 + 15 * i,
        text: name,
      }),
    ]),
    machines.map(({ name, operations, bytes }, i) => {
      const ridge = clamp(operations / bytes);
      const reach = Math.min(operations, bytes * most);
      return [
        el("polyline", {
          class: `roof r${i}`,
          points: [
            [least, bytes * least],
            [ridge, reach],
            [most, reach],
          ]
            .map(([a, b]) => `${x(a).toFixed(1)},${y(Math.max(b, low)).toFixed(1)}`)
            .join(" "),
        }),
        el("text", { class: "tick value end", x: wide - 16, y: y(reach) - 6, text: name }),
        points.map(({ intensity }, j) =>
          el("circle", {
            class: `dot p${j}`,
            cx: x(clamp(intensity)),
            cy: y(Math.max(Math.min(operations, bytes * intensity), low)),
            r: 5,
          }),
        ),
      ];
    }),
  );
}
