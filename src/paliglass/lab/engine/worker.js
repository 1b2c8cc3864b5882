// The engine in a worker: {id, method, values} in, {id, result} or {id, error} out.

import { Lab } from "./lab.js";
import { unpack } from "./unpack.js";

const lab = new Lab();

/** @typedef {{text: string, planes: number}} Packed what the page's file holds: see build.py */

/** @param {Packed} packed */
const json = async (packed) => JSON.parse(new TextDecoder().decode(await unpack(packed)));

/** @type {Record<string, (files: Record<string, Packed>) => Promise<unknown>>} */
const LOADERS = {
  async load(files) {
    const [config, tokenizer, weights, wasm] = await Promise.all([
      json(files.config),
      json(files.tokenizer),
      unpack(files.weights),
      unpack(files.kernel),
    ]);
    const codec = files.codec ? await unpack(files.codec) : undefined;
    const preprocessor = files.preprocessor ? await json(files.preprocessor) : undefined;
    return lab.load({ config, tokenizer, weights, codec, preprocessor }, wasm);
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

self.onmessage = async ({ data: { id, method, values } }) => {
  try {
    const load = LOADERS[method];
    const result = load
      ? await load(values)
      : method === "picture"
        ? lab.picture(values.name, values.picture)
        : /** @type {any} */ (lab)[method](values);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
};
