// 14 · Bits: weights rounded to fewer, and what the answer makes of it.

import { button, choice, el, fill, inWords, number, percent } from "../dom.js";
import { heading } from "../lessons.js";
import { answerText } from "../words.js";

/** @typedef {import("../store.js").Store} Store */

const BITS = [16, 8, 6, 5, 4, 3, 2];
const SCALE_BYTES = 2;

/** How likely the words of an answer are on average (their geometric mean). @param {number[]} logs */
export const meanShare = (logs) => Math.exp(logs.reduce((a, b) => a + b, 0) / (logs.length || 1));

/** Bytes of matrices in so many bits, their scales included.
 * @param {{rows: number, columns: number, part: string}[]} matrices
 * @param {{bits: number, group: number, part: string} | null} rounding null: 16 bits each */
export const bytesOf = (matrices, rounding) =>
  matrices.reduce((sum, { rows, columns, part }) => {
    if (!rounding || (rounding.part !== "all" && rounding.part !== part))
      return sum + 2 * rows * columns;
    const scales = rows * (rounding.group ? Math.ceil(columns / rounding.group) : 1);
    return sum + (rows * columns * rounding.bits) / 8 + SCALE_BYTES * scales;
  }, 0);

export const bitsView = {
  id: "bits",
  title: "Bits",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const controls = el("div", { class: "stack" });
    const verdict = el("div");
    const one = el("div");
    const all = el("div");
    const text = el("div");
    /** @type {any[] | null} */
    let matrices = null;
    const mine = store.own("bits", { matrix: "" });
    let name = "";
    /** @type {{key: string, rows: any[]}} */
    let tried = { key: "", rows: [] };
    let trying = ""; // the key of the question that is being asked with each number of bits
    let asked = 0;
    /** What was chosen last, so that 16 bits forget neither groups nor part. */
    let wish = { bits: 16, group: 0, part: /** @type {any} */ ("all") };
    fill(
      root,
      heading(
        "Bits: how few are enough",
        "A weight is stored in 16 bits. In 4 it has one of 15 values: the nearest of −7 … 7 times a scale. Round the whole model or a part of it, with a scale for each row or for every 32 weights, and see how few bits the answer needs.",
        "int8",
        "fast/int8.py, fast/int4.py",
      ),
      controls,
      verdict,
      one,
      all,
      text,
    );

    const current = () => {
      const { bits } = store.state.edits;
      if (bits) wish = { ...bits };
      else wish = { ...wish, bits: 16 };
      return wish;
    };
    /** @param {Partial<typeof wish>} change */
    const set = (change) => {
      wish = { ...current(), ...change };
      const { bits: _, ...rest } = store.state.edits;
      store.set({ edits: wish.bits < 16 ? { ...rest, bits: { ...wish } } : rest });
    };

    const update = async () => {
      const { result, client } = store;
      const own = ++asked;
      const now = current();
      fill(
        controls,
        choice(
          "bits",
          BITS.map((n) => [n, `${n} bits`]),
          now.bits,
          (bits) => set({ bits }),
        ),
        choice(
          "scale",
          [
            [0, "a scale for each row"],
            [32, "for every 32 weights"],
          ],
          now.group,
          (group) => set({ group }),
        ),
        choice(
          "part",
          [
            ["all", "all of it"],
            ["tower", "the tower"],
            ["decoder", "the decoder's layers"],
            ["table", "the table"],
          ],
          now.part,
          (part) => set({ part }),
        ),
      );
      if (!result) return;
      matrices ??= await client.ask("matrices");
      const found = /** @type {any[]} */ (matrices);
      name = (
        found.find((m) => m.name === mine.matrix) ??
        found.find((m) => m.name.endsWith("layers.0.mlp.down_proj.weight")) ??
        found[0]
      ).name;
      const isRounded = now.bits < 16;
      const { bits: _, ...others } = store.state.edits;
      const plain = isRounded ? await store.otherwise(others, store.state.forced) : result;
      if (own !== asked) return;
      const [before, after] = [bytesOf(found, null), bytesOf(found, isRounded ? now : null)];
      const mb = (/** @type {number} */ bytes) =>
        bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(2)} MB`;
      fill(
        verdict,
        el(
          "div",
          { class: "verdict", "aria-live": "polite" },
          el(
            "p",
            {},
            el("b", { text: "A" }),
            " in 16 bits ",
            el("span", { class: "said" }, answerText(plain, isRounded ? result : null)),
            el("span", { class: "num", text: ` ${percent(meanShare(plain.logProbabilities))}` }),
          ),
          isRounded
            ? el(
                "p",
                {},
                el("b", { text: "B" }),
                ` in ${now.bits} `,
                el("span", { class: "said" }, answerText(result, plain)),
                el("span", {
                  class: "num",
                  text: ` ${percent(meanShare(result.logProbabilities))}`,
                }),
              )
            : null,
          el("p", {
            class: "hint",
            text: `The matrices take ${mb(after)}${isRounded ? ` instead of ${mb(before)}, ${number((8 * after) / found.reduce((s, m) => s + m.rows * m.columns, 0))} bits a weight with the scales` : ""}. Shares: how likely each answer's words were, on average.`,
          }),
        ),
      );
      const matrix = await client.ask("matrix", { name, bits: now.bits, group: now.group });
      if (own !== asked) return;
      showMatrix(matrix, now, found);
      showAll(now);
      fill(
        text,
        inWords(
          `${isRounded ? `In ${now.bits} bits (${now.part}, ${now.group ? "a scale for every 32 weights" : "a scale for each row"}) the answer is “${result.text}”; in 16 bits it is “${plain.text}”` : `In 16 bits the answer is “${result.text}”`}. The matrices take ${mb(after)}. Rounding ${name} moves it by ${percent(matrix.error)} of its length.`,
        ),
      );
    };

    /** @param {any} matrix @param {typeof wish} now @param {any[]} found */
    const showMatrix = (matrix, now, found) => {
      const select = el(
        "select",
        { "aria-label": "matrix", on: { change: () => ((mine.matrix = select.value), update()) } },
        found.map((m) =>
          el("option", {
            value: m.name,
            selected: m.name === name,
            text: `${short(m.name)}  ${m.rows} × ${m.columns}`,
          }),
        ),
      );
      fill(
        one,
        el("h3", { text: "One matrix" }),
        select,
        el(
          "div",
          { class: "pair-plots" },
          histogram(matrix, "before", "as stored"),
          now.bits < 16 ? histogram(matrix, "after", `in ${now.bits} bits`) : null,
        ),
        el("p", {
          class: "readout",
          hidden: now.bits >= 16,
          text: `error ‖W − Ŵ‖ / ‖W‖ = ${percent(matrix.error)}; the first weights: ${[...matrix.sample[0].slice(0, 4)].map((v, i) => `${number(v, 4)} → ${number(matrix.sample[1][i], 4)}`).join(", ")}`,
        }),
      );
    };

    /** @param {typeof wish} now */
    const showAll = (now) => {
      const { group, part } = now;
      const { prompt, version } = store;
      const { grammar, forced } = store.state;
      const { bits: _, ...edits } = store.state.edits;
      const key = JSON.stringify([version, prompt, grammar, forced, edits, group, part]);
      if (tried.key !== key) tried = { key, rows: [] };
      const tryAll = async () => {
        trying = key;
        showAll(now); // its button waits
        try {
          await store.idle; // the engine has the picture by then
          const rows = [];
          for (const bits of BITS) {
            const own = bits < 16 ? { ...edits, bits: { bits, group, part } } : edits;
            const result = await store.answer(`p${version}`, own, forced, prompt, grammar);
            if (tried.key !== key) return; // what is on view is another question by now
            rows.push({ bits, result });
          }
          tried.rows = rows;
        } finally {
          if (trying === key) trying = "";
          store.run(); // the others pushed the answer on view out of what is kept
        }
      };
      fill(
        all,
        el("h3", { text: "How few are enough?" }),
        tried.rows.length
          ? el(
              "table",
              { class: "counts bits-table" },
              el(
                "tbody",
                {},
                tried.rows.map(({ bits, result }) =>
                  el(
                    "tr",
                    {},
                    el("th", { scope: "row", text: `${bits} bits` }),
                    el("td", {}, answerText(result, tried.rows[0].result)),
                    el("td", { class: "num", text: percent(meanShare(result.logProbabilities)) }),
                  ),
                ),
              ),
            )
          : button("Ask with each number of bits", tryAll, {
              class: "chip",
              disabled: trying === key,
            }),
      );
    };
    return { update };
  },
};

/** A tensor's name without what all of them begin with. @param {string} name */
const short = (name) =>
  name
    .replace("language_model.model.", "decoder ")
    .replace("vision_tower.vision_model.", "tower ")
    .replace("multi_modal_", "")
    .replace("encoder.", "")
    .replace(/layers\.(\d+)\./, "layer $1 ")
    .replace("self_attn.", "")
    .replace(".weight", "");

/** How many weights there are of each size. @param {any} matrix @param {"before" | "after"} which @param {string} label */
function histogram(matrix, which, label) {
  const counts = matrix[which];
  const most = Math.max(...matrix.before.map(Math.sqrt), ...matrix.after.map(Math.sqrt), 1);
  const n = counts.length;
  return el(
    "figure",
    {},
    el(
      "svg",
      {
        class: "plot",
        viewBox: `0 0 ${n * 2} 70`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `weights ${label}: ${[...counts].filter(Boolean).length} of ${n} bars are filled`,
      },
      [...counts].map((count, i) => {
        const high = (Math.sqrt(count) / most) * 66;
        return el("rect", {
          x: i * 2,
          y: 70 - high,
          width: 1.7,
          height: high,
          fill: "var(--vision)",
        });
      }),
    ),
    el("figcaption", {
      text: `${label}, −${matrix.most.toFixed(2)} … ${matrix.most.toFixed(2)}; heights are roots of counts`,
    }),
  );
}
