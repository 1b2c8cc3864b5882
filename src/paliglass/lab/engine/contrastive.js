// The dual encoder: picture and text meet in one product (see contrastive/modeling_contrastive.py).
//
//     picture ─ ResNet or ViT ─ W_i ─ unit length ─┐
//                                        cosine · exp(t) (+ b)
//     text ──── bag of words ── W_t ─ unit length ─┘

import { readVision } from "./config.js";
import { Kernel } from "./kernel.js";
import { normalize, square } from "./processing.js";
import { mean, ResNet } from "./resnet.js";
import { AttentionPooling, SigLip } from "./siglip.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./safetensors.js").Tensors} Tensors */
/** @typedef {import("./processing.js").Picture} Picture */

/** @param {Float32Array} x to unit length, in place */
export function unit(x) {
  const length = Math.max(Math.hypot(...x), 1e-12);
  for (let i = 0; i < x.length; i++) x[i] /= length;
  return x;
}

/** PaliGemma's own vision tower, and what makes one vector of its patches. */
class VisionTransformer {
  /** @param {any} config config.json's data @param {Tensors} tensors @param {Kernel} kernel */
  constructor({ image_config, image_pooling }, tensors, kernel) {
    const vision = readVision(image_config);
    this.width = vision.width;
    this.tower = new SigLip(vision, tensors, kernel, "image_encoder.tower.vision_model.");
    this.head =
      image_pooling === "mean"
        ? null
        : new AttentionPooling(vision, tensors, kernel, "image_encoder.head.");
  }

  /** Numbers in [−1, 1], 3 × S × S → one vector. @param {Float32Array} pixels */
  forward(pixels) {
    const { features } = this.tower.forward(pixels);
    return this.head ? this.head.forward(features) : mean(features, this.width);
  }
}

export class Dual {
  /** @param {any} config config.json's data @param {Tensors} tensors
   * @param {BufferSource | null} wasm @param {any} tokenizer tokenizer.json */
  constructor(config, tensors, wasm, tokenizer) {
    const text = config.text_config.model_type;
    if (text !== "cbow") throw new Error(`the lab's dual encoder reads texts by cbow, not ${text}`);
    this.config = config;
    this.tensors = tensors;
    this.kernel = new Kernel(tensors, wasm);
    const { image_config: image } = config;
    this.imageEncoder =
      image.model_type === "resnet"
        ? new ResNet(image, tensors, this.kernel)
        : new VisionTransformer(config, tensors, this.kernel);
    this.tokenizer = new Tokenizer(tokenizer, { specialAsText: true });
  }

  get isClip() {
    return this.config.loss === "clip";
  }

  /** exp(t), what cosines are multiplied by. */
  get scale() {
    return Math.exp(this.tensors.logit_scale.data[0]);
  }

  get bias() {
    return this.tensors.logit_bias?.data[0] ?? 0;
  }

  /** A picture → D numbers of unit length. @param {Picture} picture */
  embedPicture(picture) {
    const pixels = normalize(square(picture, this.config.image_config.image_size));
    return this.joint("image_projection", this.imageEncoder.forward(pixels));
  }

  /** A text → D numbers of unit length. @param {string} text */
  embedText(text) {
    const { max_position_embeddings: most, hidden_size: width } = this.config.text_config;
    const ids = [...this.tokenizer.encode(text).slice(0, most - 1), this.tokenizer.id("<eos>")];
    const table = this.tensors["text_encoder.token_embedding.weight"].data;
    const rows = ids.flatMap((id) => [...table.subarray(id * width, (id + 1) * width)]);
    return this.joint("text_projection", mean(Float32Array.from(rows), width));
  }

  /** @param {string} name @param {Float32Array} x */
  joint(name, x) {
    const weight = this.tensors[`${name}.weight`];
    if (!weight) return unit(x);
    const bias = this.tensors[`${name}.bias`]?.data ?? null;
    return unit(this.kernel.linear(x, 1, weight.data, bias, x.length, weight.shape[0]));
  }
}
