// What stays in sight: the picture, the question, the answer. In the first view also the tools to draw.

import { el } from "./dom.js";
import { Picture } from "./picture.js";
import { drawScene } from "./scene.js";
import { Talk } from "./talk.js";
import { Tools } from "./tools.js";

/** @typedef {import("./store.js").Store} Store */

export class Stage {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.picture = new Picture(store);
    this.tools = new Tools(store, this.picture);
    this.talk = new Talk(store);
    this.root = el(
      "section",
      {
        class: "stage",
        "aria-label": "picture, question and answer",
        style: { "--per-row": store.config.perRow },
      },
      this.picture.root,
      this.talk.root,
      this.tools.bar,
      this.tools.drawer,
      this.talk.compare,
    );
    store.subscribe((reason) => this.update(reason));
    this.update("scene");
  }

  /** The picture without anything over it. */
  get plain() {
    return this.picture.plain;
  }

  /** Shows a map over the picture, until another view takes it away.
   * @param {import("./draw.js").HeatMap | null} map @param {string} name */
  showMap(map, name = "") {
    this.picture.showMap(map, name);
  }

  /** Marks a patch on the picture where the reader has chosen none, until another view takes it away.
   * @param {number} patch −1: none */
  showPatch(patch) {
    this.picture.showPatch(patch);
  }

  /** Lights a place of the sequence wherever the page shows it. @param {number} place −1: none */
  light(place) {
    this.picture.light(place);
  }

  /** @param {string} reason */
  async update(reason) {
    const { state } = this.store;
    this.root.dataset.view = state.view;
    if (reason === "arriving") return this.talk.showSentence();
    if (reason === "scene") {
      await drawScene(this.plain, state.scene);
      this.picture.paint();
      return;
    }
    if (reason === "view") {
      this.picture.picked = -1;
      this.tools.show();
    }
    this.talk.update(reason);
    this.picture.paint();
  }
}
