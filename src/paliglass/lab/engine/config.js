// config.json → sizes, with the defaults that the files leave out (see config.py).

/**
 * @typedef {object} VisionConfig
 * @property {number} width @property {number} hidden the MLP's @property {number} layers
 * @property {number} heads @property {number} side of the picture, pixels @property {number} patch
 * @property {number} channels @property {number} eps
 */
/**
 * @typedef {object} TextConfig
 * @property {number} vocab @property {number} width @property {number} hidden
 * @property {number} layers @property {number} heads @property {number} keyHeads
 * @property {number} headDim @property {number} eps @property {number} theta
 * @property {number} scale of the scores @property {number | null} scoreCap
 * @property {number | null} logitCap @property {boolean} postNorms Gemma 2's
 * @property {number} limit tokens that fit
 */
/**
 * @typedef {object} Config
 * @property {VisionConfig} vision @property {TextConfig} text
 * @property {number} imageToken @property {number} eos
 * @property {number} words ids below it are words
 * @property {number} perRow patches in a row of the picture @property {number} patches P
 */

/** @param {any} data @returns {VisionConfig} */
export function readVision(data) {
  return {
    width: data.hidden_size,
    hidden: data.intermediate_size,
    layers: data.num_hidden_layers,
    heads: data.num_attention_heads,
    side: data.image_size ?? 224,
    patch: data.patch_size ?? 14,
    channels: data.num_channels ?? 3,
    eps: data.layer_norm_eps ?? 1e-6,
  };
}

/** @param {any} data config.json of a PaliGemma @returns {Config} */
export function readConfig(data) {
  const vision = readVision(data.vision_config);
  const text = data.text_config;
  const headDim = text.head_dim ?? 256;
  const isGemma2 = text.model_type === "gemma2";
  const { vocab_size: vocab } = text;
  const imageToken = data.image_token_index;
  const padding = vocab - imageToken;
  const perRow = vision.side / vision.patch;
  return {
    vision,
    text: {
      vocab,
      width: text.hidden_size,
      hidden: text.intermediate_size,
      layers: text.num_hidden_layers,
      heads: text.num_attention_heads,
      keyHeads: text.num_key_value_heads,
      headDim,
      eps: text.rms_norm_eps ?? 1e-6,
      theta: text.rope_parameters?.rope_theta ?? text.rope_theta ?? 10000,
      scale: 1 / Math.sqrt(text.query_pre_attn_scalar || headDim),
      scoreCap: text.attn_logit_softcapping || null,
      logitCap: text.final_logit_softcapping || null,
      postNorms: isGemma2,
      limit: text.max_position_embeddings ?? 8192,
    },
    imageToken,
    eos: [text.eos_token_id ?? data.eos_token_id ?? 1].flat()[0],
    words: padding >= 0 && padding <= 64 ? imageToken : vocab,
    perRow,
    patches: perRow ** 2,
  };
}
