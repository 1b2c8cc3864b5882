"""A small random ColPali in a folder, in each of the layouts that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from paliglass.checkpoints import save_folder
from paliglass.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS
from tests.edits import edit_json, edit_weights
from tests.tiny import tiny_model, tiny_processor, worded_config

WIDTH = 128
PROJECTION = {"hf": "embedding_proj_layer", "engine": "custom_text_proj"}
WRAPPER = {"hf": "vlm.", "engine": "model."}
Layout = Literal["hf", "engine"]


def colpali_folder(folder: Path, layout: Layout = "hf", seed: int = 0, **text: Any) -> Path:
    """A new folder; equal weights in every layout."""
    config = worded_config(**text)
    processor = tiny_processor()
    save_folder(tiny_model(config, seed=seed), folder, processor)
    (folder / "checksums.json").unlink()
    generator = torch.Generator().manual_seed(seed)
    width = config.text_config.hidden_size

    def wrap(state: dict[str, Tensor]) -> None:
        for key in list(state):
            state[WRAPPER[layout] + key] = state.pop(key)
        name = PROJECTION[layout]
        state[f"{name}.weight"] = torch.randn(WIDTH, width, generator=generator) * 0.2
        state[f"{name}.bias"] = torch.randn(WIDTH, generator=generator) * 0.2

    edit_weights(folder, wrap)
    path = folder / "config.json"
    if layout == "engine":
        edit_json(path, architectures=["ColPali"])
        return folder
    vlm = json.loads(path.read_text())
    path.unlink()
    edit_json(
        path,
        architectures=["ColPaliForRetrieval"],
        model_type="colpali",
        vlm_config=vlm,
        embedding_dim=WIDTH,
    )
    return folder


def adapter_folder(folder: Path, base: Path, seed: int = 1) -> Path:
    """LoRA of the decoder and the projection, as colpali-engine saves it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    config = worded_config().text_config
    sizes = {"custom_text_proj": (WIDTH, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        name = f"model.language_model.model.layers.{layer}.mlp"
        sizes[f"{name}.up_proj"] = config.intermediate_size, config.hidden_size
        sizes[f"{name}.down_proj"] = config.hidden_size, config.intermediate_size
    state = {}
    for name, (rows, columns) in sizes.items():
        a, b = (
            torch.randn(4, columns, generator=generator),
            torch.randn(rows, 4, generator=generator),
        )
        state[f"{PREFIX}{name}.lora_A.weight"] = a * 0.1
        state[f"{PREFIX}{name}.lora_B.weight"] = b * 0.1
    save_file(state, folder / WEIGHTS)
    edit_json(
        folder / CONFIG,
        peft_type="LORA",
        base_model_name_or_path=str(base),
        r=4,
        lora_alpha=4,
        init_lora_weights="gaussian",
        target_modules="(.*(language_model).*(down_proj|up_proj).*$|.*(custom_text_proj).*$)",
    )
    return folder
