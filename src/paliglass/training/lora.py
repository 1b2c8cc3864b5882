"""Low-rank adapters (LoRA, arXiv 2106.09685) with peft, saved so that transformers can use them.

A frozen matrix W gets a learned update B·A of rank r: r·(in + out) numbers instead of in·out. B
starts at 0, so training starts from the model as it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from paliglass.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS, read_adapter
from paliglass.checkpoints.layouts import transformers_name
from paliglass.checkpoints.saving import new_folder
from paliglass.errors import CheckpointError, PaliglassError, not_installed
from paliglass.fast import Int8Linear
from paliglass.files import write_json
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.tensors import save_file
from paliglass.training.recipes import FinetuneRecipe

__all__ = ["DECODER", "add_lora", "continue_lora", "save_lora", "settings_of"]

# The layers' names here and in transformers; peft holds the whole name against it.
ATTENTION = r".*language_model\.(model\.)?layers\.\d+\.self_attn\.[qkvo]_proj"
DECODER = r".*language_model\.(model\.)?layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
ALL = (
    r".*(language_model\.(model\.)?layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    r"|vision_tower\.(vision_model\.)?encoder\.layers\.\d+\."
    r"(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])"
    r"|multi_modal_projector\.linear)"
)
TARGETS = {"attention": ATTENTION, "decoder": DECODER, "all": ALL}


def add_lora(
    model: PaliGemmaForConditionalGeneration,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
) -> None:
    """Freezes the model and gives its layers adapters, whose weights are float32.

    targets: "attention" or "decoder" for the language model's, "all" for the vision tower's and
    the projector's as well. Raises PaliglassError where peft is missing.
    """
    _inject(model, r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS[targets])


def settings_of(folder: Path, recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The recipe with the rank and scale of the adapters in a folder.

    Raises CheckpointError where it asks for others, and as `read_adapter` does.
    """
    found = read_adapter(folder).settings
    rank, alpha = found["r"], float(found["lora_alpha"])
    if recipe.lora not in (0, rank) or recipe.lora_alpha not in (None, alpha):
        raise CheckpointError(
            f"{folder}: its adapters have rank {rank} and alpha {alpha:g}; leave out --lora and "
            "--lora-alpha to go on with them"
        )
    return replace(recipe, lora=rank, lora_alpha=alpha)


def continue_lora(model: PaliGemmaForConditionalGeneration, folder: Path, dropout: float) -> None:
    """Freezes the model and gives it the adapters of a folder in peft's format, which learn on.

    Raises CheckpointError where they are not this model's, and as `read_adapter` does.
    """
    settings, _, layers = read_adapter(folder)
    config = _inject(
        model,
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=dropout,
        use_rslora=settings.get("use_rslora", False),
        target_modules=sorted(layers),
    )
    config.target_modules = settings.get(
        "target_modules"
    )  # as transformers calls them, for its files
    parameters = dict(model.named_parameters())
    for layer, parts in layers.items():
        for part, tensor in parts.items():
            parameter = parameters.get(f"{layer}.{part}.default.weight")
            if parameter is None or parameter.shape != tensor.shape:
                raise CheckpointError(
                    f"{folder}: {layer} has {part} of {list(tensor.shape)}, which is not this "
                    "model's; name the model that the adapter was made for"
                )
            parameter.data.copy_(tensor)


def _inject(model: PaliGemmaForConditionalGeneration, **settings: Any) -> Any:
    """Adapters for a frozen model; returns peft's configuration."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise PaliglassError(not_installed("peft")) from error
    config = LoraConfig(**settings)
    config._register_custom_module({Int8Linear: _beside_int8()})
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return config


def _beside_int8() -> type[Any]:
    """peft's adapter beside an `Int8Linear`, whose kind it does not know."""
    from peft.tuners.lora import Linear

    class Int8Lora(Linear):  # type: ignore[misc]
        def _get_in_out_features(self, module: Int8Linear) -> tuple[int, int]:
            return module.in_features, module.out_features

    return Int8Lora


def save_lora(
    model: PaliGemmaForConditionalGeneration, state: dict[str, Tensor], folder: Path, base: str
) -> None:
    """Writes the adapters in peft's format, whole or not at all.

    `PeftModel.from_pretrained(transformers' model, folder)` and `paliglass.load(…, adapter=folder)`
    read it. state: the model's parameters by name. base: the name of the model they belong to.
    """
    from peft import get_peft_model_state_dict

    config: Any = model.peft_config["default"]  # type: ignore[index]
    adapters: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=state)
    config.base_model_name_or_path = base
    config.inference_mode = True
    with new_folder(folder) as target:
        tensors = {
            f"{PREFIX}{transformers_name(name)}": tensor.detach().contiguous()
            for name, tensor in adapters.items()
        }
        save_file(tensors, target / WEIGHTS, {"format": "pt"})
        settings = config.to_dict()
        write_json(
            target / CONFIG,
            {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()},
        )
