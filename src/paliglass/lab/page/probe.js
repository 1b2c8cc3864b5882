// A linear probe: can a plane through a layer's stream tell patches by what they are part of? Fitted by
// ridge regression on some drawings, tried on others.

import { drawing } from "./drawings.js";
import { accuracy, commoner, fit } from "./ridge.js";
import { pixelsOf } from "./scene.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("../engine/edits.js").Edits} Edits */
/** @typedef {import("./ridge.js").Sample} Sample */

/** What can be asked of a patch: 1, −1, or 0 where it is left out. Of a thing: its name, its place.
 * @type {Record<string, {label: string, of: (thing: any, y: number) => number}>} */
export const QUESTIONS = {
  round: {
    label: "is it part of a circle, or of a square?",
    of: (thing) => Number(thing?.name === "circle") - Number(thing?.name === "square"),
  },
  thing: { label: "is it part of a shape?", of: (thing) => (thing ? 1 : -1) },
  upper: { label: "does it lie in the upper half?", of: (_, y) => (y < 0.5 ? 1 : -1) },
};

/** Every row to unit size, so that one ridge fits all layers. @param {Float32Array} row */
function unit(row) {
  const size = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0) / row.length) || 1;
  return row.map((x) => x / size);
}

/**
 * Accuracy on drawings that the probe has not seen, for each layer of the tower and of the decoder.
 * @param {Store} store @param {string} question of QUESTIONS
 * @param {Edits} edits @param {(done: number) => boolean} goOn after each drawing
 * @param {number} drawings of which a quarter is for trying
 * @returns {Promise<{part: string, layer: number, share: number, commoner: number}[]>}
 */
export async function probe(store, question, edits, goOn, drawings = 80) {
  const { config, client } = store;
  if (store.result) await store.keep(store.result.run); // the drawings' runs would push it out
  const layers = [
    ...Array.from({ length: config.vision.layers + 1 }, (_, i) => ({
      part: "tower",
      layer: i - 1,
    })),
    ...Array.from({ length: config.text.layers + 1 }, (_, i) => ({
      part: "decoder",
      layer: i - 1,
    })),
  ];
  const samples = layers.map(() =>
    [0, 1].map(() => /** @type {Sample} */ ({ rows: [], answers: [] })),
  );
  for (let n = 0; n < drawings; n++) {
    const { scene, boxes } = drawing(n);
    await client.ask("picture", { name: "drawing", picture: await pixelsOf(scene) });
    const request = { picture: "drawing", prompt: "caption en", edits, maxNewTokens: 1 };
    const { run } = await client.ask("run", request);
    const isTest = Number(n % 4 === 3);
    for (const [i, which] of layers.entries()) {
      const stream = await client.ask("hidden", { run, ...which });
      const width = which.part === "tower" ? config.vision.width : config.text.width;
      for (let p = 0; p < config.patches; p++) {
        const x = ((p % config.perRow) + 0.5) / config.perRow;
        const y = (Math.floor(p / config.perRow) + 0.5) / config.perRow;
        const at = boxes.findIndex(([x0, y0, x1, y1]) => x > x0 && x < x1 && y > y0 && y < y1);
        const answer = QUESTIONS[question].of(scene.things[at], y);
        if (!answer) continue;
        samples[i][isTest].rows.push(unit(stream.subarray(p * width, (p + 1) * width)));
        samples[i][isTest].answers.push(answer);
      }
    }
    if (!goOn(n + 1)) return [];
  }
  return layers.map((which, i) => {
    const [known, tried] = samples[i];
    return { ...which, share: accuracy(fit(known), tried), commoner: commoner(tried) };
  });
}
