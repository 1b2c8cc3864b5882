// The picture that one draws: stickers, shapes, words and strokes on a ground of one colour.
// Places and sizes are thousandths of the side.

import { json } from "./parts.js";

export const SIDE = 512; // pixels of the canvas; the engine makes the model's square of it

/**
 * @typedef {object} Thing
 * @property {"sticker" | "shape" | "text" | "stroke" | "photo"} kind
 * @property {string} name the sticker's, the shape's, or the text itself
 * @property {number} x @property {number} y the middle
 * @property {number} size of its square @property {number} turn degrees
 * @property {string} [color] @property {[number, number][]} [points] of a stroke
 */
/** @typedef {{ground: string, things: Thing[]}} Scene */

export const SHAPES = ["circle", "square", "triangle", "star", "heart"];
export const COLORS = [
  "#e03131",
  "#f08c00",
  "#ffd43b",
  "#2f9e44",
  "#1971c2",
  "#7048e8",
  "#f783ac",
  "#212529",
  "#868e96",
  "#ffffff",
  "#8b5a2b",
  "#3bc9db",
];
export const COLOR_NAMES = [
  "red",
  "orange",
  "yellow",
  "green",
  "blue",
  "purple",
  "pink",
  "black",
  "grey",
  "white",
  "brown",
  "cyan",
];

/** @type {Promise<{size: number, stickers: Record<string, string>}> | null} SVG by name */
let drawings = null;
/** @type {Map<string, HTMLImageElement>} */
const images = new Map();

/** The stickers by name, as images' addresses. @returns {Promise<(name: string) => string>} */
async function stickerUrls() {
  drawings ??= json("stickers");
  drawings.catch(() => (drawings = null)); // a network that is back may be asked again
  const { size, stickers } = await drawings;
  return (name) => {
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="256" height="256" viewBox="0 0 ${size} ${size}">${stickers[name]}</svg>`;
    return `data:image/svg+xml,${encodeURIComponent(svg)}`;
  };
}

/** All stickers: names and addresses. @returns {Promise<[string, string][]>} */
export async function allStickers() {
  const url = await stickerUrls();
  return Object.keys((await drawings)?.stickers ?? {}).map((name) => [name, url(name)]);
}

/** A sticker as an image, once it is drawn. @param {string} name @returns {Promise<HTMLImageElement>} */
export async function sticker(name) {
  const kept = images.get(name);
  if (kept) return kept;
  const image = new Image();
  image.src = (await stickerUrls())(name);
  await image.decode();
  images.set(name, image);
  return image;
}

/** A photograph: kept in the page, never in the address. @param {string} name @param {HTMLImageElement} image */
export const keepPhoto = (name, image) => images.set(name, image);
/** @param {string} name */
export const hasPhoto = (name) => images.has(name);

/** @param {CanvasRenderingContext2D} context @param {string} name @param {number} r half the size */
function shape(context, name, r) {
  context.beginPath();
  if (name === "circle") context.arc(0, 0, r, 0, 2 * Math.PI);
  if (name === "square") context.rect(-r * 0.9, -r * 0.9, r * 1.8, r * 1.8);
  if (name === "triangle") {
    context.moveTo(0, -r * 0.95);
    context.lineTo(r, r * 0.8);
    context.lineTo(-r, r * 0.8);
  }
  if (name === "star")
    for (let i = 0; i < 10; i++) {
      const at = (i * Math.PI) / 5 - Math.PI / 2;
      const far = i % 2 ? r * 0.42 : r;
      context.lineTo(far * Math.cos(at), far * Math.sin(at));
    }
  if (name === "heart") {
    context.moveTo(0, r * 0.9);
    context.bezierCurveTo(-r * 1.5, -r * 0.1, -r * 0.8, -r * 1.2, 0, -r * 0.4);
    context.bezierCurveTo(r * 0.8, -r * 1.2, r * 1.5, -r * 0.1, 0, r * 0.9);
  }
  context.closePath();
  context.fill();
}

/** @param {CanvasRenderingContext2D} context @param {Thing} thing @param {number} unit pixels of a thousandth */
async function drawThing(
  context,
  { kind, name, x, y, size, turn, color = "#212529", points = [] },
  unit,
) {
  const image =
    kind === "sticker" ? await sticker(name) : kind === "photo" ? images.get(name) : null;
  context.save();
  context.fillStyle = context.strokeStyle = color;
  if (kind === "stroke") {
    context.lineWidth = size * unit;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    for (const [px, py] of points) context.lineTo(px * unit, py * unit);
    if (points.length === 1) context.lineTo(points[0][0] * unit + 0.1, points[0][1] * unit);
    context.stroke();
  } else {
    context.translate(x * unit, y * unit);
    context.rotate((turn * Math.PI) / 180);
    const wide = size * unit;
    if (kind === "shape") shape(context, name, wide / 2);
    if (kind === "text") {
      context.font = `700 ${wide * 0.5}px "DejaVu Sans", Verdana, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(name, 0, 0);
    }
    if (image) {
      const ratio = image.naturalHeight / image.naturalWidth || 1;
      context.drawImage(image, -wide / 2, (-wide * ratio) / 2, wide, wide * ratio);
    }
  }
  context.restore();
}

/** Draws a scene. Stickers may still have to be decoded, so it takes a moment the first time.
 * @param {HTMLCanvasElement} canvas @param {Scene} scene */
export async function drawScene(canvas, scene) {
  const hidden = document.createElement("canvas");
  hidden.width = hidden.height = canvas.width;
  const context = /** @type {CanvasRenderingContext2D} */ (hidden.getContext("2d"));
  context.fillStyle = scene.ground;
  context.fillRect(0, 0, hidden.width, hidden.height);
  for (const thing of scene.things) await drawThing(context, thing, hidden.width / 1000);
  canvas.getContext("2d")?.drawImage(hidden, 0, 0);
}

/** Its pixels, as the engine takes them. @param {Scene} scene */
export async function pixelsOf(scene) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = /** @type {CanvasRenderingContext2D} */ (
    canvas.getContext("2d", { willReadFrequently: true })
  );
  await drawScene(canvas, scene);
  return { width: SIDE, height: SIDE, data: context.getImageData(0, 0, SIDE, SIDE).data };
}

/** The uppermost thing at a place. @param {Scene} scene @param {number} x @param {number} y @returns {number} */
export function thingAt({ things }, x, y) {
  for (let i = things.length - 1; i >= 0; i--) {
    const { kind, points = [], size } = things[i];
    if (kind === "stroke" && points.some(([px, py]) => Math.hypot(px - x, py - y) < size + 15))
      return i;
    if (kind !== "stroke" && Math.hypot(things[i].x - x, things[i].y - y) < size * 0.48) return i;
  }
  return -1;
}
