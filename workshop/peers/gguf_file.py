"""A checkpoint's Gemma decoder as GGUF, in Q8_0 or Q4_0: what llama.cpp reads."""

from __future__ import annotations

import re
from pathlib import Path

from paliglass.checkpoints.folder import read_config, read_tensors
from paliglass.checkpoints.layouts import HEAD
from paliglass.errors import PaliglassError

DECODER = "language_model.model."
TABLE = "token_embd.weight"
_NAMES = {
    "embed_tokens.weight": TABLE,
    "norm.weight": "output_norm.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """What GGUF calls one of the decoder's tensors, given without `language_model.model.`"""
    if name in _NAMES:
        return _NAMES[name]
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if found is None or found[2] not in _LAYER_NAMES:
        raise PaliglassError(f"GGUF has no name for {name}; only Gemma 1 decoders are written")
    return f"blk.{found[1]}.{_LAYER_NAMES[found[2]]}.weight"


def write_gguf(folder: Path, path: Path, form: str = "Q8_0") -> None:
    """Writes the decoder of a checkpoint's folder to `path`, its matrices in a form of GGUF.

    form: "Q8_0", or "Q4_0", of which the table, which is the head too, is Q6_K in llama.cpp's own
    files and Q8_0 here: of Q6_K the `gguf` package writes none.
    Its vocabulary has no words, only numbers: it is for measuring. Raises PaliglassError for a
    Gemma 2 decoder, ImportError without the `gguf` package.
    """
    import gguf
    import numpy as np

    text = read_config(folder).text_config
    if text.model_type != "gemma":
        raise PaliglassError("only Gemma 1 decoders are written as GGUF")
    writer = gguf.GGUFWriter(path, "gemma", use_temp_file=True)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{form}"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(text.vocab_size)])
    writer.add_token_scores([0.0] * text.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * text.vocab_size)
    for name, _, tensor in read_tensors(folder):
        if not name.startswith(DECODER) or name == HEAD:
            continue
        target, numbers = gguf_name(name.removeprefix(DECODER)), tensor.float().numpy()
        if numbers.ndim == 1:  # llama.cpp keeps 1 + the norms' weights
            writer.add_tensor(target, numbers + np.float32(1))
            continue
        kind = gguf.GGMLQuantizationType["Q8_0" if target == TABLE else form]
        writer.add_tensor(target, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
