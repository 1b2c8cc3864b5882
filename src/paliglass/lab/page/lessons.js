// The lessons, in the page: they were made into HTML when the file was written (see build.py), and are
// unpacked when the first is opened.

import { button, el, fill } from "./dom.js";
import { json } from "./parts.js";

/** @type {Record<string, {number: number, title: string}>} by topic */
const titles = JSON.parse(document.getElementById("lesson-titles")?.textContent || "{}");

/** @type {Promise<Record<string, string>> | null} HTML by topic */
let texts = null;

/** @type {HTMLDialogElement | null} */
let dialog = null;

/** Opens a lesson over the page. @param {string} topic */
async function open(topic) {
  texts ??= json("lessons");
  texts.catch(() => (texts = null)); // a network that is back may be asked again
  const html = (await texts)[topic];
  if (!dialog) {
    const made = el("dialog", { class: "lesson", "aria-label": "lesson" });
    made.addEventListener("click", (/** @type {Event} */ event) => {
      if (event.target === made) made.close();
      const link = event.target instanceof Element ? event.target.closest("a") : null;
      if (!link) return;
      const [, other] = /^#lesson=(\w+)$/.exec(link.getAttribute("href") ?? "") ?? [];
      if (!other) return;
      event.preventDefault();
      open(other);
    });
    document.body.append(made);
    dialog = made;
  }
  const shown = /** @type {HTMLDialogElement} */ (dialog);
  const beside = (/** @type {number} */ step, /** @type {string} */ label) => {
    const at = titles[topic].number + step;
    const other = Object.keys(titles).find((one) => titles[one].number === at);
    const name = other ? `lesson ${at}: ${titles[other].title}` : null;
    return (
      other && button(label, () => open(other), { class: "icon", "aria-label": name, title: name })
    );
  };
  fill(
    shown,
    el(
      "div",
      { class: "lesson-top" },
      el(
        "span",
        { class: "hint" },
        "with its code run: ",
        el("code", { text: `paliglass learn ${topic}` }),
      ),
      el("span", { class: "spring" }),
      beside(-1, "←"),
      beside(1, "→"),
      button("×", () => shown.close(), { class: "icon", "aria-label": "close the lesson" }),
    ),
    // Our own documentation, escaped where it was made.
    el("article", { class: "lesson-text", html }),
  );
  for (const block of shown.querySelectorAll("pre, table")) block.setAttribute("tabindex", "0");
  if (!shown.open) shown.showModal();
  shown.scrollTop = 0;
}

/** What leads to a lesson; the command alone where the page was made without them. @param {string} topic */
export function lessonLink(topic) {
  const found = titles[topic];
  if (!found) return el("code", { text: `paliglass learn ${topic}` });
  return button(`Lesson ${found.number}: ${found.title.replaceAll("`", "")}`, () => open(topic), {
    class: "link",
  });
}

/** A view's heading: what it is, what it teaches, where to read on.
 * @param {string} title @param {string} text @param {string} lesson @param {string} source */
export function heading(title, text, lesson, source) {
  return el(
    "header",
    { class: "heading" },
    el("h2", { text: title }),
    el("p", { text }),
    el("p", { class: "more" }, lessonLink(lesson), " · source ", el("code", { text: source })),
  );
}
