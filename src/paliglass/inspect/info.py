"""What a model is and what it needs, from its configuration alone: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from paliglass.checkpoints.assembly import DTYPES, skeleton, weightless
from paliglass.checkpoints.big_vision import read_big_vision_config
from paliglass.checkpoints.config_json import DUAL_ENCODERS, paligemma_to_json
from paliglass.checkpoints.folder import read_config
from paliglass.checkpoints.hub import locate
from paliglass.config import PRESETS, PaliGemmaConfig
from paliglass.contrastive.config import ContrastiveConfig
from paliglass.contrastive.folders import read_contrastive_config
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.files import read_json
from paliglass.layers.attention import MOST_SCORES
from paliglass.tasks.things import Things, load_things

__all__ = ["DualInfo", "ModelInfo", "describe", "read_dual_info", "read_info"]


@dataclass(frozen=True)
class ModelInfo:
    """Sizes of a model.

    parameters: numbers by part; the output layer is the embedding and is counted once. memory:
    bytes of the weights by dtype; int8 means one byte for each number of a matrix and a float32
    scale for each of its rows, vectors and convolution in bfloat16; int4 the same but for the
    decoder's MLPs after its first layer, of which 32 numbers take 16 bytes and a float16. cache:
    bytes that one token of one sequence takes in the key/value cache, by dtype; see `KVCache`.
    scores: bytes that attention's scores take at most while eight pictures are prefilled; 0 where a
    fused kernel writes none.
    things: what a small model can know at all, with other words for it; None without such a list.
    """

    config: PaliGemmaConfig
    parameters: dict[str, int]
    memory: dict[str, int]
    cache: dict[str, int]
    scores: int = 0
    things: Things | None = None

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "parameters": {**self.parameters, "total": self.total_parameters},
            "memory_bytes": self.memory,
            "cache_bytes_per_token": self.cache,
            "attention_bytes": self.scores,
            "image_tokens": self.config.num_image_tokens,
            "things": None if self.things is None else self.things.words,
            "config": paligemma_to_json(self.config),
        }


@dataclass(frozen=True)
class DualInfo:
    """Sizes of a dual encoder: parameters by part, and bytes of the weights by dtype."""

    config: ContrastiveConfig
    parameters: dict[str, int]
    memory: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "memory_bytes": self.memory,
            "config": self.config.to_dict(),
        }


def read_dual_info(model: str | Path) -> DualInfo | None:
    """Describes "mini-dual", a folder or a hub id; None for what is no dual encoder.

    Of a hub repository only the JSON files are fetched. Raises PaliglassError.
    """
    if str(model) in PRESETS and not Path(model).exists():
        return None
    path = locate(model, ("*.json",))
    file = path / "config.json"
    if not file.is_file() or read_json(file).get("model_type") not in DUAL_ENCODERS:
        return None
    config = read_contrastive_config(path)
    with weightless():
        dual = ContrastiveModel(config)
    parameters = {name: _count(part) for name, part in dual.named_children()}
    parameters["scale_and_bias"] = sum(p.numel() for p in dual.parameters(recurse=False))
    numbers = sum(tensor.numel() for tensor in dual.state_dict().values())  # averages too
    memory = {name: numbers * DTYPES[name].itemsize for name in ("float32", "bfloat16")}
    return DualInfo(config, parameters, memory)


def read_info(model: str | Path) -> ModelInfo:
    """Describes "mini", a folder, a hub id, a big_vision .npz or the name of a preset.

    Of a hub repository only the JSON files are fetched. Raises PaliglassError.
    """
    if str(model) in PRESETS and not Path(model).exists():
        return describe(PRESETS[str(model)])
    path = locate(model, ("*.json",))
    if path.suffix == ".npz":
        return describe(read_big_vision_config(path))
    return replace(describe(read_config(path)), things=load_things(path))


def describe(config: PaliGemmaConfig) -> ModelInfo:
    """Counts on torch's meta device, where a model has shapes and no memory."""
    model = skeleton(config)
    table = model.language_model.model.embed_tokens.weight.numel()
    parameters = {
        "vision_tower": _count(model.vision_tower),
        "projector": _count(model.multi_modal_projector),
        "embedding": table,
        "decoder": _count(model.language_model) - table,
    }
    total = sum(parameters.values())
    sizes = {name: dtype.itemsize for name, dtype in DTYPES.items() if name != "float16"}
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    in_matrices = sum(matrix.numel() for matrix in matrices)
    rows = sum(len(matrix) for matrix in matrices)
    memory = {name: total * size for name, size in sizes.items()}
    memory["int8"] = in_matrices + 4 * rows + 2 * (total - in_matrices)
    text = config.text_config
    in_mlps = (text.num_hidden_layers - 1) * 3 * text.hidden_size * text.intermediate_size
    mlp_rows = (text.num_hidden_layers - 1) * (2 * text.intermediate_size + text.hidden_size)
    memory["int4"] = memory["int8"] - in_mlps * 7 // 16 - 4 * mlp_rows
    numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    cache = {name: numbers * size for name, size in sizes.items()}
    scores = 0
    if text.attn_logit_softcapping:  # else the fused kernel, which writes none
        tokens = config.num_image_tokens
        scores = 12 * min(MOST_SCORES, 8 * text.num_attention_heads * tokens**2)
    return ModelInfo(config, parameters, memory, cache, scores)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
