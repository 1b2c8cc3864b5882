// In the lens: a linear probe for each layer, fitted in the page.

import { button, choice, el, fill, percent } from "../dom.js";
import { QUESTIONS, probe } from "../probe.js";

/** @typedef {import("../store.js").Store} Store */

const DRAWINGS = 80;

/** The panel, and how to stop what runs in it. @param {Store} store */
export function probePanel(store) {
  const chosen = el("div");
  const result = el("div");
  let question = "round";
  let stop = false;

  const run = async () => {
    stop = false;
    const asked = question;
    const goOn = (/** @type {number} */ done) => {
      fill(result, el("p", { class: "hint", text: `drawing ${done} of ${DRAWINGS}` }));
      return !stop && asked === question;
    };
    const found = await probe(store, asked, store.state.edits, goOn, DRAWINGS);
    if (!found.length) return;
    const row = (/** @type {(typeof found)[0]} */ { part, layer, share }) => {
      const colour = part === "tower" ? "var(--vision)" : "var(--word)";
      return el(
        "tr",
        {},
        el("th", { scope: "row", text: `${part} ${layer < 0 ? "input" : layer}` }),
        el(
          "td",
          {},
          el("span", { class: "meter big", style: { "--p": share.toFixed(3), "--c": colour } }),
        ),
        el("td", { class: "num", text: percent(share) }),
      );
    };
    fill(
      result,
      el("table", { class: "counts probe" }, found.map(row)),
      el("p", {
        class: "hint",
        text: `Always the commoner answer: ${percent(found[0].commoner)}.`,
      }),
    );
  };

  const show = () => {
    /** @type {[string, string][]} */
    const options = Object.entries(QUESTIONS).map(([name, { label }]) => [name, label]);
    fill(
      chosen,
      choice("what a patch is asked", options, question, (value) => {
        question = value;
        fill(result);
        show();
      }),
      button("Fit the planes", run, { class: "chip strong" }),
    );
  };
  show();
  const root = el(
    "div",
    {},
    el("h3", { text: "What a patch knows, layer by layer" }),
    el("p", {
      class: "hint",
      text: `A plane is fitted through each layer's stream on three quarters of ${DRAWINGS} drawings of two shapes; on the rest it is right this often. It takes ${store.estimate(DRAWINGS, false)}.`,
    }),
    chosen,
    result,
  );
  return { root, leave: () => (stop = true) };
}
