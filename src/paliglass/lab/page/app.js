// The page: boots the engine, then one stage and one view at a time beside it.

import { makeClient } from "./client.js";
import { button, el, fill, tellFailures } from "./dom.js";
import { helpButton, openHelp } from "./help.js";
import { allStickers } from "./scene.js";
import { Stage } from "./stage.js";
import { Store, fromHash, toHash } from "./store.js";
import { Tour } from "./tours.js";
import { attentionView } from "./views/attention.js";
import { benchView } from "./views/bench.js";
import { bitsView } from "./views/bits.js";
import { boxesView } from "./views/boxes.js";
import { breakView } from "./views/break.js";
import { cacheView } from "./views/cache.js";
import { contrastiveView } from "./views/contrastive.js";
import { lensView } from "./views/lens.js";
import { liveView } from "./views/live.js";
import { maskView } from "./views/mask.js";
import { patchesView } from "./views/patches.js";
import { rooflineView } from "./views/roofline.js";
import { ropeView } from "./views/rope.js";
import { streamView } from "./views/stream.js";
import { tokensView } from "./views/tokens.js";

const VIEWS = [
  liveView,
  attentionView,
  maskView,
  benchView,
  breakView,
  boxesView,
  cacheView,
  lensView,
  ropeView,
  contrastiveView,
  patchesView,
  streamView,
  tokensView,
  bitsView,
  rooflineView,
];

/** Light or dark: the reader's choice from here on, no longer the system's. */
function themeButton() {
  const { dataset } = document.documentElement;
  return button(
    "◐",
    () => {
      dataset.theme = dataset.theme === "dark" ? "light" : "dark";
      dataset.chosen = "";
      store?.notify("select");
    },
    { class: "icon", "aria-label": "light or dark", title: "light or dark" },
  );
}

/** @param {Store} store */
function linkButton(store) {
  const control = button(
    "Link",
    async () => {
      const url = location.href.split("#")[0] + toHash(store.state);
      history.replaceState(null, "", url);
      try {
        await navigator.clipboard.writeText(url);
        control.textContent = "Copied";
      } catch {
        control.textContent = "See the address";
      }
      setTimeout(() => (control.textContent = "Link"), 1500);
    },
    { class: "chip", title: "the whole state is in the address; photographs are not" },
  );
  return control;
}

/** Says whose lab this is on a server of another model. @param {string} served */
function servedNote(served) {
  document
    .querySelector(".top")
    ?.after(
      el(
        "p",
        { class: "served" },
        "This server answers with ",
        el("b", { text: served }),
        ". The lab below is mini, which runs in your browser: every number of a run is kept to be asked about, gigabytes for a large model, and a server shared by many gives nobody that. On your own machine ",
        el("code", { text: "paliglass lab --model NAME" }),
        " opens the same page on any model. ",
        el("a", { href: "docs", text: "The server's interface" }),
        ".",
      ),
    );
}

/** @type {Store | undefined} */
let store;

async function main() {
  const app = /** @type {HTMLElement} */ (document.getElementById("app"));
  const loading = /** @type {HTMLElement} */ (document.getElementById("loading"));
  allStickers().catch(() => {}); // come while the engine starts; whoever draws one is told
  let client, loaded;
  try {
    client = makeClient();
    loaded = await client.load();
  } catch (error) {
    loading.textContent = `The model cannot be unpacked here: ${error instanceof Error ? error.message : error}. A browser of 2023 or later can.`;
    return;
  }
  store = new Store(client, loaded.config);
  const own = store;
  client.told = (arrived, of) => own.arrive(arrived, of);
  const stage = new Stage(own);
  const tour = new Tour(own);
  const nav = el("nav", { class: "views", "aria-label": "views" });
  const panel = el("section", { class: "panel", id: "panel" });
  loading.replaceWith(
    el("div", { class: "row" }, tour.menu(), linkButton(own), helpButton(), themeButton()),
  );
  const { served = own.name } = document.body.dataset;
  if (served !== own.name) servedNote(served);
  if (own.name !== "mini")
    document.querySelector("h1")?.append(el("span", { class: "hint", text: own.name }));
  app.append(tour.root, nav, el("main", { class: "desk" }, stage.root, panel), tellFailures());

  /** @type {{update: (reason: string) => void, leave?: () => void} | null} */
  let view = null;
  let name = "";
  const show = () => {
    const found = VIEWS.find(({ id }) => id === own.state.view) ?? VIEWS[0];
    fill(
      nav,
      VIEWS.map(({ id, title }, i) =>
        button(
          [el("span", { class: "count", text: String(i + 1) }), title],
          () => own.set({ view: id }),
          {
            "aria-current": id === found.id ? "page" : null,
            title: `key ${i > 9 ? "Shift " : ""}${(i + 1) % 10}`,
          },
        ),
      ),
    );
    // Later: it wants the layout, which is not done yet.
    requestAnimationFrame(() =>
      nav.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }),
    );
    if (found.id === name) {
      view?.update("view");
      return;
    }
    view?.leave?.();
    stage.showMap(null);
    stage.showPatch(-1);
    name = found.id;
    const root = el("div", { class: `view ${found.id}` });
    fill(panel, root);
    view = found.mount(root, own, stage);
    view?.update("view");
  };
  own.subscribe((reason) => {
    if (reason === "view") show();
    else if (reason !== "arriving") view?.update(reason);
  });
  document.getElementById("skip")?.addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("answer")?.focus();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping =
      event.target instanceof HTMLElement &&
      event.target.closest("input, textarea, select, canvas, dialog");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?") return openHelp();
    // The key, not what it writes: that depends on the keyboard, and on some takes Shift for a digit.
    const [, digit] = /^Digit(\d)$/.exec(event.code) ?? /^(\d)$/.exec(event.key) ?? [];
    const found = digit && VIEWS[(Number(digit) || 10) - 1 + (event.shiftKey ? 10 : 0)];
    if (found) own.set({ view: found.id });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => own.notify("select"));
  window.addEventListener("hashchange", () => {
    Object.assign(own.state, fromHash(location.hash));
    name = ""; // the view's own dials are others now
    own.notify("scene");
    own.notify("view");
    own.run();
  });
  show();
  await own.run();
  document.documentElement.dataset.ready = "true";
  tour.resume();
  Object.assign(window, { lab: { store: own, stage, tour, tours: tour.tours } });
}

main();
