"""What an answer may say: a `Constraint` narrows the next token, step by step.

A constraint is the state of a finite-state machine, immutable, so that rows and branches can share
one; `tasks.grammar` has those of boxes, masks, choices and numbers. It says of the next token

- which ones are allowed; the output layer is then computed for these alone
- whether there is but one: a forced token costs no step of its own
- whether its log-probability is that among the allowed tokens, or over the whole vocabulary: how
  likely the one token is that may come tells whether it is true
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Allowed", "Constraint", "allowed_columns"]


class Allowed(NamedTuple):
    """The tokens that may come next: `ids`, and those of low … high − 1 that are not `excluded`.

    score_over_vocab: whether the log-probability of the chosen one is over the whole vocabulary.
    """

    ids: tuple[int, ...]
    low: int = 0
    high: int = 0
    excluded: tuple[int, ...] = ()
    score_over_vocab: bool = False

    @property
    def forced(self) -> int | None:
        """The one token that may come, where there is but one."""
        if len(self.ids) == 1 and self.low == self.high:
            return self.ids[0]
        return self.low if not self.ids and self.high - self.low == 1 else None


class Constraint(Protocol):
    """How far an answer has come."""

    @property
    def fair_budget(self) -> int:
        """How many tokens no answer must be denied: with fewer, the limit would decide."""
        ...

    def allowed(self, budget: int) -> Allowed:
        """What may come next where `budget` more tokens may be said."""
        ...

    def after(self, token: int) -> Self:
        """The state after one of the allowed tokens."""
        ...


def allowed_columns(rows: Sequence[Allowed]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids that any row may say, ascending, U; and which of them each row may, B × U bool."""
    spans = [row for row in rows if row.high > row.low]
    low = min((row.low for row in spans), default=0)
    high = max((row.high for row in spans), default=0)
    single = sorted({token for row in rows for token in row.ids})
    columns = np.unique(np.r_[np.arange(low, high), np.array(single, dtype=np.int64)])
    mask: NDArray[np.bool_] = np.zeros((len(rows), len(columns)), dtype=np.bool_)
    for may, row in zip(mask, rows, strict=True):
        if row.high > row.low:
            first = np.searchsorted(columns, row.low)
            may[first : first + row.high - row.low] = True
            may[np.searchsorted(columns, row.excluded)] = False
        may[np.searchsorted(columns, row.ids)] = True
    return torch.from_numpy(columns), torch.from_numpy(mask)
