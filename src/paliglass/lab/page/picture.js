// The picture: drawn on by hand in the first view, looked into in the others.

import { el, fill } from "./dom.js";
import { drawMap, legend } from "./draw.js";
import { SIDE, thingAt } from "./scene.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./scene.js").Thing} Thing */
/** @typedef {import("./tools.js").Tools} Tools */

export class Picture {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.picked = -1; // the thing that is being moved
    /** @type {any} */
    this.drag = null;
    /** @type {Tools | null} */
    this.tools = null;
    /** @type {import("./draw.js").HeatMap | null} */
    this.map = null;
    this.name = "";
    this.patch = -1; // the one that a view looks at, where the reader has chosen none
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
    this.spot = this.over.cloneNode();
    this.lit = -1; // the place of the sequence that is pointed at, anywhere on the page
    this.rule = el("style");
    document.head.append(this.rule);
    this.scale = el("div", { class: "scale" });
    this.root = el("div", { class: "frame" }, this.canvas, this.over, this.spot, this.scale);
    this.listen();
  }

  /** Shows a map over the picture, until another view takes it away.
   * @param {import("./draw.js").HeatMap | null} map @param {string} name */
  showMap(map, name = "") {
    this.map = map;
    this.name = name;
    this.paint();
  }

  /** @param {number} patch */
  showPatch(patch) {
    this.patch = patch;
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
    const query = this.patch >= 0 ? this.patch : store.state.token;
    return [this.square(query, "query"), this.square(key, "key")];
  }

  /** A patch's outline. @param {number} patch @param {string} name */
  square(patch, name) {
    const { patches, perRow } = this.store.config;
    if (patch < 0 || patch >= patches) return null;
    return el("rect", {
      class: name,
      x: ((patch % perRow) * 1000) / perRow,
      y: (Math.floor(patch / perRow) * 1000) / perRow,
      width: 1000 / perRow,
      height: 1000 / perRow,
    });
  }

  /** Lights a place of the sequence wherever the page shows it: a rule, which outlives what views draw
   * anew. @param {number} place −1: none */
  light(place) {
    if (place === this.lit) return;
    this.lit = place;
    this.rule.textContent =
      place < 0 ? "" : `[data-place="${place}"] { box-shadow: 0 0 0 2px currentcolor; }`;
    fill(this.spot, this.square(place, "lit"));
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
      canvas.addEventListener(name, (/** @type {PointerEvent} */ event) => {
        const { drag } = this;
        this.drag = null;
        if (drag?.how !== "choose") return;
        this.light(-1);
        if (name === "pointerup") this.choosePatch(...this.place(event));
      });
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
    for (const name of ["pointerover", "focusin"])
      document.addEventListener(name, ({ target }) => {
        const node = target instanceof Element ? target.closest("[data-place]") : null;
        this.light(node ? Number(/** @type {HTMLElement} */ (node).dataset.place) : -1);
      });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) =>
        one.type.startsWith("image/"),
      );
      if (file) this.tools?.photo(file);
    });
    canvas.addEventListener("dragover", (/** @type {Event} */ event) => event.preventDefault());
    canvas.addEventListener("drop", (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      if (file?.type.startsWith("image/")) this.tools?.photo(file);
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
    if (store.state.view !== "live") {
      if (event.pointerType === "mouse") return this.choosePatch(x, y);
      this.drag = { how: "choose" }; // a finger is wider than a patch: it slides to the right one
      return this.light(this.patchAt(x, y));
    }
    this.canvas.setPointerCapture(event.pointerId);
    store.hold();
    if (this.tools?.tool === "draw") {
      this.add({
        kind: "stroke",
        name: "",
        x: 0,
        y: 0,
        turn: 0,
        size: 24,
        color: this.tools.color,
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
    this.tools?.show();
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
    if (drag.how === "choose") this.light(this.patchAt(x, y));
    else if (drag.how === "draw") {
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
      const from = this.patch >= 0 ? this.patch : store.token < patches ? store.token : 0;
      const to = from + arrows[key][0] + arrows[key][1] * perRow;
      event.preventDefault();
      if (to >= 0 && to < patches) store.set({ token: to });
      return;
    }
    const things = store.state.scene.things.length;
    if (key === "Enter" && things) {
      this.picked = (this.picked + 1) % things;
      this.tools?.show();
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
    this.light(key);
    if (key !== this.store.state.key) this.store.set({ key });
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
        path += `M${(x0 * 1000 + x * w).toFixed(1)} ${(y0 * 1000 + y * h).toFixed(1)}h${((end - x) * w).toFixed(1)}v${(h + 0.6).toFixed(2)}h${(-(end - x) * w).toFixed(1)}z`;
      x = end + 1;
    }
  return el("path", { class: "mask", d: path });
}
