// The engine in a worker: {id, method, values} in, {id, result} or {id, error} out, and meanwhile
// {arrived, of}: bytes of the weights. What is asked before they are there is answered when they are.

import { readConfig } from "./config.js";
import { Lab } from "./lab.js";
import { fetchAhead, sections, unpack } from "./unpack.js";

/** @typedef {import("./unpack.js").Packed} Packed */

const lab = new Lab();

/** A promise and what keeps it. */
function gate() {
  /** @type {any} */
  const made = {};
  made.opened = new Promise((open, fail) => Object.assign(made, { open, fail }));
  made.opened.catch(() => {}); // whoever waits is told
  return made;
}
const [tower, decoder, codec] = [gate(), gate(), gate()];

/** @param {Packed} packed */
const json = async (packed) => JSON.parse(new TextDecoder().decode(await unpack(packed)));

/** @type {any} the model's small files */
let small = null;

/** @type {Record<string, (files: Record<string, Packed>) => Promise<unknown>>} */
const LOADERS = {
  async ahead({ urls }) {
    for (const url of /** @type {any} */ (urls)) fetchAhead(url);
  },

  async load(files) {
    const [config, tokenizer, wasm, preprocessor] = await Promise.all([
      json(files.config),
      json(files.tokenizer),
      unpack(files.kernel),
      files.preprocessor ? json(files.preprocessor) : undefined,
    ]);
    small = { config, tokenizer, preprocessor, wasm };
    return { config: readConfig(config) };
  },

  /** The tower's section first: it looks at the picture while the decoder's is on its way. */
  async loadWeights({ weights }) {
    const { wasm, ...files } = small;
    const of = weights.sizes.reduce((sum, size) => sum + size, 0);
    let [arrived, isFirst] = [0, true];
    const told = (/** @type {number} */ bytes) =>
      self.postMessage({ arrived: (arrived += bytes), of });
    try {
      for await (const section of sections(weights, told)) {
        // Numbers of two bytes are kept as four.
        if (isFirst) lab.load({ ...files, weights: section }, wasm, 2 * (of - section.byteLength));
        else lab.addWeights(section);
        isFirst = false;
        tower.open();
      }
      decoder.open();
    } catch (error) {
      const why = error instanceof Error ? error.message : error;
      const told = new Error(
        `The model could not be read here: ${why}. Browsers of 2023 or later can; or load the page again.`,
      );
      for (const part of [tower, decoder, codec]) part.fail(told);
      throw told;
    }
  },

  /** After the weights, which are wanted sooner. A model may have none. */
  async loadCodec(files) {
    try {
      await decoder.opened;
      if (files.codec) lab.loadCodec(await unpack(files.codec));
      codec.open();
    } catch (error) {
      const why = error instanceof Error ? error.message : error;
      codec.fail(new Error(`Masks could not be read here: ${why}. Load the page again.`));
      throw error;
    }
  },

  async loadDual(files) {
    const [config, tokenizer, weights, wasm] = await Promise.all([
      json(files.config),
      json(files.tokenizer),
      unpack(files.weights),
      unpack(files.kernel),
    ]);
    return lab.loadDual({ config, tokenizer, weights }, wasm);
  },
};

/** @param {string} method of lab.js @param {any} values */
async function answer(method, values) {
  if (method === "picture") return lab.picture(values.name, values.picture);
  if (method === "run") {
    await tower.opened;
    lab.look(values);
  }
  if (method !== "embed") await decoder.opened;
  if (method === "decodeMask" || (method === "run" && values.prompt.startsWith("segment ")))
    await codec.opened;
  return /** @type {any} */ (lab)[method](values);
}

self.onmessage = async ({ data: { id, method, values } }) => {
  try {
    const load = LOADERS[method];
    self.postMessage({ id, result: await (load ? load(values) : answer(method, values)) });
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
};
