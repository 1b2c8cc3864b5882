// What stays in sight: the picture, the question, the answer. In the first view also the tools to draw.

import { button, el, fill, percent, shown } from "./dom.js";
import { drawMap, legend } from "./draw.js";
import {
  COLORS,
  COLOR_NAMES,
  SHAPES,
  SIDE,
  STICKERS,
  drawScene,
  keepPhoto,
  stickerUrl,
  thingAt,
} from "./scene.js";
import { TASKS } from "./store.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./scene.js").Thing} Thing */

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
};

/** Words of `b` that `a` has not, by their longest common subsequence: true where new.
 * @param {string[]} a @param {string[]} b */
export function newWords(a, b) {
  const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      long[i][j] =
        a[i] === b[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
  const isNew = b.map(() => true);
  let i = 0,
    j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) [isNew[j], i, j] = [false, i + 1, j + 1];
    else if (long[i + 1][j] >= long[i][j + 1]) i++;
    else j++;
  }
  return isNew;
}

/** Boxes and masks as signs: their numbers stand in the sentence's tokens. @param {string} text */
export const readable = (text) =>
  text
    .replace(/(<loc\d{4}>){4}/g, "▢")
    .replace(/(<seg\d{3}>)+/g, "◪")
    .replace(/▢◪?(?=\S)/g, "$& ");

/** An answer as words, those that `other` lacks marked. @param {any} result @param {any} other */
export function answerText(result, other = null) {
  const words = readable(result.text).split(/(?<=\s)/);
  if (!result.text.trim()) return el("span", { class: "nothing", text: "(nothing)" });
  const isNew = other
    ? newWords(readable(other.text).split(/(?<=\s)/), words)
    : words.map(() => false);
  return words.map((/** @type {string} */ word, /** @type {number} */ i) =>
    isNew[i] ? el("mark", { text: word }) : word,
  );
}

export class Stage {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.tool = "move";
    this.color = 0;
    this.picked = -1; // the thing that is being moved
    this.shownTask = "";
    /** @type {any} */
    this.input = null;
    /** @type {import("./draw.js").HeatMap | null} */
    this.map = null;
    this.name = "";
    this.plain = document.createElement("canvas");
    this.plain.width = this.plain.height = SIDE;
    this.canvas = el("canvas", {
      width: SIDE,
      height: SIDE,
      tabindex: 0,
      role: "img",
      "aria-label": "the picture",
      id: "picture",
    });
    this.over = el("svg", { class: "over", viewBox: "0 0 1000 1000", "aria-hidden": "true" });
    this.scale = el("div", { class: "scale" });
    this.tools = el("div", { class: "tools" });
    this.drawer = el("div", { class: "drawer" });
    this.ask = el("div", { class: "ask" });
    this.sentence = el("div", { class: "sentence", id: "answer", tabindex: -1 });
    this.status = el("p", { class: "visually-hidden", role: "status" });
    this.compare = el("div", { class: "compare" });
    this.root = el(
      "section",
      { class: "stage", "aria-label": "picture, question and answer" },
      el("div", { class: "frame" }, this.canvas, this.over, this.scale),
      el("div", { class: "talk" }, this.ask, this.sentence, this.status),
      this.tools,
      this.drawer,
      this.compare,
    );
    this.listen();
    this.showTools();
    this.showAsk();
    store.subscribe((reason) => this.update(reason));
    this.update("scene");
  }

  /** Shows a map over the picture, until another view takes it away.
   * @param {import("./draw.js").HeatMap | null} map @param {string} name */
  showMap(map, name = "") {
    this.map = map;
    this.name = name;
    this.paint();
  }

  paint() {
    drawMap(this.canvas, this.plain, this.map);
    fill(
      this.scale,
      this.map ? [el("b", { text: this.name }), legend(this.map.top, this.map.color)] : null,
    );
    fill(this.over, this.boxes(), this.focus(), this.handles());
  }

  /** @param {string} reason */
  async update(reason) {
    const { state } = this.store;
    this.root.dataset.view = state.view;
    if (reason === "scene") {
      await drawScene(this.plain, state.scene);
      this.paint();
      return;
    }
    if (reason === "view") {
      this.picked = -1;
      this.showTools();
    }
    this.showAsk();
    this.showSentence();
    this.showCompare();
    this.paint();
    if (reason === "answer" && this.store.result)
      this.status.textContent = `Answer: ${this.store.result.text || "nothing"}`;
  }

  /* ---------------------------------------------------------------- the picture */

  boxes() {
    const { result } = this.store;
    if (!result) return null;
    return result.boxes.map((/** @type {any} */ { label, box: [x0, y0, x1, y1], mask }) => [
      mask ? maskPath(mask, [x0, y0, x1, y1]) : null,
      el("rect", {
        class: "box",
        x: x0 * 1000,
        y: y0 * 1000,
        width: (x1 - x0) * 1000,
        height: (y1 - y0) * 1000,
      }),
      el("text", {
        class: "label",
        x: x0 * 1000 + 10,
        y: Math.max(y0 * 1000 - 12, 34),
        text: label,
      }),
    ]);
  }

  /** The patch that is looked at, and the one that looks. */
  focus() {
    const { store } = this;
    const { view, key } = store.state;
    if (view === "live" || !store.result) return null;
    const { patches, perRow } = store.config;
    const square = (/** @type {number} */ p, /** @type {string} */ name) =>
      p >= 0 && p < patches
        ? el("rect", {
            class: name,
            x: ((p % perRow) * 1000) / perRow,
            y: (Math.floor(p / perRow) * 1000) / perRow,
            width: 1000 / perRow,
            height: 1000 / perRow,
          })
        : null;
    return [square(store.state.token, "query"), square(key, "key")];
  }

  handles() {
    const thing = this.store.state.scene.things[this.picked];
    if (!thing || this.store.state.view !== "live" || thing.kind === "stroke") return null;
    const half = thing.size / 2;
    return el(
      "g",
      { transform: `translate(${thing.x} ${thing.y}) rotate(${thing.turn})` },
      el("rect", {
        class: "picked",
        x: -half,
        y: -half,
        width: thing.size,
        height: thing.size,
        rx: 12,
      }),
      el("circle", { class: "handle", cx: half, cy: half, r: 26 }),
    );
  }

  /** @param {PointerEvent} event @returns {[number, number]} thousandths */
  place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((event.clientX - left) / width) * 1000, ((event.clientY - top) / height) * 1000];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) =>
      this.press(event),
    );
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, () => (this.drag = null));
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.type(event));
    canvas.addEventListener(
      "wheel",
      (/** @type {WheelEvent} */ event) => {
        if (this.store.state.view !== "live" || this.picked < 0) return;
        event.preventDefault();
        this.change({
          size: Math.min(Math.max(this.thing().size * (1 - event.deltaY / 1500), 40), 1400),
        });
      },
      { passive: false },
    );
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) =>
        one.type.startsWith("image/"),
      );
      if (file) this.photo(file);
    });
    canvas.addEventListener("dragover", (/** @type {Event} */ event) => event.preventDefault());
    canvas.addEventListener("drop", (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      if (file?.type.startsWith("image/")) this.photo(file);
    });
  }

  /** @returns {Thing} */
  thing() {
    return this.store.state.scene.things[this.picked];
  }

  /** Changes the picked thing. @param {Partial<Thing>} changes */
  change(changes) {
    const { scene } = this.store.state;
    const things = scene.things.map((one, i) => (i === this.picked ? { ...one, ...changes } : one));
    this.store.set({ scene: { ...scene, things } });
  }

  /** @param {Thing} thing */
  add(thing) {
    const { scene } = this.store.state;
    this.store.hold();
    this.picked = thing.kind === "stroke" ? -1 : scene.things.length;
    this.store.set({ scene: { ...scene, things: [...scene.things, thing] } });
  }

  remove(i = this.picked) {
    const { scene } = this.store.state;
    this.store.hold();
    this.picked = -1;
    this.store.set({ scene: { ...scene, things: scene.things.filter((_, j) => j !== i) } });
  }

  /** @param {PointerEvent} event */
  press(event) {
    const [x, y] = this.place(event);
    const { store } = this;
    if (store.state.view !== "live") return this.choosePatch(x, y);
    this.canvas.setPointerCapture(event.pointerId);
    store.hold();
    if (this.tool === "draw") {
      this.add({
        kind: "stroke",
        name: "",
        x: 0,
        y: 0,
        turn: 0,
        size: 24,
        color: COLORS[this.color],
        points: [[x, y]],
      });
      this.drag = { how: "draw", x, y };
      return;
    }
    const thing = this.thing();
    if (thing) {
      const angle = (thing.turn * Math.PI) / 180;
      const [dx, dy] = [
        thing.x + (thing.size / 2) * (Math.cos(angle) - Math.sin(angle)),
        thing.y + (thing.size / 2) * (Math.sin(angle) + Math.cos(angle)),
      ];
      if (Math.hypot(x - dx, y - dy) < 60) {
        this.drag = { how: "turn", x, y };
        return;
      }
    }
    this.picked = thingAt(store.state.scene, x, y);
    this.drag =
      this.picked >= 0
        ? { how: "move", x: x - (this.thing().x ?? 0), y: y - (this.thing().y ?? 0) }
        : null;
    this.showTools();
    this.paint();
  }

  /** @param {PointerEvent} event */
  move(event) {
    const [x, y] = this.place(event);
    const { drag, store } = this;
    if (!drag) {
      if (store.state.view !== "live" && event.pointerType === "mouse") this.hover(x, y);
      return;
    }
    const round = Math.round;
    if (drag.how === "draw") {
      this.picked = store.state.scene.things.length - 1;
      this.change({ points: [...(this.thing().points ?? []), [round(x), round(y)]] });
      this.picked = -1;
    } else if (drag.how === "move" && this.thing().kind !== "stroke") {
      this.change({ x: round(x - drag.x), y: round(y - drag.y) });
    } else if (drag.how === "turn") {
      const { x: cx, y: cy } = this.thing();
      const far = Math.hypot(x - cx, y - cy);
      const turn = (Math.atan2(y - cy, x - cx) * 180) / Math.PI - 45;
      this.change({
        size: Math.min(Math.max(round(far * Math.SQRT2), 40), 1400),
        turn: round(turn),
      });
    }
  }

  /** @param {KeyboardEvent} event */
  type(event) {
    const { key } = event;
    const step = event.shiftKey ? 50 : 15;
    /** @type {Record<string, [number, number]>} */
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { store } = this;
    if (store.state.view !== "live") {
      if (!(key in arrows)) return;
      const { patches, perRow } = store.config;
      const from = store.token < patches ? store.token : 0;
      const to = from + arrows[key][0] + arrows[key][1] * perRow;
      event.preventDefault();
      if (to >= 0 && to < patches) store.set({ token: to });
      return;
    }
    const things = store.state.scene.things.length;
    if (key === "Enter" && things) {
      this.picked = (this.picked + 1) % things;
      this.showTools();
      this.paint();
    }
    const thing = this.thing();
    if (!thing) return;
    const done = () => event.preventDefault();
    if (key in arrows) {
      done();
      store.hold();
      this.change({ x: thing.x + arrows[key][0] * step, y: thing.y + arrows[key][1] * step });
    }
    if (key === "+" || key === "-") this.change({ size: thing.size * (key === "+" ? 1.1 : 0.9) });
    if (key === "[" || key === "]") this.change({ turn: thing.turn + (key === "[" ? -10 : 10) });
    if (key === "Delete" || key === "Backspace") this.remove();
  }

  /** @param {number} x @param {number} y */
  patchAt(x, y) {
    const { perRow } = this.store.config;
    const cell = (/** @type {number} */ v) =>
      Math.min(Math.max(Math.floor((v / 1000) * perRow), 0), perRow - 1);
    return cell(y) * perRow + cell(x);
  }

  /** @param {number} x @param {number} y */
  choosePatch(x, y) {
    this.store.set({ token: this.patchAt(x, y) });
  }

  /** @param {number} x @param {number} y */
  hover(x, y) {
    const key = this.patchAt(x, y);
    if (key !== this.store.state.key) this.store.set({ key });
  }

  /* ---------------------------------------------------------------- the tools */

  showTools() {
    const { store } = this;
    const isLive = store.state.view === "live";
    this.tools.hidden = this.drawer.hidden = !isLive;
    if (!isLive) return;
    const thing = this.thing();
    const tool = (/** @type {string} */ name, /** @type {string} */ label) =>
      button(label, () => this.use(name), {
        class: "chip",
        "aria-pressed": String(this.tool === name),
      });
    fill(
      this.tools,
      tool("move", "Move"),
      tool("draw", "Draw"),
      tool("stickers", "Stickers"),
      tool("shapes", "Shapes"),
      tool("text", "Word"),
      tool("photo", "Photo"),
      el("span", { class: "spring" }),
      thing ? button("Remove", () => this.remove(), { class: "chip" }) : null,
      button(
        "Clear",
        () => {
          store.hold();
          this.picked = -1;
          store.set({ scene: { ground: store.state.scene.ground, things: [] } });
        },
        { class: "chip" },
      ),
    );
    this.showDrawer();
  }

  /** @param {string} tool */
  use(tool) {
    this.tool = this.tool === tool ? "move" : tool;
    this.showTools();
  }

  showDrawer() {
    const place = () => ({
      x: 350 + Math.round(300 * Math.random()),
      y: 350 + Math.round(300 * Math.random()),
      turn: 0,
    });
    const colors = el(
      "div",
      { class: "colors", role: "group", "aria-label": "colour" },
      COLORS.map((color, i) =>
        el("button", {
          type: "button",
          class: "color",
          "aria-label": COLOR_NAMES[i],
          title: COLOR_NAMES[i],
          "aria-pressed": String(i === this.color),
          style: { background: color },
          on: {
            click: () => {
              this.color = i;
              const thing = this.thing();
              if (thing && (thing.kind === "shape" || thing.kind === "text"))
                this.change({ color });
              this.showDrawer();
            },
          },
        }),
      ),
    );
    /** @type {Record<string, () => any>} */
    const drawers = {
      stickers: () =>
        el(
          "div",
          { class: "stickers" },
          STICKERS.map((name) =>
            el(
              "button",
              {
                type: "button",
                "aria-label": name,
                title: name,
                on: { click: () => this.add({ kind: "sticker", name, size: 300, ...place() }) },
              },
              el("img", { src: stickerUrl(name), alt: "", loading: "lazy", width: 34, height: 34 }),
            ),
          ),
        ),
      shapes: () => [
        colors,
        el(
          "div",
          { class: "row" },
          SHAPES.map((name) =>
            button(
              name,
              () =>
                this.add({ kind: "shape", name, size: 260, color: COLORS[this.color], ...place() }),
              { class: "chip" },
            ),
          ),
        ),
      ],
      draw: () => [colors, el("p", { class: "hint", text: "Draw on the picture." })],
      text: () => {
        const input = el("input", {
          type: "text",
          value: "hello",
          maxlength: 12,
          "aria-label": "the word",
        });
        const add = () =>
          input.value.trim() &&
          this.add({
            kind: "text",
            name: input.value.trim(),
            size: 260,
            color: COLORS[this.color],
            ...place(),
          });
        return [
          colors,
          el(
            "form",
            {
              class: "row",
              on: { submit: (/** @type {Event} */ e) => (e.preventDefault(), add()) },
            },
            input,
            button("Add", add, { class: "chip" }),
          ),
        ];
      },
      photo: () => {
        const input = el("input", {
          type: "file",
          accept: "image/*",
          "aria-label": "a photograph",
          on: { change: () => input.files[0] && this.photo(input.files[0]) },
        });
        return [
          el(
            "div",
            { class: "row" },
            input,
            button("Camera", () => this.webcam(), { class: "chip" }),
          ),
          el("p", {
            class: "hint",
            text: "Or paste one, or drop it on the picture. It stays on this machine. mini knows stickers and shapes; photographs mostly fool it.",
          }),
        ];
      },
      move: () => {
        const ground = el("input", {
          type: "color",
          value: this.store.state.scene.ground,
          "aria-label": "the ground's colour",
          on: {
            input: () =>
              this.store.set({ scene: { ...this.store.state.scene, ground: ground.value } }),
          },
        });
        return el(
          "p",
          { class: "hint" },
          "Drag a thing; its corner turns and scales it. ",
          el("label", {}, "Ground ", ground),
        );
      },
    };
    fill(this.drawer, drawers[this.tool]());
  }

  /** @param {Blob} file */
  async photo(file) {
    const url = URL.createObjectURL(file);
    const image = new Image();
    image.src = url;
    try {
      await image.decode();
    } catch {
      this.status.textContent = "This file is not a picture that the browser can read.";
      return;
    }
    const name = `photo ${Date.now()}`;
    keepPhoto(name, image);
    this.add({
      kind: "photo",
      name,
      x: 500,
      y: 500,
      size: 1000 * Math.min(1, image.naturalWidth / image.naturalHeight),
      turn: 0,
    });
  }

  async webcam() {
    const video = document.createElement("video");
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "environment" },
      });
      video.srcObject = stream;
      await video.play();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d")?.drawImage(video, 0, 0);
      for (const track of stream.getTracks()) track.stop();
      canvas.toBlob((blob) => blob && this.photo(blob));
    } catch {
      this.status.textContent = "There is no camera, or the page may not use it.";
      fill(this.drawer, el("p", { class: "hint", text: this.status.textContent }));
    }
  }

  /* ---------------------------------------------------------------- question and answer */

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
    );
  }

  showSentence() {
    const { store } = this;
    const { result } = store;
    if (!result) return fill(this.sentence, el("p", { class: "hint", text: "…" }));
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
        text: `${Math.round(ms.tower + ms.prefill + ms.decode)} ms: tower ${Math.round(ms.tower)}, prompt ${Math.round(ms.prefill)}, ${result.answer.length} words ${Math.round(ms.decode)}`,
      }),
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

/** A mask as squares of 1/64 of its box. @param {Float32Array} mask @param {number[]} box */
export function maskPath(mask, [x0, y0, x1, y1]) {
  const [w, h] = [((x1 - x0) * 1000) / 64, ((y1 - y0) * 1000) / 64];
  let path = "";
  for (let y = 0; y < 64; y++)
    for (let x = 0; x < 64;) {
      let end = x;
      while (end < 64 && mask[y * 64 + end] > 0) end++;
      if (end > x)
        path += `M${(x0 * 1000 + x * w).toFixed(1)} ${(y0 * 1000 + y * h).toFixed(1)}h${((end - x) * w).toFixed(1)}v${h.toFixed(2)}h${(-(end - x) * w).toFixed(1)}z`;
      x = end + 1;
    }
  return el("path", { class: "mask", d: path });
}
