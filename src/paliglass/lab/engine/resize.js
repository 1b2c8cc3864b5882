// Pillow 13's `Image.resize` with the bicubic filter, to the byte: fixed-point sums, a filter that
// widens when the picture shrinks, rows before columns unless the height shrinks by more than twice
// what the width does. Nearby results would change what the model sees.

const PRECISION = 22; // bits behind the point, 32 − 8 − 2 as in Pillow

/** Keys' cubic (a = −½). @param {number} x */
function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/** For each output place: the first input that it reads, and the weights, as integers.
 * @param {number} from @param {number} to */
function coefficients(from, to) {
  const scale = from / to;
  const wider = Math.max(scale, 1);
  const support = 2 * wider;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const weights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      const w = bicubic((x - centre + 0.5) * (1 / wider));
      weights.push(w);
      sum += w;
    }
    const fixed = weights.map((w) => {
      const scaled = (sum ? w / sum : w) * 2 ** PRECISION;
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Int32Array.from(fixed) };
  });
}

/** Sum in fixed point → byte. @param {number} sum */
const byte = (sum) => Math.min(Math.max(sum >> PRECISION, 0), 255);

/** Resamples one axis of a picture that lies in memory as outer × from × inner bytes.
 * @param {Uint8Array} data @param {number} outer @param {number} from @param {number} inner
 * @param {number} to */
function resample(data, outer, from, inner, to) {
  if (from === to) return data;
  const out = new Uint8Array(outer * to * inner);
  const taps = coefficients(from, to);
  for (let o = 0; o < outer; o++)
    for (let place = 0; place < to; place++) {
      const { first, weights } = taps[place];
      const source = (o * from + first) * inner;
      const target = (o * to + place) * inner;
      for (let i = 0; i < inner; i++) {
        let sum = 1 << (PRECISION - 1);
        for (let k = 0, at = source + i; k < weights.length; k++, at += inner)
          sum = (sum + Math.imul(data[at], weights[k])) | 0;
        out[target + i] = byte(sum);
      }
    }
  return out;
}

/** @param {Uint8Array} rgb height × width × 3 @param {number} width @param {number} height
 * @param {number} side @returns {Uint8Array} side × side × 3 */
export function resize(rgb, width, height, side) {
  if (height > side && height - side > 2 * (width - side)) {
    const low = resample(rgb, 1, height, width * 3, side);
    return resample(low, side, width, 3, side);
  }
  const narrow = resample(rgb, height, width, 3, side);
  return resample(narrow, 1, height, side * 3, side);
}
