"""A folder → ColPali: transformers' layout, colpali-engine's, or that one's LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.checkpoints.adapters import with_adapter, with_base
from paliglass.checkpoints.assembly import assemble, fill, parse_device, parse_dtype, weightless
from paliglass.checkpoints.config_json import from_fields, is_colpali, paligemma_from_json, section
from paliglass.checkpoints.folder import (
    load_tokenizer,
    read_tensors,
    require_layers,
    tensor_names,
    tensor_sizes,
)
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.memory import require_memory
from paliglass.checkpoints.processor import make_processor, picture_settings
from paliglass.config import PaliGemmaConfig, check_numbers
from paliglass.errors import CheckpointError, ConfigError
from paliglass.fast import accelerate
from paliglass.files import read_json
from paliglass.retrieval.modeling_colpali import ColPaliForRetrieval
from paliglass.retrieval.processing import ColPaliProcessor

__all__ = ["ColPaliConfig", "load_colpali", "parts"]

PROJECTION = "embedding_proj_layer."


@dataclass(frozen=True)
class ColPaliConfig:
    """A PaliGemma and the width of the vectors that its tokens end as."""

    vlm_config: PaliGemmaConfig
    embedding_dim: int = 128

    def __post_init__(self) -> None:
        check_numbers(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ColPaliConfig:
        """Reads config.json's data: transformers' `ColPaliConfig`, or PaliGemma's own.

        Raises ConfigError naming the key that is missing, unknown or of an impossible value.
        """
        if data.get("model_type") != "colpali":  # colpali-engine's, which is always 128 wide
            return cls(paligemma_from_json({**data, "architectures": None}))
        data = section("config", data, ("vlm_config",))
        vlm = paligemma_from_json(section("vlm_config", data.pop("vlm_config"), ()))
        # Earlier versions of transformers repeat the decoder's part here.
        return from_fields(cls, {**data, "vlm_config": vlm}, ("text_config",))


def load_colpali(
    model: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> tuple[ColPaliForRetrieval, ColPaliProcessor]:
    """Model, ready to embed, and processor of a ColPali.

    Strict: a missing, surplus or wrongly shaped tensor is an error that names it.

    Args:
        model: a folder or hub id: `vidore/colpali-v1.3-hf` and others in transformers' layout,
            `vidore/colpali-v1.2-merged` in colpali-engine's, or an adapter in that,
            `vidore/colpali-v1.3`, whose base is then loaded with it.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the file's; or a dtype or its name to convert to.
        quantize: "int8" makes PaliGemma's matrices int8 while they are read; see `fast.int8`. The
            projection stays as it is.

    Raises CheckpointError: what is wrong, where, and what to do.
    """
    folder, *adapters = parts(model)
    path = folder / "config.json"
    try:
        config = ColPaliConfig.from_dict(read_json(path))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not any(name.startswith(PROJECTION) for name in tensor_names(folder)):
        what = "ColPali" if is_colpali(read_json(path)) else "PaliGemma and no ColPali"
        raise CheckpointError(
            f"{folder}: is a {what} without embedding_proj_layer (custom_text_proj), which makes "
            "vectors of its tokens; vidore/colpali-v1.3-hf has one"
        )
    source = next((some for some in adapters if (some / "tokenizer.json").exists()), folder)
    processor = _load_processor(source, config.vlm_config)  # before the weights, which take longer

    target, wanted = parse_device(device), parse_dtype(dtype)
    sizes = tensor_sizes(folder)
    require_layers(
        folder, [config.vlm_config.text_config, config.vlm_config.vision_config], len(sizes)
    )
    require_memory(folder.name, sizes, wanted, target, quantize)
    tensors = read_tensors(folder)
    for adapter in adapters:
        tensors = with_adapter(tensors, adapter, wanted)
    projection: list[tuple[str, str, Tensor]] = []

    def of_vlm() -> Iterator[tuple[str, str, Tensor]]:
        for name, key, tensor in tensors:
            if name.startswith(PROJECTION):
                projection.append((name, key, tensor))
            else:
                yield name, key, tensor

    vlm = assemble(config.vlm_config, of_vlm(), str(folder), wanted, target, accelerate, quantize)
    with weightless():
        colpali = ColPaliForRetrieval(vlm, config.embedding_dim)
    layer = nn.ModuleDict({PROJECTION.removesuffix("."): colpali.embedding_proj_layer})
    fill(layer, projection, str(folder), wanted, target)
    return colpali.eval(), processor


def parts(model: str | Path) -> list[Path]:
    """The folder of a model's weights; of an adapter, that of its base and then its own."""
    folder, adapter = with_base(locate(model))
    return [folder] if adapter is None else [folder, Path(adapter)]


def _load_processor(folder: Path, config: PaliGemmaConfig) -> ColPaliProcessor:
    settings = picture_settings(folder, config.vision_config.image_size)
    processor = make_processor(load_tokenizer(folder), config, folder, **settings)
    path = folder / "processor_config.json"
    data = read_json(path) if path.exists() else {}
    prompts = {key: data[key] for key in ("visual_prompt_prefix", "query_prefix") if key in data}
    for key, text in prompts.items():
        if not isinstance(text, str):
            raise CheckpointError(f"{path}: {key} is {text!r}; it is a text")
    return ColPaliProcessor(processor, **prompts)
