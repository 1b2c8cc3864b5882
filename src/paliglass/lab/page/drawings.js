// Stored drawings of two shapes, and whether a box found the one that was asked for.

import { COLORS, COLOR_NAMES } from "./scene.js";

/** @typedef {import("./scene.js").Thing} Thing */

/** A drawing of two shapes, always the same for a number: the first is asked for.
 * @param {number} seed
 * @returns {{scene: any, label: string, boxes: number[][]}} boxes: of the asked one, and the other */
export function drawing(seed) {
  let state = seed * 7919 + 17;
  const random = (/** @type {number} */ n) => (state = (state * 48271) % 2147483647) % n;
  const kinds = ["circle", "square", "triangle", "star"];
  const first = random(4);
  const left = random(2);
  /** @type {Thing[]} */
  const things = [first, (first + 1 + random(3)) % 4].map((kind, i) => ({
    kind: "shape",
    name: kinds[kind],
    turn: 0,
    color: COLORS[[0, 2, 3, 4, 5][random(5)]],
    x: (i === left ? 260 : 720) + random(80) - 40,
    y: 250 + random(500),
    size: 200 + random(160),
  }));
  const [{ name, color = "" }] = things;
  const label = `${COLOR_NAMES[COLORS.indexOf(color)]} ${name}`;
  return { scene: { ground: "#f3f3ef", things }, label, boxes: things.map(boxOf) };
}

/** Of half a shape's size: how far it reaches up, down and to the sides.
 * @type {Record<string, [number, number, number]>} */
const REACH = {
  circle: [1, 1, 1],
  square: [0.9, 0.9, 0.9],
  triangle: [0.95, 0.8, 1],
  star: [1, 0.81, 0.95],
};

/** Left, top, right and bottom as shares of the picture. @param {Thing} thing @returns {number[]} */
function boxOf({ name, x, y, size }) {
  const r = size / 2;
  const [top, bottom, side] = REACH[name];
  return [x - r * side, y - r * top, x + r * side, y + r * bottom].map((v) => v / 1000);
}

/** Intersection over union. @param {number[]} a @param {number[]} b */
export function overlap(a, b) {
  const w = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const h = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (/** @type {number[]} */ [x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  return (w * h) / (area(a) + area(b) - w * h);
}
