// What the page knows: one state, of which the address is a copy, and the answer that belongs to it.

import { RemoteClient } from "./client.js";
import { hasPhoto, pixelsOf } from "./scene.js";

/** @typedef {import("./scene.js").Scene} Scene */
/** @typedef {import("./client.js").Client | import("./client.js").RemoteClient} Client */
/** @typedef {import("../engine/edits.js").Edits} Edits */
/**
 * @typedef {object} State
 * @property {string} view @property {Scene} scene
 * @property {string} task @property {Record<string, string>} words by task: what is asked for
 * @property {Edits} edits @property {boolean} grammar @property {any} sampling @property {number[]} forced
 * @property {"tower" | "decoder"} part @property {number} layer @property {number} head
 * @property {number} token the query: a place in the sequence @property {number} key the token looked at, −1: the one looked at most
 * @property {boolean} to who looks at it, instead of where it looks
 * @property {string} tour "" or a tour's name @property {number} step
 * @property {Record<string, any>} own what a view alone has, by its name; see `Store.own`
 */

const HELD = 8; // runs that an engine keeps when asked; see engine/lab.js

/** @type {State} */
export const START = {
  view: "live",
  scene: {
    ground: "#e8f1e4",
    things: [
      { kind: "sticker", name: "tractor", x: 300, y: 640, size: 420, turn: 0 },
      { kind: "sticker", name: "doughnut", x: 735, y: 330, size: 300, turn: 0 },
      { kind: "shape", name: "star", x: 260, y: 220, size: 230, turn: 0, color: "#ffd43b" },
    ],
  },
  task: "caption",
  words: { ask: "what colour is the star?", detect: "tractor ; doughnut", segment: "tractor" },
  edits: {},
  grammar: false,
  sampling: { temperature: 1, topK: 0, topP: 1, minP: 0, seed: 1 },
  forced: [],
  part: "decoder",
  layer: 1,
  head: 0,
  token: -1,
  key: -1,
  to: false,
  tour: "",
  step: 0,
  own: {},
};

export const TASKS = {
  caption: { label: "Caption", prompt: () => "caption en" },
  describe: { label: "Describe", prompt: () => "describe en" },
  ask: { label: "Ask", prompt: (/** @type {string} */ words) => `answer en ${words}` },
  detect: { label: "Detect", prompt: (/** @type {string} */ words) => `detect ${words}` },
  segment: { label: "Segment", prompt: (/** @type {string} */ words) => `segment ${words}` },
  read: { label: "Read", prompt: () => "ocr" },
};

/** What of a state differs from the start, for the address. Photographs stay in the page.
 * @param {State} state */
export function toHash(state) {
  const changed = Object.entries(state).filter(
    ([name, value]) => JSON.stringify(value) !== JSON.stringify(/** @type {any} */ (START)[name]),
  );
  const data = Object.fromEntries(changed);
  if (data.scene)
    data.scene = {
      ...data.scene,
      things: data.scene.things.filter((/** @type {any} */ one) => one.kind !== "photo"),
    };
  if (data.edits?.patches) data.edits = { ...data.edits, patches: undefined }; // too long for a link
  return changed.length ? `#${encodeURIComponent(JSON.stringify(data))}` : "#";
}

/** @param {string} hash @returns {State} */
export function fromHash(hash) {
  const state = structuredClone(START);
  if (hash.length < 2) return state;
  try {
    const data = JSON.parse(decodeURIComponent(hash.slice(1)));
    for (const [name, start] of Object.entries(START))
      if (isLike(data[name], start) && (FITS[name]?.(data[name]) ?? true))
        /** @type {any} */ (state)[name] = data[name];
    state.scene.things = state.scene.things.filter(
      ({ kind, name }) => kind !== "photo" || hasPhoto(name),
    );
  } catch {
    console.warn("the address holds no state that can be read; starting anew");
  }
  return state;
}

/** Whether a link's value may take the place of another: of its kind, a list of things of their kinds
 * or, where it starts empty, any list. @param {any} value @param {any} other @returns {boolean} */
const isLike = (value, other) =>
  kindOf(value) === kindOf(other) &&
  (!Array.isArray(other) ||
    !other.length ||
    (value.length === other.length && other.every((one, i) => isLike(value[i], one))));

/** @param {any} value */
const kindOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);

/** Whether a link's number counts something from 0. @param {any} value */
export const isIndex = (value) => Number.isInteger(value) && value >= 0;

/** @param {any} thing of a picture */
const isThing = (thing) =>
  kindOf(thing) === "object" &&
  (thing.points === undefined || (isLike(thing.points, []) && thing.points.every(Array.isArray)));

/** What else has to hold of what a link brings. @type {Record<string, (value: any) => boolean>} */
const FITS = {
  scene: ({ ground, things }) =>
    typeof ground === "string" && isLike(things, []) && things.every(isThing),
  task: (task) => Object.hasOwn(TASKS, task),
  words: (words) => Object.values(words).every((one) => typeof one === "string"),
  sampling: (given) => Object.entries(START.sampling).every(([one, v]) => isLike(given[one], v)),
  forced: (ids) => ids.every(isIndex),
  layer: isIndex,
  head: isIndex,
  token: Number.isInteger,
  key: Number.isInteger,
};

export class Store {
  /** @param {Client} client @param {any} config */
  constructor(client, config) {
    this.client = client;
    this.config = config;
    this.name = document.body.dataset.model ?? "mini"; // of the model
    this.isRemote = client instanceof RemoteClient;
    this.state = fromHash(location.hash);
    /** @type {any} the answer to the state */
    this.result = null;
    this.failure = ""; // why there is no answer
    this.arrived = 0; // share of the model, on its way into the page
    /** @type {{result: any, scene: Scene, prompt: string, edits: Edits, pinned: boolean} | null} */
    this.before = null;
    /** @type {((reason: string) => void)[]} */
    this.listeners = [];
    this.version = 0;
    this.drawn = "";
    /** @type {Promise<any>} the engine has the picture that was drawn */
    this.given = Promise.resolve();
    this.busy = false;
    this.again = false;
    /** @type {number[]} runs that the engine was asked to keep */
    this.held = [];
    /** @type {Map<string, any>} answers to be compared with, by what was asked */
    this.kept = new Map();
    this.towerTime = 0; // milliseconds that a picture took when it was last looked at anew
    /** @type {any} */
    this.idle = Promise.resolve();
  }

  /** @param {number} bytes of the model that have come, unpacked @param {number} of */
  arrive(bytes, of) {
    const share = bytes / of;
    if (share < 1 && share - this.arrived < 0.02) return; // often enough to be looked at
    this.arrived = share;
    if (!this.result) this.notify("arriving");
  }

  get prompt() {
    const { task, words } = this.state;
    return /** @type {any} */ (TASKS)[task].prompt((words[task] ?? "").trim());
  }

  /** @param {(reason: string) => void} listener */
  subscribe(listener) {
    this.listeners.push(listener);
  }

  /** @param {string} reason "select", "answer", "view", "scene", or "arriving": more of the model */
  notify(reason) {
    for (const listener of this.listeners) listener(reason);
  }

  /** Changes the state; answers anew where the answer depends on it. @param {Partial<State>} changes */
  set(changes) {
    const asks = ["scene", "task", "words", "edits", "grammar", "forced"].some(
      (name) => name in changes,
    );
    if ("edits" in changes) this.keepPlain();
    if (asks && !("forced" in changes)) this.state.forced = [];
    Object.assign(this.state, changes);
    this.remember();
    const reasons = ["view", "scene"].filter((name) => name in changes);
    for (const reason of reasons.length ? reasons : ["select"]) this.notify(reason);
    if (asks) this.run();
  }

  /** A view's own dials and choices, which the address keeps: an object to be read and written.
   * @template {Record<string, any>} T
   * @param {string} view @param {T} start what they are at first
   * @param {Record<string, (value: any) => boolean>} fits what else has to hold of a link's values
   * @returns {T} */
  own(view, start, fits = {}) {
    /** @type {any} */
    const values = { ...start };
    const kept = Object(Object(this.state.own)[view]);
    for (const [name, value] of Object.entries(start))
      if (isLike(kept[name], value) && (fits[name]?.(kept[name]) ?? true))
        values[name] = kept[name];
    const set = (/** @type {any} */ _, /** @type {string} */ name, /** @type {any} */ value) => {
      values[name] = value;
      const changed = Object.entries(values).filter(([one, now]) => now !== start[one]);
      this.state.own = { ...this.state.own, [view]: Object.fromEntries(changed) };
      if (!changed.length) delete this.state.own[view];
      this.remember();
      return true;
    };
    return new Proxy(values, { set });
  }

  remember() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => history.replaceState(null, "", toHash(this.state)), 250);
  }

  /** Keeps the present state as A, what the next ones are compared with. @param {boolean} pinned */
  hold(pinned = false) {
    if (!this.result || (this.before?.pinned && !pinned)) return;
    const { scene, edits } = structuredClone(this.state);
    this.before = { result: this.result, scene, prompt: this.prompt, edits, pinned };
    this.keep(this.result.run);
    this.notify("select");
  }

  /** Answers the present state; while one answer is computed, only the newest wish is kept. */
  run() {
    if (this.busy) {
      this.again = true;
      return this.idle;
    }
    this.busy = true;
    // What is on view belongs to the state before.
    if (this.result) document.documentElement.dataset.busy = "true";
    this.idle = this.runAll();
    return this.idle;
  }

  async runAll() {
    try {
      do {
        this.again = false;
        this.result = await this.answer(await this.picture(), this.state.edits, this.state.forced);
        const { length } = this.result;
        if (this.state.token >= length) this.state.token = -1;
        if (this.state.key >= length) this.state.key = -1;
        if (this.again) this.notify("answer");
      } while (this.again);
      this.failure = "";
    } catch (error) {
      this.failure = error instanceof Error ? error.message : String(error);
      this.result = null;
    } finally {
      this.busy = false;
    }
    const { dataset } = document.documentElement;
    delete dataset.busy;
    if (this.failure) dataset.failed = "true";
    else delete dataset.failed;
    this.notify("answer");
  }

  /** The present picture's name with the engine, which is given it where it is new. */
  async picture() {
    const drawn = JSON.stringify(this.state.scene);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      const name = `p${++this.version}`;
      this.given = pixelsOf(this.state.scene).then((picture) =>
        this.client.ask("picture", { name, picture }),
      );
      // A sticker that did not come may come the next time.
      this.given.catch(() => (this.drawn = this.drawn === drawn ? "" : this.drawn));
    }
    const name = `p${this.version}`;
    await this.given;
    return name;
  }

  /** @param {string} picture @param {Edits} edits @param {number[]} forced */
  async answer(picture, edits, forced = [], prompt = this.prompt, grammar = this.state.grammar) {
    const asked = { picture, prompt, edits, forced, grammar };
    const result = await this.client.ask("run", asked);
    const { tower } = result.milliseconds;
    if (tower >= 1) this.towerTime = tower; // else it was kept from before
    return { ...result, edits };
  }

  /** Whether nothing is changed in the model, and nothing put into its mouth. */
  get isPlain() {
    return !Object.keys(this.state.edits).length && !this.state.forced.length;
  }

  /** The answer to the same question with nothing changed in the model. */
  async baseline() {
    return this.isPlain && this.result ? this.result : this.otherwise({});
  }

  /** The answer to the same question with other edits. @param {Edits} edits @param {number[]} forced */
  async otherwise(edits, forced = []) {
    const picture = await this.picture();
    const key = this.keyOf(edits, forced);
    if (!this.kept.has(key)) this.setKept(key, await this.answer(picture, edits, forced));
    return this.kept.get(key);
  }

  /** @param {Edits} edits @param {number[]} forced */
  keyOf(edits, forced = []) {
    return JSON.stringify([this.version, this.prompt, this.state.grammar, edits, forced]);
  }

  /** @param {string} key @param {any} result */
  setKept(key, result) {
    this.kept.set(key, result);
    this.keep(result.run);
  }

  /** Has the engine keep a run; what it lets go of for that is forgotten here, too. @param {number} run */
  keep(run) {
    this.held = [...this.held.filter((one) => one !== run), run].slice(-HELD);
    for (const [key, found] of this.kept) if (!this.held.includes(found.run)) this.kept.delete(key);
    return this.client.ask("keep", { run });
  }

  /** Keeps the answer on view before something is changed, so that it need not be computed again. */
  keepPlain() {
    const isOwn = JSON.stringify(this.state.scene) === this.drawn;
    const key = this.keyOf({});
    if (this.result && this.isPlain && !this.kept.has(key) && !this.busy && isOwn)
      this.setKept(key, this.result);
  }

  /** About how long so many pictures take, in words. @param {number} count
   * @param {boolean} answered to the end, not the prompt alone */
  estimate(count, answered = true) {
    if (!this.result) return "a while";
    const { prefill, decode } = this.result.milliseconds;
    const seconds = (count * (this.towerTime + prefill + (answered ? decode : 0))) / 1000;
    return seconds < 90
      ? `about ${Math.ceil(seconds)} s`
      : `about ${Math.ceil(seconds / 60)} minutes`;
  }

  /** The place whose row is looked at: by default the one after which the answer begins. */
  get token() {
    if (!this.result) return 0;
    return this.state.token >= 0 ? this.state.token : this.result.prompt.length - 1;
  }

  /** What stands at a place of the sequence. @param {number} place */
  word(place) {
    const { patches, perRow } = this.config;
    if (!this.result) return "";
    if (place < patches) return `patch ${Math.floor(place / perRow) + 1}·${(place % perRow) + 1}`;
    const { promptWords, answerWords } = this.result;
    return [...promptWords, ...answerWords][place] ?? "";
  }
}
