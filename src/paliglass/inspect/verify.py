"""Layer by layer, on the same weights and input: this implementation against transformers.

Two questions, since they have different answers when something is wrong:

- are the weights the ones that were published or saved? Every tensor is compared with the folder's
  checksums.json (`paliglass convert` writes it), and every file with the SHA-256 under which the
  hub's cache keeps it
- does this code compute what transformers computes from them? The output of every layer is
  compared on one fixed picture and prompt, in float32
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.checkpoints.adapters import is_adapter
from paliglass.checkpoints.folder import (
    load_model,
    quantization,
    read_config,
    read_tensors,
    weight_files,
)
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.layouts import HEAD
from paliglass.checkpoints.saving import CHECKSUMS, digest
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError, PaliglassError, not_installed
from paliglass.files import read_json

__all__ = ["LayerComparison", "Verification", "fixed_input", "verify"]

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the layer's largest output (float32 rounding piles up
to some 1e-6 over a full-size model)."""

PROMPT_TOKENS = 8


@dataclass(frozen=True)
class LayerComparison:
    """A layer's output: the largest absolute difference, the largest output there is, and the
    length of the difference as a share of the output's (a few huge channels hide nothing there).
    """

    name: str
    difference: float
    scale: float
    relative: float

    @property
    def ok(self) -> bool:
        return (
            self.difference <= TOLERANCE * self.scale and self.relative <= TOLERANCE
        )  # NaN is not


@dataclass(frozen=True)
class Verification:
    """What was compared, and all that is wrong."""

    rows: list[LayerComparison]
    integrity: str
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "ok": row.ok} for row in self.rows]
        return {
            "ok": self.ok,
            "integrity": self.integrity,
            "problems": self.problems,
            "layers": rows,
        }


def verify(model: str | Path, reference: str | Path | None = None) -> Verification:
    """Checks a checkpoint folder and this code on it.

    Args:
        model: the folder, hub id or "mini" that paliglass loads.
        reference: what transformers loads; by default the same. Another one tells whether a
            conversion or a download changed any weight.

    Raises PaliglassError where transformers is not installed, or `model` does not load.
    """
    folder = locate(model)
    other = folder if reference is None else locate(reference)
    if is_adapter(other):
        read_config(other)  # its complaint
    method = quantization(folder)
    integrity, problems = check_integrity(folder)
    if method is not None:
        raise CheckpointError(
            f"{folder}: {problems[0]}"
            if problems
            else f"{folder}: is in {method}, which transformers does not read; verify what it was "
            f"made from ({integrity}: none is altered)"
        )
    batch = fixed_input(read_config(folder))
    our_outputs = _run(load_model(folder, "cpu", torch.float32), _our_layers, batch)
    # One after the other: two full-size models in float32 would not fit in most machines.
    their_outputs = _run(_load_transformers(other), _their_layers, batch)
    rows = []
    for name, output in our_outputs.items():
        expected = their_outputs.get(name)
        if expected is None or expected.shape != output.shape:
            problems.append(f"{name}: transformers has no such layer of that shape")
            continue
        gap = output - expected
        relative = (gap.norm() / expected.norm()).item()
        rows.append(
            LayerComparison(name, gap.abs().max().item(), expected.abs().max().item(), relative)
        )
    wrong = [row for row in rows if not row.ok]
    if wrong:
        first = wrong[0]
        problems.append(
            f"{first.name}: differs by {first.difference:.2e} where outputs reach "
            f"{first.scale:.2e}; {len(wrong)} of {len(rows)} layers differ"
        )
    return Verification(rows, integrity, problems)


def check_integrity(folder: Path) -> tuple[str, list[str]]:
    """(how the weights were checked, the tensors or files that are not what was recorded)."""
    if (folder / CHECKSUMS).is_file():
        recorded = read_json(folder / CHECKSUMS)
        found = {name: digest(t) for name, _, t in read_tensors(folder) if name != HEAD}
        altered = sorted(name for name in found if found[name] != recorded.get(name))
        altered += sorted(set(recorded) - set(found))
        problems = [f"{name}: is not what {CHECKSUMS} records" for name in altered]
        return f"{len(found)} tensors against {CHECKSUMS}", problems
    blobs = [(file, file.resolve()) for file in weight_files(folder)]
    if all(blob.parent.name == "blobs" and len(blob.name) == 64 for _, blob in blobs):
        problems = [
            f"{file.name}: is not what the hub recorded; delete it and download again"
            for file, blob in blobs
            if _file_sha256(blob) != blob.name
        ]
        return f"{len(blobs)} files against the hub's SHA-256", problems
    return "no checksums recorded: an altered weight would go unnoticed", []


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_transformers(folder: Path) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise PaliglassError(not_installed("transformers")) from None
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",  # its other kernels leave Gemma 2's softcap out
            local_files_only=True,
        )
    except Exception as error:
        raise PaliglassError(f"transformers cannot load {folder}: {error}") from None
    return model.eval()


def fixed_input(config: PaliGemmaConfig) -> dict[str, Tensor]:
    """A picture of noise and a prompt of random words, the same every time."""
    generator = torch.Generator().manual_seed(0)
    side = config.vision_config.image_size
    words = torch.randint(
        3, min(config.text_config.vocab_size, config.image_token_index), (1, PROMPT_TOKENS),
        generator=generator,
    )  # fmt: skip
    places = torch.full((1, config.num_image_tokens), config.image_token_index)
    ids = torch.cat((places, words), dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": torch.rand((1, 3, side, side), generator=generator) * 2 - 1,
    }


def _our_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, by our names, in the order in which they run."""
    compared = re.compile(r"(.*\.)?(embeddings|layers\.\d+|post_layernorm|linear|norm|lm_head)")
    return {name: m for name, m in model.named_modules() if compared.fullmatch(name)}


def _their_layers(model: nn.Module) -> dict[str, nn.Module]:
    """transformers' modules under our names."""
    renamed = {}
    for name, module in model.named_modules():
        name = name.removeprefix("model.")
        name = name.replace("language_model.", "language_model.model.", 1)
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        renamed["language_model.lm_head" if name == "lm_head" else name] = module
    return renamed


def _run(
    model: nn.Module,
    layers: Callable[[nn.Module], dict[str, nn.Module]],
    batch: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The output of every layer on a batch, in the order in which they run; logits last."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for name, layer in layers(model).items():
        layer.register_forward_hook(keep(name))
    with torch.inference_mode():
        outputs["logits"] = model(**batch).logits
    return outputs
