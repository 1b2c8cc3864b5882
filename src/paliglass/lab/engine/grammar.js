// Which token may come next in an answer to `detect` or `segment`: a finite-state machine that makes
// every answer one that can be read. See tasks/grammar.py.
//
//     (<loc>×4 [<seg>×16] label (" ; " …)*)?  <eos>

import { BINS, MASK_TOKENS } from "./boxes.js";

const CODES = 128;
const LAST = BINS - 1;

/** @typedef {import("./processing.js").Processor} Processor */
/** @typedef {{ids: number[], low: number, high: number, excluded: number[]}} Allowed
 *   some ids, and those of low … high − 1 that are not excluded */

class Node {
  constructor() {
    /** @type {Map<number, Node>} */
    this.children = new Map();
    /** @type {number | null} the label after which <eos> may come */
    this.end = null;
    /** @type {number | null} the label after which another object begins */
    this.opens = null;
    /** @type {Map<number, number>} by label: the fewest tokens to where <eos> may come */
    this.needs = new Map();
  }

  /** @param {number[]} ids */
  add(ids) {
    /** @type {Node} */
    let node = this;
    for (const id of ids) {
      if (!node.children.has(id)) node.children.set(id, new Node());
      node = /** @type {Node} */ (node.children.get(id));
    }
    return node;
  }

  /** Fills in `needs`, here and below. @param {number} objectLength */
  measure(objectLength) {
    if (this.opens !== null) this.needs.set(this.opens, objectLength);
    if (this.end !== null) this.needs.set(this.end, 0);
    for (const child of this.children.values()) {
      child.measure(objectLength);
      for (const [label, need] of child.needs)
        this.needs.set(label, Math.min(need + 1, this.needs.get(label) ?? Infinity));
    }
  }

  /** The fewest tokens to an end that is not taken. @param {Set<number>} taken */
  need(taken) {
    return Math.min(
      ...[...this.needs].filter(([label]) => !taken.has(label)).map(([, need]) => need),
    );
  }
}

export class ObjectGrammar {
  /** @param {Processor} processor @param {string[]} labels @param {boolean} masks */
  constructor(processor, labels, masks = false) {
    this.processor = processor;
    this.labels = labels;
    this.numCodes = masks ? MASK_TOKENS : 0;
    this.trie = new Node();
    const { tokenizer } = processor;
    let longest = 0;
    labels.forEach((label, i) => {
      // A tokenizer may write a label in the midst of an answer otherwise than at its end.
      const last = tokenizer.encodePlain(` ${label}`);
      const ended = this.trie.add(last);
      ended.end ??= i;
      const opened = this.trie.add(tokenizer.encodePlain(` ${label} ; `));
      opened.opens ??= i;
      longest = Math.max(longest, last.length);
    });
    this.objectLength = 4 + this.numCodes + longest;
    this.trie.measure(this.objectLength);
  }

  start() {
    return new ObjectState(this);
  }
}

/** How far an answer has come; immutable. */
export class ObjectState {
  /** @param {ObjectGrammar} grammar @param {{edges: number[], label: number}[]} said
   * @param {number[]} edges @param {number[]} codes @param {Node | null} node */
  constructor(grammar, said = [], edges = [], codes = [], node = null) {
    this.grammar = grammar;
    this.said = said;
    this.edges = edges;
    this.codes = codes;
    this.node = node;
  }

  /** What may come next where `budget` more tokens may be said. @param {number} budget @returns {Allowed} */
  allowed(budget) {
    const { grammar, edges, node, said } = this;
    const { eos, firstLocation, firstCode } = grammar.processor;
    if (node) {
      const taken = this.taken(edges);
      const ids = [...node.children]
        .filter(([, child]) => child.need(taken) < budget)
        .map(([id]) => id);
      if (node.end !== null && !taken.has(node.end)) ids.push(eos);
      return { ids, low: 0, high: 0, excluded: [] };
    }
    const place = edges.length;
    if (place === 4) return { ids: [], low: firstCode, high: firstCode + CODES, excluded: [] };
    const mayEnd = !said.length && !place;
    const ids = mayEnd ? [eos] : [];
    if (mayEnd && budget < grammar.objectLength) return { ids, low: 0, high: 0, excluded: [] };
    // The first edges leave budget for the others, which lie beyond them.
    const low = place >= 2 ? edges[place - 2] + 1 : 0;
    const high = place >= 2 ? BINS : LAST;
    const excluded = place === 3 ? this.usedUp() : [];
    return {
      ids,
      low: firstLocation + low,
      high: firstLocation + high,
      excluded: excluded.map((edge) => firstLocation + edge),
    };
  }

  /** The state after a token that `allowed` allows. @param {number} id */
  after(id) {
    const { grammar, said, node } = this;
    if (node) {
      const next = node.children.get(id);
      if (!next) throw new Error(`token ${id} is not allowed here`);
      if (next.opens === null) return new ObjectState(grammar, said, this.edges, this.codes, next);
      return new ObjectState(grammar, [...said, { edges: this.edges, label: next.opens }]);
    }
    const { firstLocation, firstCode } = grammar.processor;
    const isEdge = this.edges.length < 4;
    const edges = isEdge ? [...this.edges, id - firstLocation] : this.edges;
    const codes = isEdge ? this.codes : [...this.codes, id - firstCode];
    const whole = edges.length === 4 && codes.length === grammar.numCodes;
    return new ObjectState(grammar, said, edges, codes, whole ? grammar.trie : null);
  }

  /** Labels that these edges have been said with. @param {number[]} edges */
  taken(edges) {
    return new Set(
      this.said.filter((one) => `${one.edges}` === `${edges}`).map(({ label }) => label),
    );
  }

  /** Last edges whose box has been said with every label. */
  usedUp() {
    const lasts = this.said.filter((one) => `${one.edges.slice(0, 3)}` === `${this.edges}`);
    return lasts
      .map(({ edges }) => edges[3])
      .filter((edge) => this.taken([...this.edges, edge]).size === this.grammar.labels.length);
  }
}

/** Logits with all but the allowed words at −∞. @param {Float32Array} logits @param {Allowed} allowed */
export function allow(logits, { ids, low, high, excluded }) {
  const out = new Float32Array(logits.length).fill(-Infinity);
  out.set(logits.subarray(low, high), low);
  for (const id of excluded) out[id] = -Infinity;
  for (const id of ids) out[id] = logits[id];
  return out;
}
