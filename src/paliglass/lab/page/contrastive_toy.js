// A toy dual encoder: each picture and each text is a point on a circle, and the loss moves them.
// Gradients by hand: CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343).

/** @param {number[]} row @returns {number[]} */
function softmax(row) {
  const most = Math.max(...row);
  const e = row.map((v) => Math.exp(v - most));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / sum);
}

/** Loss of n pictures and n texts from their logits, and its gradient by each logit.
 * @param {number[][]} logits pictures × texts @param {boolean} isClip
 * @returns {{loss: number, gradient: number[][]}} */
export function lossOf(logits, isClip) {
  const n = logits.length;
  let loss = 0;
  if (!isClip) {
    const gradient = logits.map((row, i) =>
      row.map((z, j) => {
        const sign = i === j ? 1 : -1;
        loss += Math.log1p(Math.exp(-sign * z)) / n;
        return -sign / (1 + Math.exp(sign * z)) / n;
      }),
    );
    return { loss, gradient };
  }
  const rows = logits.map(softmax);
  const columns = logits[0].map((_, j) => softmax(logits.map((row) => row[j])));
  const gradient = logits.map((row, i) =>
    row.map((_, j) => {
      if (i === j) loss -= (Math.log(rows[i][i]) + Math.log(columns[i][i])) / (2 * n);
      return (rows[i][j] + columns[j][i] - 2 * Number(i === j)) / (2 * n);
    }),
  );
  return { loss, gradient };
}

export class Toy {
  /** @param {number} n pairs @param {boolean} isClip */
  constructor(n, isClip) {
    this.isClip = isClip;
    this.scale = isClip ? 5 : 8;
    this.bias = isClip ? 0 : -4;
    const spread = (/** @type {number} */ seed) =>
      Array.from({ length: n }, (_, i) => (((i * seed) % 97) / 97) * 2 * Math.PI);
    this.pictures = spread(41);
    this.texts = spread(67);
  }

  logits() {
    return this.pictures.map((a) =>
      this.texts.map((b) => this.scale * Math.cos(a - b) + this.bias),
    );
  }

  /** One step of gradient descent on the angles: the loss before it. @param {number} rate */
  step(rate = 0.1) {
    const { loss, gradient } = lossOf(this.logits(), this.isClip);
    const [pictures, texts] = [[...this.pictures], [...this.texts]];
    gradient.forEach((row, i) =>
      row.forEach((g, j) => {
        const slope = -g * this.scale * Math.sin(pictures[i] - texts[j]);
        this.pictures[i] -= rate * slope;
        this.texts[j] += rate * slope;
      }),
    );
    return loss;
  }
}
