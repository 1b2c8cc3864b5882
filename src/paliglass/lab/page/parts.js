// What the page carries packed, or fetches when it is wanted: see build.py.

import { unpack } from "../engine/unpack.js";

/** A packed part, once it is there: the page begins before its own end has
 * come. @param {string} id @returns {Promise<import("../engine/unpack.js").Packed | undefined>} */
export function packed(id) {
  return new Promise((done) => {
    const look = () => {
      const node = document.getElementById(id);
      if (document.readyState === "loading" && !node?.nextElementSibling) return;
      observer.disconnect();
      document.removeEventListener("DOMContentLoaded", look);
      if (!node) return done(undefined);
      const { planes, sizes = "", source } = node.dataset;
      done({
        text: node.textContent ?? "",
        url: source && new URL(source, document.baseURI).href, // the worker has no address
        planes: Number(planes),
        sizes: sizes.split(" ").map(Number),
      });
    };
    const observer = new MutationObserver(look);
    observer.observe(document.body, { childList: true });
    document.addEventListener("DOMContentLoaded", look);
    look();
  });
}

/** A part's JSON. @param {string} id @returns {Promise<any>} */
export async function json(id) {
  const part = await packed(id);
  if (!part) throw new Error(`the page was made without ${id}`);
  return JSON.parse(new TextDecoder().decode(await unpack(part)));
}
