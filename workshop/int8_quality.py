"""What int8, and int4, cost in quality: a small model's answers to the test split, and logits.

    python -m workshop.int8_quality --scenes 300
    python -m workshop.int8_quality --model FOLDER --tokens-only
    python -m workshop.int8_quality --logits checkpoint-3b

Tokens are compared after the same words, those of the bfloat16 model's greedy answers (without a
grammar), which go through both models one by one, as in decoding; float32 is compared with bfloat16
too, for scale. Half of a 95 % interval follows each share, of answers drawn anew: tokens of one
answer are not independent. A model should know the world: of one that does not, many choices are
close, and any rounding turns them. Scores are those of `workshop.score`. Logits are compared after
one prompt about noise, as a share of their norm. With the extra `fast`, words go through the
compiled decoder, as they do for users. Where oneDNN has no int8 kernel, its arithmetic is done in
float64, exactly as the kernel would; `--widened` is what runs there instead.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from paliglass import PaliGemma, load
from paliglass.checkpoints.folder import load_model
from paliglass.evaluation.cases import Case
from paliglass.evaluation.judge import answer
from paliglass.fast import accelerate, available_methods, int8, onednn
from paliglass.inspect.bench import noise_batch
from workshop.commands import CACHE, WorldCache, run
from workshop.scene_scores import questions_of, score
from workshop.world import World

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="mini, or a folder of a model that knows the world.")
]
TASKS = ("caption", "answer", "detect", "segment", "word")


def logits_error(folder: Path) -> float:
    """|int8 − bfloat16| / |bfloat16| of the last token's logits."""
    found = []
    for quantize in (None, "int8"):
        model = load_model(folder, "cpu", accelerate=accelerate, quantize=quantize)
        batch = noise_batch(model.config, 1, model.dtype)
        with torch.inference_mode():
            found.append(model(**batch).logits[0, -1].float())
        del model
    return float((found[1] - found[0]).norm() / found[0].norm())


def multiply(
    tokens: Tensor,
    packed: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    token_scale: float = 1.0,
    zero_point: int = onednn.ZERO_POINT,
) -> Tensor:
    """`fast.onednn.multiply_packed` of a matrix that is not packed, exact in float64."""
    product = (tokens.double() - zero_point) @ packed.double().T
    return (product * token_scale * scales.double()).to(dtype)


# What makes `fast.int8` multiply as a processor with VNNI does; the tests put it there too.
EMULATION: dict[str, Callable[..., object]] = {
    "has_kernel": lambda: True,
    "knows_layout": lambda: False,
    "pack": lambda integers: integers,
    "multiply_packed": multiply,
}


Counts = list[tuple[int, int]]  # of each answer: equal tokens, and tokens


@torch.inference_mode()
def agreement(
    plain: PaliGemma, others: Mapping[str, PaliGemma], cases: list[Case]
) -> dict[str, dict[str, Counts]]:
    """By model and task: how many tokens of each of the first model's greedy answers, `<eos>` among
    them, are the other's choice too after the same words; and of how many.
    """
    found: dict[str, dict[str, Counts]] = {name: defaultdict(list) for name in others}
    for case in cases:
        question = case.question
        batch = plain.processor(text=[question.prefix], images=[question.picture])
        ids = plain.processor.encode_suffix(case.prediction)
        expected = _choices(plain, batch, ids)
        for name, model in others.items():
            same = sum(a == b for a, b in zip(expected, _choices(model, batch, ids), strict=True))
            found[name][question.task].append((same, len(expected)))
    return found


def share(counts: Counts) -> tuple[float, float]:
    """The share of equal tokens, and half of its 95 % interval over answers."""
    total = sum(count for _, count in counts)
    found = sum(same for same, _ in counts) / total
    spread = math.sqrt(sum((same - found * count) ** 2 for same, count in counts))
    return found, 1.96 * spread / total


def tell_agreement(agreed: Mapping[str, Mapping[str, Counts]]) -> None:
    """Prints a line for each model."""
    for name, by_task in agreed.items():
        every = list(chain.from_iterable(by_task.values()))
        found, half = share(every)
        tasks: dict[str, Counts] = defaultdict(list)
        for task, counts in by_task.items():  # questions in free wordings go by their first words
            tasks[task if task in TASKS else "others"] += counts
        told = ", ".join(
            f"{task} {share(some)[0]:.4f} of {sum(count for _, count in some)}"
            for task, some in tasks.items()
        )
        total = sum(count for _, count in every)
        print(
            f"{name}: {found:.4f} ± {half:.4f} of {total} greedy tokens are bfloat16's ({told})",
            flush=True,
        )


def _choices(model: PaliGemma, batch: Mapping[str, Tensor], ids: Sequence[int]) -> list[int]:
    """What a model would say after a prompt, and after each token but the last of an answer."""
    network = model.model
    cache = network.new_cache(1, batch["input_ids"].shape[1] + len(ids))
    last = network.prefill(batch["input_ids"], batch["pixel_values"], kv_cache=cache)[:, -1]
    chosen = [int(network.language_model.logits(last).argmax())]
    for token in ids[:-1]:
        last = network.extend(torch.tensor([[token]]), cache)[:, -1]
        chosen.append(int(network.language_model.logits(last).argmax()))
    return chosen


def int8_quality(
    model: ModelName = "mini",
    scenes: Annotated[int, typer.Option(min=1, help="Of the test split.")] = 300,
    tokens_only: Annotated[
        bool, typer.Option("--tokens-only", help="Leave the scores out, three times the work.")
    ] = False,
    widened: Annotated[
        bool, typer.Option("--widened", help="Without a kernel, or its emulation.")
    ] = False,
    logits: Annotated[
        Path | None, typer.Option(help="Only compare logits, of this checkpoint.")
    ] = None,
    world_cache: WorldCache = CACHE,
) -> None:
    """Measure what int8 and int4 cost in quality: answers to the test split, or logits."""
    if logits is not None:
        print(f"relative error of the logits: {logits_error(logits):.4f}")
        return
    if not onednn.has_kernel() and not widened:
        for name, function in EMULATION.items():
            setattr(int8, name, function)
    methods = available_methods()
    plain = load(model, device="cpu", dtype="bfloat16")
    others = {"float32": load(model, device="cpu", dtype="float32")}
    others |= {
        method: load(model, device="cpu", dtype="bfloat16", quantize=method) for method in methods
    }
    side = plain.model.config.vision_config.image_size
    world = World(world_cache, "test", 1, side, codec=plain.mask_codec)
    questions = list(questions_of(world, "test", scenes, 8))
    cases = answer(plain, questions, free=True)
    tell_agreement(agreement(plain, others, cases))
    if tokens_only:
        return
    before = score(cases, plain.mask_codec)
    after = {
        method: score(answer(others[method], questions, free=True), plain.mask_codec)
        for method in methods
    }
    for task in (task for task in TASKS if task in before):  # few scenes lack some
        changes = ", ".join(
            f"{method} {100 * (after[method][task].score - before[task].score):+.2f} points"
            for method in methods
        )
        print(f"{task}: bfloat16 {before[task].score:.4f}, {changes}")


if __name__ == "__main__":
    run(int8_quality)
