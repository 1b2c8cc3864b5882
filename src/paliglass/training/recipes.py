"""Recipes: a run's settings, in one place for its options, its YAML file and its record.

A field's metadata are what the command line makes an option of (see `cli.app.command`). `RECIPES`
are the settings that PaliGemma was transferred with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paliglass.errors import PaliglassError

__all__ = [
    "RECIPES",
    "FinetuneRecipe",
    "Part",
    "Precision",
    "Recipe",
    "TimedRecipe",
    "picture_side",
    "require_batch",
    "total_steps",
]

Precision = Literal["fp32", "bf16"]
Part = Literal["all", "decoder", "attention", "projector"]


@dataclass(frozen=True)
class Recipe:
    """What every run has.

    precision: what forward and backward compute in, None for float32 (the command line then asks
    the processor); the weights that learn are float32 either way.
    """

    steps: int | None = field(default=None, metadata={"min": 1, "help": "End after these."})
    precision: Precision | None = field(
        default=None,
        metadata={
            "show_default": "what the processor has; with --resume the run's own",
            "help": "What is computed in; bf16 is faster where the processor has it, and slower "
            "where it has not.",
        },
    )
    seed: int = field(
        default=0, metadata={"min": 0, "help": "Of all that is random: weights, order, dropout."}
    )


@dataclass(frozen=True)
class TimedRecipe(Recipe):
    """Of a run that may also end by the clock."""

    minutes: float | None = field(
        default=None, metadata={"min": 0.001, "help": "End after this time."}
    )


def total_steps(
    steps: int | None, epochs: float | None, examples: int | None, rows: int
) -> int | None:
    """Where a run ends: at `steps`, or after so many passes over its examples, or None.

    rows: of a step. Raises PaliglassError for passes over what has no end (examples None).
    """
    if steps is not None or epochs is None:
        return steps
    if examples is None:
        raise PaliglassError("--epochs: this data has no end; give --steps or --minutes")
    return max(1, round(epochs * examples / rows))


def require_batch(examples: int | None, batch_size: int) -> None:
    """Raises PaliglassError where there are fewer examples than a batch (None: without end)."""
    if examples is not None and examples < batch_size:
        those = "1 example does" if examples == 1 else f"{examples} examples do"
        raise PaliglassError(
            f"{those} not fill a batch of {batch_size}; give --batch-size {examples}, or fewer"
        )


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """A fine-tuning run's settings; `steps` win over `epochs`.

    Raises PaliglassError for adapters (`lora`) where there are none.
    """

    epochs: float | None = field(
        default=None, metadata={"min": 0, "help": "End after so many passes over the data."}
    )
    batch_size: int = field(
        default=8,
        metadata={"min": 1, "help": "Rows in a step, over all processes and --accumulate."},
    )
    accumulate: int = field(
        default=1,
        metadata={"min": 1, "help": "Parts that a step's rows are worked off in, for memory."},
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "min": 0,
            "show_default": "2e-5; with --lora 2e-4",
            "help": "The highest; it falls to 0 as a cosine.",
        },
    )
    warm_up: float = field(
        default=0.05,
        metadata={"min": 0, "max": 1, "help": "Share of the steps until the highest rate."},
    )
    weight_decay: float = field(default=0.0, metadata={"min": 0, "help": "Of matrices."})
    label_smoothing: float = field(
        default=0.0,
        metadata={"min": 0, "max": 0.99, "help": "Share of each target spread over all words."},
    )
    train: Part = field(
        default="all", metadata={"help": "What learns; with --lora, what gets adapters."}
    )
    lora: int = field(
        default=0, metadata={"min": 0, "help": "Rank of LoRA adapters; 0: every weight learns."}
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={"min": 0, "show_default": "2 × rank", "help": "Their scale, times the rank."},
    )
    lora_dropout: float = field(
        default=0.0, metadata={"min": 0, "max": 1, "help": "In front of adapters."}
    )
    checkpointing: bool = field(default=False, metadata={"help": "Less memory, a third more work."})

    def __post_init__(self) -> None:
        if self.lora and self.train == "projector":
            raise PaliglassError("--lora goes with --train all, decoder or attention")

    def complete(self, examples: int | None = None) -> FinetuneRecipe:
        """With what follows from the rest: steps from epochs, the rate, the adapters' scale.

        Raises PaliglassError where the recipe does not say when to end, or the examples do not fill
        a batch.
        """
        require_batch(examples, self.batch_size)
        steps = total_steps(self.steps, self.epochs, examples, self.batch_size)
        if steps is None:
            raise PaliglassError("say when to end: --steps or --epochs")
        rate, alpha = self.learning_rate, self.lora_alpha
        if rate is None:
            rate = 2e-4 if self.lora else 2e-5
        if alpha is None and self.lora:
            alpha = 2.0 * self.lora
        return replace(self, steps=steps, epochs=None, learning_rate=rate, lora_alpha=alpha)


# learning rate, weight decay, epochs, rows in a step, label smoothing
_TABLE = {
    "ai2d": (1e-5, 0.1, 10, 256, 0.0),
    "aokvqa-da": (5e-6, 0.0, 10, 128, 0.0),
    "aokvqa-mc": (5e-6, 0.0, 15, 128, 0.0),
    "chartqa": (1e-5, 0.1, 30, 256, 0.2),
    "cococap": (1e-5, 0.1, 5, 256, 0.0),
    "docvqa": (1e-5, 0.1, 10, 256, 0.0),  # 896 too
    "gqa-224": (1e-5, 0.0, 1, 256, 0.0),
    "gqa-448": (1e-5, 0.0, 1, 256, 0.0),
    "infovqa-224": (1e-5, 0.1, 3, 256, 0.4),
    "infovqa-448": (1e-5, 0.1, 3, 128, 0.4),
    "infovqa-896": (3e-6, 0.1, 3, 32, 0.4),
    "ocrvqa": (3e-6, 0.0, 3, 128, 0.0),
    "ocrvqa-896": (1e-5, 0.0, 3, 128, 0.0),
    "okvqa": (5e-6, 0.0, 10, 128, 0.0),
    "refcoco-224": (3e-5, 0.0, 100, 256, 0.3),  # boxes and masks have no single right token
    "refcoco-448": (1e-5, 0.0, 100, 256, 0.3),
    "refcoco-896": (1e-5, 0.0, 100, 64, 0.3),
    "rsvqa-hr": (1e-5, 0.0, 1, 256, 0.0),
    "rsvqa-lr": (3e-6, 0.0, 3, 256, 0.2),
    "science-qa": (1e-5, 0.0, 20, 128, 0.0),
    "scicap": (3e-5, 0.0, 80, 256, 0.1),
    "screen2words": (1e-5, 0.0, 10, 256, 0.2),
    "stvqa-224": (1e-5, 0.1, 3, 256, 0.1),
    "stvqa-448": (1e-5, 0.1, 3, 128, 0.1),
    "stvqa-896": (3e-6, 0.1, 3, 32, 0.1),
    "tallyqa-224": (1e-5, 0.0, 2, 256, 0.0),
    "tallyqa-448": (1e-5, 0.1, 2, 256, 0.0),
    "tallyqa-896": (7e-6, 0.1, 2, 256, 0.0),
    "textcaps": (1e-5, 0.1, 5, 256, 0.0),
    "textvqa-224": (3e-6, 0.0, 5, 256, 0.0),
    "textvqa-448": (3e-6, 0.1, 10, 256, 0.0),
    "textvqa-896": (3e-6, 0.0, 10, 256, 0.0),
    "vizwizvqa": (1e-5, 0.0, 10, 256, 0.0),
    "vqav2-224": (1e-5, 0.1, 10, 256, 0.0),
    "vqav2-448": (1e-5, 0.0, 10, 256, 0.0),
    "widgetcap": (3e-6, 0.1, 4, 64, 0.1),
}
_SETTINGS = ("learning_rate", "weight_decay", "epochs", "batch_size", "label_smoothing")

RECIPES: dict[str, dict[str, Any]] = {
    name: {"warm_up": 0.05, **dict(zip(_SETTINGS, numbers, strict=True))}
    for name, numbers in _TABLE.items()
}
for _name in ("gqa-448", "science-qa"):  # transferred with the vision tower frozen
    RECIPES[_name]["train"] = "decoder"


def picture_side(name: str) -> int | None:
    """The side of the pictures that a recipe is for, where it is for one only."""
    side = name.rpartition("-")[2]
    return int(side) if side.isdigit() else None
