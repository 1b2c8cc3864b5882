"""What int8 costs in quality: mini's answers to the test split, and logits of any checkpoint.

    python -m benchmarks.int8_quality --scenes 300
    python -m benchmarks.int8_quality --logits checkpoint-3b

Tokens are compared after the same words, those of the bfloat16 model's greedy answers (without a
grammar); scores are those of `paliglass eval`. Logits are compared after one prompt about noise, as
a share of their norm.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch

from paliglass import PaliGemma, load
from paliglass.benchmark.engines import inputs
from paliglass.checkpoints.folder import load_model
from paliglass.evaluation.cases import Case, ask
from paliglass.evaluation.scenes import questions_of, score
from paliglass.ops.losses import IGNORE
from paliglass.world import World

TASKS = ("caption", "answer", "detect", "segment", "word")


def logits_error(folder: Path) -> float:
    """|int8 − bfloat16| / |bfloat16| of the last token's logits."""
    found = []
    for quantize in (None, "int8"):
        model = load_model(folder, "cpu", None, quantize, pack=True)
        batch = inputs(model.config, 1, model.dtype)
        with torch.inference_mode():
            found.append(model(**batch).logits[0, -1].float())
        del model
    return float((found[1] - found[0]).norm() / found[0].norm())


@torch.inference_mode()
def agreement(plain: PaliGemma, small: PaliGemma, cases: list[Case]) -> dict[str, tuple[int, int]]:
    """By task: how many tokens of the first model's greedy answers, `<eos>` among them, are the
    second one's choice too after the same words; and of how many.
    """
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case in cases:
        question = case.question
        batch = plain.processor(
            text=[question.prefix], images=[question.picture], suffix=[case.said]
        )
        labels = batch.pop("labels")[0, 1:]
        asked = labels != IGNORE
        first, second = (
            model.model(**batch).logits[0, :-1][asked].argmax(-1) for model in (plain, small)
        )
        found[question.task][0] += int((first == second).sum())
        found[question.task][1] += int(asked.sum())
    return {task: (same, count) for task, (same, count) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--world-cache", type=Path, default=Path(".cache/world"))
    parser.add_argument("--logits", type=Path, help="only compare logits, of this checkpoint")
    options = parser.parse_args()
    if options.logits is not None:
        print(f"relative error of the logits: {logits_error(options.logits):.4f}")
        return
    scores = {}
    models = {
        name: load("mini", device="cpu", dtype="bfloat16", quantize=quantize)
        for name, quantize in (("bfloat16", None), ("int8", "int8"))
    }
    for name, model in models.items():
        world = World(options.world_cache, "test", 1, 128, codec=model.mask_codec)
        questions = list(questions_of(world, "test", options.scenes, 8))
        cases = ask(model, questions, free=True)
        scores[name] = score(cases, model.mask_codec)
        if name == "bfloat16":
            said = cases
    agreed = agreement(models["bfloat16"], models["int8"], said)
    for task, (same, count) in agreed.items():
        print(f"{task}: {same / count:.4f} of {count} greedy tokens equal")
    same, count = (sum(column) for column in zip(*agreed.values(), strict=True))
    print(f"all: {same / count:.4f} of {count}")
    for task in TASKS:
        plain, small = (scores[name][task].score for name in scores)
        print(
            f"{task}: bfloat16 {plain:.4f}, int8 {small:.4f} ({100 * (small - plain):+.2f} points)"
        )


if __name__ == "__main__":
    main()
