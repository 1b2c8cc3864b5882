// The engine, asked from the page: a worker made of the text in this file, so that it works from a file.

/** @param {string} id of a packed part; see build.py */
function packed(id) {
  const node = document.getElementById(id);
  if (!node) return undefined;
  const text = node.textContent ?? "";
  return { text, planes: Number(node.dataset.planes) };
}

export class Client {
  constructor() {
    const source = document.getElementById("worker")?.textContent ?? "";
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.next = 1;
    /** @type {Promise<any> | null} */
    this.dual = null;
    /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    this.worker.onmessage = ({ data: { id, result, error } }) => {
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

  load() {
    const files = Object.fromEntries(
      ["config", "tokenizer", "preprocessor", "weights", "codec", "kernel"].map((id) => [
        id,
        packed(id),
      ]),
    );
    return this.ask("load", files);
  }

  /** The dual encoder, once it is wanted; null where the file has none. */
  loadDual() {
    if (!document.getElementById("dual-weights")) return Promise.resolve(null);
    this.dual ??= this.ask("loadDual", {
      config: packed("dual-config"),
      tokenizer: packed("dual-tokenizer"),
      weights: packed("dual-weights"),
      kernel: packed("kernel"),
    });
    return this.dual;
  }
}
