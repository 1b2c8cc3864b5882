// Rotary positions (arXiv 2104.09864): pair i of a head's channels, (i, i + d/2), turned by
// position · base^(−2i/d). A product of two turned vectors depends on their distance alone.

/** The angle a position adds to each pair, in float32 as torch computes it: d/2 numbers.
 * @param {number} d @param {number} base */
export function frequencies(d, base) {
  return Float32Array.from(
    { length: d / 2 },
    (_, i) => 1 / Math.fround(base ** Math.fround((2 * i) / d)),
  );
}

/** Turns T rows of H heads of d channels in place.
 * @param {Float32Array} x T × (H · d) @param {ArrayLike<number>} positions T
 * @param {number} d @param {number} base */
export function applyRotary(x, positions, d, base) {
  const turns = frequencies(d, base);
  const half = d / 2;
  const width = x.length / positions.length;
  for (let t = 0; t < positions.length; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(positions[t] * turns[i]);
      const cos = Math.fround(Math.cos(angle));
      const sin = Math.fround(Math.sin(angle));
      for (let at = t * width + i; at < (t + 1) * width; at += d) {
        const first = x[at];
        const second = x[at + half];
        x[at] = first * cos - second * sin;
        x[at + half] = second * cos + first * sin;
      }
    }
  }
  return x;
}
