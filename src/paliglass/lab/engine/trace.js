// Questions about a run, answered from what it kept: nothing is computed before it is asked for.

import { isOff } from "./edits.js";
import { columns, scores, weights } from "./layers/attention.js";
import { principal } from "./principal.js";
import { probabilities, top } from "./sampling.js";

/** @typedef {import("./generation.js").Run} Run */
/** @typedef {"tower" | "decoder"} Part */
/** @typedef {import("./layers/attention.js").Heads} Heads */
/** @typedef {{id: number, word: string, p: number}} Candidate */

/** What a layer's attention was computed from. @param {Run} run @param {Part} part @param {number} layer
 * @returns {Heads} */
export function headsOf(run, part, layer) {
  if (part === "tower") {
    if (!run.tower) throw new Error("this run has no picture");
    return run.tower.layers[layer].heads;
  }
  return run.model.decoder.heads(layer, run.cache, 0, run.mask, run.edits);
}

/** Weights of one head, T × S. @param {Run} run @param {Part} part @param {number} layer @param {number} head */
export function attention(run, part, layer, head) {
  return weights(run.model.kernel, headsOf(run, part, layer), head);
}

/** One row of it: where token `row` looks. @param {Run} run @param {Part} part @param {number} layer
 * @param {number} head @param {number} row */
export function attentionRow(run, part, layer, head, row) {
  const heads = headsOf(run, part, layer);
  return weights(run.model.kernel, one(heads, row), head);
}

/** The same heads for a single query. @param {Heads} heads @param {number} row @returns {Heads} */
function one(heads, row) {
  const width = heads.H * heads.d;
  const q = heads.q.subarray(row * width, (row + 1) * width);
  return { ...heads, q, T: 1, start: heads.start + row };
}

/** One cell down to its sum: q and k, their products, score, what the softmax divides.
 * @param {Run} run @param {Part} part @param {number} layer @param {number} head
 * @param {number} row @param {number} column */
export function cell(run, part, layer, head, row, column) {
  const heads = headsOf(run, part, layer);
  const { H, K, d, scale } = heads;
  const q = columns(heads.q.subarray(row * H * d), 1, H * d, head * d, d);
  const key = Math.floor((head * K) / H);
  const k = columns(heads.k.subarray(column * K * d), 1, K * d, key * d, d);
  const products = q.map((value, i) => value * k[i]);
  const z = scores(run.model.kernel, one(heads, row), head);
  const most = Math.max(...z);
  const exponentials = z.map((value) => Math.exp(value - most));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return {
    q,
    k,
    products,
    dot: products.reduce((a, b) => a + b, 0),
    scale,
    score: z[column],
    most,
    exponential: exponentials[column],
    sum,
    weight: exponentials[column] / sum,
    seen: z.reduce((count, value) => count + Number(value > -Infinity), 0),
    masked: z[column] === -Infinity,
  };
}

/** A layer's stream: −1 is what enters the first. T × D.
 * @param {Run} run @param {Part} part @param {number} layer */
export function hidden(run, part, layer) {
  if (part === "tower") {
    if (!run.tower) throw new Error("this run has no picture");
    return layer < 0 ? run.tower.inputs : run.tower.layers[layer].output;
  }
  return layer < 0 ? run.cache.inputs.values : run.cache.layers[layer].output.values;
}

/** The k likeliest words of logits. @param {Run} run @param {Float32Array} logits @param {number} k
 * @returns {Candidate[]} */
export function candidates(run, logits, k) {
  const p = probabilities(logits.subarray(0, run.model.config.words));
  return top(p, k).map((id) => ({ id, word: run.processor.spell(id), p: p[id] }));
}

/** Had the decoder ended after a layer: the likeliest words at these positions (the "logit lens").
 * @param {Run} run @param {number} layer @param {number[]} positions @param {number} k */
export function lens(run, layer, positions, k = 1) {
  const { decoder } = run.model;
  const { width, vocab } = decoder.config;
  const stream = hidden(run, "decoder", layer);
  const rows = new Float32Array(positions.length * width);
  positions.forEach((t, i) => rows.set(stream.subarray(t * width, (t + 1) * width), i * width));
  const logits = decoder.logits(decoder.norm("norm", rows, run.edits));
  return positions.map((_, i) => candidates(run, logits.subarray(i * vocab, (i + 1) * vocab), k));
}

/** What each head and MLP adds to a word's logit after a position, the last norm's divisor held fixed:
 * (contribution / rms · (1 + w)) · row of the table. Their sum, with the embedding's, is the logit.
 * @param {Run} run @param {number} position @param {number} id */
export function attribution(run, position, id) {
  const { decoder, kernel } = run.model;
  const { width, layers, heads: H, headDim: d, eps, postNorms } = decoder.config;
  if (postNorms) throw new Error("attribution reads Gemma 1's layers, which add without a norm");
  const row = (/** @type {Float32Array} */ x, n = width) =>
    x.subarray(position * n, (position + 1) * n);
  const last = row(run.cache.layers[layers - 1].output.values);
  const table = decoder.weight("embed_tokens.weight").subarray(id * width, (id + 1) * width);
  const norm = decoder.weight("norm.weight");
  let square = 0,
    mean = 0;
  if (run.edits.norm === "layer") for (const v of last) mean += v / width;
  for (const v of last) square += (v - mean) ** 2;
  const scale = 1 / Math.sqrt(square / width + eps);
  const direction = table.map((v, i) => v * scale * (1 + norm[i]));
  const worth = (/** @type {Float32Array} */ x) =>
    x.reduce((sum, v, i) => sum + v * direction[i], 0);
  const parts = [{ name: "embedding", value: worth(row(hidden(run, "decoder", -1))) }];
  for (let layer = 0; layer < layers; layer++) {
    const heads = one(headsOf(run, "decoder", layer), position);
    const output = decoder.weight(`layers.${layer}.self_attn.o_proj.weight`);
    const before = row(hidden(run, "decoder", layer - 1));
    const middle = row(run.cache.layers[layer].middle.values);
    for (let head = 0; head < H; head++) {
      const p = weights(kernel, heads, head);
      const key = Math.floor((head * heads.K) / H);
      const mixed = new Float32Array(H * d);
      for (let s = 0; s < heads.S; s++)
        for (let i = 0; i < d; i++)
          mixed[head * d + i] += p[s] * heads.v[s * heads.K * d + key * d + i];
      const added = kernel.linear(mixed, 1, output, null, H * d, width);
      const isOff = middle.every((v, i) => v === before[i]);
      parts.push({ name: `decoder.${layer}.${head}`, value: isOff ? 0 : worth(added) });
    }
    const after = row(hidden(run, "decoder", layer));
    parts.push({ name: `decoder.${layer}.mlp`, value: worth(after.map((v, i) => v - middle[i])) });
  }
  return { parts, logit: worth(last) };
}

/** How far each token's stream is from another run's after every layer: layers × T, ‖a − b‖ / ‖b‖.
 * @param {Run} a @param {Run} b */
export function moved(a, b) {
  const { width, layers } = a.model.config.text;
  const T = Math.min(a.cache.length, b.cache.length);
  return Array.from({ length: layers }, (_, layer) => {
    const [x, y] = [a, b].map((run) => hidden(run, "decoder", layer));
    return Float32Array.from({ length: T }, (_, t) => {
      let apart = 0,
        size = 0;
      for (let i = t * width; i < (t + 1) * width; i++) {
        apart += (x[i] - y[i]) ** 2;
        size += y[i] ** 2;
      }
      return Math.sqrt(apart / size);
    });
  });
}

/** A head's scores by distance: the mean over queries and keys of q·k·scale, with the keys turned as if
 * they stood 0 … most − 1 places before the query. What RoPE alone makes of a mean query and key.
 * @param {Run} run @param {number} layer @param {number} head @param {number} most
 * @param {[number, number]} span tokens whose q and k are averaged: patches, or words */
export function scoreByDistance(run, layer, head, most, span) {
  const { decoder } = run.model;
  const { heads: H, keyHeads: K, headDim: d, scale, theta } = decoder.config;
  const record = run.cache.layers[layer];
  const key = Math.floor((head * K) / H);
  const half = d / 2;
  const [first, end] = span;
  const q = new Float32Array(d);
  const k = new Float32Array(d);
  for (let t = first; t < end; t++) {
    const position = t + 1 + (run.edits.shift ?? 0);
    unturn(record.q.row(t), head * d, position, d, theta, q, end - first);
    unturn(record.k.row(t), key * d, position, d, theta, k, end - first);
  }
  const pairs = Array.from({ length: half }, (_, i) => {
    const even = q[i] * k[i] + q[i + half] * k[i + half];
    const odd = q[i + half] * k[i] - q[i] * k[i + half];
    return { even, odd, turn: theta ** ((-2 * i) / d) };
  });
  const scoresAt = Array.from(
    { length: most },
    (_, m) =>
      pairs.reduce(
        (sum, { even, odd, turn }) => sum + even * Math.cos(m * turn) - odd * Math.sin(m * turn),
        0,
      ) * scale,
  );
  return { scores: scoresAt, q, k, pairs };
}

/** Adds a head's vector, turned back by its position, divided by `count`, to a sum.
 * @param {Float32Array} row @param {number} from @param {number} position @param {number} d
 * @param {number} theta @param {Float32Array} sum @param {number} count */
function unturn(row, from, position, d, theta, sum, count) {
  const half = d / 2;
  for (let i = 0; i < half; i++) {
    const angle = -position * theta ** ((-2 * i) / d);
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    const [a, b] = [row[from + i], row[from + i + half]];
    sum[i] += (a * c - b * s) / count;
    sum[i + half] += (b * c + a * s) / count;
  }
}

/** The answer that follows when a word of the prompt is exchanged behind the cache's back: "stale"
 * keeps every key and value, "column" renews the word's own in every layer and no one else's.
 * @param {Run} run @param {number} position @param {number} id @param {"stale" | "column"} how */
export function exchanged(run, position, id, how) {
  const { decoder, config } = run.model;
  const P = run.prompt.length;
  const cache = decoder.newCache();
  for (const [i, layer] of cache.layers.entries()) {
    const kept = run.cache.layers[i];
    for (const name of /** @type {const} */ (["q", "k", "v", "middle", "output"]))
      layer[name].push(kept[name].values.slice(0, P * kept[name].width));
  }
  for (const name of /** @type {const} */ (["inputs", "final"]))
    cache[name].push(run.cache[name].values.slice(0, P * run.cache[name].width));
  if (how === "column") {
    // The word alone goes through the layers once more; its key and value land in its old place.
    const alone = decoder.newCache();
    for (const [i, layer] of alone.layers.entries())
      for (const name of /** @type {const} */ (["q", "k", "v", "middle", "output"]))
        layer[name].push(
          cache.layers[i][name].values.slice(0, position * cache.layers[i][name].width),
        );
    alone.inputs.push(cache.inputs.values.slice(0, position * cache.inputs.width));
    decoder.extend(decoder.embed([id], run.edits), alone, run.mask, run.edits);
    for (const [i, layer] of cache.layers.entries())
      for (const name of /** @type {const} */ (["k", "v"])) {
        const fresh = alone.layers[i][name];
        layer[name].data.set(fresh.row(position), position * fresh.width);
      }
  }
  /** @type {number[]} */
  const answer = [];
  let logits = run.logits[0];
  if (how === "column") {
    // The prompt's last token asks again, now that a column is new.
    const last = run.prompt[P - 1];
    for (const layer of cache.layers)
      for (const name of /** @type {const} */ (["q", "k", "v", "middle", "output"]))
        layer[name].count--;
    cache.inputs.count--;
    cache.final.count--;
    const hiddenRow = decoder.extend(decoder.embed([last], run.edits), cache, run.mask, run.edits);
    logits = decoder.logits(hiddenRow).subarray(0, config.words);
  }
  for (let step = 0; step < 64; step++) {
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    if (best === config.eos) break;
    answer.push(best);
    const row = decoder.extend(decoder.embed([best], run.edits), cache, run.mask, run.edits);
    logits = decoder.logits(row).subarray(0, config.words);
  }
  return { answer, text: run.processor.decode(answer) };
}

/** The rows of some tokens after a layer. @param {Run} run @param {Part} part @param {number} layer
 * @param {number} first @param {number} count */
function rowsOf(run, part, layer, first, count) {
  const { vision, text } = run.model.config;
  const { width } = part === "tower" ? vision : text;
  return hidden(run, part, layer).subarray(first * width, (first + count) * width);
}

/** Principal components of some tokens' streams after a layer.
 * @param {Run} run @param {Part} part @param {number} layer @param {number} first @param {number} count
 * @param {number} k */
export const components = (run, part, layer, first, count, k) =>
  principal(rowsOf(run, part, layer, first, count), count, k);

/** Cosines of one token's stream after a layer with those of some others.
 * @param {Run} run @param {Part} part @param {number} layer @param {number} token
 * @param {number} first @param {number} count */
export function similar(run, part, layer, token, first, count) {
  const own = rowsOf(run, part, layer, token, 1);
  const others = rowsOf(run, part, layer, first, count);
  const D = own.length;
  return Float32Array.from({ length: count }, (_, t) =>
    cosine(own, others.subarray(t * D, (t + 1) * D)),
  );
}

/** @param {Float32Array} x */
const size = (x) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0));

/** @param {Float32Array} a @param {Float32Array} b */
const cosine = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0) / (size(a) * size(b) || 1);

/** One token's stream through all layers: how long it is, how much attention and MLP add, and the
 * cosine of what comes out of a layer with what went in.
 * @param {Run} run @param {Part} part @param {number} position */
export function stream(run, part, position) {
  const { vision, text } = run.model.config;
  const { width, layers } = part === "tower" ? vision : text;
  const row = (/** @type {Float32Array} */ x) =>
    x.subarray(position * width, (position + 1) * width);
  const apart = (/** @type {Float32Array} */ a, /** @type {Float32Array} */ b) =>
    size(a.map((v, i) => v - b[i]));
  return {
    input: size(row(hidden(run, part, -1))),
    layers: Array.from({ length: layers }, (_, layer) => {
      const before = row(hidden(run, part, layer - 1));
      const after = row(hidden(run, part, layer));
      const isLost = isOff(run.edits, `${part}.${layer}`);
      const record =
        part === "tower" ? run.tower?.layers[layer].middle : run.cache.layers[layer].middle.values;
      const middle = row(/** @type {Float32Array} */ (record));
      return {
        attention: isLost ? 0 : apart(middle, before),
        mlp: isLost ? 0 : apart(after, middle),
        length: size(after),
        cosine: cosine(before, after),
      };
    }),
  };
}

/** The MLP's neurons that write most into a token's stream: gelu(gate) · up times a column of the down
 * matrix, and the words that this column raises, read through the last norm (its divisor held fixed)
 * and the table (arXiv 2203.14680).
 * @param {Run} run @param {number} layer @param {number} position @param {number} k */
export function neurons(run, layer, position, k) {
  const { decoder, kernel, config } = run.model;
  const { width, hidden: inner, postNorms, layers, vocab, eps } = decoder.config;
  const row = (/** @type {Float32Array} */ x) => x.slice(position * width, (position + 1) * width);
  const { gate, activated, up, values } = decoder.inner(
    layer,
    row(run.cache.layers[layer].middle.values),
    run.edits,
  );
  const down = decoder.weight(`layers.${layer}.mlp.down_proj.weight`);
  const sizes = new Float32Array(inner);
  for (let i = 0; i < width; i++)
    for (let n = 0; n < inner; n++) sizes[n] += down[i * inner + n] ** 2;
  for (let n = 0; n < inner; n++) sizes[n] = Math.sqrt(sizes[n]) * Math.abs(values[n]);
  const norm = decoder.weight("norm.weight");
  const last = row(run.cache.layers[layers - 1].output.values);
  const mean = run.edits.norm === "layer" ? last.reduce((sum, v) => sum + v / width, 0) : 0;
  const scale = 1 / Math.sqrt(last.reduce((sum, v) => sum + (v - mean) ** 2, 0) / width + eps);
  const chosen = top(sizes, k);
  const written = new Float32Array(k * width);
  chosen.forEach((n, j) => {
    for (let i = 0; i < width; i++)
      written[j * width + i] = values[n] * down[i * inner + n] * scale * (1 + norm[i]);
  });
  const table = decoder.weight("embed_tokens.weight");
  const logits = kernel.linear(written, k, table, null, width, vocab);
  return {
    inner,
    working: sizes.reduce((count, v) => count + Number(v > sizes[chosen[0]] / 10), 0),
    top: chosen.map((n, j) => {
      const own = logits.subarray(j * vocab, j * vocab + config.words);
      return {
        neuron: n,
        gate: gate[n],
        activated: activated[n],
        up: up[n],
        value: values[n],
        size: sizes[n],
        words: top(own, 3).map((id) => ({
          id,
          word: run.processor.spell(id),
          adds: postNorms ? null : own[id],
        })),
      };
    }),
  };
}

/** A patch's pixels and what the tower's first matrix makes of them, before the position is added.
 * @param {Run} run @param {number} patch */
export function projected(run, patch) {
  if (!run.tower) throw new Error("this run has no picture");
  const { tower, config } = run.model;
  const { width, channels, patch: side } = config.vision;
  const inputs = channels * side ** 2;
  const pixels = run.tower.patches.slice(patch * inputs, (patch + 1) * inputs);
  return {
    pixels,
    outputs: tower.linear("embeddings.patch_embedding", pixels, inputs, width),
    input: run.tower.inputs.slice(patch * width, (patch + 1) * width),
  };
}
