// What a decoder keeps of tokens that it has seen: keys and values for the next token; queries and the
// stream between layers so that any question about them can be answered later.

const ROOM = 64; // rows, after the first ones

/** Rows of numbers that grow at the end. */
export class Rows {
  /** @param {number} width */
  constructor(width) {
    this.width = width;
    this.count = 0;
    this.data = new Float32Array();
  }

  /** @param {Float32Array} rows n × width */
  push(rows) {
    const needed = this.count * this.width + rows.length;
    if (needed > this.data.length) {
      const larger = new Float32Array(Math.max(2 * this.data.length, needed + ROOM * this.width));
      larger.set(this.values);
      this.data = larger;
    }
    this.data.set(rows, this.count * this.width);
    this.count += rows.length / this.width;
  }

  /** All of them, count × width: a view. */
  get values() {
    return this.data.subarray(0, this.count * this.width);
  }

  /** @param {number} i */
  row(i) {
    return this.data.subarray(i * this.width, (i + 1) * this.width);
  }
}

/** One layer's share. */
export class LayerRecord {
  /** @param {number} queryWidth H · d @param {number} keyWidth K · d @param {number} width D */
  constructor(queryWidth, keyWidth, width) {
    this.q = new Rows(queryWidth);
    this.k = new Rows(keyWidth);
    this.v = new Rows(keyWidth);
    this.middle = new Rows(width); // the stream after attention
    this.output = new Rows(width); // the stream after the MLP
  }
}

export class KVCache {
  /** @param {{layers: number, queryWidth: number, keyWidth: number, width: number}} sizes */
  constructor({ layers, queryWidth, keyWidth, width }) {
    this.layers = Array.from(
      { length: layers },
      () => new LayerRecord(queryWidth, keyWidth, width),
    );
    this.inputs = new Rows(width);
    this.final = new Rows(width); // after the last norm: what the output layer reads
  }

  /** How many tokens it holds. */
  get length() {
    return this.inputs.count;
  }
}
