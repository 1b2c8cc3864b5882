// Maps over the picture: the picture in grey, a colour over it that hides it by at most .6.

import { color, el, percent } from "./dom.js";

const MOST = 0.6; // alpha at the end of the scale

/** @typedef {{values: ArrayLike<number>, top: number, color?: string}} HeatMap
 *   values: side² in reading order; top: where the scale ends */

/** The patch in the middle. @param {{perRow: number}} config */
export const middlePatch = ({ perRow }) => Math.floor(perRow / 2) * (perRow + 1);

/** Draws the picture desaturated, and a map over it.
 * @param {HTMLCanvasElement} canvas @param {CanvasImageSource} picture @param {HeatMap | null} map */
export function drawMap(canvas, picture, map) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const { width, height } = canvas;
  context.filter = map ? "saturate(0.25)" : "none";
  context.drawImage(picture, 0, 0, width, height);
  context.filter = "none";
  if (map) overlay(canvas, map);
}

/** Only the colour. @param {HTMLCanvasElement} canvas @param {HeatMap} map */
export function overlay(canvas, { values, top, color: name = "--on-vision" }) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const side = Math.round(Math.sqrt(values.length));
  const [r, g, b] = color(name);
  const cell = [canvas.width / side, canvas.height / side];
  for (let i = 0; i < values.length; i++) {
    const alpha = MOST * Math.min(Math.max(values[i] / top, 0), 1);
    context.fillStyle = `rgba(${r}, ${g}, ${b}, ${alpha})`;
    context.fillRect(
      (i % side) * cell[0],
      Math.floor(i / side) * cell[1],
      cell[0] + 0.5,
      cell[1] + 0.5,
    );
  }
}

/** The scale of a map, in per cent. @param {number} top @param {string} name
 * @param {boolean} open whether values beyond the end look like the end */
export function legend(top, name = "--on-vision", open = false) {
  return el(
    "span",
    { class: "legend" },
    "0",
    el("i", {
      style: {
        background: `linear-gradient(90deg, transparent, color-mix(in srgb, var(${name}) 60%, transparent))`,
      },
    }),
    open ? `${percent(top)} and more` : percent(top),
  );
}

/** Rows of numbers as a field of cells; negative ones in another colour.
 * @param {HTMLCanvasElement} canvas @param {ArrayLike<number>} values @param {number} rows
 * @param {number} columns @param {(value: number) => [string, number]} paint colour variable and alpha */
export function drawField(canvas, values, rows, columns, paint) {
  canvas.width = columns;
  canvas.height = rows;
  const context = /** @type {CanvasRenderingContext2D} */ (
    canvas.getContext("2d", { willReadFrequently: true })
  );
  const image = context.createImageData(columns, rows);
  /** @type {Record<string, number[]>} */
  const known = {};
  for (let i = 0; i < rows * columns; i++) {
    const [name, alpha] = paint(values[i]);
    const [r, g, b] = (known[name] ??= color(name));
    image.data.set([r, g, b, Math.round(255 * Math.min(Math.max(alpha, 0), 1))], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

/** Signed numbers as bars from a middle line, in an SVG that scales.
 * @param {ArrayLike<number>} values @param {{height?: number, color?: string, chosen?: number, label: string,
 *   pick?: (i: number) => void}} options */
export function bars(values, { height = 44, color: name = "--ink", chosen = -1, label, pick }) {
  const count = values.length;
  let most = 1e-9;
  for (let i = 0; i < count; i++) most = Math.max(most, Math.abs(values[i]));
  const svg = el("svg", {
    class: "bars",
    viewBox: `0 0 ${count * 4} ${height}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
    style: { height: `${height}px` },
  });
  for (let i = 0; i < count; i++) {
    const size = (Math.abs(values[i]) / most) * (height / 2 - 1);
    const y = values[i] >= 0 ? height / 2 - size : height / 2;
    const bar = el("rect", {
      x: i * 4 + 0.5,
      y,
      width: 3,
      height: Math.max(size, 0.4),
      fill: `var(${i === chosen ? "--answer" : name})`,
    });
    if (pick) bar.addEventListener("pointerenter", () => pick(i));
    svg.append(bar);
  }
  return svg;
}
