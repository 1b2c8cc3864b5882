// How the page is read and used, in a dialog.

import { button, el, openDialog } from "./dom.js";

/** @type {[string, string][]} */
const KEYS = [
  ["1 … 9, 0", "views 1 to 10"],
  ["Shift and 1 … 5", "views 11 to 15"],
  ["?", "this help"],
  ["Esc", "closes it, or a lesson"],
  [
    "on the picture, in view 1",
    "Enter takes the next thing; arrows move it; + and − scale it, [ and ] turn it, Delete takes it away",
  ],
  ["on the picture, elsewhere", "arrows go from patch to patch"],
];

export const helpButton = () =>
  button("?", openHelp, { class: "icon", "aria-label": "help", title: "help: key ?" });

export function openHelp() {
  openDialog(
    "help",
    el("span", { class: "spring" }),
    el(
      "article",
      { class: "lesson-text" },
      el("h1", { text: "How to read this page" }),
      el("p", {
        text: "A model looks at the picture, is asked something, and answers. It is computed anew after each change, and every number on the page is taken from that.",
      }),
      el(
        "p",
        {},
        "Colours say what a number belongs to: ",
        el("b", { class: "c-vision", text: "the picture's patches" }),
        ", ",
        el("b", { class: "c-word", text: "the prompt's words" }),
        ", ",
        el("b", { class: "c-answer", text: "the answer" }),
        ".",
      ),
      el("p", {
        text: "The line under a word of the answer is as long as the model was sure of it; ⏎ is the newline that ends every prompt.",
      }),
      el("p", {
        text: "Choose a word in the sentence or a patch in the picture, a layer, a head: all views look at the same. What you point at is lit wherever it is shown. The address holds all of it, so that a link brings it back.",
      }),
      el("p", {
        text: "A tour asks what you expect, does it, and says why. Under each view “In words” tells in a sentence what is drawn, and a lesson explains it from the start.",
      }),
      el("h2", { text: "Keys" }),
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          KEYS.map(([key, text]) =>
            el("tr", {}, el("th", { scope: "row", text: key }), el("td", { text })),
          ),
        ),
      ),
    ),
  );
}
