"""A checkpoint's Gemma decoder over one prompt in OpenVINO, its matrices in int8.

The graph is written here, operation by operation, so that nothing is between the checkpoint and
OpenVINO's kernels: weights int8 with a scale for each output channel, activations quantized as they
come in groups of 128 (its dynamic quantization). Prompts alone: the decoder without a picture and
without a cache, to the last token's logits.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from torch import Tensor

from paliglass.checkpoints.folder import read_config, read_tensors
from paliglass.checkpoints.layouts import HEAD
from paliglass.config import GemmaConfig
from paliglass.fast.int8 import quantize_rows
from paliglass.inspect.bench import PROMPT_TOKENS, Answer
from paliglass.layers.rope import rotary_cos_sin

DECODER = "language_model.model."
Node = Any  # openvino has no types for its graph


def _matrix(weight: Tensor) -> Node:
    """N × K as int8 and scales, float32 to who reads it."""
    integers, scales = quantize_rows(weight)
    wide = op.convert(op.constant(integers.numpy()), np.float32)
    return op.multiply(wide, op.constant(scales[:, None].numpy()))


def _linear(x: Node, matrix: Node) -> Node:
    return op.matmul(x, matrix, False, True)


def decoder(config: GemmaConfig, weights: dict[str, Node], tokens: int) -> ov.Model:
    """Embeddings, 1 × T × D → the last token's logits, 1 × V. weights: see `read_weights`.

    Raises ValueError for what it is not written for: Gemma 2, or several key heads.
    """
    if config.has_post_norms or config.num_key_value_heads != 1:
        raise ValueError("only Gemma 1 decoders with one key head are written for OpenVINO")
    heads, key_heads, width = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    rotary = rotary_cos_sin(
        torch.arange(tokens)[None], width, config.rope_theta, torch.float32
    )  # 1 × 1 × T × head_dim
    cos, sin = (op.constant(x.numpy()) for x in rotary)

    def norm(x: Node, name: str) -> Node:
        mean = op.reduce_mean(op.multiply(x, x), op.constant([-1]), True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(config.rms_norm_eps))))
        return op.multiply(op.divide(x, root), weights[name])

    def split(x: Node, count: int) -> Node:  # 1 × T × heads · head_dim → 1 × heads × T × head_dim
        apart = op.reshape(x, op.constant([1, tokens, count, width]), False)
        return op.transpose(apart, op.constant([0, 2, 1, 3]))

    def turn(x: Node) -> Node:
        first, second = op.split(x, op.constant(3), 2).outputs()
        turned = op.concat([op.negative(second), first], 3)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    embeddings = x = op.parameter([1, tokens, config.hidden_size], np.float32)
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}."
        normed = norm(x, layer + "input_layernorm")
        query, key, value = (
            split(_linear(normed, weights[f"{layer}self_attn.{name}_proj"]), count)
            for name, count in (("q", heads), ("k", key_heads), ("v", key_heads))
        )
        query, key = turn(query), turn(key)
        shape = op.constant([1, heads, tokens, width])
        key, value = (op.broadcast(each, shape) for each in (key, value))  # of one key head
        attended = op.scaled_dot_product_attention(query, key, value)
        attended = op.reshape(
            op.transpose(attended, op.constant([0, 2, 1, 3])),
            op.constant([1, tokens, heads * width]),
            False,
        )
        x = op.add(x, _linear(attended, weights[layer + "self_attn.o_proj"]))
        normed = norm(x, layer + "post_attention_layernorm")
        gate = op.gelu(_linear(normed, weights[layer + "mlp.gate_proj"]), "tanh")
        gated = op.multiply(gate, _linear(normed, weights[layer + "mlp.up_proj"]))
        x = op.add(x, _linear(gated, weights[layer + "mlp.down_proj"]))
    last = op.gather(norm(x, "norm"), op.constant(tokens - 1), op.constant(1))
    return ov.Model([_linear(last, weights["embed_tokens"])], [embeddings])


def read_weights(folder: Path) -> dict[str, Node]:
    """A decoder's matrices in int8 and its norms' gains, by their names in `GemmaModel`."""
    return {
        name.removeprefix(DECODER).removesuffix(".weight"): (
            _matrix(tensor) if tensor.ndim == 2 else op.constant(1 + tensor.float().numpy())
        )
        for name, _, tensor in read_tensors(folder)
        if name.startswith(DECODER) and name != HEAD
    }


def load_prompts(folder: Path, threads: int) -> Answer:
    """What answers with one token, once a prompt as long as a picture and its words is through."""
    config = read_config(folder)
    text = config.text_config
    tokens = config.num_image_tokens + PROMPT_TOKENS
    graph = decoder(text, read_weights(folder), tokens)
    core = ov.Core()
    compiled = core.compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
        },
    )
    embeddings = np.random.default_rng(0).standard_normal((1, tokens, text.hidden_size), np.float32)

    def answer(pictures: int, count: int) -> list[float]:
        start = time.perf_counter()
        compiled([embeddings])
        return [time.perf_counter() - start]

    return answer
