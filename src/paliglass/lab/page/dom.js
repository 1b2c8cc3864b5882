// Making elements, and the words and numbers in them.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set([
  "svg",
  "g",
  "path",
  "rect",
  "line",
  "circle",
  "text",
  "polyline",
  "title",
  "polygon",
]);

/**
 * An element. Properties: `class`, `text`, `html`, `style` (an object), `on` (listeners by event), the
 * rest as attributes; false and null are left out.
 * @param {string} tag @param {Record<string, any>} props @param {...any} children
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") node.setAttribute("class", value);
    else if (name === "text") node.textContent = value;
    else if (name === "html") node.innerHTML = value;
    else if (name === "on")
      for (const [event, f] of Object.entries(value))
        node.addEventListener(event, /** @type {any} */ (f));
    else if (name === "style")
      for (const [key, v] of Object.entries(value))
        /** @type {any} */ (node).style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

/**
 * Puts children in place of what is there. What had the keyboard's focus has it afterwards, or the new
 * element of the same name has: who goes through the page by keys would else begin at its top again.
 * @param {Element} node @param {...any} children
 */
export function fill(node, ...children) {
  const focused = document.activeElement;
  const had = focused !== node && node.contains(focused) ? focused : null;
  node.replaceChildren(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  if (had && !node.contains(document.activeElement)) {
    const again = node.contains(had)
      ? had
      : [...node.querySelectorAll(had.tagName)].find((one) => known(one) === known(had));
    /** @type {any} */ (again)?.focus({ preventScroll: true });
  }
  return node;
}

/** What an element is known by, to who cannot see where it stands. @param {Element} node */
const known = (node) =>
  [
    node.getAttribute("data-place"),
    node.getAttribute("aria-label") ??
      node.closest("label")?.firstChild?.textContent ??
      node.textContent,
  ].join();

/** A button. While what it began goes on (`f` gave a promise) it begins nothing else; why that failed is
 * said by `tellFailures`. @param {any} label @param {(event: any) => any} f
 * @param {Record<string, any>} props */
export function button(label, f, props = {}) {
  const click = async (/** @type {any} */ event) => {
    if (node.hasAttribute("aria-busy")) return;
    const begun = f(event);
    if (!(begun instanceof Promise)) return;
    node.setAttribute("aria-busy", "true"); // `disabled` would take the keyboard's focus away
    try {
      await begun;
    } finally {
      node.removeAttribute("aria-busy");
    }
  };
  const node = el("button", { type: "button", ...props, on: { click, ...props.on } }, label);
  return node;
}

/** A place that says why something failed which nobody waits for: what a button, a slider or a view
 * asked of the engine. It is empty again with the next click. */
export function tellFailures() {
  const root = el("p", { class: "failure", role: "alert" });
  window.addEventListener("unhandledrejection", ({ reason }) => {
    root.textContent = `That did not work: ${reason instanceof Error ? reason.message : reason}`;
  });
  document.addEventListener("click", () => fill(root), true);
  return root;
}

/** Buttons of which one is chosen. @param {string} name what the group is called
 * @param {[any, string][]} options value and label @param {any} chosen @param {(value: any) => void} f */
export function choice(name, options, chosen, f) {
  return el(
    "div",
    { class: "choice", role: "group", "aria-label": name },
    options.map(([value, label]) =>
      button(label, () => f(value), { "aria-pressed": String(value === chosen), class: "chip" }),
    ),
  );
}

/** Whose layers are looked at. @param {"decoder" | "tower"} part
 * @param {(value: "decoder" | "tower") => void} f */
export function choosePart(part, f) {
  return choice(
    "part",
    [
      ["decoder", "Decoder"],
      ["tower", "Tower"],
    ],
    part,
    f,
  );
}

/** A slider with its number. @param {string} label @param {{min: number, max: number, step: number}} range
 * @param {number} value @param {(value: number) => void} f @param {(value: number) => string} show */
export function slider(label, { min, max, step }, value, f, show = String) {
  const output = el("output", { text: show(value) });
  const input = el("input", { type: "range", min, max, step, value, "aria-label": label });
  input.addEventListener("input", () => {
    output.textContent = show(Number(input.value));
    f(Number(input.value));
  });
  return el("label", { class: "slider" }, el("span", { text: label }), input, output);
}

/** 0.1234 → "12.3 %". @param {number} p */
export function percent(p) {
  const value = 100 * p;
  if (!Number.isFinite(value)) return "–";
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(value < 10 ? 1 : 0)} %`;
}

/** @param {number} value @param {number} digits */
export const number = (value, digits = 2) =>
  Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "−∞";

/** A token as a reader should see it. @param {string} word */
export function shown(word = "") {
  if (word === "<0x0A>" || word === "\n") return "⏎";
  if (word === "<bos>") return "start";
  if (word === "<eos>") return "end";
  const place = /^<(loc|seg)(\d+)>$/.exec(word);
  if (place) return place[1] === "loc" ? place[2] : `~${place[2]}`;
  return word.trim() ? word.trim() : word ? "␣" : "";
}

/** What scrolls sideways where it is too wide, by the keyboard too. @param {string} label */
export const scrolled = (label) =>
  el("div", { class: "wide", role: "region", tabindex: 0, "aria-label": label });

/** How wide a plot is drawn, so that its letters keep their size: what there is, `most` at the most.
 * @param {Element} place @param {number} most */
export const plotWidth = (place, most) => Math.max(260, Math.min(most, place.clientWidth || most));

/** The least of 1, 2, 5, 10, 20, 50, 100 % that holds a value: where a colour scale ends.
 * @param {number} value */
export const scaleOf = (value) =>
  [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((top) => value <= top) ?? 1;

/** The colour of a variable of style.css as [r, g, b]. @param {string} name */
export function color(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hex = parseInt(text.slice(1), 16);
  return [hex >> 16, (hex >> 8) & 255, hex & 255];
}

/** The line below a view that says it in words. @param {string} text */
export const inWords = (text) =>
  el("details", { class: "in-words" }, el("summary", { text: "In words" }), el("p", { text }));

/** @type {HTMLDialogElement | null} */
let dialog = null;

/** Opens something to be read over the page; Esc, × or a click beside it closes it.
 * @param {string} name what it is @param {any} bar what stands above it, left of the × @param {any} text */
export function openDialog(name, bar, text) {
  if (!dialog) {
    dialog = el("dialog", {
      class: "lesson",
      on: { click: (/** @type {Event} */ event) => event.target === dialog && dialog?.close() },
    });
    document.body.append(/** @type {Node} */ (dialog));
  }
  const own = /** @type {HTMLDialogElement} */ (dialog);
  own.setAttribute("aria-label", name);
  const close = button("×", () => own.close(), {
    class: "icon",
    "aria-label": `close the ${name}`,
  });
  fill(own, el("div", { class: "lesson-top" }, bar, close), text);
  if (!own.open) own.showModal();
  own.scrollTop = 0;
}
