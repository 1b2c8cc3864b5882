// The lessons, in the page: they were made into HTML when the file was written (see build.py), and are
// unpacked when the first is opened.

import { button, el, openDialog } from "./dom.js";
import { json } from "./parts.js";

/** @type {Record<string, {number: number, title: string}>} by topic */
const titles = JSON.parse(document.getElementById("lesson-titles")?.textContent || "{}");

/** @type {Promise<Record<string, string>> | null} HTML by topic */
let texts = null;

/** Opens a lesson over the page. @param {string} topic */
async function open(topic) {
  texts ??= json("lessons");
  texts.catch(() => (texts = null)); // a network that is back may be asked again
  const html = (await texts)[topic];
  const beside = (/** @type {number} */ step, /** @type {string} */ label) => {
    const at = titles[topic].number + step;
    const other = Object.keys(titles).find((one) => titles[one].number === at);
    const name = other ? `lesson ${at}: ${titles[other].title}` : null;
    return (
      other && button(label, () => open(other), { class: "icon", "aria-label": name, title: name })
    );
  };
  const follow = (/** @type {Event} */ event) => {
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    const [, other] = /^#lesson=(\w+)$/.exec(link?.getAttribute("href") ?? "") ?? [];
    if (!other) return;
    event.preventDefault();
    open(other);
  };
  // Our own documentation, escaped where it was made.
  const text = el("article", { class: "lesson-text", html, on: { click: follow } });
  for (const block of text.querySelectorAll("pre, table")) block.setAttribute("tabindex", "0");
  openDialog(
    "lesson",
    [
      el(
        "span",
        { class: "hint" },
        "with its code run: ",
        el("code", { text: `paliglass learn ${topic}` }),
      ),
      el("span", { class: "spring" }),
      beside(-1, "←"),
      beside(1, "→"),
    ],
    text,
  );
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
