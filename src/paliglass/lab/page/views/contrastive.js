// 10 · Contrastive bench: pictures × texts; CLIP's rows and columns beside SigLIP's single cells.

import { button, choice, el, fill, inWords, number, percent, slider } from "../dom.js";
import { heading } from "../lessons.js";
import { Toy, lossOf } from "../contrastive_toy.js";
import { drawScene, pixelsOf } from "../scene.js";
import { exampleScene } from "./live.js";

/** @typedef {import("../store.js").Store} Store */

const TEXTS = [
  "a tractor, a doughnut and a star",
  "a red star and a blue circle",
  "a cat, a pizza and a bicycle",
  "a pig and a balloon",
];

export const contrastiveView = {
  id: "contrastive",
  title: "CLIP and SigLIP",
  /** @param {Element} root @param {Store} store */
  mount(root, store) {
    const bench = el("div");
    const toy = el("div");
    const mine = store.own("contrastive", {
      texts: TEXTS,
      loss: "clip",
      t: 0,
      b: -10,
      gradients: false,
    });
    const scenes = ["farm", "colour", "find", "cut"].map(exampleScene);
    /** @type {any} */
    let found = null;
    let trained = 0; // the model's own t
    const scale = () => mine.t || trained;
    let asked = 0;
    let timer = 0;
    fill(
      root,
      heading(
        "Contrastive bench: CLIP beside SigLIP",
        "Another model, mini-dual, turns pictures and texts into arrows of length 1; their cosine is all that it knows. CLIP lets texts compete for a picture, and pictures for a text; SigLIP asks of each pair alone: do you belong together?",
        "siglip",
        "contrastive/losses.py",
      ),
      el("p", { class: "hint", text: "Row 1 is the picture that you have drawn." }),
      bench,
      el("h3", { text: "A toy of it, trained here" }),
      toy,
    );

    const embed = async () => {
      const own = ++asked;
      const dual = await store.client.loadDual();
      if (!dual) {
        fill(
          bench,
          el("p", { class: "hint", text: "This page was made without the dual encoder." }),
        );
        return;
      }
      if (!found) fill(bench, el("p", { class: "hint", text: "Embedding …" }));
      const all = [store.state.scene, ...scenes.slice(1)];
      const names = all.map((_, i) => `dual ${i}`);
      await Promise.all(
        all.map(async (scene, i) =>
          store.client.ask("picture", { name: names[i], picture: await pixelsOf(scene) }),
        ),
      );
      const { pictures, texts: words } = await store.client.ask("embed", {
        pictures: names,
        texts: mine.texts,
      });
      if (own !== asked) return;
      trained = Math.log(dual.scale);
      const cosines = pictures.map((/** @type {Float32Array} */ p) =>
        words.map((/** @type {Float32Array} */ w) => p.reduce((sum, v, i) => sum + v * w[i], 0)),
      );
      found = { cosines, all };
      show();
    };

    const show = () => {
      const { cosines, all } = found;
      const isClip = mine.loss === "clip";
      const logits = cosines.map((/** @type {number[]} */ row) =>
        row.map((c) => c * Math.exp(scale()) + (isClip ? 0 : mine.b)),
      );
      const soft = (/** @type {number[]} */ row) => {
        const most = Math.max(...row);
        const e = row.map((v) => Math.exp(v - most));
        const sum = e.reduce((x, y) => x + y, 0);
        return e.map((v) => v / sum);
      };
      const rows = logits.map(soft);
      const columns = mine.texts.map((_, j) =>
        soft(logits.map((/** @type {number[]} */ row) => row[j])),
      );
      const { loss: value, gradient } = lossOf(logits, isClip);
      const steepest = Math.max(...gradient.flat().map(Math.abs), 1e-9);
      const cell = (/** @type {number} */ i, /** @type {number} */ j) => {
        const p = isClip ? rows[i][j] : 1 / (1 + Math.exp(-logits[i][j]));
        const g = gradient[i][j];
        return el(
          "td",
          { class: `pair ${i === j ? "own" : ""}`, style: { "--p": p.toFixed(4) } },
          el("b", { class: "num", text: percent(p) }),
          isClip ? el("small", { class: "num", text: `column ${percent(columns[j][i])}` }) : null,
          el("small", { class: "num", text: `cos ${number(cosines[i][j])}` }),
          mine.gradients
            ? el("span", {
                class: `pull ${g < 0 ? "nearer" : "apart"}`,
                style: { "--p": (Math.abs(g) / steepest).toFixed(3) },
                title: `gradient ${number(g, 4)}`,
                text: g < 0 ? "→←" : "←→",
              })
            : null,
        );
      };
      fill(
        bench,
        el(
          "div",
          { class: "controls" },
          choice(
            "loss",
            [
              ["clip", "CLIP: rows and columns"],
              ["siglip", "SigLIP: each cell"],
            ],
            mine.loss,
            (v) => ((mine.loss = v), show()),
          ),
          choice(
            "gradients",
            [[true, "gradients"]],
            mine.gradients,
            () => ((mine.gradients = !mine.gradients), show()),
          ),
        ),
        el(
          "div",
          { class: "dials" },
          slider(
            "t (log scale)",
            { min: 0, max: 5, step: 0.05 },
            scale(),
            (v) => ((mine.t = v), show()),
            (v) => number(v),
          ),
          isClip
            ? null
            : slider(
                "b (bias)",
                { min: -30, max: 10, step: 0.5 },
                mine.b,
                (v) => ((mine.b = v), show()),
                (v) => number(v, 1),
              ),
        ),
        el(
          "div",
          { class: "lens-scroll" },
          el(
            "table",
            { class: "pairs" },
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                el("td"),
                mine.texts.map((text, j) => el("th", { scope: "col" }, textInput(text, j))),
              ),
            ),
            el(
              "tbody",
              {},
              all.map((/** @type {any} */ scene, /** @type {number} */ i) => {
                const small = el("canvas", {
                  width: 144,
                  height: 144,
                  class: "thumb",
                  role: "img",
                  "aria-label": `picture ${i + 1}`,
                });
                drawScene(small, scene);
                return el(
                  "tr",
                  {},
                  el("th", { scope: "row" }, small),
                  mine.texts.map((_, j) => cell(i, j)),
                );
              }),
            ),
          ),
        ),
        el(
          "p",
          {},
          "Loss of these pairs, picture i with text i: ",
          el("b", { class: "num", text: number(value, 3) }),
        ),
        el(
          "div",
          { class: "row" },
          button(
            "Make text 2 a copy of text 1",
            () => {
              const [first, , ...rest] = mine.texts;
              mine.texts = [first, first, ...rest];
              embed();
            },
            { class: "chip" },
          ),
          el("span", {
            class: "hint",
            text: "A caption that fits two pictures: CLIP must share 100 % between the copies, SigLIP need not.",
          }),
        ),
        inWords(
          all
            .map(
              (/** @type {any} */ _, /** @type {number} */ i) =>
                `Picture ${i + 1}: ${mine.texts.map((text, j) => `“${text}” ${percent(isClip ? rows[i][j] : 1 / (1 + Math.exp(-logits[i][j])))}`).join(", ")}.`,
            )
            .join(" "),
        ),
      );
    };

    /** @param {string} text @param {number} j */
    const textInput = (text, j) =>
      el(
        "textarea",
        {
          rows: 3,
          "aria-label": `text ${j + 1}`,
          on: {
            change: (/** @type {any} */ event) => {
              mine.texts = mine.texts.map((one, i) => (i === j ? event.target.value : one));
              embed();
            },
          },
        },
        text,
      );

    const showToy = () => {
      let model = new Toy(8, mine.loss === "clip");
      /** @type {number[]} */
      let losses = [];
      const circle = el("svg", {
        class: "toy",
        viewBox: "-115 -115 230 230",
        role: "img",
        "aria-label": "pictures and texts on a circle",
      });
      const line = el("p", { class: "readout" });
      const paint = () => {
        const at = (/** @type {number} */ angle, /** @type {number} */ r) => [
          r * Math.cos(angle),
          -r * Math.sin(angle),
        ];
        fill(
          circle,
          el("circle", { class: "ring", r: 100 }),
          model.pictures.map((a, i) => {
            const [x, y] = at(a, 100);
            const [u, v] = at(model.texts[i], 100);
            return [
              el("line", { class: "tie", x1: x, y1: y, x2: u, y2: v }),
              el("circle", { class: "picture-dot", cx: x, cy: y, r: 6 }),
              el("circle", { class: "text-dot", cx: u, cy: v, r: 4 }),
            ];
          }),
        );
        line.textContent = losses.length
          ? `step ${losses.length}: loss ${number(losses.at(-1) ?? 0, 3)} (at first ${number(losses[0], 3)})`
          : "eight pairs on a circle, anywhere";
      };
      const train = (/** @type {boolean} */ isClip) => {
        cancelAnimationFrame(timer);
        model = new Toy(8, isClip);
        losses = [];
        const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
        const run = () => {
          for (let i = 0; i < (still ? 600 : 4); i++) losses.push(model.step(0.15));
          paint();
          if (losses.length < 600) timer = requestAnimationFrame(run);
        };
        run();
      };
      paint();
      fill(
        toy,
        el(
          "div",
          { class: "row top" },
          circle,
          el(
            "div",
            {},
            el(
              "p",
              {},
              el("b", { class: "vision", text: "●" }),
              " pictures, ",
              el("b", { class: "words", text: "●" }),
              " texts; a line joins each pair.",
            ),
            el(
              "div",
              { class: "row" },
              button("Train with CLIP's loss", () => train(true), { class: "chip" }),
              button("Train with SigLIP's", () => train(false), { class: "chip" }),
            ),
            line,
            el("p", {
              class: "hint",
              text: "Pairs pull together, all others push apart; on a circle there is little room.",
            }),
          ),
        ),
      );
    };
    showToy();
    return {
      update(/** @type {string} */ reason) {
        if (reason === "view" || reason === "answer") embed();
        else if (found && reason === "select") show();
      },
      leave: () => cancelAnimationFrame(timer),
    };
  },
};
