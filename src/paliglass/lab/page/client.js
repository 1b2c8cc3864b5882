// The engine, asked from the page: a worker made of the text in this file, so that it works from a
// file; or, where the page has no model in it, the server that it came from (see server.py).

import { packed } from "./parts.js";

/** Packed parts by what the engine calls them. @param {Record<string, string>} ids */
async function packedParts(ids) {
  const names = Object.keys(ids);
  const found = await Promise.all(names.map((name) => packed(ids[name])));
  return Object.fromEntries(names.map((name, i) => [name, found[i]]));
}

export class Client {
  constructor() {
    /** @type {Worker} started in index.html */
    this.worker = /** @type {any} */ (window).engine;
    this.next = 1;
    /** @type {Promise<any> | null} */
    this.dual = null;
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    /** @type {(arrived: number, of: number) => void} told of bytes of the weights */
    this.told = () => {};
    this.worker.onmessage = ({ data: { id, result, error, arrived, of } }) => {
      if (arrived) return this.told(arrived, of);
      const found = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) found?.reject(new Error(error));
      else found?.resolve(result);
    };
    this.worker.onerror = (event) => console.error(event.message);
  }

  /** @param {string} method of engine/lab.js @param {any} values @returns {Promise<any>} */
  ask(method, values = {}) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, method, values });
    });
  }

  /** What the page needs to show itself; what is asked then waits for the weights. */
  async load() {
    const ids = ["config", "tokenizer", "preprocessor", "kernel"];
    const loaded = await this.ask(
      "load",
      await packedParts(Object.fromEntries(ids.map((id) => [id, id]))),
    );
    this.loadLarge();
    return loaded;
  }

  async loadLarge() {
    this.ask("loadWeights", await packedParts({ weights: "weights" })).catch(() => {}); // `run` tells
    this.ask("loadCodec", await packedParts({ codec: "codec" })).catch(() => {});
  }

  /** The dual encoder, once it is wanted; null where the page has none. */
  async loadDual() {
    const { config, ...files } = await packedParts({
      config: "dual-config",
      tokenizer: "dual-tokenizer",
      weights: "dual-weights",
      kernel: "kernel",
    });
    if (!config) return null;
    this.dual ??= this.ask("loadDual", { config, ...files });
    this.dual.catch(() => (this.dual = null)); // a network that is back may be asked again
    return this.dual;
  }
}

/** @param {Uint8Array | Uint8ClampedArray} bytes */
function toBase64(bytes) {
  let letters = "";
  for (let i = 0; i < bytes.length; i += 0x8000)
    letters += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(letters);
}

/** What JSON has no form for. @param {string} _ @param {any} value */
function pack(_, value) {
  if (value instanceof Uint8Array || value instanceof Uint8ClampedArray)
    return { u8: toBase64(value) };
  return ArrayBuffer.isView(value) ? Array.from(/** @type {any} */ (value)) : value;
}

/** @param {string} _ @param {any} value */
function revive(_, value) {
  const text = value?.f32 ?? value?.u8;
  if (typeof text !== "string") return value;
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return value.f32 === undefined ? bytes : new Float32Array(bytes.buffer);
}

/** The same questions to a server, which computes with torch; the dual encoder stays in the page. */
export class RemoteClient {
  constructor() {
    this.local = new Client();
    /** @type {Set<object>} questions under way */
    this.waiting = new Set();
  }

  /** @param {string} method @param {any} values @returns {Promise<any>} */
  async ask(method, values = {}) {
    if (method === "embed") return this.local.ask(method, values);
    if (method === "picture") this.local.ask(method, values);
    this.waiting.add(values);
    try {
      const response = await fetch("ask", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ method, values }, pack),
      });
      const { result, error } = JSON.parse(await response.text(), revive);
      if (error) throw new Error(error);
      return result;
    } catch (error) {
      // A page that is being left has its questions cut off, and does not live to say so.
      await new Promise((later) => setTimeout(later, 200));
      throw error;
    } finally {
      this.waiting.delete(values);
    }
  }

  load() {
    return this.ask("load");
  }

  /** @param {(arrived: number, of: number) => void} told never: there are no weights to wait for */
  set told(told) {}

  loadDual() {
    return this.local.loadDual();
  }
}

/** What the page has. */
export const makeClient = () =>
  document.getElementById("remote") ? new RemoteClient() : new Client();
