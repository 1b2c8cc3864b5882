"""The settings of a contrastive run, and the choice of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from paliglass.errors import PaliglassError
from paliglass.training.recipes import TimedRecipe, require_batch, total_steps

__all__ = ["ContrastiveRecipe", "Encoder", "LossName", "TextEncoder"]

Encoder = Literal["vit", "resnet"]
TextEncoder = Literal["transformer", "cbow"]
LossName = Literal["clip", "siglip"]


@dataclass(frozen=True)
class ContrastiveRecipe(TimedRecipe):
    """It ends after `steps` (or `epochs`, where those are not given) or `minutes`, the first.

    In two minutes of one core, 64 pairs a step, a ViT with Muon (arXiv 2502.16982) told 17 % of a
    batch's pairs (rate 2e-3), with AdamW 5 % (1e-3).
    """

    epochs: float | None = field(
        default=None, metadata={"min": 0, "help": "End after so many passes over the data."}
    )
    batch_size: int = field(
        default=256, metadata={"min": 2, "help": "Pairs that are compared, over all processes."}
    )
    accumulate: int = field(
        default=1,
        metadata={
            "min": 1,
            "help": "Batches in a step. They are not compared with each other, only averaged.",
        },
    )
    optimizer: Literal["adamw", "muon"] = field(
        default="muon",
        metadata={"help": "Muon is for the hidden layers' matrices; AdamW then does the rest."},
    )
    learning_rate: float = field(
        default=2e-3, metadata={"min": 0, "help": "The highest; it falls to 0 as a cosine."}
    )
    weight_decay: float = field(default=0.05, metadata={"min": 0, "help": "Of matrices."})
    warm_up_steps: int = field(
        default=100, metadata={"min": 0, "help": "Steps until the highest rate."}
    )

    def complete(self, pairs: int | None) -> ContrastiveRecipe:
        """With steps for epochs; pairs: of the source, None where it has no end.

        Raises PaliglassError where the recipe does not say when to end, or the pairs do not fill a
        batch.
        """
        require_batch(pairs, self.batch_size)
        rows = self.batch_size * self.accumulate
        steps = total_steps(self.steps, self.epochs, pairs, rows)
        if steps is None and self.minutes is None:
            raise PaliglassError("say when to end: --steps, --minutes or --epochs")
        return replace(self, steps=steps, epochs=None)
