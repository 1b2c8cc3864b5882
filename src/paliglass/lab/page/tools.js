// What the picture is drawn with: stickers, shapes, words, strokes, photographs.

import { button, el, fill } from "./dom.js";
import { COLORS, COLOR_NAMES, SHAPES, allStickers, keepPhoto } from "./scene.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./picture.js").Picture} Picture */

export class Tools {
  /** @param {Store} store @param {Picture} picture */
  constructor(store, picture) {
    this.store = store;
    this.picture = picture;
    this.tool = "move";
    this.chosen = 0; // the colour
    this.bar = el("div", { class: "tools" });
    this.drawer = el("div", { class: "drawer" });
    picture.tools = this;
    this.show();
  }

  get color() {
    return COLORS[this.chosen];
  }

  /** @param {string} text what went wrong */
  say(text) {
    fill(this.drawer, el("p", { class: "hint", role: "alert", text }));
  }

  show() {
    const { store } = this;
    const isLive = store.state.view === "live";
    this.bar.hidden = this.drawer.hidden = !isLive;
    if (!isLive) return;
    const thing = this.picture.thing();
    const tool = (/** @type {string} */ name, /** @type {string} */ label) =>
      button(label, () => this.use(name), {
        class: "chip",
        "aria-pressed": String(this.tool === name),
      });
    fill(
      this.bar,
      tool("move", "Move"),
      tool("draw", "Draw"),
      tool("stickers", "Stickers"),
      tool("shapes", "Shapes"),
      tool("text", "Word"),
      tool("photo", "Photo"),
      el("span", { class: "spring" }),
      thing ? button("Remove", () => this.picture.remove(), { class: "chip" }) : null,
      button(
        "Clear",
        () => {
          store.hold();
          this.picture.picked = -1;
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
    this.show();
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
          "aria-pressed": String(i === this.chosen),
          style: { background: color },
          on: {
            click: () => {
              this.chosen = i;
              const thing = this.picture.thing();
              if (thing && (thing.kind === "shape" || thing.kind === "text"))
                this.picture.change({ color });
              this.showDrawer();
            },
          },
        }),
      ),
    );
    /** @type {Record<string, () => any>} */
    const drawers = {
      stickers: () => {
        const list = el("div", { class: "stickers" });
        const add = (/** @type {string} */ name) =>
          this.picture.add({ kind: "sticker", name, size: 300, ...place() });
        allStickers().then((found) =>
          fill(
            list,
            found.map(([name, src]) =>
              button(
                el("img", { src, alt: "", loading: "lazy", width: 34, height: 34 }),
                () => add(name),
                { "aria-label": name, title: name },
              ),
            ),
          ),
        );
        return list;
      },
      shapes: () => [
        colors,
        el(
          "div",
          { class: "row" },
          SHAPES.map((name) =>
            button(
              name,
              () =>
                this.picture.add({ kind: "shape", name, size: 260, color: this.color, ...place() }),
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
          this.picture.add({
            kind: "text",
            name: input.value.trim(),
            size: 260,
            color: this.color,
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
            text: "Or paste one, or drop it on the picture. It stays on this machine. mini, which the page comes with, knows stickers and shapes; photographs mostly fool it.",
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
      this.say("This file is not a picture that the browser can read.");
      return;
    }
    const name = `photo ${Date.now()}`;
    keepPhoto(name, image);
    this.picture.add({
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
      this.say("There is no camera, or the page may not use it.");
    }
  }
}
