"""What int8 costs in quality: mini's answers to the test split, and logits of any checkpoint.

    python -m benchmarks.int8_quality --scenes 300
    python -m benchmarks.int8_quality --logits checkpoint-3b

Tokens are compared place by place, answers freely given (without a grammar); scores are those of
`paliglass eval`. Logits are compared after one prompt of noise, as a share of their norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from paliglass import load
from paliglass.benchmark.engines import inputs
from paliglass.checkpoints.folder import load_model
from paliglass.evaluation.cases import ask
from paliglass.evaluation.scenes import questions_of, score
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--world-cache", type=Path, default=Path(".cache/world"))
    parser.add_argument("--logits", type=Path, help="only compare logits, of this checkpoint")
    options = parser.parse_args()
    if options.logits is not None:
        print(f"relative error of the logits: {logits_error(options.logits):.4f}")
        return
    scores, tokens = {}, []
    for name, quantize in (("bfloat16", None), ("int8", "int8")):
        model = load("mini", device="cpu", dtype="bfloat16", quantize=quantize)
        world = World(options.world_cache, "test", 1, 128, codec=model.mask_codec)
        questions = list(questions_of(world, "test", options.scenes, 8))
        cases = ask(model, questions, free=True)
        scores[name] = score(cases, model.mask_codec)
        tokens.append([model.processor.tokenizer.encode(case.said).ids for case in cases])
    pairs = [(a, b) for a, b in zip(*tokens, strict=True)]
    same = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    longest = sum(max(len(a), len(b)) for a, b in pairs)
    print(f"{same / longest:.4f} of {longest} greedy tokens equal")
    for task in TASKS:
        plain, small = (scores[name][task].score for name in scores)
        print(
            f"{task}: bfloat16 {plain:.4f}, int8 {small:.4f} ({100 * (small - plain):+.2f} points)"
        )


if __name__ == "__main__":
    main()
