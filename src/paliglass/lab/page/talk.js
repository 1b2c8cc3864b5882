// The question, the answer word by word, and the state before beside it.

import { button, el, fill, percent, shown } from "./dom.js";
import { drawScene } from "./scene.js";
import { TASKS } from "./store.js";
import { suggested } from "./suggested.js";
import { answerText } from "./words.js";

/** @typedef {import("./store.js").Store} Store */

const EDIT_NAMES = {
  channels: "colours",
  towerPositions: "the tower's positions",
  features: "features",
  scaleFeatures: "features × √D",
  unscaledWords: "words without √D",
  noRotary: "no RoPE",
  shift: "positions shifted",
  noNewline: "no newline",
  norm: "LayerNorm",
  mask: "the mask",
  patches: "a pasted stream",
  activation: "the non-linearity",
  unscaledScores: "no 1/√d",
  off: "parts switched off",
  bits: "weights in fewer bits",
};

/** @param {number} ms */
const time = (ms) => (ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

export class Talk {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.shownTask = "";
    /** @type {any} */
    this.input = null;
    this.ask = el("div", { class: "ask" });
    this.sentence = el("div", { class: "sentence", id: "answer", tabindex: -1 });
    this.status = el("p", { class: "visually-hidden", role: "status" });
    this.compare = el("div", { class: "compare" });
    this.root = el("div", { class: "talk" }, this.ask, this.sentence, this.status);
    this.showAsk();
  }

  /** @param {string} reason */
  update(reason) {
    this.showAsk();
    this.showSentence();
    this.showCompare();
    const { result } = this.store;
    if (reason === "answer" && result)
      this.status.textContent = `Answer: ${result.text || "no word"}`;
  }

  showAsk() {
    const { store } = this;
    const { task, words } = store.state;
    if (this.shownTask === task && this.input && document.activeElement === this.input) return;
    this.shownTask = task;
    const chips = Object.entries(TASKS).map(([name, { label }]) =>
      button(label, () => (store.hold(), store.set({ task: name })), {
        class: "chip task",
        "aria-pressed": String(name === task),
      }),
    );
    this.input = null;
    if (task in words) {
      this.input = el("input", {
        type: "text",
        value: words[task],
        spellcheck: "false",
        "aria-label": task === "ask" ? "the question" : "what to look for",
        on: {
          focus: () => store.hold(),
          input: () => {
            clearTimeout(this.typing);
            this.typing = setTimeout(
              () => store.set({ words: { ...store.state.words, [task]: this.input.value } }),
              200,
            );
          },
        },
      });
    }
    fill(
      this.ask,
      el("div", { class: "row", role: "group", "aria-label": "task" }, chips),
      this.input,
      this.suggestions(),
    );
  }

  /** What else might be asked of this picture, in the view to play in. */
  suggestions() {
    const { store } = this;
    const { task, words, scene, view } = store.state;
    if (!this.input || view !== "live") return null;
    return el(
      "div",
      { class: "row suggested", role: "group", "aria-label": "what might be asked" },
      suggested(task, scene).map((offer) =>
        button(
          offer,
          () => (store.hold(), store.set({ words: { ...store.state.words, [task]: offer } })),
          { class: "chip small", "aria-pressed": String(offer === words[task].trim()) },
        ),
      ),
    );
  }

  showSentence() {
    const { store } = this;
    const { result } = store;
    if (!result)
      return fill(
        this.sentence,
        store.failure ? this.changes() : null,
        store.failure
          ? el("p", { class: "hint", role: "alert", text: store.failure })
          : this.arriving(),
      );
    const { patches } = store.config;
    const chip = (
      /** @type {number} */ place,
      /** @type {string} */ word,
      /** @type {string} */ kind,
      extra = {},
    ) => {
      const isAnswer = kind === "answer";
      const row = isAnswer ? place - 1 : place; // a word is chosen by what came before it
      return el(
        "button",
        {
          type: "button",
          class: `token ${kind}`,
          "data-place": place,
          "aria-pressed": String(store.token === row),
          ...extra,
          on: {
            click: () => store.set({ token: row }),
            pointerenter: (/** @type {PointerEvent} */ e) =>
              e.pointerType === "mouse" &&
              place < result.length &&
              store.state.view !== "live" &&
              place !== store.state.key && // else the word drawn anew under the mouse asks again
              store.set({ key: place }),
          },
        },
        shown(word),
      );
    };
    const prompt = result.promptWords
      .slice(patches)
      .map((/** @type {string} */ word, /** @type {number} */ i) =>
        chip(patches + i, word, "word"),
      );
    const answer = result.answerWords.map((/** @type {string} */ word, /** @type {number} */ i) => {
      const p = Math.exp(result.logProbabilities[i]);
      return chip(result.prompt.length + i, word, "answer", {
        style: { "--p": p.toFixed(3) },
        title: `${shown(word).trim()}: ${percent(p)}`,
      });
    });
    const ms = result.milliseconds;
    fill(
      this.sentence,
      this.changes(),
      el("p", { class: "answer-text" }, answerText(result)),
      el(
        "div",
        { class: "tokens" },
        el("span", {
          class: "token vision",
          title: "the picture's patches stand first",
          text: `▦ ${patches}`,
        }),
        prompt,
        answer,
      ),
      el("p", {
        class: "time",
        text: `${time(ms.tower + ms.prefill + ms.decode)}: tower ${time(ms.tower)}, prompt ${time(ms.prefill)}, ${result.answer.length} words ${time(ms.decode)}${result.ended ? "" : "; cut off"}`,
      }),
    );
  }

  /** How much of the model has come. */
  arriving() {
    const { arrived } = this.store;
    if (!arrived) return el("p", { class: "hint", text: "…" });
    const text =
      arrived < 1
        ? `The model is on its way: ${Math.floor(100 * arrived)} %`
        : "The model is here and looks at the picture …";
    return el(
      "p",
      { class: "arriving" },
      text,
      el("progress", { max: 1, value: arrived, "aria-label": "the model" }),
    );
  }

  /** Whatever keeps this answer from being the model's own, and how to undo it. */
  changes() {
    const { edits, forced } = this.store.state;
    const names = Object.keys(edits).map(
      (name) => /** @type {Record<string, string>} */ (EDIT_NAMES)[name] ?? name,
    );
    if (forced.length) names.push("words put into its mouth");
    if (!names.length) return null;
    return el(
      "p",
      { class: "changes" },
      el("b", { text: "Changed: " }),
      names.join(", "),
      button("Undo", () => this.store.set({ edits: {}, forced: [] }), { class: "chip" }),
    );
  }

  showCompare() {
    const { store } = this;
    const { before, result } = store;
    this.compare.hidden = store.state.view !== "live";
    if (!result || this.compare.hidden) return;
    const pinned = Boolean(before?.pinned);
    const small = el("canvas", { width: 96, height: 96, "aria-hidden": "true" });
    if (before) drawScene(small, before.scene);
    fill(
      this.compare,
      el(
        "div",
        { class: "side a" },
        el("b", { text: "A" }),
        before ? small : null,
        el(
          "p",
          {},
          before
            ? [
                el("span", { class: "prompt", text: before.prompt }),
                answerText(before.result, result),
              ]
            : "the state before comes here when something changes",
        ),
      ),
      el(
        "div",
        { class: "side b" },
        el("b", { text: "B" }),
        el(
          "p",
          {},
          el("span", { class: "prompt", text: store.prompt }),
          answerText(result, before?.result),
        ),
      ),
      el(
        "div",
        { class: "row" },
        button(
          pinned ? "Let A follow" : "Hold this as A",
          () => {
            if (pinned && before) before.pinned = false;
            else store.hold(true);
            this.showCompare();
          },
          { class: "chip" },
        ),
      ),
    );
  }
}
