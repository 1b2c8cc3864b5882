// tokenizer.json → ids and back: byte-pair encoding (arXiv 1508.07909) with byte fallback, as the
// `tokenizers` library does it. Spaces become ▁; no splitting into words first.

const SPACE = "▁";

/** @typedef {{id: number, content: string, special: boolean}} AddedToken */

/** @param {string} text */
const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&");

/** A pattern that finds any of these, the longest first. @param {string[]} words */
const anyOf = (words) =>
  new RegExp(
    words
      .toSorted((a, b) => b.length - a.length)
      .map(escaped)
      .join("|") || "(?!)",
    "gu",
  );

export class Tokenizer {
  /** @param {any} data tokenizer.json @param {{specialAsText?: boolean}} options
   *   specialAsText: "<eos>" in a text is five letters (the dual encoder's way) */
  constructor(data, { specialAsText = false } = {}) {
    const { vocab, merges, byte_fallback: byteFallback } = data.model;
    if (data.model.type !== "BPE" || !byteFallback)
      throw new Error("the lab reads BPE tokenizers with byte fallback, as Gemma's");
    /** @type {Map<string, number>} */
    this.ids = new Map(Object.entries(vocab));
    /** @type {AddedToken[]} */
    this.added = data.added_tokens;
    for (const { id, content } of this.added) this.ids.set(content, id);
    /** @type {string[]} */
    this.tokens = [];
    for (const [token, id] of this.ids) this.tokens[id] = token;
    /** Of two ids side by side: the rank of their merge, and what they become. */
    /** @type {Map<number, {rank: number, id: number}>} */
    this.merges = new Map();
    merges.forEach((/** @type {string | string[]} */ merge, /** @type {number} */ rank) => {
      const [left, right] = typeof merge === "string" ? merge.split(" ") : merge;
      const pair = this.pair(this.id(left), this.id(right));
      this.merges.set(pair, { rank, id: this.id(left + right) });
    });
    this.unknown = this.ids.get(data.model.unk_token);
    const cut = this.added.filter(({ special }) => !(specialAsText && special));
    this.addedPattern = anyOf(cut.map(({ content }) => content));
    const isSpecial = (/** @type {AddedToken} */ { special, content }) =>
      special || /^<(loc\d{4}|seg\d{3})>$/.test(content);
    this.specialPattern = anyOf(this.added.filter(isSpecial).map(({ content }) => content));
  }

  /** @param {string} token @throws {Error} where there is no such token */
  id(token) {
    const found = this.ids.get(token);
    if (found === undefined) throw new Error(`the tokenizer has no ${token}`);
    return found;
  }

  /** @param {number} left @param {number} right */
  pair(left, right) {
    return left * 2 ** 22 + right;
  }

  /** Ids of a text in which added tokens, such as `<loc0001>`, are tokens. @param {string} text */
  encode(text) {
    /** @type {number[]} */
    const ids = [];
    let start = 0;
    for (const match of text.matchAll(this.addedPattern)) {
      ids.push(...this.merged(text.slice(start, match.index)), this.id(match[0]));
      start = match.index + match[0].length;
    }
    return [...ids, ...this.merged(text.slice(start))];
  }

  /** Ids of a text none of which is special: a seam after the `<` keeps `<loc0001>` plain.
   * @param {string} text */
  encodePlain(text) {
    /** @type {number[]} */
    const ids = [];
    let start = 0;
    for (const match of text.matchAll(this.specialPattern)) {
      ids.push(...this.encode(text.slice(start, match.index + 1)));
      start = match.index + 1;
    }
    return [...ids, ...this.encode(text.slice(start))];
  }

  /** Characters → ids, or their bytes' ids. @param {string} text */
  characters(text) {
    /** @type {number[]} */
    const ids = [];
    for (const character of text) {
      const id = this.ids.get(character);
      if (id !== undefined) ids.push(id);
      else
        for (const byte of new TextEncoder().encode(character))
          ids.push(this.id(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
    }
    return ids;
  }

  /** The pair of lowest rank merges first, the leftmost of equals.
   * @param {string} text @param {(ids: number[]) => void} [see] is told the ids before each merge, and
   *   at the end */
  merged(text, see) {
    const ids = this.characters(text.replaceAll(" ", SPACE));
    for (;;) {
      see?.(ids);
      let best = null,
        at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const merge = this.merges.get(this.pair(ids[i], ids[i + 1]));
        if (merge && (!best || merge.rank < best.rank)) [best, at] = [merge, i];
      }
      if (!best) return ids;
      ids.splice(at, 2, best.id);
    }
  }

  /** Ids → text; a run of byte tokens that is no UTF-8 becomes one � for each byte.
   * @param {number[]} ids */
  decode(ids) {
    let text = "";
    /** @type {number[]} */
    let bytes = [];
    const flush = () => {
      try {
        text += new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
          Uint8Array.from(bytes),
        );
      } catch {
        text += "\ufffd".repeat(bytes.length);
      }
      bytes = [];
    };
    for (const id of ids) {
      const token = this.tokens[id] ?? "";
      const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
      if (byte) bytes.push(parseInt(byte[1], 16));
      else {
        flush();
        text += token.replaceAll(SPACE, " ");
      }
    }
    flush();
    return text;
  }
}
