"""info, convert, verify: what a model is, in which layout, and whether it is right."""

from __future__ import annotations

import json as json_text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paliglass.cli.app import command, fail
from paliglass.cli.messages import counted, waiting
from paliglass.cli.options import (
    MODEL_HELP,
    AdapterOption,
    DtypeOption,
    JsonObject,
    Quantize,
    locate_model,
)
from paliglass.cli.tables import print_table
from paliglass.errors import printable

if TYPE_CHECKING:
    from paliglass.config import GemmaConfig, SigLipConfig
    from paliglass.contrastive.config import TextTransformerConfig
    from paliglass.inspect.info import DualInfo, ModelInfo
    from paliglass.inspect.memory_plan import MemoryPlan
    from paliglass.training.recipes import Part

__all__ = ["companions", "convert", "info", "verify"]


@command
def info(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{MODEL_HELP} Or a dual encoder, as mini-dual, or a preset, as paligemma-3b-224."
        ),
    ],
    training: Annotated[
        bool, typer.Option("--training", help="Also what fine-tuning takes of each GPU's memory.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="With --training: rows on a GPU at once.")] = 1,
    things: Annotated[
        bool, typer.Option("--things", help="Only what a small model knows, with other words.")
    ] = False,
    json: JsonObject = False,
) -> None:
    """Tell a model's sizes and the memory it needs, without loading its weights.

    Also how its matrices are multiplied on this machine's processor, and so what is fast here.
    """
    from paliglass.inspect.info import read_dual_info, read_info

    dual = read_dual_info(model)
    if dual is not None:
        if training or things:
            flag = "--training" if training else "--things"
            raise typer.BadParameter(f"{flag} is of a PaliGemma; {model} is a dual encoder")
        if json:
            print(json_text.dumps({"model": model, **dual.to_dict()}))
        else:
            print_table([], _dual_rows(dual), title=model, figures=False)
        return
    found = read_info(model)
    if things:
        return _tell_things(found, model, json)
    from paliglass.fast import explain_gpu

    here = _on_this_processor(found.config.text_config)
    plans = _training_plans(found, rows) if training else {}
    if json:
        told = {"model": model, **found.to_dict(), "on_this_processor": here}
        told |= {"on_a_gpu": explain_gpu()}
        if training:
            told["training_bytes"] = {
                how: {str(gpus): plan.to_dict() for gpus, plan in of.items()}
                for how, of in plans.items()
            }
        print(json_text.dumps(told))
        return
    about = _info_rows(found)
    about += [(f"{how} on this CPU", "; ".join(lines)) for how, lines in here.items()]
    about.append(("on a GPU", explain_gpu()))
    print_table([], about, title=model, figures=False)
    if training:
        _print_plans(plans, rows)


def _tell_things(info: ModelInfo, model: str, json: bool) -> None:
    if info.things is None:
        fail(f"{model}: has no list of what it knows; a large model knows what its data showed")
    if json:
        print(json_text.dumps(info.things.words, ensure_ascii=False))
        return
    for name, words in info.things.words.items():
        print(f"{name}: {', '.join(words)}")


WAYS: dict[str, tuple[Part, int]] = {
    "all": ("all", 0),
    "decoder": ("decoder", 0),
    "attention": ("attention", 0),
    "LoRA, rank 16": ("decoder", 16),
}
GPUS = (1, 2, 4, 8)


def _on_this_processor(config: GemmaConfig) -> dict[str, list[str]]:
    """What speed there is in each form of the weights."""
    import torch

    from paliglass.fast import METHODS, explain

    told = {"bfloat16": explain(torch.bfloat16)}
    return told | {method: explain(torch.bfloat16, method, config) for method in METHODS}


def _training_plans(info: ModelInfo, rows: int) -> dict[str, dict[int, MemoryPlan]]:
    from paliglass.inspect.memory_plan import plan

    return {
        how: {gpus: plan(info.config, part, rank, gpus, rows) for gpus in GPUS}
        for how, (part, rank) in WAYS.items()
    }


def _print_plans(plans: dict[str, dict[int, MemoryPlan]], rows: int) -> None:
    from paliglass.checkpoints.memory import gigabytes

    each = "row" if rows == 1 else "rows"
    head = ["what learns", *(f"{gpus} GPU" + "s" * (gpus > 1) for gpus in GPUS)]
    lines = [
        [how, *(gigabytes(plan.total) for plan in of.values()), gigabytes(of[1].activations)]
        for how, of in plans.items()
    ]
    title = f"fine-tuning, each GPU's memory: bf16, checkpointing, {rows} {each} a GPU"
    print_table([*head, "of it activations"], lines, title=title)


def _layers(config: SigLipConfig | TextTransformerConfig) -> str:
    return (
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.num_attention_heads} heads of {config.head_dim}"
    )


def _weights(parameters: dict[str, int], memory: dict[str, int]) -> list[tuple[str, str]]:
    from paliglass.checkpoints.memory import gigabytes

    counts = {**parameters, "all": sum(parameters.values())}.items()
    rows = [(f"parameters, {part.replace('_', ' ')}", f"{count:,}") for part, count in counts]
    return rows + [(f"weights in {dtype}", gigabytes(size)) for dtype, size in memory.items()]


def _dual_rows(info: DualInfo) -> list[tuple[str, str]]:
    from paliglass.config import SigLipConfig
    from paliglass.contrastive.config import CbowConfig

    config = info.config
    image, text = config.image, config.text
    picture = f"{image.image_size} × {image.image_size} pixels"
    if isinstance(image, SigLipConfig):
        encoder = f"ViT, {_layers(image)}"
        picture += f" in patches of {image.patch_size}"
    else:
        stages = zip(image.depths, image.hidden_sizes, strict=True)
        encoder = "ResNet, blocks × channels " + ", ".join(f"{n} × {width}" for n, width in stages)
    words = f"bag of words, width {text.hidden_size}"
    return [
        ("image encoder", encoder),
        ("picture", picture),
        (
            "text encoder",
            words if isinstance(text, CbowConfig) else f"Transformer, {_layers(text)}",
        ),
        ("vocabulary", f"{text.vocab_size:,} rows"),
        ("longest text", f"{text.max_position_embeddings} tokens"),
        ("joint space", f"{config.projection_dim} numbers"),
        ("loss", {"clip": "CLIP's", "siglip": "SigLIP's"}[config.loss]),
        *_weights({name: n for name, n in info.parameters.items() if n}, info.memory),
    ]


def _info_rows(info: ModelInfo) -> list[tuple[str, str]]:
    from paliglass.checkpoints.memory import gigabytes

    vision, text = info.config.vision_config, info.config.text_config
    picture = info.config.num_image_tokens
    parts = {
        "vision tower": _layers(vision),
        "picture": (
            f"{vision.image_size} × {vision.image_size} pixels in patches of {vision.patch_size}: "
            f"{picture} tokens"
        ),
        "projector": f"{vision.hidden_size} → {text.hidden_size}",
        "decoder": (
            f"{'Gemma 2' if text.has_post_norms else 'Gemma'}, {text.num_hidden_layers} layers, "
            f"width {text.hidden_size}, MLP {text.intermediate_size}"
        ),
        "heads": (
            f"{text.num_attention_heads} query, {text.num_key_value_heads} key/value, "
            f"of {text.head_dim}"
        ),
        "vocabulary": f"{text.vocab_size:,} rows",
        "longest sequence": f"{text.max_position_embeddings:,} tokens",
    }
    rows = list(parts.items())
    if info.things is not None:
        rows.append(("knows", f"{len(info.things.words)} things; --things lists them"))
    rows += _weights(info.parameters, info.memory)
    rows += [
        (f"cache in {dtype}", f"{size:,} bytes a token, {gigabytes(size * picture)} a picture")
        for dtype, size in info.cache.items()
    ]
    if info.scores:
        rows.append(("attention's scores", f"{gigabytes(info.scores)} at most, in eight prompts"))
    return rows


@command
def convert(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    target: Annotated[Path, typer.Argument(help="The new folder.")],
    *,
    dtype: DtypeOption = "auto",
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Make the weights smaller; only paliglass reads such a folder."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(exists=True, help="For an .npz: a tokenizer.json or its folder."),
    ] = None,
    adapter: AdapterOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="What the files do not tell rightly, as attn_logit_softcapping=50.",
        ),
    ] = None,
) -> None:
    """Write any checkpoint as a folder in transformers' layout, whole or not at all."""
    overrides = dict(map(_setting, settings or []))
    locate_model(source, adapter)
    from paliglass.checkpoints.folder import quantization
    from paliglass.checkpoints.saving import refuse_existing, save_folder
    from paliglass.model import load
    from paliglass.retrieval.folders import is_colpali_checkpoint, load_colpali, parts, save_colpali

    refuse_existing(target)
    config = parts(source)[0] / "config.json"
    is_quantized = quantize is not None or (config.is_file() and bool(quantization(config.parent)))
    how: dict[str, Any] = {"device": "cpu", "dtype": dtype, "quantize": quantize}
    how["fast"] = is_quantized  # such matrices are saved as kernels read them
    is_colpali = is_colpali_checkpoint(source)
    if is_colpali and (overrides or tokenizer or adapter):
        raise typer.BadParameter(f"--set, --tokenizer and --adapter: {source} is a ColPali")
    if is_colpali:
        with waiting(f"loading {source}"):
            colpali, processor = load_colpali(source, **how)
        with waiting(f"writing {target}"):
            save_colpali(colpali, target, processor)
    else:
        with waiting(f"loading {source}"):
            model = load(source, tokenizer=tokenizer, adapter=adapter, **how, **overrides)
        with waiting(f"writing {target}"):
            save_folder(model.model, target, model.processor, companions(source))
    size = sum(entry.stat().st_size for entry in os.scandir(target))
    from paliglass.checkpoints.memory import gigabytes

    hint = "" if is_quantized or is_colpali else f"; check it with: paliglass verify {target}"
    print(f"{target}: {gigabytes(size)}{hint}")


def companions(source: str) -> dict[str, bytes]:
    """What else belongs to a model, by file name: mask codec, calibration, list of things."""
    from paliglass.checkpoints.adapters import with_base
    from paliglass.checkpoints.hub import locate
    from paliglass.checkpoints.mask_codec import CODEC
    from paliglass.tasks import confidence, things

    place, _ = with_base(locate(source))
    folder = place if place.is_dir() else place.parent
    files = (folder / name for name in (CODEC, confidence.FILE, things.FILE))
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a number, true, false or none."""
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, json_text.loads("null" if value.lower() == "none" else value)
    except ValueError:
        raise typer.BadParameter(
            f"--set {text}: give NAME=VALUE with a number, true, false or none"
        ) from None


@command
def verify(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    against: Annotated[
        str | None, typer.Option(help="What transformers is to load instead of MODEL.")
    ] = None,
    json: JsonObject = False,
) -> None:
    """Compare every layer's output with transformers', and the weights with their checksums."""
    locate_model(model)
    if against is not None:
        locate_model(against)
    from paliglass.inspect.verify import verify as compare

    with waiting(f"comparing {model} with transformers"):
        report = compare(model, against)
    if json:
        print(json_text.dumps(report.to_dict()))
    else:
        rows = [
            [row.name, f"{row.difference:.1e}", f"{row.scale:.1e}", "ok" if row.ok else "DIFFERS"]
            for row in report.rows
        ]
        head = ["largest difference from transformers", "difference", "of up to", ""]
        print_table(head, rows, framed=False)
        print(f"weights: {printable(report.integrity)}")
        for problem in report.problems:
            print(f"wrong: {printable(problem)}")
    if not report.ok:
        problems = counted(len(report.problems), "problem")
        fail(f"{model}: NOT VERIFIED, {problems}: {report.problems[0]}")
    if not json:
        print(f"{model}: verified, {len(report.rows)} layers agree")
