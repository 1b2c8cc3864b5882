"""A folder ↔ ColPali: transformers' layout; to read, colpali-engine's and its LoRA adapter too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.checkpoints.adapters import with_adapter, with_base
from paliglass.checkpoints.assembly import assemble, fill, parse_device, parse_dtype, weightless
from paliglass.checkpoints.config_json import (
    from_fields,
    is_colpali,
    paligemma_from_json,
    paligemma_to_json,
    section,
)
from paliglass.checkpoints.folder import (
    QUANTIZATION,
    load_tokenizer,
    quantization,
    read_tensors,
    require_layers,
    tensor_names,
    tensor_sizes,
)
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import HEAD
from paliglass.checkpoints.memory import require_memory
from paliglass.checkpoints.processor import make_processor, picture_settings, write_processor
from paliglass.checkpoints.saving import new_folder, quantization_of, write_weights
from paliglass.config import PaliGemmaConfig, check_numbers
from paliglass.errors import CheckpointError, ConfigError
from paliglass.fast import accelerate
from paliglass.files import read_json, write_json
from paliglass.retrieval.modeling_colpali import ColPaliForRetrieval
from paliglass.retrieval.processing import ColPaliProcessor

__all__ = ["ColPaliConfig", "is_colpali_checkpoint", "load_colpali", "parts", "save_colpali"]

PROJECTION = "embedding_proj_layer."
PROMPTS = ("visual_prompt_prefix", "query_prefix")


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

    def to_dict(self) -> dict[str, Any]:
        """config.json's data, as transformers' `ColPaliConfig` reads it."""
        return {
            "architectures": ["ColPaliForRetrieval"],
            "model_type": "colpali",
            "embedding_dim": self.embedding_dim,
            "vlm_config": paligemma_to_json(self.vlm_config),
        }


def load_colpali(
    model: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    fast: bool = True,
) -> tuple[ColPaliForRetrieval, ColPaliProcessor]:
    """Model, ready to embed, and processor of a ColPali.

    Strict: a missing, surplus or wrongly shaped tensor is an error that names it.

    Args:
        model: a folder or hub id: `vidore/colpali-v1.3-hf` and others in transformers' layout,
            `vidore/colpali-v1.2-merged` in colpali-engine's, or an adapter in that,
            `vidore/colpali-v1.3`, whose base is then loaded with it.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the file's; or a dtype or its name to convert to.
        quantize: "int8" or "int4" makes PaliGemma's matrices so while they are read; see
            `fast.accelerate`. The projection stays as it is. What was saved so is read so.
        fast: put what is fastest on this processor in the place of the plain modules; see
            `fast.accelerate`.

    Raises CheckpointError: what is wrong, where, and what to do.
    """
    folder, *adapters = parts(model)
    path = folder / "config.json"
    stored = quantization(folder, quantize)
    data = {key: value for key, value in read_json(path).items() if key != QUANTIZATION}
    try:
        config = ColPaliConfig.from_dict(data)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not any(name.startswith(PROJECTION) for name in tensor_names(folder)):
        what = "ColPali" if is_colpali(data) else "PaliGemma and no ColPali"
        raise CheckpointError(
            f"{folder}: is a {what} without embedding_proj_layer (custom_text_proj), which makes "
            "vectors of its tokens; vidore/colpali-v1.3-hf has one"
        )
    source = next((some for some in adapters if (some / "tokenizer.json").exists()), folder)
    processor = _load_processor(source, config.vlm_config)  # before the weights, which take longer

    on_device, in_dtype = parse_device(device), parse_dtype(dtype)
    sizes = tensor_sizes(folder)
    require_layers(
        folder, [config.vlm_config.text_config, config.vlm_config.vision_config], len(sizes)
    )
    quantize = quantize or stored
    require_memory(folder.name, sizes, in_dtype, on_device, quantize)
    tensors = read_tensors(folder)
    for adapter in adapters:
        tensors = with_adapter(tensors, adapter, in_dtype)
    projection: list[tuple[str, str, Tensor]] = []

    def of_vlm() -> Iterator[tuple[str, str, Tensor]]:
        for name, key, tensor in tensors:
            if name.startswith(PROJECTION):
                projection.append((name, key, tensor))
            else:
                yield name, key, tensor

    vlm = assemble(
        config.vlm_config,
        of_vlm(),
        str(folder),
        in_dtype,
        on_device,
        partial(accelerate, plain=not fast),
        quantize,
        is_quantized=stored is not None,
    )
    with weightless():
        colpali = ColPaliForRetrieval(vlm, config.embedding_dim)
    layer = nn.ModuleDict({PROJECTION.removesuffix("."): colpali.embedding_proj_layer})
    fill(layer, projection, str(folder), in_dtype, on_device)
    return colpali.eval(), processor


def save_colpali(
    model: ColPaliForRetrieval, folder: str | Path, processor: ColPaliProcessor
) -> None:
    """Writes what `load_colpali` and transformers' `ColPaliForRetrieval` read, whole or not at all.

    A quantized model is saved so, which transformers does not read. Raises CheckpointError where
    the folder holds something already.
    """
    with new_folder(Path(folder)) as target:
        state = {
            name: tensor.detach().contiguous()
            for name, tensor in model.state_dict().items()
            if name != f"vlm.{HEAD}"  # tied
        }
        write_weights(target, state)
        dtype = str(model.vlm.dtype).removeprefix("torch.")
        config = ColPaliConfig(model.vlm.config, model.embedding_dim)
        about = {**config.to_dict(), "dtype": dtype}
        write_json(target / "config.json", about | quantization_of(state.values()))
        write_processor(processor.processor, target, "ColPaliProcessor")
        prompts = {key: getattr(processor, key) for key in PROMPTS}
        settings = {"processor_class": "ColPaliProcessor", **prompts}
        write_json(target / "processor_config.json", settings)


def is_colpali_checkpoint(model: str | Path) -> bool:
    """Whether a model's folder, or an adapter's base, is called a ColPali."""
    path = parts(model)[0] / "config.json"
    return path.is_file() and is_colpali(read_json(path))


def parts(model: str | Path) -> list[Path]:
    """The folder of a model's weights; of an adapter, that of its base and then its own."""
    folder, adapter = with_base(locate(model))
    return [folder] if adapter is None else [folder, Path(adapter)]


def _load_processor(folder: Path, config: PaliGemmaConfig) -> ColPaliProcessor:
    settings = picture_settings(folder, config.vision_config.image_size)
    processor = make_processor(load_tokenizer(folder), config, folder, **settings)
    path = folder / "processor_config.json"
    data = read_json(path) if path.exists() else {}
    prompts = {key: data[key] for key in PROMPTS if key in data}
    for key, text in prompts.items():
        if not isinstance(text, str):
            raise CheckpointError(f"{path}: {key} is {text!r}; it is a text")
    return ColPaliProcessor(processor, **prompts)
